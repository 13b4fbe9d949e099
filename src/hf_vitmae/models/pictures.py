"""PIL pictures to tensors by fixed rules: the same for training, evaluation and inference.

A picture is turned upright by its EXIF orientation, transparency is laid on white, and 16-bit gray
is scaled by 255 / 65535, never clipped and never stretched by its own range: uint8. With a value
range, values keep their depth: the range becomes 0..255 as float32, and what lies beyond is
clipped.

A JPEG in memory that is opened and not yet decoded is decoded by simplejpeg where that is
installed. Pillow has read its header and has the last word on what simplejpeg complains of; both
decode by libjpeg-turbo, to the same bits.
"""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops
from torch import Tensor

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 1/65536: Pillow's own integers for RGB -> L
WHITE_16 = 65535
LARGE = 2**24  # pixels; from here on a picture is copied by strips, which takes less memory
ROWS_AT_ONCE = 512
# A progressive JPEG is decoded once a scan. Beyond so many pixels in all scans Pillow does it,
# chunk by chunk, since a limit of time cannot stop simplejpeg; a usual file has 10 scans.
MAX_SCANNED_PIXELS = 2**30
PROGRESSIVE_CHUNK = 4096  # bytes; a scan of many pixels can be as short as 100
_DEEP_COLOR = re.compile(r"RGB[AX]?;16[BLN]")  # how Pillow names 16 bits a channel that it halves
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

ValueRange = Sequence[float]  # (low, high)


class UnfitPicture(ValueError):
    """A picture that is sound but not what the model takes; says so from its verb on."""


def picture_to_tensor(
    picture: Image.Image,
    num_channels: int,
    convert: bool = True,
    value_range: ValueRange | None = None,
) -> Tensor:
    """Any picture -> uint8 (num_channels, H, W), or float32 in 0..255 with a value range.

    One channel is luma, three are RGB (gray repeated); any other number must be the picture's own
    number of bands, which are then taken as they are.

    Args:
        convert: False takes the bands as they are for one and three channels too.
        value_range: the stored values that become 0 and 255.

    Raises:
        UnfitPicture: if the bands do not fit, if values are float or of 32 bits and no range is
            given, or if they are no finite numbers.
    """
    if value_range is not None:
        return in_range(stored_values(picture, num_channels, convert), value_range)
    if convert and num_channels in (1, 3) and is_undecoded_jpeg(picture):
        return upright_to_tensor(turn_upright(decode_jpeg(picture), picture), num_channels)
    _read_by_chunks(picture)
    picture.load()  # some formats tell their mode only then
    upright = picture
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(to_levels(np.asarray(picture)))
    if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
        picture = ImageChops.invert(picture)  # Pillow takes all for Adobe's, which are inverted
    if convert and num_channels in (1, 3):
        if picture.has_transparency_data:
            picture = _on_white(picture)
        if num_channels == 3 or picture.mode not in ("1", "L"):
            picture = _in_mode(picture, "RGB")
        if num_channels == 1:
            picture = _in_mode(picture, "L")
    check_bands(len(picture.getbands()), num_channels, picture.mode)
    pixels = turn_upright(_pixels(picture), upright)
    del picture  # what was converted is not needed beside the copies that may follow
    pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels  # mode "1"
    return torch.from_numpy(_for_torch(np.atleast_3d(pixels))).permute(2, 0, 1)  # (C, H, W)


def stored_values(picture: Image.Image, num_channels: int, convert: bool = True) -> Tensor:
    """The values that a value range is about: those of the file, upright -> (num_channels, H, W).

    uint8, uint16, int32 or float32; 8 bits are as `picture_to_tensor` makes them. Colour of 16 bits
    is read from the file, so that it must not be decoded yet: Pillow keeps 8 bits of it.

    Raises:
        UnfitPicture: if the bands do not fit.
    """
    is_halved = _is_halved(picture)
    deep = _deep_values(picture)
    if deep is None:
        image = picture_to_tensor(picture, num_channels, convert)
        return image.int() * 257 if is_halved else image
    if convert and num_channels in (1, 3):
        image = torch.from_numpy(_over_white(deep)).permute(2, 0, 1)  # (1 or 3, H, W)
        return match_channels(image, num_channels)
    check_bands(deep.shape[2], num_channels, picture.mode)
    return torch.from_numpy(_for_torch(deep)).permute(2, 0, 1)


