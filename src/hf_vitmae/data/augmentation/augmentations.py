"""What a recipe does to an image after crop and flip: uint8 in, uint8 of the same size out.

The order is: which way up, RandAugment or three-augment, colour jitter, blur, and erasing last.
What is off draws nothing: with the default configuration the generator is left as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .config import AugmentConfig
from .erasing import RandomErasing
from .geometry import RandomOrientation
from .photometric import (
    ColorJitter,
    PictureAugmentation,
    RandomBlur,
    ThreeAugment,
    from_pictures,
    to_pictures,
)
from .rand_augment import RandAugment


@dataclass(frozen=True)
class Augmentations:
    """All that is done to one image; build one with `build_augmentations`.

    Args:
        on_pictures: in their order.
    """

    orientation: RandomOrientation | None = None
    on_pictures: tuple[PictureAugmentation, ...] = ()
    erasing: RandomErasing | None = None

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Change one image: uint8, or float32 in 0..255, (C, H, W) -> the same."""
        if self.orientation is not None:
            image = self.orientation(image, generator)
        image = self._change_pictures(image, self.on_pictures, generator)
        return image if self.erasing is None else self.erasing(image, generator)

    def with_label_map(
        self, image: Tensor, label_map: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Change an image and turn its map with it: (C, H, W), (H, W) -> the same.

        Everything but flips and quarter turns leaves pixels where they are: RandAugment draws from
        its operations on values alone, and nothing is erased.
        """
        if self.orientation is not None:
            image, label_map = self.orientation.with_label_map(image, label_map, generator)
        steps = [
            replace(step, use_geometry=False) if isinstance(step, RandAugment) else step
            for step in self.on_pictures
        ]
        return self._change_pictures(image, steps, generator), label_map

    @staticmethod
    def _change_pictures(
        image: Tensor, steps: Sequence[PictureAugmentation], generator: np.random.Generator
    ) -> Tensor:
        if not steps:
            return image
        # Pillow's colours have 8 bits; deeper images are rounded for them.
        levels = image.round().to(torch.uint8) if image.is_floating_point() else image
        pictures = to_pictures(levels)
        for step in steps:
            pictures = step(pictures, generator)
        return from_pictures(pictures).to(image.dtype)


def build_augmentations(
    config: AugmentConfig,
    num_channels: int,
    image_mean: float | Sequence[float] = 0.5,
    image_std: float | Sequence[float] = 0.5,
) -> Augmentations:
    """What `config` asks for beyond crop and horizontal flip, for images of so many channels.

    Args:
        image_mean, image_std: of the image processor, one number or one a channel, in 0..1; erasing
            takes its noise from them, and RandAugment the colour of what moves in from outside.

    Raises:
        ValueError: if the statistics are not one a channel.
    """
    mean, std = (
        _in_uint8(name, values, num_channels)
        for name, values in (("image_mean", image_mean), ("image_std", image_std))
    )
    turns = config.vertical_flip > 0 or config.rotate_quarters
    return Augmentations(
        RandomOrientation(config.vertical_flip, config.rotate_quarters) if turns else None,
        tuple(_on_pictures(config, mean)),
        RandomErasing(config.erasing, mean, std, config.erasing_count) if config.erasing else None,
    )


def _on_pictures(config: AugmentConfig, mean: Sequence[float]) -> list[PictureAugmentation]:
    """Everything that Pillow does, in its order."""
    steps: list[PictureAugmentation] = []
    if config.rand_augment is not None:
        fill = tuple(min(max(round(value), 0), 255) for value in mean)
        steps.append(
            RandAugment(
                config.rand_augment,
                fill,
                num_ops=config.rand_augment_ops,
                magnitude_std=config.rand_augment_std,
                probability=config.rand_augment_probability,
            )
        )
    if config.three_augment:
        steps.append(ThreeAugment())
    if any(config.color_jitter):
        steps.append(ColorJitter(*config.color_jitter))
    if config.gaussian_blur:
        steps.append(RandomBlur(config.gaussian_blur))
    return steps


def _in_uint8(name: str, values: float | Sequence[float], num_channels: int) -> tuple[float, ...]:
    """A statistic of the image processor, one a channel, in 0..255."""
    numbers = (values,) * num_channels if isinstance(values, int | float) else tuple(values)
    if len(numbers) != num_channels:
        raise ValueError(
            f"{name} has {len(numbers)} values and the images have {num_channels} channels; "
            "give one number or one a channel."
        )
    return tuple(255 * number for number in numbers)
