"""Looking: what models predict, panels of it, and loss curves, as PIL images."""

from hf_vitmae.visualize.anomaly import AnomalyMap as AnomalyMap
from hf_vitmae.visualize.anomaly import anomaly_maps as anomaly_maps
from hf_vitmae.visualize.anomaly import complementary_masks as complementary_masks
from hf_vitmae.visualize.attention import attention_maps as attention_maps
from hf_vitmae.visualize.attention import attention_rollout as attention_rollout
from hf_vitmae.visualize.color_prediction import CORRUPTION_NOTE as CORRUPTION_NOTE
from hf_vitmae.visualize.color_prediction import color_predictions as color_predictions
from hf_vitmae.visualize.continuation import CONTINUATION_NOTE as CONTINUATION_NOTE
from hf_vitmae.visualize.continuation import continuations as continuations
from hf_vitmae.visualize.curves import loss_curve as loss_curve
from hf_vitmae.visualize.heat import heat_over as heat_over
from hf_vitmae.visualize.panel import PanelRow as PanelRow
from hf_vitmae.visualize.panel import picture_panel as picture_panel
from hf_vitmae.visualize.panel import reconstruction_panel as reconstruction_panel
from hf_vitmae.visualize.reconstruction import Reconstruction as Reconstruction
from hf_vitmae.visualize.reconstruction import mean_visible_baseline as mean_visible_baseline
from hf_vitmae.visualize.reconstruction import reconstruct as reconstruct
from hf_vitmae.visualize.segmentation import class_legend as class_legend
from hf_vitmae.visualize.segmentation import class_palette as class_palette
from hf_vitmae.visualize.segmentation import overlay as overlay
from hf_vitmae.visualize.segmentation import segmentation_rows as segmentation_rows
