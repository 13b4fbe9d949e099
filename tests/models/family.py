"""Every class of the family with every stem, and what to call it with."""

from typing import Any

import torch
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
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

from .tiny import RECTANGULAR, random_images, tiny_config

# The Auto class of each; the design gives next patch prediction none.
AUTO_CLASSES: dict[type[VitMaePreTrainedModel], Any] = {
    VitMaeModel: AutoModel,
    VitMaeForPreTraining: AutoModelForPreTraining,
    VitMaeForImageClassification: AutoModelForImageClassification,
    VitMaeForSemanticSegmentation: AutoModelForSemanticSegmentation,
    VitMaeForMaskedPatchPrediction: AutoModelForMaskedImageModeling,
    VitMaeForNextPatchPrediction: None,
    VitMaeBackbone: AutoBackbone,
}
CLASSES = tuple(AUTO_CLASSES)
# What opens a folder as each class: AutoBackbone of transformers opens no local one.
OPENERS = {kind: auto for kind, auto in AUTO_CLASSES.items() if auto is not None}
OPENERS |= {kind: kind for kind in (VitMaeBackbone, VitMaeForNextPatchPrediction)}
TRAINABLE = tuple(kind for kind in CLASSES if kind not in (VitMaeModel, VitMaeBackbone))

# The parts of a class that another class's checkpoint does not have.
HEAD_PARTS: dict[type[VitMaePreTrainedModel], set[str]] = {
    VitMaeModel: set(),
    VitMaeForPreTraining: {"decoder"},
    VitMaeForImageClassification: {"classifier"},
    VitMaeForSemanticSegmentation: {"segmentation_head"},
    VitMaeForMaskedPatchPrediction: {"mask_token", "patch_head"},
    VitMaeForNextPatchPrediction: {"next_patch_head"},
    VitMaeBackbone: set(),
}

HYBRID: dict[str, Any] = {
    "stem_depths": (1, 1),
    "stem_width": 8,
    "stem_num_groups": 4,
    "patch_size": (8, 16),
    "image_size": (16, 48),
}
STEMS = {"linear": RECTANGULAR, "hybrid": HYBRID}


def family_config(stem: str, **overrides: Any) -> VitMaeConfig:
    """A tiny rectangular model with that stem: images (16, 24) or (16, 48), 3 classes."""
    values = {"num_labels": 3, "segmentation_hidden_size": 8, "pyramid_hidden_size": 8}
    return tiny_config(**(STEMS[stem] | values | overrides))


def family_inputs(kind: type[VitMaePreTrainedModel], config: VitMaeConfig) -> dict[str, Any]:
    """Three images, and labels where the class takes them."""
    inputs: dict[str, Any] = {"pixel_values": random_images(config)}
    if kind is VitMaeForImageClassification:
        inputs["labels"] = torch.tensor([2, 0, 1])
    if kind is VitMaeForSemanticSegmentation:
        generator = torch.Generator().manual_seed(5)
        inputs["labels"] = torch.randint(3, (3, *config.image_pair), generator=generator)
    return inputs
