"""Images that Pillow does not read, as arrays: `.npy` files, and TIFFs with any number of bands.

TIFFs are read by tifffile, of the extra `bands`. It needs no other package for files that are
stored plainly or with deflate; for LZW it needs imagecodecs.
"""

import io
import logging
import math
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.pictures import (
    UnfitPicture,
    ValueRange,
    channel_axis,
    check_bands,
    in_range,
    match_channels,
    to_levels,
    turn,
)

from .limits import MAX_BYTES, check_size

try:
    import tifffile
except ImportError:
    tifffile = None

NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # + is BigTIFF
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, ORIENTATION = 258, 259, 262, 274  # tags of a TIFF
SAMPLES_PER_PIXEL, PLANAR = 277, 284
GRAY = (0, 1)  # of PHOTOMETRIC
PLAIN, LZW, DEFLATE, OLD_DEFLATE = 1, 5, 8, 32946  # others may grow without limit
MOST_DEFLATED = 1032  # bytes that deflate makes of one

for library in ("PIL", "tifffile"):  # what they log of odd tags would be printed, without a name
    logging.getLogger(library).addHandler(logging.NullHandler())


def is_npy(encoded: bytes) -> bool:
    """Whether bytes are an array file of numpy."""
    return encoded.startswith(NPY_MAGIC)


def is_tiff(encoded: bytes) -> bool:
    """Whether bytes are a TIFF of any kind."""
    return encoded[:4] in TIFF_MAGICS


def needs_tifffile(picture: Image.Image, num_channels: int, has_range: bool = False) -> bool:
    """Whether Pillow would leave out bands or depth of a TIFF that it opened, or mix them up."""
    tags: Any = getattr(picture, "tag_v2")  # noqa: B009
    if tags.get(SAMPLES_PER_PIXEL, 1) == 1:
        return False
    if tags.get(PHOTOMETRIC) in GRAY and picture.mode != "LA":  # the first of several bands
        return True
    is_plain = tags.get(COMPRESSION, PLAIN) == PLAIN
    is_planar = tags.get(PLANAR, 1) == 2 and max(tags.get(BITS_PER_SAMPLE, (1,))) > 8
    return (is_planar and (is_plain or has_range)) or num_channels not in (1, 3)


def array_to_tensor(
    values: np.ndarray, num_channels: int, value_range: ValueRange | None
) -> Tensor:
    """Values (C, H, W) as a picture's are taken: uint8, or float32 in 0..255 with a value range.

    Raises:
        UnfitPicture: as `picture_to_tensor`.
    """
    if value_range is None and values.dtype != np.uint8:
        values = to_levels(values)
    image = fitting_channels(values, num_channels)
    return image if value_range is None else in_range(image, value_range)


def fitting_channels(values: np.ndarray, num_channels: int) -> Tensor:
    """Values of any type with the model's channels: (C, H, W) -> (num_channels, H, W).

    Raises:
        UnfitPicture: if the channels do not fit.
    """
    dtype = f"={values.dtype.kind}{values.dtype.itemsize}"  # torch knows one type of each size
    image = torch.from_numpy(values.astype(dtype))  # a copy that can be written to
    if num_channels in (1, 3) and len(values) in (1, 3):
        image = match_channels(image, num_channels)
    check_bands(len(image), num_channels)
    return image


def read_npy(encoded: bytes, num_channels: int, has_range: bool = False) -> np.ndarray:
    """A numpy file of one image, (H, W), (H, W, C) or (C, H, W): -> (C, H, W).

    Channels are the axis at the one end that has as many as the model, or 1, or 3 where the model
    has one of these two. Values are not copied.

    Raises:
        UnfitPicture: for anything but numbers, for another shape, or one that does not tell.
    """
    shape, dtype, is_fortran, start = _npy_header(encoded)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise UnfitPicture(f"has the shape {shape}, not (H, W), (H, W, C) or (C, H, W).")
    axis = _channel_axis(shape, num_channels) if len(shape) == 3 else None
    sides = [length for index, length in enumerate(shape) if index != axis]
    pixel_bytes = dtype.itemsize * (1 if axis is None else shape[axis])
    check_size(sides[0], sides[1], pixel_bytes, has_range)
    count = math.prod(shape)
    if count * dtype.itemsize > len(encoded) - start:
        raise UnfitPicture(f"is cut short: its shape {shape} needs more bytes; save it anew.")
    flat = np.frombuffer(encoded, dtype, count, start)
    values = flat.reshape(shape, order="F" if is_fortran else "C")
    values = values.astype(dtype.newbyteorder("="), copy=False)
    return values[None] if axis is None else np.moveaxis(values, axis, 0)