def in_range(values: Tensor, value_range: ValueRange) -> Tensor:
    """Map a range to 0..255 and clip what lies beyond: any type (...) -> float32 (...).

    Raises:
        UnfitPicture: if there are values that are no finite numbers.
    """
    low, high = value_range
    if values.is_floating_point() and not values.isfinite().all():
        raise UnfitPicture("holds values that are no finite numbers; mend or remove it.")
    is_exact = values.dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.float32)
    scaled = values.to(torch.float32 if is_exact else torch.float64, copy=True)
    return scaled.sub_(low).mul_(255 / (high - low)).clamp_(0, 255).float()


def to_levels(values: np.ndarray) -> np.ndarray:
    """Values of 16 bits to 8 bits, to the nearest: any integers (...) -> uint8; 65535 becomes 255.

    Raises:
        UnfitPicture: for floats, and for integers beyond 0..65535.
    """
    is_float = values.dtype.kind == "f"
    if is_float or values.min() < 0 or values.max() > WHITE_16:
        kind = "float" if is_float else "32-bit" if values.itemsize > 2 else "negative"
        raise UnfitPicture(
            f"holds {kind} values of unknown range; give value_range=(low, high), which `hf-vitmae "
            "stats` measures for training, or save it with 8 or 16 bits a channel."
        )
    values = values.astype(np.uint16, copy=False)
    levels = values // 257  # 65535 = 255 * 257
    levels += values - levels * 257 > 128
    return levels.astype(np.uint8)


def match_channels(image: Tensor, num_channels: int) -> Tensor:
    """Gray to RGB, or RGB to luma as Pillow rounds it: (1 or 3, H, W) -> (num_channels, H, W)."""
    if image.shape[0] == 1:
        return image.expand(num_channels, -1, -1)
    if image.shape[0] != 3 or num_channels == 3:
        return image
    values = image if image.is_floating_point() else image.long()
    weights = torch.tensor(LUMA, device=image.device)[:, None, None]  # (3, 1, 1)
    luma = (values * weights).sum(dim=0, keepdim=True)  # (1, H, W)
    return luma / 65536 if image.is_floating_point() else ((luma + 32768) >> 16).to(image.dtype)


def channel_axis(shape: Sequence[int], counts: Sequence[int]) -> int | None:
    """Which axis holds channels, 0 or 2: that of the first of `counts` which just one of them has.

    None where no count tells.
    """
    for count in counts:
        found = [axis for axis in (0, 2) if shape[axis] == count]
        if len(found) == 1:
            return found[0]
    return None


def check_bands(count: int, num_channels: int, mode: str = "") -> None:
    """Raise `UnfitPicture` unless the bands are as many as the model's channels."""
    if count != num_channels:
        raise UnfitPicture(
            f"has {count} bands{mode and f' ({mode})'} and the model takes {num_channels} channels;"
            " use num_channels 1 or 3, or images with as many bands."
        )


