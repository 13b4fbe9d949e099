"""Crops of JPEGs, read at half their size where it pays.

libjpeg can halve a picture within the inverse DCT. That is for a crop alone, of which much more is
left than the model sees, and where it shows little detail; then the resized crop is within 0.5/255
of that of a full decode, as a mean over its values. Simplejpeg and Pillow halve to the same bits,
so that batches do not depend on what is installed.
"""

import numpy as np
from PIL import Image

from hf_vitmae.models.pictures import decode_jpeg, exif_orientation, turn_upright

REDUCTION = 2  # by 4 or 8 little more is gained: Huffman decoding takes the rest
# Half of a crop must still be this much larger than the result. The antialiased resize has fewer
# pixels to weigh there: at 1.5 its mean error is up to 2.2/255 on photographs, at 3 it is 0.5/255.
OVERSAMPLING = 3
# Mean difference of neighbours, down plus across, in levels. Up to here photographs have an error
# of at most 0.3/255; above lie printed text, noise and fine lines, which may exceed 0.5/255.
MAX_DETAIL = 12.0
DETAIL_STEP = 7  # look at each seventh row and column: no multiple of the 8 pixels of a block

Box = tuple[int, int, int, int]


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(height, width) of a picture turned upright, from its header."""
    width, height = picture.size
    return (width, height) if exif_orientation(picture) >= 5 else (height, width)


def may_be_halved(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether a crop of height x width has pixels enough to be read at half the size."""
    least = REDUCTION * OVERSAMPLING
    return height >= least * size[0] and width >= least * size[1]


def even_box(box: Box, height: int, width: int) -> Box:
    """The box with even edges around (top, left, height, width), inside an image of height x width.

    An odd last row or column of the image is left out.
    """
    top, bottom = _even_range(box[0], box[2], height)
    left, right = _even_range(box[1], box[3], width)
    return top, left, bottom - top, right - left


def read_jpeg_crop(picture: Image.Image, box: Box, size: tuple[int, int]) -> np.ndarray:
    """What lies in a box of an undecoded JPEG: uint8 (h, w) or (h, w, 3), upright, perhaps halved.

    Args:
        box: (top, left, height, width) in the upright picture.
        size: (height, width) that the crop will be resized to; decides whether it may be halved.
    """
    if may_be_halved(box[2], box[3], size) and _halves_exactly(picture, box):
        half = turn_upright(decode_jpeg(picture, REDUCTION), picture)
        crop = _cut(half, tuple(edge // REDUCTION for edge in box))
        if _detail(crop) <= MAX_DETAIL:
            return crop
    return _cut(turn_upright(decode_jpeg(picture), picture), box)


def _even_range(start: int, length: int, limit: int) -> tuple[int, int]:
    stop = start + length
    return start - start % REDUCTION, min(stop + stop % REDUCTION, limit - limit % REDUCTION)


def _halves_exactly(picture: Image.Image, box: Box) -> bool:
    """Whether the box consists of whole pixels of the halved picture as it is stored."""
    is_mirrored = exif_orientation(picture) > 1  # then edges count from the other end
    edges = (*box, *picture.size) if is_mirrored else box
    return all(edge % REDUCTION == 0 for edge in edges)


def _cut(pixels: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def _detail(pixels: np.ndarray) -> float:
    """Mean absolute difference of neighbouring values, down plus across."""
    rows, columns = pixels[::DETAIL_STEP], pixels[:, ::DETAIL_STEP]
    across = np.abs(np.diff(rows.astype(np.int16), axis=1)).mean()
    return float(across + np.abs(np.diff(columns.astype(np.int16), axis=0)).mean())
