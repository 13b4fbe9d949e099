"""How next patch prediction continues an image, as pictures. Shapes: see `patches.py`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForNextPatchPrediction
from hf_vitmae.models.modes import evaluating
from hf_vitmae.models.patches import (
    denormalize_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from hf_vitmae.visualize.panel import PanelRow
from hf_vitmae.visualize.pictures import BATCH_SIZE, gray_out, patch_grid, prepared, to_pictures

COLUMNS = ("input", "given", "continued", "one step")
CONTINUATION_NOTE = (  # for the footer of a page
    "continued: from its own predictions; one step: each patch from the true ones before it"
)
STATISTICS_NOTE = "one step: with mean and contrast of the true patches"


def continuations(
    model: VitMaeForNextPatchPrediction,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    num_given_patches: int | None = None,
    bidirectional_prefix: bool = False,
    interpolate_pos_encoding: bool = False,
) -> list[PanelRow]:
    """Let the model continue B images from their first patches: -> B rows for a panel.

    The columns are the input; the patches that are given, the rest in mid-gray; what `generate`
    makes of them; and each patch predicted from the true ones before it. With `norm_pix_loss` the
    last takes each patch's mean and contrast from the input, which shows more than the model knows;
    the caption says so. Of images with 2 channels the first is shown, of those with more than 3 the
    first three.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry and statistics.
        num_given_patches: how many to keep; by default the upper half of the rows.
        bidirectional_prefix: the given patches attend to each other both ways; none of them is then
            predicted, and in the last column they are mid-gray.
        interpolate_pos_encoding: accept images of another size than the model's.

    Raises:
        ValueError: if the model does not predict next patches, or an argument does not fit.
    """
    # By what it has, not by class: a checkpoint loaded with its own code has classes of its own.
    if not hasattr(model, "next_patch_head"):
        raise ValueError(
            f"{type(model).__name__} has no `next_patch_head` and cannot continue images; load a "
            "checkpoint of next patch prediction as VitMaeForNextPatchPrediction."
        )
    config = model.config
    processor, pixel_values = prepared(config, images, processor)  # (B, C, H, W)
    if num_given_patches is None:
        rows, columns = patch_grid(pixel_values, config)
        num_given_patches = (rows + 1) // 2 * columns
    options = (num_given_patches, bidirectional_prefix, interpolate_pos_encoding)
    with evaluating(model):
        parts = pixel_values.to(model.device).split(BATCH_SIZE)
        return [row for part in parts for row in _rows(model, processor, part, *options)]


def _rows(
    model: VitMaeForNextPatchPrediction,
    processor: VitMaeImageProcessor,
    pixel_values: Tensor,
    num_given: int,
    bidirectional_prefix: bool,
    interpolate: bool,
) -> list[PanelRow]:
    """The rows of a batch that the model sees at once: (B, C, H, W) -> B rows."""
    continued = model.generate(
        pixel_values,
        num_given,
        bidirectional_prefix=bidirectional_prefix,
        interpolate_pos_encoding=interpolate,
    )
    num_prefix = num_given if bidirectional_prefix else 0
    one_step = _predict_each(model, pixel_values, num_prefix, interpolate)
    inputs, continued_pictures, one_step_pictures = (
        to_pictures(processor, images) for images in (pixel_values, continued, one_step)
    )
    grid = patch_grid(pixel_values, model.config)
    after = (torch.arange(grid[0] * grid[1]) >= num_given).unflatten(0, grid).numpy()  # (h, w)
    if bidirectional_prefix:
        one_step_pictures = [gray_out(picture, ~after) for picture in one_step_pictures]
    given = [gray_out(picture, after) for picture in inputs]
    captions = _captions(model, continued, pixel_values, num_given)
    return [
        PanelRow(dict(zip(COLUMNS, pictures, strict=True)), caption)
        for *pictures, caption in zip(
            inputs, given, continued_pictures, one_step_pictures, captions, strict=True
        )
    ]


def _predict_each(
    model: VitMaeForNextPatchPrediction, pixel_values: Tensor, num_prefix: int, interpolate: bool
) -> Tensor:
    """Every patch from the true ones before it: (B, C, H, W) -> float32 (B, C, H, W)."""
    config = model.config
    output = model(
        pixel_values,
        num_prefix_patches=num_prefix,
        interpolate_pos_encoding=interpolate,
        return_loss=False,
    )
    patches = output.logits.float()  # (B, N, P)
    if config.norm_pix_loss:
        true = patchify(pixel_values, config.patch_pair)
        patches = denormalize_patches(patches, *patch_statistics(true))
    grid = patch_grid(pixel_values, config)
    return unpatchify(patches, config.patch_pair, grid)


def _captions(
    model: VitMaeForNextPatchPrediction, continued: Tensor, pixel_values: Tensor, num_given: int
) -> list[str]:
    """How far each continuation is from the truth: (B, C, H, W) twice -> B captions."""
    squares = patchify((continued - pixel_values).square(), model.config.patch_pair)  # (B, N, P)
    errors = squares[:, num_given:].mean(dim=(1, 2)).tolist()
    note = f"\n{STATISTICS_NOTE}" if model.config.norm_pix_loss else ""
    return [
        f"{num_given} of {squares.shape[1]} patches given, mean squared error of the rest "
        f"{error:.3f} (normalised pixels){note}"
        for error in errors
    ]
