"""A checkpoint so small that a test can embed with it."""

from pathlib import Path
from typing import Any

import torch

from hf_vitmae import VitMaeConfig, VitMaeForPreTraining, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": (16, 24),
    "patch_size": (4, 8),
    "decoder_hidden_size": 8,
    "decoder_num_attention_heads": 2,
}


def save_small_model(
    folder: Path, seed: int = 0, kind: type[VitMaePreTrainedModel] = VitMaeForPreTraining
) -> Path:
    """A model of fresh weights, with its image processor."""
    torch.manual_seed(seed)
    config = VitMaeConfig(**SMALL)
    kind(config).save_pretrained(folder)
    VitMaeImageProcessor.for_model(config).save_pretrained(folder)
    return folder