def exif_orientation(picture: Image.Image) -> int:
    """How a picture is stored: 1 upright, 2 to 8 turned or mirrored; from its header."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of every kind on damaged metadata: the pixels may be sound
        return 1
    return orientation if orientation in range(2, 9) else 1


def is_undecoded_jpeg(picture: Image.Image) -> bool:
    """Whether a picture is a JPEG in memory or of a path, gray or RGB, as it was opened: no CMYK,
    no MPO. What else it may be read from, such as a file that the user opened, is left to Pillow.
    """
    if picture.format != "JPEG" or picture.mode not in ("L", "RGB"):
        return False
    file = getattr(picture, "fp", None)
    if not isinstance(file, io.BytesIO) and not _is_own_file(picture, file):
        return False
    return bool(getattr(picture, "tile", ())) and not getattr(picture, "decoderconfig", ())  # draft


def decode_jpeg(picture: Image.Image, reduction: int = 1) -> np.ndarray:
    """The pixels of an undecoded JPEG as they are stored: uint8 (H, W) or (H, W, 3).

    The picture itself stays undecoded; its file is closed, as decoding would close it.

    Args:
        reduction: how many times smaller it comes, each side rounded up: 1, 2, 4 or 8.
    """
    encoded = _read_encoded(picture)
    pixels = _by_simplejpeg(encoded, picture, reduction)
    return _by_pillow(encoded, reduction) if pixels is None else pixels


def _is_own_file(picture: Image.Image, file: Any) -> bool:
    """Whether Pillow opened the picture's file itself, by its path."""
    is_file = isinstance(file, io.BufferedReader) and not file.closed
    return is_file and getattr(picture, "_exclusive_fp", False)


def _read_encoded(picture: Image.Image) -> bytes:
    """The bytes of an undecoded JPEG; of a file they take its place in the picture."""
    file: Any = getattr(picture, "fp")  # noqa: B009
    if isinstance(file, io.BytesIO):
        return file.getvalue()
    with file:
        file.seek(0)
        encoded = file.read()
    setattr(picture, "fp", io.BytesIO(encoded))  # noqa: B010
    return encoded


def turn_upright(pixels: np.ndarray, picture: Image.Image) -> np.ndarray:
    """Apply a picture's orientation to its stored pixels, as a view: (H, W, ...) -> (H', W', ...).

    An orientation of 5 and more swaps height and width.
    """
    return turn(pixels, exif_orientation(picture))


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to stored pixels, as a view: (H, W, ...) -> (H', W', ...)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def upright_to_tensor(pixels: np.ndarray, num_channels: int) -> Tensor:
    """Gray or RGB to luma (1 channel) or RGB (3): uint8 (H, W) or (H, W, 3) -> (C, H, W)."""
    if pixels.ndim == 3 and num_channels == 1:
        pixels = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    image = torch.from_numpy(_for_torch(pixels))
    return image.expand(num_channels, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)


def _by_simplejpeg(encoded: bytes, picture: Image.Image, reduction: int) -> np.ndarray | None:
    """The pixels; None without simplejpeg, and for a file that it has any complaint about."""
    if simplejpeg is None or _takes_long(encoded, picture):
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


def _takes_long(encoded: bytes, picture: Image.Image) -> bool:
    """Whether a JPEG has so many scans that decoding it must be interruptible."""
    if "progressive" not in picture.info:
        return False
    return encoded.count(b"\xff\xda") * picture.width * picture.height > MAX_SCANNED_PIXELS


