"""From pixel values to pictures: the rules that all pages share. Shapes: see `patches.py`."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.patches import grid_size

BATCH_SIZE = 32  # images that a model sees at once


def prepared(
    config: VitMaeConfig,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
) -> tuple[VitMaeImageProcessor, Tensor]:
    """What goes into a model: the processor, and B images by it, (B, C, H, W) on the CPU.

    Args:
        processor: None takes one of the model's geometry with default statistics.
    """
    processor = processor or VitMaeImageProcessor.for_model(config)
    return processor, processor(images, return_tensors="pt")["pixel_values"].cpu()


def patch_grid(pixel_values: Tensor, config: VitMaeConfig) -> tuple[int, int]:
    """The grid (h, w) of images (B, C, H, W) of any size."""
    return grid_size((pixel_values.shape[2], pixel_values.shape[3]), config.patch_pair)


def to_pictures(processor: VitMaeImageProcessor, pixel_values: Tensor) -> list[Image.Image]:
    """Those channels that make a picture, gray or coloured: (B, C, H, W) -> B pictures.

    Of 2 channels the first is shown, of more than 3 the first three.
    """
    return processor.to_pil(pixel_values, channels=range(3 if pixel_values.shape[1] >= 3 else 1))


def paint_over(picture: Image.Image, other: Image.Image, where: np.ndarray) -> Image.Image:
    """`other` in the patches where bool (h, w) is True, `picture` in the rest."""
    chosen = Image.fromarray(where).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(other, picture, chosen)


def gray_out(picture: Image.Image, hidden: np.ndarray) -> Image.Image:
    """Mid-gray in the patches where bool (h, w) is True.

    On the finished picture, so that the other pixels stay exactly as they are.
    """
    return paint_over(picture, Image.new(picture.mode, picture.size, "gray"), hidden)
