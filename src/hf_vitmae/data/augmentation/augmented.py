"""What a training image goes through, as a recipe says it: crop and flip, then augmentations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hf_vitmae.models.pictures import ValueRange

from .augmentations import Augmentations, build_augmentations
from .config import AugmentConfig
from .transforms import TrainTransform


@dataclass(frozen=True)
class AugmentedTransform:
    """A transform whose crops are augmented: uint8 (C, H, W) -> uint8 (C, H', W')."""

    crop: TrainTransform
    augment: Augmentations

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return self.crop.num_channels

    @property
    def value_range(self) -> ValueRange | None:
        """The stored values that become 0 and 255, see `decode`."""
        return self.crop.value_range

    def read(self, encoded: bytes, generator: np.random.Generator, name: str) -> Tensor:
        """Decode and transform: bytes -> uint8 (C, H', W'); `BadImage` where that cannot be."""
        return self.augment(self.crop.read(encoded, generator, name), generator)

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Transform one image: uint8 (C, H, W) -> uint8 (C, H', W')."""
        return self.augment(self.crop(image, generator), generator)

    def with_label_map(
        self, image: Tensor, label_map: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """An image and its map: uint8 (C, H, W), int64 (H, W) -> (C, H', W'), (H', W')."""
        image, label_map = self.crop.with_label_map(image, label_map, generator)
        return self.augment.with_label_map(image, label_map, generator)


def train_transform(
    config: AugmentConfig,
    image_size: tuple[int, int],
    num_channels: int,
    image_mean: float | Sequence[float],
    image_std: float | Sequence[float],
    value_range: ValueRange | None = None,
) -> AugmentedTransform:
    """The transform of a recipe, for a model of this image size (height, width).

    Args:
        image_mean, image_std: of the image processor, as in `build_augmentations`.
        value_range: of the image processor, as in `TrainTransform`.

    Raises:
        ValueError: if a range of the crop is empty, or the statistics are not one a channel.
    """
    crop = TrainTransform(
        image_size,
        num_channels,
        crop_scale=config.crop_scale,
        crop_ratio=config.crop_ratio,
        horizontal_flip=config.horizontal_flip,
        value_range=value_range,
    )
    return AugmentedTransform(
        crop, build_augmentations(config, num_channels, image_mean, image_std)
    )
