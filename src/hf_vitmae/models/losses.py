"""Losses: pixels of hidden patches (arXiv:2111.06377), and classification by index, by distribution
or by value.

All are computed in float32, whatever the model's precision.
"""

from torch import Tensor
from torch.nn import functional

from .patches import normalize_patches, patchify


def pixel_targets(pixel_values: Tensor, patch_size: tuple[int, int], normalize: bool) -> Tensor:
    """What the decoder should predict: (B, C, H, W) -> float32 (B, N, P)."""
    patches = patchify(pixel_values.float(), patch_size)
    return normalize_patches(patches)[0] if normalize else patches


def masked_pixel_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of a patch, then over the hidden patches: (B, N, P) twice,
    (B, N) -> ().

    With nothing hidden the loss is 0.
    """
    per_patch = (logits.float() - targets).square().mean(dim=-1)  # (B, N)
    return (per_patch * mask).sum() / mask.sum().clamp(min=1)


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
