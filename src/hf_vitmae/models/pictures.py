"""PIL pictures to uint8 tensors by fixed rules: the same for training, evaluation and inference.

A picture is turned upright by its EXIF orientation, transparency is laid on white, and 16-bit gray
is scaled by 255 / 65535, never clipped and never stretched by its own range.
"""

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor


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
