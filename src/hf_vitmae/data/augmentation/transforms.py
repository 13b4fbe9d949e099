"""From a decoded image to the model's size: at random in training, always alike in evaluation.

Both are called as `transform(image, generator)` on uint8 tensors and stay in uint8; normalisation
happens on the device. With a value range images are float32 in 0..255 in place of uint8, which
keeps the depth of theirs. `with_label_map` does the same to an image and the class ids of its
pixels.
The random resized crop is that of MAE pretraining (arXiv:2111.06377, appendix A).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from hf_vitmae.data.decoding.decode import decode, decode_crop
from hf_vitmae.data.decoding.jpeg import even_box, may_be_halved
from hf_vitmae.models.pictures import ValueRange
from hf_vitmae.models.resizing import resize, resize_nearest

CROP_ATTEMPTS = 10  # then the largest allowed crop in the centre


class Transform(Protocol):
    """What the loader calls: an image of any size -> uint8 (C, H', W') of one fixed size."""

    @property
    def num_channels(self) -> int: ...

    @property
    def value_range(self) -> ValueRange | None: ...

    def read(self, encoded: bytes, generator: np.random.Generator, name: str) -> Tensor:
        """Decode and transform: bytes -> uint8 (C, H', W'); `BadImage` where that cannot be."""
        ...

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor: ...

    def with_label_map(
        self, image: Tensor, label_map: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """An image and its map: uint8 (C, H, W), int64 (H, W) -> (C, H', W'), (H', W')."""
        ...


class Geometry(Protocol):
    """What `EvalTransform` asks of an image processor."""

    num_channels: int

    def resize_and_crop(self, image: Tensor, /) -> Tensor: ...

    def resize_and_crop_map(self, label_map: Tensor, /) -> Tensor: ...


class _Cut(NamedTuple):
    """What is drawn for one training image: a box in pixels, and whether to flip what is in it."""

    top: int
    left: int
    height: int
    width: int
    is_flipped: bool

    def of(self, image: Tensor) -> Tensor:
        """The pixels in the box, not yet flipped: (..., H, W) -> (..., height, width)."""
        rows = slice(self.top, self.top + self.height)
        return image[..., rows, self.left : self.left + self.width]


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip: uint8 (C, H, W) -> uint8 (C, *image_size).

    Args:
        image_size: (height, width) of the result; a smaller image is enlarged.
        crop_scale: least and largest share of the image's area that a crop covers.
        crop_ratio: least and largest width / height of a crop, as a multiple of that of
            `image_size`.
        horizontal_flip: probability of a flip.
        value_range: the stored values that become 0 and 255, see `decode`.

    Raises:
        ValueError: if a range is empty or out of bounds.
    """

    image_size: tuple[int, int]
    num_channels: int = 3
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    value_range: ValueRange | None = None

    def __post_init__(self) -> None:
        _check_range("crop_scale", self.crop_scale, most=1.0)
        _check_range("crop_ratio", self.crop_ratio, most=float("inf"))
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must lie in 0..1, not {self.horizontal_flip}.")

    def read(self, encoded: bytes, generator: np.random.Generator, name: str) -> Tensor:
        """Decode and transform one image: bytes -> uint8 (C, *image_size).

        As `__call__` on what `decode` gives, with the same draws; but for a large JPEG the mean
        difference may reach 0.5/255, see `jpeg`.
        """

        def choose_box(height: int, width: int) -> tuple[int, int, int, int]:
            return self.crop_box(height, width, generator)

        crop = decode_crop(
            encoded, self.num_channels, choose_box, self.image_size, name, self.value_range
        )
        return self._resize(crop, self._draw_flip(generator))

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Transform one image: uint8 (C, H, W) -> uint8 (C, *image_size)."""
        cut = self._draw(image, generator)
        return self._resize(cut.of(image), cut.is_flipped)

    def with_label_map(
        self, image: Tensor, label_map: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """An image as `__call__` makes it, and the class ids of its pixels, exactly as they are.

        uint8 (C, H, W) and int64 (H, W) -> uint8 (C, *image_size) and int64 (*image_size).
        """
        cut = self._draw(image, generator)
        crop = resize_nearest(cut.of(label_map), self.image_size)  # (H', W')
        resized = self._resize(cut.of(image), cut.is_flipped)
        return resized, crop.flip(-1) if cut.is_flipped else crop

    def crop_box(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draw a crop inside an image of height x width: (top, left, height, width) in pixels.

        Large crops have even edges, so that a JPEG may be decoded at half its size.
        """
        box = self._draw_box(height, width, generator)
        halved = may_be_halved(box[2], box[3], self.image_size)
        return even_box(box, height, width) if halved else box

    def _draw_box(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        shape = self.image_size[1] / self.image_size[0]
        low, high = (shape * ratio for ratio in self.crop_ratio)
        for _ in range(CROP_ATTEMPTS):
            area = height * width * generator.uniform(*self.crop_scale)
            ratio = np.exp(generator.uniform(np.log(low), np.log(high)))
            crop_height, crop_width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = int(generator.integers(height - crop_height, endpoint=True))
                left = int(generator.integers(width - crop_width, endpoint=True))
                return top, left, crop_height, crop_width
        return _largest_center_box(height, width, low, high)

    def _draw(self, image: Tensor, generator: np.random.Generator) -> _Cut:
        box = self.crop_box(image.shape[1], image.shape[2], generator)
        return _Cut(*box, is_flipped=self._draw_flip(generator))

    def _draw_flip(self, generator: np.random.Generator) -> bool:
        return generator.random() < self.horizontal_flip

    def _resize(self, crop: Tensor, is_flipped: bool) -> Tensor:
        """uint8, or float32 in 0..255: (C, h, w) -> (C, *image_size)."""
        crop = resize(crop, self.image_size, "bicubic")
        if crop.is_floating_point():
            crop = crop.clamp(0, 255)  # where bicubic overshoots; uint8 cannot
        return crop.flip(-1) if is_flipped else crop


@dataclass(frozen=True)
class EvalTransform:
    """The image processor's own resize and crop, so that evaluation sees what inference sees."""

    processor: Geometry

    @property
    def num_channels(self) -> int:
        """Channels that the processor expects."""
        return self.processor.num_channels

    @property
    def value_range(self) -> ValueRange | None:
        """The processor's own, if it has any."""
        return getattr(self.processor, "value_range", None)

    def read(self, encoded: bytes, generator: np.random.Generator, name: str) -> Tensor:
        """Decode and transform one image: bytes -> uint8 (C, H', W')."""
        return self(decode(encoded, self.num_channels, name, self.value_range))

    def __call__(self, image: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Transform one image: uint8 (C, H, W) -> uint8 (C, H', W'); the generator is not used."""
        return self.processor.resize_and_crop(image)

    def with_label_map(
        self, image: Tensor, label_map: Tensor, generator: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """An image and its map: uint8 (C, H, W), int64 (H, W) -> (C, H', W'), (H', W')."""
        return self.processor.resize_and_crop(image), self.processor.resize_and_crop_map(label_map)


def _largest_center_box(
    height: int, width: int, low: float, high: float
) -> tuple[int, int, int, int]:
    """The largest centred box with width / height in low..high: (top, left, height, width)."""
    ratio = min(max(width / height, low), high)
    crop_height = max(1, min(height, round(width / ratio)))
    crop_width = max(1, min(width, round(height * ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _check_range(name: str, values: Sequence[float], most: float) -> None:
    low, high = values
    if not 0 < low <= high <= most:
        limit = "" if most == float("inf") else f" <= {most:g}"
        raise ValueError(
            f"{name} must be (low, high) with 0 < low <= high{limit}, not ({low}, {high})."
        )
