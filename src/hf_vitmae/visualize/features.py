"""What an encoder makes of patches, as colours: like features get like colours, in every image.

Shapes: see `patches.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.models.modes import evaluating
from hf_vitmae.visualize.panel import PanelRow, picture_panel
from hf_vitmae.visualize.pictures import BATCH_SIZE, patch_grid, prepared, to_pictures

CLIPPED = 0.01  # share of values at either end of a component that get its extreme colours
FEATURES_NOTE = "the same colour means the same features, across all images"


@dataclass(frozen=True, eq=False)
class FeatureBasis:
    """Three directions of features that become red, green and blue.

    Args:
        mean: float32 (D,).
        directions: float32 (3, D), orthonormal, of the largest deviation first.
        low, high: float32 (3,), where a colour has 0 and 255.
    """

    mean: np.ndarray
    directions: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> "FeatureBasis":
        """The principal components of features (..., D); their signs do not depend on chance.

        Raises:
            ValueError: for fewer than 3 dimensions or fewer than 2 features.
        """
        rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
        if rows.shape[0] < 2 or rows.shape[1] < 3:
            raise ValueError(
                "Colours need 2 features of 3 dimensions at least, got "
                f"{rows.shape[0]} of {rows.shape[1]}."
            )
        mean = rows.mean(axis=0)
        _, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean))  # ascending
        directions = vectors[:, :-4:-1].T  # (3, D)
        strongest = np.abs(directions).argmax(axis=1)[:, None]
        directions = directions * np.sign(np.take_along_axis(directions, strongest, axis=1))
        places = (rows - mean) @ directions.T
        low, high = np.quantile(places, (CLIPPED, 1 - CLIPPED), axis=0)
        return cls(*(part.astype(np.float32) for part in (mean, directions, low, high)))

    def colors(self, features: np.ndarray) -> np.ndarray:
        """(..., D) -> uint8 (..., 3)."""
        places = (features - self.mean) @ self.directions.T
        width = np.where(self.high > self.low, self.high - self.low, 1)
        return np.rint(np.clip((places - self.low) / width, 0, 1) * 255).astype(np.uint8)


def patch_features(
    model: VitMaePreTrainedModel, pixel_values: Tensor, *, interpolate_pos_encoding: bool = False
) -> Tensor:
    """Patches as the encoder ends with them, none hidden: (B, C, H, W) -> float32 (B, h, w, D)."""
    grid, parts = patch_grid(pixel_values, model.config), pixel_values.split(BATCH_SIZE)
    found = [patch_tokens(model, part, interpolate_pos_encoding).cpu() for part in parts]
    return torch.cat(found).unflatten(1, grid)


def patch_tokens(
    model: VitMaePreTrainedModel, pixel_values: Tensor, interpolate: bool = False
) -> Tensor:
    """The same of one batch, on the model's device: (B, C, H, W) -> float32 (B, N, D)."""
    with evaluating(model):
        output = model.base_model(
            pixel_values.to(model.device), interpolate_pos_encoding=interpolate
        )
    return output.last_hidden_state[:, 1:].float()


def feature_panel(
    model: VitMaePreTrainedModel,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    basis: FeatureBasis | None = None,
    scale: int | None = None,
    interpolate_pos_encoding: bool = False,
) -> Image.Image:
    """Each image as a row: input, and the three main components of its patches as colours.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        basis: fitted before, so that several panels have the same colours; None fits one here.
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if an argument does not fit.
    """
    processor, pixel_values = prepared(model.config, images, processor)  # (B, C, H, W)
    features = patch_features(
        model, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
    ).numpy()
    colors = (basis or FeatureBasis.fit(features)).colors(features)  # (B, h, w, 3)
    rows = []
    for picture, found in zip(to_pictures(processor, pixel_values), colors, strict=True):
        drawn = Image.fromarray(found).resize(picture.size, Image.Resampling.NEAREST)
        rows.append(PanelRow({"input": picture, "features": drawn}, ""))
    return picture_panel(rows, [FEATURES_NOTE], scale=scale)
