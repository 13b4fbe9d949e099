"""What a masked autoencoder did not expect: each patch predicted once, from patches around it.

The patches are split into complementary masks; each run of the model hides one of them
(arXiv:2111.06377 hides one such mask in training). Shapes: see `patches.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.mask_patterns import complementary_masks
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.models.patches import patchify, unpatchify
from hf_vitmae.visualize.heat import heat_over
from hf_vitmae.visualize.panel import PanelRow, picture_panel
from hf_vitmae.visualize.pictures import patch_grid, prepared, to_pictures
from hf_vitmae.visualize.prediction import (
    Statistics,
    check_decoder,
    check_statistics,
    pixel_note,
    predict_patches,
    predicted_pixels,
)
from hf_vitmae.visualize.reconstruction import pattern_noise

HEAT_NOTE = "bright: far from what was predicted; each picture has its own scale"


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """How far one image is from what the model predicts of it.

    Args:
        input: the image as the model gets it, resized and cropped.
        prediction: each patch as predicted while it was hidden.
        scores: float32 (h, w), mean squared error of each patch in normalised pixels.
        statistics: where the statistics come from that turned the prediction into pixels.
    """

    input: Image.Image
    prediction: Image.Image
    scores: np.ndarray
    statistics: str

    @property
    def highest(self) -> tuple[int, int]:
        """Row and column of the patch that was expected least."""
        row, column = np.unravel_index(self.scores.argmax(), self.scores.shape)
        return int(row), int(column)

    def picture(self, opacity: float = 0.7) -> Image.Image:
        """The scores as colours over the image."""
        return heat_over(self.input, self.scores, opacity)


def anomaly_maps(
    model: VitMaeForPreTraining,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    num_masks: int = 4,
    pattern: str = "random",
    seed: int = 0,
    statistics: Statistics = "visible",
    interpolate_pos_encoding: bool = False,
) -> list[AnomalyMap]:
    """Predict each patch of B images exactly once, from patches that stay visible: -> B maps.

    The errors are those of pixels, also for a model with `norm_pix_loss`: in units of a patch's own
    deviation the noise of a flat patch would count as much as what does not belong there.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        num_masks: runs of the model; each hides one patch in so many. What a model was trained to
            do with a mask ratio of 0.75, it does best with few masks; more of them hide less.
        pattern: of the masks: random, block or grid.
        seed: decides which patches are hidden together.
        statistics: for models with `norm_pix_loss`, as in `reconstruct`; "hidden" leaves the mean
            and contrast of a patch out of its score.
        interpolate_pos_encoding: accept images of another size than the model's.

    Raises:
        ValueError: if the model has no decoder, or an argument does not fit.
    """
    check_decoder(model)
    check_statistics(statistics)
    config = model.config
    processor, pixel_values = prepared(config, images, processor)  # (B, C, H, W)
    grid = patch_grid(pixel_values, config)
    noise = pattern_noise((len(pixel_values), grid[0] * grid[1]), grid, seed, pattern)
    actual = patchify(pixel_values, config.patch_pair)  # (B, N, P)
    pixels = torch.zeros_like(actual)
    for hidden in complementary_masks(noise, num_masks):  # bool (B, N)
        predicted = predict_patches(model, pixel_values, hidden, interpolate_pos_encoding)
        found = predicted_pixels(config, predicted, pixel_values, hidden, statistics)
        pixels = torch.where(hidden[..., None], found, pixels)
    scores: Tensor = (pixels - actual).square().mean(dim=2).unflatten(1, grid)  # (B, h, w)
    inputs = to_pictures(processor, pixel_values)
    predictions = to_pictures(processor, unpatchify(pixels, config.patch_pair, grid))
    note = pixel_note(config, statistics)
    found = zip(inputs, predictions, scores.numpy(), strict=True)
    return [AnomalyMap(*one, note) for one in found]


def anomaly_panel(maps: Sequence[AnomalyMap], *, scale: int | None = None) -> Image.Image:
    """Each image as a row: input, prediction, and where they differ.

    Raises:
        ValueError: if there is nothing to show, or the scale is not a positive integer.
    """
    notes = dict.fromkeys(found.statistics for found in maps)
    footer = [f"each patch was hidden once and then predicted ({note})" for note in notes]
    return picture_panel([_row(found) for found in maps], [*footer, HEAT_NOTE], scale=scale)


def _row(found: AnomalyMap) -> PanelRow:
    row, column = found.highest
    pictures = {"input": found.input, "prediction": found.prediction, "error": found.picture()}
    where = f"row {row + 1}, column {column + 1} of {found.scores.shape[0]} x "
    caption = (
        f"highest error {found.scores.max():.3f} in {where}{found.scores.shape[1]} patches, "
        f"median {np.median(found.scores):.3f}"
    )
    return PanelRow(pictures, caption)
