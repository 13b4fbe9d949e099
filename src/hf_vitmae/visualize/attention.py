"""Where an encoder looks: attention of each head, and rolled out over all layers.

Rollout is that of Abnar and Zuidema (arXiv:2005.00928): a block passes on half of what a token was
and half of what it attends to. Shapes: see `patches.py`; A is the number of heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.models.modes import evaluating
from hf_vitmae.visualize.pictures import patch_grid


def attention_maps(
    model: VitMaePreTrainedModel,
    pixel_values: Tensor,
    *,
    layer: int = -1,
    interpolate_pos_encoding: bool = False,
) -> Tensor:
    """What each head of a layer looks at: (B, C, H, W) -> float32 (B, A, h, w).

    The tokens that ask are those that the model pools: the CLS token, or all patches, averaged.
    What goes to the CLS token itself is left out, so a map adds up to 1 or less.
    """
    weights = _weights(model, pixel_values, interpolate_pos_encoding)[layer]  # (B, A, L, L)
    return _asked(model, weights).unflatten(-1, patch_grid(pixel_values, model.config))


def attention_rollout(
    model: VitMaePreTrainedModel, pixel_values: Tensor, *, interpolate_pos_encoding: bool = False
) -> Tensor:
    """Where the pooled tokens' content comes from: (B, C, H, W) -> float32 (B, h, w)."""
    weights = _weights(model, pixel_values, interpolate_pos_encoding)
    rolled = rollout([layer.mean(dim=1) for layer in weights])  # (B, L, L)
    return _asked(model, rolled).unflatten(-1, patch_grid(pixel_values, model.config))


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Multiply layers' attention, each with the residual: (B, L, L), first layer first -> same."""
    identity = torch.eye(weights[0].shape[-1])
    total = identity.expand_as(weights[0])
    for layer in weights:
        total = (layer + identity) / 2 @ total
    return total


def _weights(
    model: VitMaePreTrainedModel, pixel_values: Tensor, interpolate: bool
) -> tuple[Tensor, ...]:
    """float32 (B, A, L, L) of each layer, on the CPU."""
    with evaluating(model):
        output = model.base_model(
            pixel_values.to(model.device),
            mask_ratio=0.0,
            interpolate_pos_encoding=interpolate,
            output_attentions=True,
        )
    return tuple(layer.float().cpu() for layer in output.attentions)


def _asked(model: VitMaePreTrainedModel, weights: Tensor) -> Tensor:
    """The pooled tokens' look at patches: (..., L, L) -> (..., N)."""
    asking = weights[..., :1, 1:] if model.config.pooling == "cls" else weights[..., 1:, 1:]
    return asking.mean(dim=-2)