def _by_pillow(encoded: bytes, reduction: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(encoded))
    if reduction > 1:
        picture.draft(None, (picture.width // reduction, picture.height // reduction))
    _read_by_chunks(picture)
    return np.array(picture)


def _read_by_chunks(picture: Image.Image) -> None:
    """Let Pillow decode a progressive JPEG in short steps, so that a limit of time can stop it."""
    if "progressive" in picture.info:
        setattr(picture, "decodermaxblock", PROGRESSIVE_CHUNK)  # noqa: B010


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode; itself if it has it, since a copy takes as long as a resize."""
    return picture if picture.mode == mode else picture.convert(mode)


def _pixels(picture: Image.Image) -> np.ndarray:
    """The values of a picture, to write to: (H, W) or (H, W, C)."""
    if picture.width * picture.height < LARGE:
        return np.array(picture)
    first = np.asarray(picture.crop((0, 0, picture.width, 1)))  # (1, W) or (1, W, C)
    pixels = np.empty((picture.height, *first.shape[1:]), first.dtype)
    for box in _strips(picture):
        pixels[box[1] : box[3]] = np.asarray(picture.crop(box))
    return pixels


def _strips(picture: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of full width from top to bottom: (left, top, right, bottom)."""
    for top in range(0, picture.height, ROWS_AT_ONCE):
        yield 0, top, picture.width, min(top + ROWS_AT_ONCE, picture.height)


def _for_torch(pixels: np.ndarray) -> np.ndarray:
    """The array, or a copy where torch does not take it: mirrored, or not to be written to."""
    return pixels if min(pixels.strides) >= 0 and pixels.flags.writeable else pixels.copy()


def _on_white(picture: Image.Image) -> Image.Image:
    """Lay a picture with transparency on white: RGB."""
    result = Image.new("RGB", picture.size)
    for box in _strips(picture):
        strip = picture.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return result


def _deep_values(picture: Image.Image) -> np.ndarray | None:
    """What has more than 8 bits, upright: (H, W, 1, 3 or 4) in native byte order; else None."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)  # decodes it, and turns a TIFF
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        return np.atleast_3d(turn_upright(values, picture))
    raw_modes = {_raw_mode(tile[3]) for tile in getattr(picture, "tile", ())}
    is_planar = getattr(picture, "_planar_configuration", 1) == 2  # a TIFF: band by band
    if getattr(picture, "fp", None) is None or len(raw_modes) != 1 or is_planar:
        return None
    raw_mode = raw_modes.pop()
    if _DEEP_COLOR.fullmatch(raw_mode) is None:
        return None
    encoded = _encoded(picture)
    high = _unpacked(encoded, raw_mode).astype(np.uint16)
    high <<= 8
    high |= _unpacked(encoded, raw_mode[:-1] + _OTHER_BYTE[raw_mode[-1]])
    return high[..., :3] if raw_mode.startswith("RGBX") else high


def _unpacked(encoded: bytes, raw_mode: str) -> np.ndarray:
    """One byte of each value of 16 bits: for Pillow the byte order says which: uint8 (H, W, C)."""
    picture = Image.open(io.BytesIO(encoded))
    tiles = [_with_raw_mode(tile, raw_mode) for tile in getattr(picture, "tile")]  # noqa: B009
    setattr(picture, "tile", tiles)  # noqa: B010
    return turn_upright(np.array(picture), picture)


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    args = raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:])
    return tile._replace(args=args)


def _raw_mode(args: object) -> str:
    """How Pillow unpacks a file, of the arguments of its decoder."""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _is_halved(picture: Image.Image) -> bool:
    """Whether Pillow makes 8 bits of the 16 that a value has in the file."""
    if picture.mode.startswith(("I", "F")):
        return False
    for decoder, _, _, args in getattr(picture, "tile", ()):
        white = args[-1] if isinstance(args, tuple) and decoder.startswith("ppm") else 255
        if white > 255 or ";16" in _raw_mode(args) or decoder == "SGI16":
            return True
    return False


def _encoded(picture: Image.Image) -> bytes:
    """The whole file of a picture that is not decoded yet."""
    file = getattr(picture, "fp")  # noqa: B009
    if isinstance(file, io.BytesIO):
        return file.getvalue()
    position = file.tell()
    file.seek(0)
    encoded = file.read()
    file.seek(position)
    return encoded


def _over_white(values: np.ndarray) -> np.ndarray:
    """Lay 16-bit RGB with opacity on white: (H, W, 1 or 3) as it is, (H, W, 4) -> float32."""
    if values.shape[2] != 4:
        return _for_torch(values)
    opacity = values[..., 3:].astype(np.float32) / WHITE_16
    color = values[..., :3].astype(np.float32)
    color -= WHITE_16
    color *= opacity
    color += WHITE_16
    return color
