"""Random erasing (arXiv:1708.04896): boxes of an image become noise."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ERASED_SHARE = (0.02, 1 / 3)  # of the image's area
ERASED_RATIO = (0.3, 1 / 0.3)  # height / width
ATTEMPTS = 10  # then the box is left out


@dataclass(frozen=True)
class RandomErasing:
    """Boxes of noise: uint8 (C, H, W) -> uint8 (C, H, W).

    The noise is what a normal distribution of mean 0 and variance 1 at every value of the
    *normalised* image is in uint8: mean and standard deviation are the image processor's. Values
    beyond black and white are clipped there, which for ImageNet's statistics is beyond about two
    standard deviations.

    Args:
        probability: of erasing anything.
        mean, std: of the noise, one a channel, in 0..255.
        count: most boxes, as likely as any number from 1 on; they share the erased area.
    """

    probability: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: int = 1

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Erase boxes of a copy, or give back the image itself."""
        if generator.random() >= self.probability:
            return image
        image = image.clone()
        count = int(generator.integers(1, self.count, endpoint=True))
        for _ in range(count):
            box = draw_box(image.shape[1], image.shape[2], count, generator)
            if box is not None:
                top, left, height, width = box
                noise = self._noise(height, width, generator)
                image[:, top : top + height, left : left + width] = noise
        return image

    def _noise(self, height: int, width: int, generator: np.random.Generator) -> Tensor:
        """uint8 (C, height, width)."""
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        noise = generator.standard_normal((len(mean), height, width), dtype=np.float32)
        values = (noise * std[:, None, None] + mean[:, None, None]).round().clip(0, 255)
        return torch.from_numpy(values.astype(np.uint8))


def draw_box(
    height: int, width: int, count: int, generator: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """One of `count` boxes that are smaller than the image: (top, left, height, width) in pixels.

    None where no drawn shape fits, as in an image of a few pixels.
    """
    for _ in range(ATTEMPTS):
        area = height * width * generator.uniform(*ERASED_SHARE) / count
        ratio = np.exp(generator.uniform(*np.log(ERASED_RATIO)))
        box_height, box_width = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < box_height < height and 0 < box_width < width:
            top = int(generator.integers(height - box_height, endpoint=True))
            left = int(generator.integers(width - box_width, endpoint=True))
            return top, left, box_height, box_width
    return None