def read_bands(encoded: bytes, has_range: bool = False) -> np.ndarray:
    """All bands of a TIFF's first page, upright: -> (C, H, W) of the file's own type.

    Raises:
        UnfitPicture: without tifffile, if the page would take too much memory, or holds anything
            but numbers or a compression that is not read.
    """
    if tifffile is None:
        raise UnfitPicture(
            "is a TIFF that Pillow does not read as it is; pip install 'hf-vitmae[bands]'."
        )
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        page: Any = file.pages[0]
        _check_page(page, encoded, has_range)
        try:
            values = page.asarray(maxworkers=1)  # (H, W), (H, W, C) or (C, H, W)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise UnfitPicture(
                "is compressed in a way that needs another package; pip install imagecodecs, or "
                "save it with deflate."
            ) from error
        orientation = page.tags.valueof(ORIENTATION, 1)
    values = np.atleast_3d(np.moveaxis(values, 0, -1) if _is_planar(page) else values)
    return np.moveaxis(turn(values, orientation), -1, 0)


def _npy_header(encoded: bytes) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Shape, type, whether columns come first, and where the values begin."""
    file = io.BytesIO(encoded)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # 3.0 is for names of fields beyond ASCII
        raise UnfitPicture("holds a table with named columns, not an image.")
    shape, is_fortran, dtype = readers[version](file)
    _check_type(dtype)
    return shape, dtype, is_fortran, file.tell()


def _check_type(dtype: np.dtype | None) -> None:
    if dtype is None or dtype.kind not in "uif" or dtype.itemsize > 8:
        raise UnfitPicture(f"holds values of type {dtype}, not integers or floats.")


def _channel_axis(shape: tuple[int, ...], num_channels: int) -> int:
    """Which of the axes 0 and 2 holds the channels."""
    counts = (num_channels, 1, 3) if num_channels in (1, 3) else (num_channels,)
    axis = channel_axis(shape, counts)
    if axis is None:
        raise UnfitPicture(
            f"has the shape {shape}, in which the model's {num_channels} channels cannot be told; "
            "save it as (height, width, channels) with as many."
        )
    return axis


def _is_planar(page: Any) -> bool:
    """Whether each band is stored by itself, so that an array has the bands first."""
    return page.planarconfig == 2 and page.samplesperpixel > 1


def _check_page(page: Any, encoded: bytes, has_range: bool) -> None:
    """Refuse a page by its tags, before it is decoded."""
    _check_numbers(page)
    _check_type(page.dtype)
    if page.imagedepth != 1 or page.ndim not in (2, 3):
        raise UnfitPicture(f"has the shape {page.shape}, not that of one image.")
    pixel_bytes = page.samplesperpixel * page.dtype.itemsize
    check_size(page.imagelength, page.imagewidth, pixel_bytes, has_range)
    if page.is_tiled:
        check_size(page.tilelength, page.tilewidth, pixel_bytes, has_range)
    if page.compression not in (PLAIN, LZW, DEFLATE, OLD_DEFLATE):
        name = getattr(page.compression, "name", page.compression)  # a number where unknown
        raise UnfitPicture(
            f"is compressed as {name}, which is not read for bands; save it with deflate."
        )
    if page.compression in (DEFLATE, OLD_DEFLATE):
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            _check_deflated(encoded[start : start + length])


def _check_numbers(page: Any) -> None:
    """Refuse a page with tags of another kind: a damaged one may hold a text or a fraction."""
    sides = (page.imagelength, page.imagewidth, page.imagedepth, page.tilelength, page.tilewidth)
    numbers = (*sides, page.samplesperpixel, *page.dataoffsets, *page.databytecounts)
    if not all(isinstance(number, int) for number in numbers):
        raise UnfitPicture("has tags that are no whole numbers; remove it or save it anew.")


def _check_deflated(segment: bytes) -> None:
    """Refuse a part of a file that becomes larger than an image may be: tifffile has no limit."""
    if len(segment) * MOST_DEFLATED <= MAX_BYTES:
        return
    reader, pending, size = zlib.decompressobj(), segment, 0
    while pending and size <= MAX_BYTES:
        size += len(reader.decompress(pending, 2**20))
        pending = reader.unconsumed_tail
    if size > MAX_BYTES:
        raise UnfitPicture("becomes far larger than its header says; remove it or save it anew.")
