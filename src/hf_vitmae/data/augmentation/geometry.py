"""Which way up: vertical flips and quarter turns, for pictures that have no up.

These move whole pixels and change no value, so that any number of channels and a label map turn
alike. The horizontal flip belongs to the crop, see `augment`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Orientation(NamedTuple):
    """What is drawn for one image: whether it stands on its head, then quarter turns to the left.

    Args:
        quarters: counterclockwise, 0..3.
    """

    is_flipped: bool
    quarters: int

    def of(self, image: Tensor) -> Tensor:
        """Turn an image or a label map: (..., H, W) -> (..., H, W), or (..., W, H) after 1 or 3."""
        image = image.flip(-2) if self.is_flipped else image
        return torch.rot90(image, self.quarters, (-2, -1)) if self.quarters else image


@dataclass(frozen=True)
class RandomOrientation:
    """Flip vertically and turn at random: uint8 (C, H, W) -> uint8 (C, H, W).

    Args:
        vertical_flip: probability of a flip.
        rotate_quarters: all four turns are as likely; an image that is not square keeps its size
            and so is turned by 0 or 180 degrees.
    """

    vertical_flip: float = 0.0
    rotate_quarters: bool = False

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Turn one image."""
        return self.draw(image, generator).of(image)

    def with_label_map(
        self, image: Tensor, label_map: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """An image as `__call__` turns it, and its map alike: (C, H, W), (H, W) -> the same."""
        orientation = self.draw(image, generator)
        return orientation.of(image), orientation.of(label_map)

    def draw(self, image: Tensor, generator: np.random.Generator) -> Orientation:
        """Draw what is done to an image (..., H, W)."""
        is_flipped = generator.random() < self.vertical_flip
        step = 1 if image.shape[-2] == image.shape[-1] else 2
        turns = range(0, 4, step) if self.rotate_quarters else range(1)
        return Orientation(is_flipped, turns[generator.integers(len(turns))])
