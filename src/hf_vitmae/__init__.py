"""Vision Transformers and Masked Autoencoders for people with their own images.

Importing the package registers its classes with transformers' Auto classes; everything that trains,
reads data or draws is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any, cast

from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)

if TYPE_CHECKING:
    from hf_vitmae.data.sources import open_source
    from hf_vitmae.visualize import reconstruct

__version__ = "0.1.0"
__all__ = [
    "VitMaeBackbone",
    "VitMaeConfig",
    "VitMaeForImageClassification",
    "VitMaeForMaskedPatchPrediction",
    "VitMaeForNextPatchPrediction",
    "VitMaeForPreTraining",
    "VitMaeForSemanticSegmentation",
    "VitMaeImageProcessor",
    "VitMaeModel",
    "open_source",
    "reconstruct",
]

_LAZY = {"open_source": "hf_vitmae.data.sources", "reconstruct": "hf_vitmae.visualize"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def _push_to_hub(self: Any, repo_id: str, **options: Any) -> Any:
    """Push with a card; see `hf_vitmae.hub.card_push.push_model`."""
    from hf_vitmae.hub.card_push import push_model

    return push_model(self, repo_id, **options)


# Not in the class itself, which travels with checkpoints and may know nothing of this package.
cast(Any, VitMaePreTrainedModel).push_to_hub = _push_to_hub
AutoConfig.register("hf_vitmae", VitMaeConfig)
AutoModel.register(VitMaeConfig, VitMaeModel)
AutoModelForPreTraining.register(VitMaeConfig, VitMaeForPreTraining)
AutoModelForImageClassification.register(VitMaeConfig, VitMaeForImageClassification)
AutoModelForSemanticSegmentation.register(VitMaeConfig, VitMaeForSemanticSegmentation)
AutoModelForMaskedImageModeling.register(VitMaeConfig, VitMaeForMaskedPatchPrediction)
AutoBackbone.register(VitMaeConfig, VitMaeBackbone)
AutoImageProcessor.register(
    VitMaeConfig,
    image_processor_classes={"pil": VitMaeImageProcessor, "torchvision": VitMaeImageProcessor},
)
