"""Encoded bytes of an image to a uint8 tensor, by Pillow and the rules of `models.pictures`."""

import io
import warnings

from PIL import Image
from torch import Tensor

from hf_vitmae.models.pictures import UnfitPicture, picture_to_tensor


def decode(encoded: bytes, num_channels: int, name: str = "The image") -> Tensor:
    """Decode one image: bytes -> uint8 (C, H, W).

    Args:
        num_channels: 1 is luma, 3 is RGB; any other number must be the file's own number of bands.
        name: what an error calls the image.

    Raises:
        ValueError: if the image cannot be decoded, is too large to be trusted, holds 32-bit values,
            or does not have the bands that `num_channels` asks for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF or padding: the pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return picture_to_tensor(Image.open(io.BytesIO(encoded)), num_channels)
    except UnfitPicture as error:
        raise ValueError(f"{name} {error}") from error
    except Exception as error:  # Pillow's readers raise of every kind on damaged files
        raise ValueError(
            f"{name} cannot be decoded: {_one_line(error)}; remove it or save it anew."
        ) from error


def _one_line(error: Exception) -> str:
    """The error's text on one line, without the address of a buffer, which tells nothing."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image of a known format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
