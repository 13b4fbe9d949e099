"""What a masked autoencoder paints into the patches that it does not see, as pictures.

Where the pixels of a prediction come from: see `prediction.py`. Shapes: see `patches.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.losses import masked_pixel_loss, pixel_targets
from hf_vitmae.models.mask_patterns import MASK_PATTERNS
from hf_vitmae.models.masking import order_from_noise, patch_mask
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.models.patches import as_pair, unpatchify
from hf_vitmae.visualize.pictures import gray_out, paint_over, patch_grid, prepared, to_pictures
from hf_vitmae.visualize.prediction import (
    Statistics,
    check_decoder,
    check_statistics,
    pixel_note,
    predict_patches,
    predicted_pixels,
)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One image through a masked autoencoder, as pictures of one size.

    Args:
        input: the image as the model gets it, resized and cropped.
        masked: the input with hidden patches in mid-gray.
        prediction: what the model predicts for every patch, the visible ones too.
        pasted: visible patches from the input, hidden ones from the prediction.
        statistics: where the statistics come from that turned the prediction into pixels.
        mask: bool (h, w), True = hidden.
        error: mean squared error on hidden patches in units of the model's targets; 0 with none.
    """

    input: Image.Image
    masked: Image.Image
    prediction: Image.Image
    pasted: Image.Image
    statistics: str
    mask: np.ndarray
    error: float


def reconstruct(
    model: VitMaeForPreTraining,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    mask_ratio: float | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    seed: int = 0,
    pattern: str = "random",
    statistics: Statistics = "hidden",
    interpolate_pos_encoding: bool = False,
) -> list[Reconstruction]:
    """Hide patches of B images and let the model predict them: -> B reconstructions.

    Of images with 2 channels the first is shown, of those with more than 3 the first three.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        mask_ratio: share of the patches to hide, by default the model's own.
        noise: (B, N); the patches with the highest values are hidden.
        mask: bool (B, N) over patches or (B, H, W) over pixels, True = hidden; instead of a ratio.
        seed: of the noise when there is neither noise nor mask; each image gets its own.
        pattern: in which the noise hides patches, one of `MASK_PATTERNS`: random, block or grid.
        statistics: for models with `norm_pix_loss`. "hidden" takes mean and deviation of a hidden
            patch from the input, as the paper's figures do: that shows more than the model knows.
            "visible" interpolates them from visible patches: no hidden pixel has any influence.
        interpolate_pos_encoding: accept images of another size than the model's.

    Raises:
        ValueError: if the model cannot reconstruct, or an argument does not fit.
    """
    check_decoder(model)
    check_statistics(statistics)
    config = model.config
    processor, pixel_values = prepared(config, images, processor)  # (B, C, H, W)
    grid = patch_grid(pixel_values, config)
    hidden = _hidden_patches(
        config, len(pixel_values), grid, mask_ratio, noise, mask, seed, pattern
    )
    predicted = predict_patches(model, pixel_values, hidden, interpolate_pos_encoding)  # (B, N, P)
    targets = pixel_targets(pixel_values, config.patch_pair, config.norm_pix_loss)  # (B, N, P)
    errors = _errors(predicted, targets, hidden)
    predicted = predicted_pixels(config, predicted, pixel_values, hidden, statistics)
    note = pixel_note(config, statistics)
    inputs = to_pictures(processor, pixel_values)
    predictions = to_pictures(processor, unpatchify(predicted, config.patch_pair, grid))
    masks = hidden.unflatten(1, grid).numpy()  # (B, h, w)
    return [
        _compose(*parts, note) for parts in zip(inputs, predictions, masks, errors, strict=True)
    ]


def mean_visible_baseline(
    pixel_values: Tensor, mask: Tensor, patch_size: int | Sequence[int], norm_pix_loss: bool
) -> float:
    """The masked error of painting every hidden patch in the mean colour of what is visible.

    A model that has learned anything is below it. The mean is that of an image's visible pixels,
    per channel, and 0 where nothing is visible. With `norm_pix_loss` the patch's own mean, the
    prediction 0, takes its place: an error of (P - 1) / P, and less where hidden patches are flat.

    Args:
        pixel_values: (B, C, H, W), normalised.
        mask: bool (B, N), True = hidden.
        norm_pix_loss: what the model's targets are.
    """
    patch_size = as_pair(patch_size)
    targets = pixel_targets(pixel_values, patch_size, norm_pix_loss)  # (B, N, P)
    if norm_pix_loss:
        return masked_pixel_loss(torch.zeros_like(targets), targets, mask).item()
    num_pixels = patch_size[0] * patch_size[1]
    colours = targets.unflatten(2, (num_pixels, -1)).mean(dim=2)  # (B, N, C)
    num_visible = (~mask).sum(dim=1, keepdim=True)  # (B, 1)
    mean = (colours * ~mask[..., None]).sum(dim=1) / num_visible.clamp(min=1)  # (B, C)
    predicted = mean.repeat(1, num_pixels)[:, None].expand_as(targets)  # (B, N, P)
    return masked_pixel_loss(predicted, targets, mask).item()


def _hidden_patches(
    config: VitMaeConfig,
    batch_size: int,
    grid: tuple[int, int],
    mask_ratio: float | None,
    noise: Tensor | None,
    mask: Tensor | None,
    seed: int,
    pattern: str,
) -> Tensor:
    """What to hide, from whichever way the caller said it: -> bool (B, N)."""
    shape = (batch_size, grid[0] * grid[1])
    if mask is not None:
        if noise is not None or mask_ratio is not None:
            raise ValueError("Pass either `mask`, or `noise` and `mask_ratio`, not both.")
        hidden = patch_mask(mask.cpu(), grid, config.patch_pair)
    else:
        if noise is None:
            noise = pattern_noise(shape, grid, seed, pattern)
        ratio = config.mask_ratio if mask_ratio is None else mask_ratio
        hidden = order_from_noise(torch.atleast_2d(noise.cpu()), ratio).mask
    if hidden.shape != shape:
        raise ValueError(
            f"`noise` or `mask` is for {hidden.shape[0]} images of {hidden.shape[1]} patches, "
            f"but there are {shape[0]} of {shape[1]}."
        )
    return hidden


def pattern_noise(shape: tuple[int, int], grid: tuple[int, int], seed: int, pattern: str) -> Tensor:
    """Noise whose highest values form a pattern of masks, for images of a grid: -> (B, N).

    Raises:
        ValueError: if there is no such pattern.
    """
    if pattern not in MASK_PATTERNS:
        allowed = ", ".join(MASK_PATTERNS)
        raise ValueError(f"`pattern` must be one of {allowed}, got {pattern!r}.")
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return MASK_PATTERNS[pattern](noise, grid)


def _errors(logits: Tensor, targets: Tensor, hidden: Tensor) -> list[float]:
    """The pretraining loss of each image alone: (B, N, P) twice, bool (B, N) -> B numbers."""
    images = zip(*(tensor.split(1) for tensor in (logits, targets, hidden)), strict=True)
    return [masked_pixel_loss(*image).item() for image in images]


def _compose(
    image: Image.Image, prediction: Image.Image, mask: np.ndarray, error: float, note: str
) -> Reconstruction:
    """Hide and paste on finished pictures, so that visible pixels are exactly the input's."""
    return Reconstruction(
        input=image,
        masked=gray_out(image, mask),
        prediction=prediction,
        pasted=paint_over(image, prediction, mask),
        statistics=note,
        mask=mask,
        error=error,
    )
