"""PIL pictures to uint8 tensors by fixed rules: the same for training, evaluation and inference.

A picture is turned upright by its EXIF orientation, transparency is laid on white, and 16-bit gray
is scaled by 255 / 65535, never clipped and never stretched by its own range.

A JPEG in memory that is opened and not yet decoded is decoded by simplejpeg where that is
installed. Pillow has read its header and has the last word on what simplejpeg complains of; both
decode by libjpeg-turbo, to the same bits.
"""

import io

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


class UnfitPicture(ValueError):
    """A picture that is sound but not what the model takes; says so from its verb on."""


def picture_to_tensor(picture: Image.Image, num_channels: int, convert: bool = True) -> Tensor:
    """Any picture -> uint8 (num_channels, H, W).

    One channel is luma, three are RGB (gray repeated); any other number must be the picture's own
    number of bands, which are then taken as they are.

    Args:
        convert: False takes the bands as they are for one and three channels too.

    Raises:
        UnfitPicture: if the bands do not fit, or values are float or of 32 bits, of unknown range.
    """
    if convert and num_channels in (1, 3) and is_undecoded_jpeg(picture):
        return upright_to_tensor(turn_upright(decode_jpeg(picture), picture), num_channels)
    picture.load()  # some formats tell their mode only then
    if exif_orientation(picture) > 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _scale_gray(picture)
    if convert and num_channels in (1, 3):
        if picture.has_transparency_data:
            picture = _on_white(picture)
        if num_channels == 3 or picture.mode not in ("1", "L"):
            picture = _in_mode(picture, "RGB")
        if num_channels == 1:
            picture = _in_mode(picture, "L")
    elif len(picture.getbands()) != num_channels:
        raise UnfitPicture(
            f"has {len(picture.getbands())} bands ({picture.mode}) and the model takes "
            f"{num_channels} channels; use num_channels 1 or 3, or images with as many bands."
        )
    pixels = np.array(picture)
    pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels  # mode "1"
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)  # (C, H, W)


def exif_orientation(picture: Image.Image) -> int:
    """How a picture is stored: 1 upright, 2 to 8 turned or mirrored; from its header."""
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(2, 9) else 1


def is_undecoded_jpeg(picture: Image.Image) -> bool:
    """Whether a picture is a JPEG in memory, gray or RGB, as it was opened: no CMYK, no MPO.

    Files on a disk are left to Pillow, which closes them when it decodes them.
    """
    is_plain = picture.format == "JPEG" and picture.mode in ("L", "RGB")
    if not is_plain or not isinstance(getattr(picture, "fp", None), io.BytesIO):
        return False
    return bool(getattr(picture, "tile", ())) and not getattr(picture, "decoderconfig", ())  # draft


def decode_jpeg(picture: Image.Image, reduction: int = 1) -> np.ndarray:
    """The pixels of an undecoded JPEG as they are stored: uint8 (H, W) or (H, W, 3).

    The picture itself stays undecoded.

    Args:
        reduction: how many times smaller it comes, each side rounded up: 1, 2, 4 or 8.
    """
    encoded = getattr(picture, "fp").getvalue()  # noqa: B009
    pixels = _by_simplejpeg(encoded, picture, reduction)
    return _by_pillow(encoded, reduction) if pixels is None else pixels


def turn_upright(pixels: np.ndarray, picture: Image.Image) -> np.ndarray:
    """Apply a picture's orientation to its stored pixels, as a view: (H, W, ...) -> (H', W', ...).

    An orientation of 5 and more swaps height and width.
    """
    orientation = exif_orientation(picture)
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def upright_to_tensor(pixels: np.ndarray, num_channels: int) -> Tensor:
    """Gray or RGB to luma (1 channel) or RGB (3): uint8 (H, W) or (H, W, 3) -> (C, H, W)."""
    if pixels.ndim == 3 and num_channels == 1:
        pixels = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if min(pixels.strides) < 0:  # a mirrored view, which torch does not take
        pixels = pixels.copy()
    image = torch.from_numpy(pixels)
    return image.expand(num_channels, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)


def _by_simplejpeg(encoded: bytes, picture: Image.Image, reduction: int) -> np.ndarray | None:
    """The pixels; None without simplejpeg, and for a file that it has any complaint about."""
    if simplejpeg is None:
        return None
    width, height = (-(-side // reduction) for side in picture.size)
    colorspace = "GRAY" if picture.mode == "L" else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(
            encoded, colorspace, min_height=height, min_width=width, min_factor=reduction
        )
    except ValueError:  # strict: for what libjpeg only warns of too
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return pixels[..., 0] if picture.mode == "L" else pixels


def _by_pillow(encoded: bytes, reduction: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(encoded))
    if reduction > 1:
        picture.draft(None, (picture.width // reduction, picture.height // reduction))
    return np.array(picture)


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode; itself if it has it, since a copy takes as long as a resize."""
    return picture if picture.mode == mode else picture.convert(mode)


def _scale_gray(picture: Image.Image) -> Image.Image:
    """Gray of 16 bits to 8 bits, to the nearest value: 65535 becomes 255."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        kind = "float" if picture.mode == "F" else "32-bit"
        raise UnfitPicture(
            f"holds {kind} values of unknown range; save it with 8 or 16 bits a channel."
        )
    levels = (values.astype(np.int64) + 128) // 257  # 65535 = 255 * 257
    return Image.fromarray(levels.astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    """Lay a picture with transparency on white: RGB."""
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")
