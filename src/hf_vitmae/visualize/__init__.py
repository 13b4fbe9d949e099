"""Looking: reconstructions, panels of them, and loss curves, as PIL images."""

from hf_vitmae.visualize.curves import loss_curve as loss_curve
from hf_vitmae.visualize.panel import reconstruction_panel as reconstruction_panel
from hf_vitmae.visualize.reconstruction import Reconstruction as Reconstruction
from hf_vitmae.visualize.reconstruction import mean_visible_baseline as mean_visible_baseline
from hf_vitmae.visualize.reconstruction import reconstruct as reconstruct
