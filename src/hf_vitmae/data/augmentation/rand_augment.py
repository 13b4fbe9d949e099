"""RandAugment (arXiv:1909.13719): a few operations drawn from a list, all of one magnitude.

List and ranges are the "increasing" ones that fine-tuning recipes name "inc1": at a higher
magnitude every operation changes more. A strength is magnitude / 10 with a drawn sign; operations
without a direction take its size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .config import MOST_MAGNITUDE
from .photometric import (
    Pictures,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    has_colors,
)

Fill = int | tuple[int, ...]
PhotometricOperation = Callable[[Image.Image, float], Image.Image]
GeometricOperation = Callable[[Image.Image, float, Fill], Image.Image]

# What each does at strength 1.
MOST_DEGREES = 30
MOST_SHEAR = 0.3  # pixels sideways a pixel
MOST_TRANSLATION = 0.45  # of the side
MOST_ENHANCEMENT = 0.9  # factors 0.1 to 1.9
POSTERIZE_BITS = 4  # at strength 0; fewer with more
SOLARIZE_ADDITION = 110
HALF_WHITE = 128


def _auto_contrast(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.equalize(picture)


def _invert(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.invert(picture)


def _posterize(picture: Image.Image, strength: float) -> Image.Image:
    bits = POSTERIZE_BITS - int(POSTERIZE_BITS * abs(strength))
    return ImageOps.posterize(picture, max(1, bits))  # no bits would make every picture black


def _solarize(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * abs(strength)))


def _solarize_add(picture: Image.Image, strength: float) -> Image.Image:
    added = int(SOLARIZE_ADDITION * abs(strength))
    table = [min(255, v + added) if v < HALF_WHITE else v for v in range(256)]
    return picture.point(table * len(picture.getbands()))


def _saturation(picture: Image.Image, strength: float) -> Image.Image:
    return adjust_saturation(picture, 1 + MOST_ENHANCEMENT * strength)


def _contrast(picture: Image.Image, strength: float) -> Image.Image:
    return adjust_contrast(picture, 1 + MOST_ENHANCEMENT * strength)


def _brightness(picture: Image.Image, strength: float) -> Image.Image:
    return adjust_brightness(picture, 1 + MOST_ENHANCEMENT * strength)


def _sharpness(picture: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Sharpness(picture).enhance(1 + MOST_ENHANCEMENT * strength)


def _rotate(picture: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return picture.rotate(MOST_DEGREES * strength, Image.Resampling.BICUBIC, fillcolor=fill)


def _shear_x(picture: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(picture, (1, MOST_SHEAR * strength, 0, 0, 1, 0), fill)


def _shear_y(picture: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(picture, (1, 0, 0, MOST_SHEAR * strength, 1, 0), fill)


def _translate_x(picture: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(picture, (1, 0, MOST_TRANSLATION * strength * picture.width, 0, 1, 0), fill)


def _translate_y(picture: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, MOST_TRANSLATION * strength * picture.height), fill)


def _affine(picture: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    """A picture whose pixel (x, y) is the old one at `matrix` times (x, y, 1)."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
        fillcolor=fill,
    )


PHOTOMETRIC: Mapping[str, PhotometricOperation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
COLOR: Mapping[str, PhotometricOperation] = {"saturation": _saturation}
GEOMETRIC: Mapping[str, GeometricOperation] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


@dataclass(frozen=True)
class RandAugment:
    """Some of 15 operations, drawn with replacement.

    Pictures without colours have no saturation: that operation is left out of the draw.

    Args:
        magnitude: 0..10.
        fill: values of what moves in from outside, one a channel.
        num_ops: operations that are drawn.
        magnitude_std: of the magnitude of each operation, which stays in 0..10.
        probability: that an operation is applied.
        use_geometry: False leaves out rotation, shear and translation, so that every pixel stays
            where it is.
    """

    magnitude: float
    fill: tuple[int, ...]
    num_ops: int = 2
    magnitude_std: float = 0.5
    probability: float = 0.5
    use_geometry: bool = True

    def __call__(self, pictures: Pictures, generator: np.random.Generator) -> Pictures:
        """Change the pictures alike."""
        names = self.operations(has_colors(pictures))
        for index in generator.integers(len(names), size=self.num_ops):
            is_applied = generator.random() < self.probability
            strength = self.draw_strength(generator)
            if is_applied:
                pictures = self.apply(names[index], pictures, strength)
        return pictures

    def operations(self, has_colors: bool) -> list[str]:
        """Names of the operations to draw from."""
        names = [*PHOTOMETRIC, *(COLOR if has_colors else ())]
        return names + [*GEOMETRIC] if self.use_geometry else names

    def draw_strength(self, generator: np.random.Generator) -> float:
        """How much an operation does, in -1..1."""
        magnitude = generator.normal(self.magnitude, self.magnitude_std)
        size = min(max(magnitude / MOST_MAGNITUDE, 0.0), 1.0)
        return -size if generator.random() < 0.5 else size

    def apply(self, name: str, pictures: Pictures, strength: float) -> Pictures:
        """Do one operation to the pictures of an image."""
        if name in GEOMETRIC:
            move = GEOMETRIC[name]
            fills: list[Fill] = [self.fill] if has_colors(pictures) else list(self.fill)
            pairs = zip(pictures, fills, strict=True)
            return [move(picture, strength, fill) for picture, fill in pairs]
        change = PHOTOMETRIC.get(name) or COLOR[name]
        return [change(picture, strength) for picture in pictures]
