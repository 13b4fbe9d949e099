"""The models, as flat files that travel with every checkpoint; this file re-exports them."""

from .configuration_vitmae import VitMaeConfig as VitMaeConfig
from .modeling_vitmae import VitMaeBackbone as VitMaeBackbone
from .modeling_vitmae import VitMaeForImageClassification as VitMaeForImageClassification
from .modeling_vitmae import VitMaeForMaskedPatchPrediction as VitMaeForMaskedPatchPrediction
from .modeling_vitmae import VitMaeForNextPatchPrediction as VitMaeForNextPatchPrediction
from .modeling_vitmae import VitMaeForPreTraining as VitMaeForPreTraining
from .modeling_vitmae import VitMaeForSemanticSegmentation as VitMaeForSemanticSegmentation
from .modeling_vitmae import VitMaeModel as VitMaeModel
