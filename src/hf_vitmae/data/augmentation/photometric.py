"""Colours changed at random: jitter, blur, and three-augment (arXiv:2204.07118, section 3).

Everything here works on the pictures of one image, see `to_pictures`, and draws once for all of
them. Pillow does the operations: recipes' magnitudes are in its terms, and at 0.1 to 2.4 ms each
for 224x224 pixels it is as fast as torch or kornia; OpenCV would take a third, and another package.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

Pictures = list[Image.Image]

HUE_LEVELS = 255  # of Pillow's HSV, once around: 255 is the red of 0 again
SOLARIZE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)  # pixels


class PictureAugmentation(Protocol):
    """What is done to the pictures of one image: of the same size and modes before and after."""

    def __call__(self, pictures: Pictures, generator: np.random.Generator) -> Pictures: ...


def to_pictures(image: Tensor) -> Pictures:
    """Three channels as one RGB picture, any other number as one gray picture each.

    uint8 (C, H, W) -> a list of one or of C pictures.
    """
    if image.shape[0] == 3:
        return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())]
    return [Image.fromarray(channel.contiguous().numpy()) for channel in image]


def from_pictures(pictures: Pictures) -> Tensor:
    """The inverse of `to_pictures`: -> uint8 (C, H, W)."""
    if pictures[0].mode == "RGB":
        return torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def has_colors(pictures: Pictures) -> bool:
    """Whether the pictures are one of red, green and blue."""
    return pictures[0].mode == "RGB"


def adjust_brightness(picture: Image.Image, factor: float) -> Image.Image:
    """Multiply every value; 1 changes nothing."""
    return ImageEnhance.Brightness(picture).enhance(factor)


def adjust_contrast(picture: Image.Image, factor: float) -> Image.Image:
    """Stretch the distance from the picture's mean gray; 1 changes nothing."""
    return ImageEnhance.Contrast(picture).enhance(factor)


def adjust_saturation(picture: Image.Image, factor: float) -> Image.Image:
    """Stretch the distance from each pixel's gray; 1 changes nothing, 0 is gray."""
    return ImageEnhance.Color(picture).enhance(factor)


def shift_hue(picture: Image.Image, turns: float) -> Image.Image:
    """Turn the hue of an RGB picture: by 1/3 red becomes green; less than 1/510 changes nothing."""
    shift = round(turns * HUE_LEVELS)
    if shift == 0:  # the way through HSV and back would round
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(level + shift) % HUE_LEVELS for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def to_gray(picture: Image.Image) -> Image.Image:
    """An RGB picture without its colours."""
    return picture.convert("L").convert("RGB")


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue changed by as much as drawn, in a drawn order.

    Pictures without colours have no saturation and hue: these are left out.

    Args:
        brightness, contrast, saturation: a strength s draws a factor from 1 - s, at least 0, to
            1 + s; 0 changes nothing.
        hue: most shift to either side, in turns.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, pictures: Pictures, generator: np.random.Generator) -> Pictures:
        """Change the pictures alike."""
        strengths = [(adjust_brightness, self.brightness), (adjust_contrast, self.contrast)]
        if has_colors(pictures):
            strengths += [(adjust_saturation, self.saturation), (shift_hue, self.hue)]
        steps = [step for step in strengths if step[1] > 0]
        for index in generator.permutation(len(steps)):
            adjust, strength = steps[index]
            if adjust is shift_hue:
                amount = generator.uniform(-strength, strength)
            else:
                amount = generator.uniform(max(0.0, 1 - strength), 1 + strength)
            pictures = [adjust(picture, amount) for picture in pictures]
        return pictures


@dataclass(frozen=True)
class RandomBlur:
    """Gaussian blur with a standard deviation of 0.1 to 2 pixels.

    Args:
        probability: of a blur.
    """

    probability: float

    def __call__(self, pictures: Pictures, generator: np.random.Generator) -> Pictures:
        """Blur the pictures alike, or leave them."""
        if generator.random() >= self.probability:
            return pictures
        radius = generator.uniform(*BLUR_RADIUS)
        return [picture.filter(ImageFilter.GaussianBlur(radius)) for picture in pictures]


@dataclass(frozen=True)
class ThreeAugment:
    """One of three, as likely each: gray, solarised (values from 128 on inverted), or blurred.

    Pictures without colours are gray already: they are solarised or blurred.
    """

    def __call__(self, pictures: Pictures, generator: np.random.Generator) -> Pictures:
        """Change the pictures alike."""
        first = 0 if has_colors(pictures) else 1
        choice = generator.integers(first, 3)
        if choice == 0:
            return [to_gray(picture) for picture in pictures]
        if choice == 1:
            return [ImageOps.solarize(picture, SOLARIZE_THRESHOLD) for picture in pictures]
        return RandomBlur(1.0)(pictures, generator)
