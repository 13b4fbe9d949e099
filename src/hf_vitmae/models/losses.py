"""Losses and their targets: pixels of patches (arXiv:2111.06377), their colours (arXiv:2010.11929,
B.1.2), classes of images and of pixels.

All are computed in float32, whatever the model's precision.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .configuration_vitmae import VitMaeConfig
from .patches import normalize_patches, patchify

COLOR_LEVELS = 8  # 3 bits a channel
MOST_JOINT_CHANNELS = 3  # up to here all channels make one class; 8 ** 4 would be 4096 classes


def pixel_targets(pixel_values: Tensor, patch_size: tuple[int, int], normalize: bool) -> Tensor:
    """What the decoder should predict: (B, C, H, W) -> float32 (B, N, P)."""
    patches = patchify(pixel_values.float(), patch_size)
    return normalize_patches(patches)[0] if normalize else patches


def masked_pixel_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of a patch, then over the hidden patches: (B, N, P) twice,
    (B, N) -> ().

    With nothing hidden the loss is 0; targets elsewhere do not count, be they NaN.
    """
    targets = torch.where(mask[..., None], targets, 0.0)
    per_patch = (logits.float() - targets).square().mean(dim=-1)  # (B, N)
    return (per_patch * mask).sum() / mask.sum().clamp(min=1)


def num_color_classes(num_channels: int) -> int:
    """Classes of one colour: all channels jointly, or for more than three each by itself."""
    return COLOR_LEVELS ** (num_channels if num_channels <= MOST_JOINT_CHANNELS else 1)


def color_targets(colors: Tensor) -> Tensor:
    """3-bit classes of colours in 0..1: (..., C) -> int64 (..., 1), or (..., C) for C > 3.

    The first channel has the highest bits, so red of RGB counts 64.
    """
    channels = colors.shape[-1]
    levels = (colors.float() * COLOR_LEVELS).floor().clamp(0, COLOR_LEVELS - 1).long()
    if channels > MOST_JOINT_CHANNELS:
        return levels
    powers = COLOR_LEVELS ** torch.arange(channels - 1, -1, -1, device=colors.device)
    return (levels * powers).sum(dim=-1, keepdim=True)


def patch_targets(pixel_values: Tensor, config: VitMaeConfig) -> Tensor:
    """What masked patch prediction predicts, from un-normalised pixels: (B, C, H, W) -> for
    "pixels" float32 (B, N, P), else int64 (B, N, S), S colours of a patch one after another.
    """
    pixels = unnormalized(pixel_values.float(), config)
    patches = patchify(pixels, config.patch_pair)  # (B, N, P)
    if config.patch_target == "pixels":
        return patches
    side = 1 if config.patch_target == "mean_color" else 4
    patches = patches.unflatten(2, (*config.patch_pair, -1)).permute(
        0, 1, 4, 2, 3
    )  # ... C, p_h, p_w
    colors = functional.adaptive_avg_pool2d(patches.flatten(0, 1), side)  # (B * N, C, side, side)
    colors = colors.unflatten(0, patches.shape[:2]).flatten(3).transpose(2, 3)  # (B, N, side**2, C)
    return color_targets(colors).flatten(2)


def num_patch_outputs(config: VitMaeConfig) -> int:
    """Values that masked patch prediction gives for a patch."""
    if config.patch_target == "pixels":
        return config.patch_pair[0] * config.patch_pair[1] * config.num_channels
    colors = 1 if config.patch_target == "mean_color" else 16
    separate = config.num_channels if config.num_channels > MOST_JOINT_CHANNELS else 1
    return colors * separate * num_color_classes(config.num_channels)


def masked_patch_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of colour classes (int64 targets), or squared error of pixels, over the
    corrupted patches: (B, N, outputs), (B, N, S or P), bool (B, N) -> ().
    """
    if targets.is_floating_point():
        return masked_pixel_loss(logits, targets, mask)
    targets = targets.where(mask[..., None], 0)  # those of padding may be no class at all
    classes = logits.shape[-1] // targets.shape[-1]
    logits = logits.float().unflatten(2, (-1, classes)).permute(0, 3, 1, 2)  # (B, classes, N, S)
    per_patch = functional.cross_entropy(logits, targets, reduction="none").mean(dim=-1)  # (B, N)
    return (per_patch * mask).sum() / mask.sum().clamp(min=1)


def unnormalized(pixel_values: Tensor, config: VitMaeConfig) -> Tensor:
    """Undo `image_mean` and `image_std`: (B, C, H, W) -> (B, C, H, W), in 0..1 for images."""
    mean, std = (
        torch.tensor(statistic, device=pixel_values.device, dtype=pixel_values.dtype).reshape(
            -1, 1, 1
        )
        for statistic in (config.image_mean, config.image_std)
    )
    return pixel_values * std + mean


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """The loss that `problem_type` names, or that the labels imply: (B, classes), labels -> ().

    Without a problem type, integer labels (B,) are classes, floating-point labels (B, classes) are
    distributions (mixup, label smoothing), and a model with one output is a regression.
    """
    if problem_type == "regression" or (problem_type is None and logits.shape[1] == 1):
        return functional.mse_loss(logits.float().squeeze(), labels.float().squeeze())
    if problem_type == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return functional.cross_entropy(logits.float(), labels)  # indices and distributions alike


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy over labelled pixels: (B, classes, H, W), int64 (B, H, W) -> ().

    Pixels labelled `ignore_index` do not count; where all are, the loss is 0.
    """
    total = functional.cross_entropy(
        logits.float(), labels, ignore_index=ignore_index, reduction="sum"
    )
    return total / (labels != ignore_index).sum().clamp(min=1)
