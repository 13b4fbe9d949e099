"""Encoded bytes to tensors: images as in `models.pictures`, label maps as class ids.

Any bytes give an image or a `BadImage`, within the limits of `limits`.
"""

import io
import warnings
from collections import deque
from collections.abc import Callable
from traceback import walk_tb
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from hf_vitmae.models.pictures import (
    UnfitPicture,
    ValueRange,
    in_range,
    is_undecoded_jpeg,
    picture_to_tensor,
    stored_values,
    upright_to_tensor,
)
from hf_vitmae.models.segmentation_maps import class_ids

from .arrays import (
    array_to_tensor,
    fitting_channels,
    is_npy,
    is_tiff,
    needs_tifffile,
    read_bands,
    read_npy,
)
from .jpeg import Box, read_jpeg_crop, upright_size
from .limits import SECONDS, TookTooLong, check_picture, time_limit

Decoded = TypeVar("Decoded")

# Pillow's readers raise these too on damaged files; raised in this package they are bugs of its.
BUGS = (NameError, AttributeError, TypeError, AssertionError)


class BadImage(ValueError):
    """An image, or its label map, that cannot be used: the message is `name` and `reason`.

    Args:
        name: what the image is known by: its file, or its row of a data set.
        reason: what is wrong with it, from the verb on.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # workers send it to the main process
        return type(self), (self.name, self.reason)


def decode(
    encoded: bytes,
    num_channels: int,
    name: str = "The image",
    value_range: ValueRange | None = None,
) -> Tensor:
    """Decode one image: bytes -> uint8 (C, H, W), or float32 in 0..255 with a value range.

    Args:
        num_channels: 1 is luma, 3 is RGB; any other number must be the file's own number of bands.
        name: what an error calls the image.
        value_range: the stored values that become 0 and 255, see `picture_to_tensor`.

    Raises:
        BadImage: if the image cannot be decoded, is too large to be trusted, takes too long, holds
            32-bit values or floats and no range is given, or does not have the bands that
            `num_channels` asks for.
    """

    def read(encoded: bytes) -> Tensor:
        image = _open(encoded, num_channels, value_range is not None)
        if isinstance(image, np.ndarray):
            return array_to_tensor(image, num_channels, value_range)
        return picture_to_tensor(image, num_channels, value_range=value_range)

    return _decode(encoded, read, name)


def decode_crop(
    encoded: bytes,
    num_channels: int,
    choose_box: Callable[[int, int], Box],
    size: tuple[int, int],
    name: str = "The image",
    value_range: ValueRange | None = None,
) -> Tensor:
    """Decode a part of one image that will be resized: bytes -> (C, h, w) of the type of `decode`.

    A JPEG of which the part is much larger than `size` may come at half its size, see `jpeg`.

    Args:
        num_channels, value_range: as in `decode`.
        choose_box: height and width of the upright image -> (top, left, height, width) of the part;
            called once.
        size: (height, width) that the part will be resized to.

    Raises:
        BadImage: as `decode`.
    """

    def read(encoded: bytes) -> Tensor:
        image = _open(encoded, num_channels, value_range is not None)
        if isinstance(image, np.ndarray):
            top, left, height, width = choose_box(image.shape[1], image.shape[2])
            part = image[:, top : top + height, left : left + width]
            return array_to_tensor(part, num_channels, value_range)
        if num_channels in (1, 3) and is_undecoded_jpeg(image):
            box = choose_box(*upright_size(image))
            crop = upright_to_tensor(read_jpeg_crop(image, box, size), num_channels)
        else:
            crop = _stored(image, num_channels, value_range is not None)
            top, left, height, width = choose_box(crop.shape[1], crop.shape[2])
            crop = crop[:, top : top + height, left : left + width]
        return crop if value_range is None else in_range(crop, value_range)

    return _decode(encoded, read, name)


def decode_stored(encoded: bytes, num_channels: int, name: str = "The image") -> np.ndarray:
    """Decode one image at its own depth: bytes -> (C, H, W), the values that a range is about.

    Args:
        num_channels: as in `decode`.

    Raises:
        BadImage: as `decode`, for anything but deep values.
    """

    def read(encoded: bytes) -> np.ndarray:
        image = _open(encoded, num_channels, has_range=True)
        if isinstance(image, np.ndarray):
            return fitting_channels(image, num_channels).numpy()
        return stored_values(image, num_channels).numpy()

    return _decode(encoded, read, name)


def decode_label_map(encoded: bytes, name: str = "The label map") -> Tensor:
    """Decode one label map, the class of every pixel: bytes -> int64 (H, W).

    Class ids are the values of a gray picture, of 1 to 32 bits, the indices of a palette, or the
    integers of a numpy file.

    Args:
        name: what an error calls the map.

    Raises:
        BadImage: if the map cannot be decoded or holds colours, transparency or floats.
    """
    return _decode(encoded, _class_ids, name)


def _class_ids(encoded: bytes) -> Tensor:
    if is_npy(encoded):
        return _array_class_ids(encoded)
    picture = Image.open(io.BytesIO(encoded))
    check_picture(picture, has_range=True)  # ids take eight bytes each
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise UnfitPicture(
            f"holds colours or fractions (mode {picture.mode}), not class ids; save one id for "
            "each pixel, as 8-bit or 16-bit gray (L, I;16) or as palette indices (P)."
        )
    return class_ids(picture)


def _array_class_ids(encoded: bytes) -> Tensor:
    values = read_npy(encoded, num_channels=1, has_range=True)  # (1, H, W)
    if values.dtype.kind == "f" or len(values) != 1:
        raise UnfitPicture(
            f"is an array of {values.dtype} with {len(values)} channels, not class ids; save one "
            "integer for each pixel, (H, W)."
        )
    return class_ids(values)


def _open(encoded: bytes, num_channels: int, has_range: bool) -> Image.Image | np.ndarray:
    """A picture of which the header is read, or what Pillow does not read: an array (C, H, W)."""
    if is_npy(encoded):
        return read_npy(encoded, num_channels, has_range)
    try:
        picture = Image.open(io.BytesIO(encoded))
    except Image.UnidentifiedImageError:
        if is_tiff(encoded):
            return read_bands(encoded, has_range)
        raise
    if is_tiff(encoded) and needs_tifffile(picture, num_channels, has_range):
        return read_bands(encoded, has_range)
    check_picture(picture, has_range)
    return picture


def _stored(picture: Image.Image, num_channels: int, has_range: bool) -> Tensor:
    """A picture before a range is applied to its values: (C, H, W)."""
    read = stored_values if has_range else picture_to_tensor
    return read(picture, num_channels)


def _decode(encoded: bytes, read: Callable[[bytes], Decoded], name: str) -> Decoded:
    """What `read` makes of the bytes; whatever is wrong with them is a `BadImage`."""
    try:
        with warnings.catch_warnings(), time_limit():
            warnings.simplefilter("ignore")  # odd EXIF or padding: the pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read(encoded)
    except UnfitPicture as error:
        raise BadImage(name, str(error)) from error
    except TookTooLong as error:
        raise BadImage(
            name, f"takes more than {SECONDS:g} seconds to decode; remove it or save it anew."
        ) from error
    except Exception as error:  # Pillow's readers raise of every kind on damaged files
        if isinstance(error, BUGS) and _is_raised_here(error):
            raise
        raise BadImage(
            name, f"cannot be decoded: {_one_line(error)}; remove it or save it anew."
        ) from error


def _is_raised_here(error: Exception) -> bool:
    """Whether this package raised an error itself, not a library that it called."""
    (innermost,) = deque((frame for frame, _ in walk_tb(error.__traceback__)), maxlen=1)
    module = innermost.f_globals.get("__name__", "")
    return module.partition(".")[0] == __name__.partition(".")[0]


def _one_line(error: Exception) -> str:
    """The error's text on one line, without the address of a buffer, which tells nothing."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image of a known format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
