"""Where an encoder looks: attention of each head, and rolled out over all layers.

Rollout is that of Abnar and Zuidema (arXiv:2005.00928): a block passes on half of what a token was
and half of what it attends to. Shapes: see `patches.py`; A is the number of heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.models.modes import evaluating
from hf_vitmae.visualize.heat import heat_over
from hf_vitmae.visualize.panel import PanelRow, picture_panel
from hf_vitmae.visualize.pictures import BATCH_SIZE, patch_grid, prepared, to_pictures

Attentions = tuple[Tensor, ...]  # float32 (B, A, L, L) of each layer
ASKING = {"cls": "what the CLS token attends to", "mean": "what patches attend to, on average"}
OPACITY = 0.75  # of the colours over the image: attention is read by them, the image tells where


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

    Raises:
        ValueError: if there is no such layer.
    """
    _check_layer(model, layer)
    found = _attentions(model, pixel_values, interpolate_pos_encoding)
    return _heads(model, found, layer).unflatten(-1, patch_grid(pixel_values, model.config))


def attention_rollout(
    model: VitMaePreTrainedModel, pixel_values: Tensor, *, interpolate_pos_encoding: bool = False
) -> Tensor:
    """Where the pooled tokens' content comes from: (B, C, H, W) -> float32 (B, h, w)."""
    found = _attentions(model, pixel_values, interpolate_pos_encoding)
    return _rolled(model, found).unflatten(-1, patch_grid(pixel_values, model.config))


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Multiply layers' attention, each with the residual: (B, L, L), first layer first -> same."""
    identity = torch.eye(weights[0].shape[-1])
    total = identity.expand_as(weights[0])
    for layer in weights:
        total = (layer + identity) / 2 @ total
    return total


def attention_panel(
    model: VitMaePreTrainedModel,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    layer: int = -1,
    scale: int | None = None,
    interpolate_pos_encoding: bool = False,
) -> Image.Image:
    """Each image as a row: input, rollout, the mean of a layer's heads, and every head.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        layer: whose heads are drawn; -1 is the last.
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if there is no such layer, or an argument does not fit.
    """
    _check_layer(model, layer)
    config = model.config
    processor, pixel_values = prepared(config, images, processor)  # (B, C, H, W)
    grid = patch_grid(pixel_values, config)
    rows = []
    for part in pixel_values.split(BATCH_SIZE):
        found = _attentions(model, part, interpolate_pos_encoding)
        heads = _heads(model, found, layer).unflatten(-1, grid)  # (B, A, h, w)
        whole = _rolled(model, found).unflatten(-1, grid)  # (B, h, w)
        for picture, rolled, each in zip(to_pictures(processor, part), whole, heads, strict=True):
            maps = {"rollout": rolled, "mean of heads": each.mean(dim=0)}
            maps |= {f"head {number}": head for number, head in enumerate(each, start=1)}
            drawn = {name: heat_over(picture, one.numpy(), OPACITY) for name, one in maps.items()}
            rows.append(PanelRow({"input": picture, **drawn}, ""))
    number = layer % config.num_hidden_layers + 1
    footer = [
        f"heads of layer {number} of {config.num_hidden_layers}: {ASKING[config.pooling]}",
        "bright: more of the attention; each picture has its own scale",
    ]
    return picture_panel(rows, footer, scale=scale)


def _check_layer(model: VitMaePreTrainedModel, layer: int) -> None:
    number = model.config.num_hidden_layers
    if not -number <= layer < number:
        raise ValueError(
            f"`layer` must be from 0 to {number - 1}, or -1 for the last; got {layer}."
        )


def _attentions(
    model: VitMaePreTrainedModel, pixel_values: Tensor, interpolate: bool
) -> Attentions:
    """All attention weights, on the CPU."""
    with evaluating(model), _weights_kept(model):
        output = model.base_model(
            pixel_values.to(model.device),
            interpolate_pos_encoding=interpolate,
            output_attentions=True,
        )
    return tuple(layer.float().cpu() for layer in output.attentions)


@contextmanager
def _weights_kept(model: VitMaePreTrainedModel) -> Iterator[None]:
    """Eager attention for a while: the others keep no weights."""
    encoder = cast(VitMaePreTrainedModel, model.base_model)
    before = encoder.config._attn_implementation or "eager"
    encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        encoder.set_attn_implementation(before)


def _heads(model: VitMaePreTrainedModel, found: Attentions, layer: int) -> Tensor:
    """-> (B, A, N)."""
    return _asked(model, found[layer])


def _rolled(model: VitMaePreTrainedModel, found: Attentions) -> Tensor:
    """-> (B, N)."""
    return _asked(model, rollout([layer.mean(dim=1) for layer in found]))


def _asked(model: VitMaePreTrainedModel, weights: Tensor) -> Tensor:
    """The pooled tokens' look at patches: (..., L, L) -> (..., N)."""
    asking = weights[..., :1, 1:] if model.config.pooling == "cls" else weights[..., 1:, 1:]
    return asking.mean(dim=-2)
