"""What masked patch prediction makes of corrupted patches (arXiv:2010.11929, B.1.2), as pictures.

A class is painted as the middle of its bin: level 0 of 0..7 becomes 1/16 of white. Shapes: see
`patches.py`; S is the number of classes that a patch has, one after another.
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.corruption import Corruption, make_corruption
from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.losses import COLOR_LEVELS, MOST_JOINT_CHANNELS, patch_targets
from hf_vitmae.models.modeling_vitmae import VitMaeForMaskedPatchPrediction
from hf_vitmae.models.modes import evaluating
from hf_vitmae.models.patches import patchify, unpatchify
from hf_vitmae.visualize.panel import PanelRow
from hf_vitmae.visualize.pictures import BATCH_SIZE, gray_out, patch_grid, prepared, to_pictures

COLUMNS = ("input", "corrupted", "target", "prediction")
CORRUPTION_NOTE = (  # for the footer of a page
    "corrupted: mask token in gray, some patches swapped, some kept; the loss is on these only"
)


def color_predictions(
    model: VitMaeForMaskedPatchPrediction,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    seed: int = 0,
    interpolate_pos_encoding: bool = False,
) -> list[PanelRow]:
    """Corrupt patches of B images and let the model predict all of them: -> B rows for a panel.

    The columns are the input; what the model was given; each patch's target, painted; and the
    prediction, the likeliest class of each patch or its pixels. The caption says how well the
    corrupted patches are predicted. Of images with 2 channels the first is shown, of those with
    more than 3 the first three.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry and statistics.
        seed: of the noise that decides what is corrupted and how; each image gets its own.
        interpolate_pos_encoding: accept images of another size than the model's.

    Raises:
        ValueError: if the model does not predict corrupted patches, or the images do not fit.
    """
    # By what it has, not by class: a checkpoint loaded with its own code has classes of its own.
    if not hasattr(model, "patch_head"):
        raise ValueError(
            f"{type(model).__name__} has no `patch_head` and cannot predict corrupted patches; "
            "load a checkpoint of masked patch prediction as VitMaeForMaskedPatchPrediction."
        )
    config = model.config
    processor, pixel_values = prepared(config, images, processor)  # (B, C, H, W)
    num_patches = math.prod(patch_grid(pixel_values, config))
    noise = torch.rand(  # (B, 2, N)
        (len(pixel_values), 2, num_patches), generator=torch.Generator().manual_seed(seed)
    )
    rows = []
    with evaluating(model):
        for start in range(0, len(pixel_values), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            pixels, noises = (tensor[part].to(model.device) for tensor in (pixel_values, noise))
            rows += _rows(model, processor, pixels, noises, interpolate=interpolate_pos_encoding)
    return rows


def _rows(
    model: VitMaeForMaskedPatchPrediction,
    processor: VitMaeImageProcessor,
    pixel_values: Tensor,
    both_noises: Tensor,
    interpolate: bool,
) -> list[PanelRow]:
    """The rows of a batch that the model sees at once: (B, C, H, W), (B, 2, N) -> B rows."""
    config = model.config
    noise, corruption_noise = both_noises.unbind(dim=1)  # (B, N) each
    output = model(
        pixel_values,
        noise=noise,
        corruption_noise=corruption_noise,
        interpolate_pos_encoding=interpolate,
        return_loss=False,
    )
    corruption = make_corruption(output.mask, corruption_noise)
    targets = patch_targets(pixel_values, config)  # (B, N, S) or (B, N, P)
    predicted = output.logits.float()  # (B, N, outputs)
    if not targets.is_floating_point():
        predicted = predicted.unflatten(2, (targets.shape[2], -1)).argmax(dim=3)  # (B, N, S)
    grid = patch_grid(pixel_values, config)
    return [
        PanelRow(dict(zip(COLUMNS, pictures, strict=True)), caption)
        for *pictures, caption in zip(
            to_pictures(processor, pixel_values),
            _corrupted(processor, pixel_values, corruption, config),
            _painted(targets, config, grid),
            _painted(predicted, config, grid),
            map(_caption, predicted, targets, output.mask),
            strict=True,
        )
    ]


def _corrupted(
    processor: VitMaeImageProcessor,
    pixel_values: Tensor,
    corruption: Corruption,
    config: VitMaeConfig,
) -> list[Image.Image]:
    """What the encoder is given, the mask token in mid-gray: (B, C, H, W) -> B pictures."""
    grid = patch_grid(pixel_values, config)
    patches = patchify(pixel_values, config.patch_pair)  # (B, N, P)
    if config.stem_depths is not None:  # these are erased before a hybrid stem sees the image
        replaced = corruption.masked | corruption.swapped
        patches = patches.masked_fill(replaced[..., None], 0.0)
    patches = corruption.apply(patches, torch.zeros_like(patches[:1, :1]))
    pictures = to_pictures(processor, unpatchify(patches, config.patch_pair, grid))
    masked = corruption.masked.unflatten(1, grid).cpu().numpy()  # (B, h, w)
    return [gray_out(*parts) for parts in zip(pictures, masked, strict=True)]


def _painted(values: Tensor, config: VitMaeConfig, grid: tuple[int, int]) -> list[Image.Image]:
    """Pictures of targets or predictions: classes (B, N, S) or pixels in 0..1 (B, N, P)."""
    pixels = values if values.is_floating_point() else _paint_classes(values, config)
    unnormalized = VitMaeImageProcessor(do_normalize=False, num_channels=config.num_channels)
    return to_pictures(unnormalized, unpatchify(pixels, config.patch_pair, grid))


def _paint_classes(classes: Tensor, config: VitMaeConfig) -> Tensor:
    """The inverse of `patch_targets` but for rounding: int64 (B, N, S) -> (B, N, P) in 0..1."""
    side = 1 if config.patch_target == "mean_color" else 4
    levels = classes.unflatten(2, (side, side, -1))  # (B, N, side, side, 1 or C)
    if config.num_channels <= MOST_JOINT_CHANNELS:
        places = torch.arange(config.num_channels - 1, -1, -1, device=classes.device)
        levels = levels // COLOR_LEVELS**places % COLOR_LEVELS  # (B, N, side, side, C)
    colors = (levels + 0.5) / COLOR_LEVELS
    rows, columns = (
        torch.arange(length, device=classes.device) * side // length  # (p_h,) and (p_w,)
        for length in config.patch_pair
    )
    return colors[:, :, rows[:, None], columns].flatten(2)  # pixels in (p_h, p_w, C) order


def _caption(predicted: Tensor, targets: Tensor, mask: Tensor) -> str:
    """How well an image's corrupted patches are predicted: (N, S or P) twice, bool (N,)."""
    corrupted = f"{mask.float().mean():.0%} corrupted"
    if not mask.any():
        return corrupted
    predicted, targets = predicted[mask], targets[mask]
    if targets.is_floating_point():
        error = (predicted - targets).square().mean()
        return f"{corrupted}, mean squared error there {error:.4f} (pixels in 0..1)"
    return f"{corrupted}, accuracy there {(predicted == targets).float().mean():.0%}"
