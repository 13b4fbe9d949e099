"""What a masked autoencoder predicts of hidden patches, and these predictions as pixels.

With `norm_pix_loss` a model predicts patches in units of their own deviation (arXiv:2111.06377), so
pixels need statistics from somewhere; every picture says from where. Shapes: see `patches.py`.
"""

from typing import Literal

import torch
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.models.modes import evaluating
from hf_vitmae.models.patches import denormalize_patches, patch_statistics, patchify
from hf_vitmae.visualize.pictures import BATCH_SIZE, patch_grid

Statistics = Literal["hidden", "visible"]

STATISTICS_NOTES = {
    "hidden": "mean and contrast of hidden patches taken from the input",
    "visible": "statistics interpolated from visible patches",
}
OWN_PIXELS_NOTE = "model's own pixels"
# Visible patches weigh distance**-3 when statistics are interpolated. Of the powers 1, 2, 3, 4, 6
# it is best, or within 3 % of it, at means and deviations of 64x64 emoji in patches of 4 and of 8.
DISTANCE_POWER = 3


def check_decoder(model: VitMaeForPreTraining) -> None:
    """
    Raises:
        ValueError: if the model predicts no patches.
    """
    # By what it has, not by class: a checkpoint loaded with its own code has classes of its own.
    if not hasattr(model, "decoder"):
        raise ValueError(
            f"{type(model).__name__} has no decoder and cannot reconstruct; load a pretraining "
            "checkpoint as VitMaeForPreTraining."
        )


def check_statistics(statistics: str) -> None:
    """
    Raises:
        ValueError: if there are no such statistics.
    """
    if statistics not in STATISTICS_NOTES:
        allowed = ", ".join(STATISTICS_NOTES)
        raise ValueError(f"`statistics` must be one of {allowed}, got {statistics!r}.")


def predict_patches(
    model: VitMaeForPreTraining, pixel_values: Tensor, hidden: Tensor, interpolate: bool
) -> Tensor:
    """The model in evaluation mode: (B, C, H, W), bool (B, N) -> float32 (B, N, P) on the CPU."""
    logits = []
    with evaluating(model):
        for start in range(0, len(pixel_values), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            output = model(
                pixel_values[part].to(model.device),
                mask=hidden[part].to(model.device),
                interpolate_pos_encoding=interpolate,
                return_loss=False,
            )
            logits.append(output.logits.float().cpu())
    return torch.cat(logits)


def pixel_note(config: VitMaeConfig, statistics: Statistics) -> str:
    """Where the pixels of a prediction come from, in words."""
    return STATISTICS_NOTES[statistics] if config.norm_pix_loss else OWN_PIXELS_NOTE


def predicted_pixels(
    config: VitMaeConfig,
    predicted: Tensor,
    pixel_values: Tensor,
    hidden: Tensor,
    statistics: Statistics,
) -> Tensor:
    """Predictions in units of the model's targets as pixels: (B, N, P) -> (B, N, P), normalised.

    Args:
        pixel_values: (B, C, H, W), of which the statistics are.
        hidden: bool (B, N); "visible" takes nothing from these patches.
    """
    if not config.norm_pix_loss:
        return predicted
    mean, std = patch_statistics(patchify(pixel_values, config.patch_pair))  # (B, N, 1) each
    if statistics == "visible":
        grid = patch_grid(pixel_values, config)
        mean, std = (interpolate_hidden(values, hidden, grid) for values in (mean, std))
    return denormalize_patches(predicted, mean, std)


def interpolate_hidden(values: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """Hidden patches' values from visible ones: (B, N, 1), bool (B, N) -> (B, N, 1).

    The nearer weigh more; an image with nothing visible gets 0.
    """
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).float()  # (N, 2)
    weights = torch.cdist(places, places).clamp(min=1) ** -DISTANCE_POWER  # (N, N)
    known = torch.where(hidden, 0, values[..., 0])  # (B, N)
    total = (~hidden).float() @ weights
    estimates = known @ weights / torch.where(total > 0, total, 1)
    return torch.where(hidden, estimates, values[..., 0])[..., None]  # (B, N, 1)
