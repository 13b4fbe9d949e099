"""Files of every format, sound ones and bombs, and a limit of memory to read them within."""

import io
import re
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

MEGABYTE = 2**20


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    smooth = Image.fromarray(pixels).resize((120, 80))
    return smooth.convert(mode)


def encode(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def bands() -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 999, (5, 40, 60), dtype=np.uint16)
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate"}
    tifffile.imwrite(buffer, values, compression="zlib", **options)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


SOUND = {
    "jpeg": encode(picture(), "JPEG"),
    "jpeg-gray": encode(picture("L"), "JPEG"),
    "jpeg-progressive": encode(picture(), "JPEG", progressive=True),
    "jpeg-cmyk": encode(picture("CMYK"), "JPEG"),
    "png": encode(picture(), "PNG"),
    "png-palette": encode(picture().quantize(16), "PNG", transparency=3),
    "png-16": encode(picture("I;16"), "PNG"),
    "gif": encode(picture(), "GIF"),
    "webp": encode(picture(), "WEBP", exif=b"Exif\0\0II*\0"),
    "tiff": encode(picture(), "TIFF"),
    "tiff-lzw": encode(picture(), "TIFF", compression="tiff_lzw"),
    "tiff-float": encode(picture("F"), "TIFF"),
    "tiff-bands": bands(),
    "bmp": encode(picture(), "BMP"),
    "tga": encode(picture(), "TGA", compression="tga_rle"),
    "ico": encode(picture(), "ICO", sizes=[(32, 32)]),
    "ppm": encode(picture(), "PPM"),
    "blp": encode(picture().quantize(16), "BLP"),
    "jp2": encode(picture(), "JPEG2000"),
    "avif": encode(picture(), "AVIF"),
    "npy": npy(np.array(picture())),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def gif_bomb(width: int, height: int) -> bytes:
    encoded = bytearray(SOUND["gif"])
    encoded[6:10] = struct.pack("<HH", width, height)
    return bytes(encoded)


def jpeg_bomb(width: int, height: int) -> bytes:
    encoded = bytearray(SOUND["jpeg"])
    place = encoded.index(b"\xff\xc0") + 5
    encoded[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(encoded)


def webp_bomb(width: int, height: int) -> bytes:
    encoded = bytearray(SOUND["webp"])
    assert encoded[12:16] == b"VP8X"
    encoded[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(encoded)


def tiff_bomb(width: int, height: int, samples: int = 3) -> bytes:
    """A TIFF of one pixel's bytes that says to be larger, in Pillow's or tifffile's reach."""
    short, long = 3, 4
    tags = [
        (256, long, width),
        (257, long, height),
        (258, short, 8),
        (259, short, 1),
        (262, short, 2 if samples == 3 else 1),
        (273, long, 8),
        (277, short, samples),
        (278, long, height),
        (279, long, width * height * samples % 2**32),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def bmp_bomb(width: int, height: int) -> bytes:
    encoded = bytearray(SOUND["bmp"])
    encoded[18:26] = struct.pack("<ii", width, height)
    return bytes(encoded)


def blp_bomb(width: int, height: int) -> bytes:
    encoded = bytearray(SOUND["blp"])
    encoded[12:20] = struct.pack("<II", width, height)
    return bytes(encoded)


def npy_bomb(width: int, height: int) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({height}, {width}, 3), }}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(300)


BOMBS = {
    "png": lambda width, height: png_header(width, height) + SOUND["png"][33:],
    "gif": gif_bomb,
    "jpeg": jpeg_bomb,
    "webp": webp_bomb,
    "tiff": tiff_bomb,
    "tiff-bands": partial(tiff_bomb, samples=5),
    "bmp": bmp_bomb,
    "ppm": lambda width, height: b"P6 %d %d 255\n" % (width, height) + bytes(300),
    "blp": blp_bomb,
    "npy": npy_bomb,
}


def resident(key: str, pid: int | str = "self") -> int | None:
    """Bytes of memory that a process has (VmRSS) or had at most (VmHWM), on systems that tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(rf"{key}:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


class memory_limit:
    """Fail where a block needs more memory than so many megabytes, on systems that tell."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes

    def __enter__(self) -> None:
        self.start = resident("VmRSS")
        if self.start is not None:
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far

    def __exit__(self, *_: object) -> None:
        highest = resident("VmHWM")
        if self.start is not None and highest is not None:
            assert highest - self.start < self.megabytes * MEGABYTE
