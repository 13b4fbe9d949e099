"""One image as it is stored: how its header puts it, and its pixels at their own depth.

What has 8 bits is decoded as training decodes it. Deeper images keep their values, so that the
range can be measured that training then maps to 0..255.
"""

import io
import warnings
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image

from .arrays import is_npy, read_bands
from .decode import decode_stored

GRAY_MODES = ("1", "L", "LA", "La")
DEEP_GRAY_MODES = ("I", "F")  # and those that begin so: I;16, I;16B
ARRAY = "array"  # the mode of what Pillow does not read


class Header(NamedTuple):
    """How an image is stored: in Pillow's words, and its bits a channel."""

    format: str
    mode: str
    depth: str


def stored_image(
    encoded: bytes, num_channels: int | None, name: str = "The image"
) -> tuple[Header, np.ndarray]:
    """How an image is stored, and its upright pixels as `decode_stored` gives them: (C, H, W).

    Args:
        num_channels: of the model that will see it. Gray stays one channel for a model of three,
            which shows it in all of them; None asks for gray, colour or bands, whichever it is.

    Raises:
        BadImage: as `decode_stored`.
    """
    file_format, mode, own_channels = _read_header(encoded)
    if num_channels is None or (num_channels == 3 and own_channels == 1):
        num_channels = own_channels
    pixels = decode_stored(encoded, num_channels, name)
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= 65535:
        pixels = pixels.astype(np.uint16)  # which is how training takes it
    return Header(file_format, mode, _depth(mode, pixels.dtype)), pixels


def _read_header(encoded: bytes) -> tuple[str, str, int]:
    """Format, mode and the channels that an image has of its own; of a bad one anything."""
    try:
        if is_npy(encoded):
            return "NPY", ARRAY, _npy_channels(encoded)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd shows when it is decoded
            picture = Image.open(io.BytesIO(encoded))
        is_gray = picture.mode in GRAY_MODES or picture.mode.startswith(DEEP_GRAY_MODES)
        return picture.format or "unknown", picture.mode, 1 if is_gray else 3
    except Exception:  # readers raise of every kind on damaged files
        with suppress(Exception):  # such as that it is no TIFF
            return "TIFF", ARRAY, len(read_bands(encoded, has_range=True))
        return "unknown", "unknown", 3


def _npy_channels(encoded: bytes) -> int:
    """Those of gray and colour if an end of the shape has as many, else the shorter end."""
    file = io.BytesIO(encoded)
    is_short = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_short else np.lib.format.read_array_header_2_0
    shape = read(file)[0]
    if len(shape) != 3:
        return 1
    ends = (shape[0], shape[2])
    return next((count for count in (3, 1) if count in ends), min(ends))


def _depth(mode: str, dtype: np.dtype) -> str:
    if mode == "1":
        return "1 bit"
    if mode == "F" or (mode == ARRAY and dtype.kind == "f"):
        return "float"
    if dtype.kind == "f":  # colours of 16 bits that were laid on white
        return "16 bits"
    return f"{8 * dtype.itemsize} bits"
