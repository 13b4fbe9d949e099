"""Small models and inputs that the tests of the models share."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitmae.models.configuration_vitmae import VitMaeConfig

# Height and width differ everywhere: a grid of 4 x 3 patches of 4 x 8 pixels.
RECTANGULAR: dict[str, Any] = {"image_size": (16, 24), "patch_size": (4, 8)}


def tiny_config(**overrides: Any) -> VitMaeConfig:
    """A model of two narrow layers on 16x16 images with 4x4 patches: 16 patches."""
    values: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 4,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
    }
    return VitMaeConfig(**(values | overrides))


def random_images(config: VitMaeConfig, batch: int = 3, seed: int = 0) -> Tensor:
    """Normalised images: (B, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.num_channels, *config.image_pair, generator=generator)


def random_noise(config: VitMaeConfig, batch: int = 3, seed: int = 1) -> Tensor:
    """Masking noise: (B, N)."""
    return torch.rand(batch, config.num_patches, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stir(model: torch.nn.Module, seed: int = 2, scale: float = 0.1) -> None:
    """Move every parameter off its start value, so that none is ignored or confused unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Gradient checkpointing on, by the newer of its two names where there is one."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
