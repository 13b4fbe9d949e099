"""Encoded bytes to tensors: images as in `models.pictures`, label maps as class ids."""

import io
import warnings
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from hf_vitmae.models.pictures import (
    UnfitPicture,
    is_undecoded_jpeg,
    picture_to_tensor,
    upright_to_tensor,
)
from hf_vitmae.models.segmentation_maps import class_ids

from .jpeg import Box, read_jpeg_crop, upright_size


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


def decode(encoded: bytes, num_channels: int, name: str = "The image") -> Tensor:
    """Decode one image: bytes -> uint8 (C, H, W).

    Args:
        num_channels: 1 is luma, 3 is RGB; any other number must be the file's own number of bands.
        name: what an error calls the image.

    Raises:
        BadImage: if the image cannot be decoded, is too large to be trusted, holds 32-bit values,
            or does not have the bands that `num_channels` asks for.
    """
    return _decode(encoded, lambda picture: picture_to_tensor(picture, num_channels), name)


def decode_crop(
    encoded: bytes,
    num_channels: int,
    choose_box: Callable[[int, int], Box],
    size: tuple[int, int],
    name: str = "The image",
) -> Tensor:
    """Decode a part of one image that will be resized: bytes -> uint8 (C, h, w).

    A JPEG of which the part is much larger than `size` may come at half its size, see `jpeg`.

    Args:
        num_channels: as in `decode`.
        choose_box: height and width of the upright image -> (top, left, height, width) of the part;
            called once.
        size: (height, width) that the part will be resized to.

    Raises:
        BadImage: as `decode`.
    """

    def read(picture: Image.Image) -> Tensor:
        if num_channels in (1, 3) and is_undecoded_jpeg(picture):
            box = choose_box(*upright_size(picture))
            return upright_to_tensor(read_jpeg_crop(picture, box, size), num_channels)
        image = picture_to_tensor(picture, num_channels)
        top, left, height, width = choose_box(image.shape[1], image.shape[2])
        return image[:, top : top + height, left : left + width]

    return _decode(encoded, read, name)


def decode_label_map(encoded: bytes, name: str = "The label map") -> Tensor:
    """Decode one label map, the class of every pixel: bytes -> int64 (H, W).

    Class ids are the values of a gray picture, of 1 to 32 bits, or the indices of a palette.

    Args:
        name: what an error calls the map.

    Raises:
        BadImage: if the map cannot be decoded or holds colours, transparency or floats.
    """
    return _decode(encoded, _class_ids, name)


def _class_ids(picture: Image.Image) -> Tensor:
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise UnfitPicture(
            f"holds colours or fractions (mode {picture.mode}), not class ids; save one id for "
            "each pixel, as 8-bit or 16-bit gray (L, I;16) or as palette indices (P)."
        )
    return class_ids(picture)


def _decode(encoded: bytes, read: Callable[[Image.Image], Tensor], name: str) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF or padding: the pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read(Image.open(io.BytesIO(encoded)))
    except UnfitPicture as error:
        raise BadImage(name, str(error)) from error
    except Exception as error:  # Pillow's readers raise of every kind on damaged files
        raise BadImage(
            name, f"cannot be decoded: {_one_line(error)}; remove it or save it anew."
        ) from error


def _one_line(error: Exception) -> str:
    """The error's text on one line, without the address of a buffer, which tells nothing."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image of a known format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
