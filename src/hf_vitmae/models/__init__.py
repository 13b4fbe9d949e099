"""The models, as flat files that travel with every checkpoint; this file re-exports them."""

from .configuration_vitmae import VitMaeConfig as VitMaeConfig
from .modeling_vitmae import VitMaeForImageClassification as VitMaeForImageClassification
from .modeling_vitmae import VitMaeForPreTraining as VitMaeForPreTraining
from .modeling_vitmae import VitMaeModel as VitMaeModel
