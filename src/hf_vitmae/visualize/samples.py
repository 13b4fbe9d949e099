"""A sheet of what augmentation makes of images, for a person to look at before a run."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from hf_vitmae.visualize.panel import PanelRow, picture_panel

NUM_DRAWS = 6
ORIGINAL = "original"

Draw = Callable[[Tensor, np.random.Generator], Tensor]


def sample_sheet(
    images: Sequence[Tensor],
    draw: Draw,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    captions: Sequence[str] | None = None,
    footer: Sequence[str] = (),
) -> Image.Image:
    """Each image as a row: the original, made to fit, then several draws of its augmentation.

    Of images with 2 channels the first is shown, of those with more than 3 the first three.

    Args:
        images: uint8 (C, H, W), of any sizes.
        draw: augments one image, as a training transform does: uint8 (C, H, W) -> (C, H', W').
        seed: of the draws; every image and draw gets a generator of its own.
        captions: words below each image; its size by default.
        footer: lines of words below all.

    Raises:
        ValueError: if there is nothing to show, or the captions are not one an image.
    """
    if not images or num_draws < 1:
        raise ValueError(
            f"A sheet needs an image and a draw at least, got {len(images)} and {num_draws}."
        )
    if captions is None:
        captions = [f"{image.shape[1]} x {image.shape[2]} (height x width)" for image in images]
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} images need as many captions, got {len(captions)}.")
    rows = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        generators = [np.random.default_rng((seed, number, index)) for index in range(num_draws)]
        draws = [_to_picture(draw(image, generator)) for generator in generators]
        pictures = {f"draw {index}": picture for index, picture in enumerate(draws, start=1)}
        original = _fit(_to_picture(image), draws[0].size)
        rows.append(PanelRow({ORIGINAL: original, **pictures}, caption))
    return picture_panel(rows, footer)


def _to_picture(image: Tensor) -> Image.Image:
    """Those channels that make a picture, gray or coloured: uint8 (C, H, W) -> picture."""
    channels = image[:3] if image.shape[0] >= 3 else image[:1]
    return Image.fromarray(channels.permute(1, 2, 0).squeeze(2).contiguous().cpu().numpy())


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole picture at the largest size (width, height) that fits, in its own shape."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
