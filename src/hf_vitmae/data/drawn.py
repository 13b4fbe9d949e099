"""What the drawn data sets of labelled images, `defects` and `bands`, are made with.

Pictures are square and drawn in coordinates of their own: pixels, counted from the middle.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature

SPLITS = {"train": range(3000), "test": range(3000, 4000)}  # numbers of the pictures


class Drawn(NamedTuple):
    """One picture as the bytes of a file, and its class."""

    encoded: bytes
    class_id: int


def drawn_dataset(
    draw: Callable[[int], Drawn], numbers: Iterable[int], class_names: Sequence[str]
) -> Dataset:
    """The pictures of these numbers, columns `image` and `label`."""
    drawn = [draw(number) for number in numbers]
    columns = {
        "image": [{"bytes": picture.encoded, "path": None} for picture in drawn],
        "label": [picture.class_id for picture in drawn],
    }
    features = Features(image=ImageFeature(decode=False), label=ClassLabel(names=list(class_names)))
    return Dataset.from_dict(columns, features=features)


class Plane:
    """Coordinates and frequencies of a square picture, made once for all pictures of that side."""

    def __init__(self, side: int) -> None:
        self.side = side
        middle = (side - 1) / 2
        self.y, self.x = np.mgrid[:side, :side].astype(np.float32) - np.float32(middle)  # (H, W)
        self.frequency_y = np.fft.fftfreq(side).astype(np.float32)[:, None]  # (H, 1), a pixel
        self.frequency_x = np.fft.rfftfreq(side).astype(np.float32)  # (W / 2 + 1,)

    def turned(self, angle: float, y: float = 0.0, x: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Pixels along and across a direction, from the point (y, x): (H, W) each."""
        cos, sin = math.cos(angle), math.sin(angle)
        down, right = self.y - np.float32(y), self.x - np.float32(x)
        return cos * right + sin * down, cos * down - sin * right

    def distance(self, y: float | np.ndarray, x: float | np.ndarray) -> np.ndarray:
        """Pixels from the point (y, x): (H, W), or from points (n, 1, 1): (n, H, W)."""
        return np.hypot(self.y - np.float32(y), self.x - np.float32(x))

    def soft_noise(
        self, generator: np.random.Generator, length: float, width: float, angle: float = 0.0
    ) -> np.ndarray:
        """Noise of mean 0 and deviation 1 without grain below so many pixels along and across a
        direction: (H, W). Opposite edges fit together.
        """
        shape = (2, self.side, self.side // 2 + 1)
        real, imaginary = generator.standard_normal(shape, dtype=np.float32)
        cos, sin = math.cos(angle), math.sin(angle)
        along = length * (cos * self.frequency_x + sin * self.frequency_y)
        across = width * (cos * self.frequency_y - sin * self.frequency_x)
        kept = np.exp(-2 * (along**2 + across**2))  # (H, W / 2 + 1)
        kept[0, 0] = 0.0  # the mean
        noise = np.fft.irfft2(kept * (real + 1j * imaginary), s=(self.side, self.side))
        return noise.astype(np.float32) / np.float32(math.sqrt(np.vdot(noise, noise) / noise.size))


def inside(distance: np.ndarray) -> np.ndarray:
    """How much of a pixel lies inside of an edge that is so many pixels away (inside: above 0)."""
    return np.clip(distance + 0.5, 0, 1)
