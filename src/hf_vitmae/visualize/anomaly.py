"""What a masked autoencoder did not expect: each patch predicted once, from patches around it.

The patches are split into K complementary masks (arXiv:2111.06377 hides one such mask); each run
of the model hides one of them. Shapes: see `patches.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.losses import pixel_targets
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.models.modes import evaluating
from hf_vitmae.visualize.heat import heat_over
from hf_vitmae.visualize.pictures import BATCH_SIZE, patch_grid, to_pictures


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """How far one image is from what the model predicts of it.

    Args:
        input: the image as the model gets it, resized and cropped.
        scores: float (h, w), mean squared error of each patch in units of the model's targets.
        prediction: float32 (N, P), each patch as predicted while it was hidden, in those units.
    """

    input: Image.Image
    scores: np.ndarray
    prediction: np.ndarray

    def picture(self, opacity: float = 0.6) -> Image.Image:
        """The scores as colours over the image."""
        return heat_over(self.input, self.scores, opacity)


def complementary_masks(num_patches: int, num_masks: int, seed: int = 0) -> Tensor:
    """Masks that together hide each patch exactly once: -> bool (num_masks, N), True = hidden.

    Raises:
        ValueError: for less than 2 masks, or more than there are patches.
    """
    if not 2 <= num_masks <= num_patches:
        raise ValueError(
            f"`num_masks` must be from 2 to the number of patches, {num_patches}; got {num_masks}."
        )
    order = torch.randperm(num_patches, generator=torch.Generator().manual_seed(seed))
    return order % num_masks == torch.arange(num_masks)[:, None]


def anomaly_maps(
    model: VitMaeForPreTraining,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    num_masks: int = 4,
    seed: int = 0,
    interpolate_pos_encoding: bool = False,
) -> list[AnomalyMap]:
    """Predict each patch of B images once, from patches that stay visible: -> B maps.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        num_masks: runs of the model; each hides one patch in so many.
        seed: decides which patches are hidden together.
        interpolate_pos_encoding: accept images of another size than the model's.

    Raises:
        ValueError: if the model has no decoder, or an argument does not fit.
    """
    if not hasattr(model, "decoder"):
        raise ValueError(
            f"{type(model).__name__} has no decoder and predicts no patches; load a pretraining "
            "checkpoint as VitMaeForPreTraining."
        )
    config, processor = model.config, processor or VitMaeImageProcessor.for_model(model.config)
    pixel_values = processor(images, return_tensors="pt")["pixel_values"].cpu()  # (B, C, H, W)
    grid = patch_grid(pixel_values, config)
    masks = complementary_masks(grid[0] * grid[1], num_masks, seed)  # (num_masks, N)
    parts = pixel_values.split(BATCH_SIZE)
    predicted = torch.cat([_predict(model, p, masks, interpolate_pos_encoding) for p in parts])
    targets = pixel_targets(pixel_values, config.patch_pair, config.norm_pix_loss)  # (B, N, P)
    scores = (predicted - targets).square().mean(dim=2).unflatten(1, grid)  # (B, h, w)
    inputs = to_pictures(processor, pixel_values)
    arrays = zip(inputs, scores.numpy(), predicted.numpy(), strict=True)
    return [AnomalyMap(*one) for one in arrays]


def _predict(
    model: VitMaeForPreTraining, pixel_values: Tensor, masks: Tensor, interpolate: bool
) -> Tensor:
    """Each patch from the run that hid it: (B, C, H, W), bool (K, N) -> float32 (B, N, P)."""
    predicted = 0.0
    with evaluating(model):
        for mask in masks:
            output = model(
                pixel_values.to(model.device),
                mask=mask.expand(len(pixel_values), -1).to(model.device),
                interpolate_pos_encoding=interpolate,
                return_loss=False,
            )
            logits = output.logits.float().cpu()
            predicted = predicted + torch.where(mask[:, None], logits, 0)
    assert isinstance(predicted, Tensor)  # there are two masks at least
    return predicted
