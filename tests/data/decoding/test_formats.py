"""Every format gives the colours that its file was made of, at the depth that is asked for."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageSequence

from hf_vitmae.data.augmentation.transforms import EvalTransform, TrainTransform
from hf_vitmae.data.decoding import arrays
from hf_vitmae.data.decoding.decode import BadImage, decode, decode_crop, decode_stored
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.pictures import LUMA

ORIENTATION = 0x0112
FULL_16 = (0, 65535)

# How an upright array is stored: EXIF says where its row 0 and column 0 lie in the picture.
STORED = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a.swapaxes(0, 1)[::-1],  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a[::-1].swapaxes(0, 1),  # left, bottom
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_values(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return rng().integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def encode(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def bands_tiff(values: np.ndarray, **options: Any) -> bytes:
    """A TIFF of any number of bands: (H, W, C)."""
    return tiff(values, photometric="minisblack", planarconfig="contig", **options)


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def png_16(values: np.ndarray, is_filtered: bool = True) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write: uint16 (H, W, 1 to 4)."""
    height, width, count = values.shape
    rows = np.ascontiguousarray(values, ">u2").view(np.uint8).reshape(height, width, 2 * count)
    if is_filtered:  # by what stands a pixel before
        rows = np.concatenate([rows[:, :1], np.diff(rows, axis=1)], axis=1)
    lines = b"".join(bytes([is_filtered]) + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(lines), b"IEND": b""}
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def channels_last(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


# Which way up


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "TIFF of five bands"])
def test_every_orientation_of_every_format_comes_upright(orientation, format):
    count = 5 if "bands" in format else 3
    upright = random_values(5, 8, count)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    if count == 5:
        encoded = bands_tiff(stored, extratags=[(274, 3, 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options = {"lossless": True} if format == "WEBP" else {}
        encoded = encode(Image.fromarray(stored), format, exif=exif, **options)
    assert np.array_equal(channels_last(decode(encoded, count)), upright)
    part = decode_crop(encoded, count, lambda height, width: (1, 2, 3, 4), (2, 2))
    assert np.array_equal(channels_last(part), upright[1:4, 2:6])


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["gray", "RGB"])
def test_deep_pictures_are_turned_too(orientation, kind):
    upright = random_values(5, 8, 1 if kind == "gray" else 3, dtype=np.uint16)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    encoded = tiff(
        stored,
        photometric="rgb" if kind == "RGB" else "minisblack",
        extratags=[(274, 3, 1, orientation, True)],
    )
    assert np.array_equal(decode_stored(encoded, upright.shape[2]).transpose(1, 2, 0), upright)


# CMYK


def jpeg_cmyk(values: np.ndarray, transform: int | None) -> bytes:
    """A JPEG of four planes as they are given: (H, W, 4), with Adobe's marker or without."""
    inks = Image.fromarray(255 - values, mode="CMYK")  # which Pillow inverts when it writes
    encoded = encode(inks, "JPEG", quality=100, subsampling=0)
    start = encoded.index(b"\xff\xee")  # Adobe's marker: its last byte is the colour transform
    end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
    marker = b"" if transform is None else encoded[start : end - 1] + bytes([transform])
    return encoded[:start] + marker + encoded[end:]


ORANGE = (255, 128, 0)


@pytest.mark.parametrize(
    ("planes", "transform"),
    [
        ((255, 128, 0, 255), 0),  # Adobe: 255 is no ink
        ((0, 127, 255, 0), None),  # ink as it is
        ((104, 213, 54, 255), 2),  # YCCK: Y, Cb and Cr of the inks as if they were RGB, no black
    ],
    ids=["adobe", "plain", "ycck"],
)
def test_inks_become_the_colour_that_they_print(planes, transform):
    values = np.broadcast_to(np.array(planes, np.uint8), (8, 8, 4))
    decoded = decode(jpeg_cmyk(np.ascontiguousarray(values), transform), 3)
    assert decoded.shape == (3, 8, 8)
    assert (decoded[:, 4, 4] - torch.tensor(ORANGE)).abs().max() <= 2
    gray = decode(jpeg_cmyk(np.ascontiguousarray(values), transform), 1)
    luma = sum(share * value for share, value in zip(LUMA, ORANGE, strict=True)) / 65536
    assert gray[0, 4, 4].item() == pytest.approx(luma, abs=2)


def test_four_channels_of_a_jpeg_are_its_inks():
    values = np.broadcast_to(np.array((255, 128, 0, 255), np.uint8), (8, 8, 4))
    inks = decode(jpeg_cmyk(np.ascontiguousarray(values), 0), 4)[:, 4, 4]
    assert (inks.int() - torch.tensor([0, 127, 255, 0])).abs().max() <= 1


# Transparency


@pytest.mark.parametrize("num_channels", [1, 3])
def test_premultiplied_colour_lies_on_white(num_channels):
    stored = np.array([[[100, 100, 100, 128], [0, 0, 0, 0], [9, 9, 9, 255]]], np.uint8)
    encoded = tiff(stored, photometric="rgb", extrasamples=["assocalpha"])
    decoded = decode(encoded, num_channels)
    assert decoded.shape[0] == num_channels
    assert decoded[0, 0, 1:].tolist() == [255, 9]
    assert decoded[0, 0, 0].item() == pytest.approx(100 + 255 - 128, abs=2)


def test_a_transparent_colour_is_white():
    gray, colour = Image.new("L", (2, 1), 7), Image.new("RGB", (2, 1), (1, 2, 3))
    gray.putpixel((1, 0), 9)
    colour.putpixel((1, 0), (4, 5, 6))
    assert decode(encode(gray, transparency=7), 1).flatten().tolist() == [255, 9]
    decoded = decode(encode(colour, transparency=(1, 2, 3)), 3)
    assert decoded[:, 0].T.tolist() == [[255] * 3, [4, 5, 6]]


@pytest.mark.parametrize("value_range", [None, FULL_16])
def test_transparency_of_16_bits_lies_on_white(value_range):
    values = np.array([[[0, 0, 0, 0], [257, 514, 65535, 65535], [0, 0, 0, 32768]]], np.uint16)
    decoded = decode(png_16(values), 3, "a.png", value_range).double()
    expected = torch.tensor([[255, 255, 255], [1, 2, 255], [127.5] * 3]).T
    assert (decoded[:, 0] - expected).abs().max() <= 1


# Sixteen bits


GRAY_16 = {
    "png": lambda v: png_16(v[..., None]),
    "pillow": lambda v: encode(Image.fromarray(v)),
    "tiff": lambda v: tiff(v),
    "tiff-big-endian": lambda v: tiff(v, byteorder=">"),
    "tiff-deflate": lambda v: tiff(v, compression="zlib", predictor=True),
    "tiff-tiled": lambda v: tiff(v, tile=(16, 16)),
    "pgm": lambda v: b"P5 %d %d 65535\n" % v.shape[::-1] + v.astype(">u2").tobytes(),
    "npy": npy,
    "npy-big-endian": lambda v: npy(v.astype(">u2")),
}
COLOUR_16 = {
    "png": png_16,
    "png-unfiltered": lambda v: png_16(v, is_filtered=False),
    "tiff": lambda v: tiff(v, photometric="rgb"),
    "tiff-big-endian": lambda v: tiff(v, photometric="rgb", byteorder=">"),
    "tiff-deflate": lambda v: tiff(v, photometric="rgb", compression="zlib", predictor=True),
    "tiff-big-deflate": lambda v: tiff(v, photometric="rgb", compression="zlib", byteorder=">"),
    "tiff-tiled": lambda v: tiff(v, photometric="rgb", tile=(16, 16)),
    "tiff-planes": lambda v: tiff(
        np.ascontiguousarray(np.moveaxis(v, -1, 0)), photometric="rgb", planarconfig="separate"
    ),
    "tiff-deflated-planes": lambda v: tiff(
        np.ascontiguousarray(np.moveaxis(v, -1, 0)),
        photometric="rgb",
        planarconfig="separate",
        compression="zlib",
    ),
    "npy": npy,
}


@pytest.mark.parametrize("kind", GRAY_16)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_gray_of_16_bits(kind, num_channels):
    values = random_values(20, 30, dtype=np.uint16)
    values[0, :3] = 0, 65535, 128 * 257
    encoded = GRAY_16[kind](values)
    decoded = decode(encoded, num_channels)
    assert decoded.shape == (num_channels, 20, 30) and decoded.dtype == torch.uint8
    assert decoded[0, 0, :3].tolist() == [0, 255, 128]
    assert np.abs(decoded.numpy() - values / 257).max() <= 0.5
    deep = decode(encoded, num_channels, value_range=FULL_16)
    assert deep.dtype == torch.float32 and np.abs(deep.numpy() - values / 257).max() < 1e-4
    assert np.array_equal(decode_stored(encoded, num_channels)[0], values)


@pytest.mark.parametrize("kind", COLOUR_16)
def test_colour_of_16_bits(kind):
    values = random_values(20, 30, 3, dtype=np.uint16)
    values[0, :3] = [[0] * 3, [65535] * 3, [128 * 257] * 3]
    encoded = COLOUR_16[kind](values)
    decoded = channels_last(decode(encoded, 3))
    assert decoded.dtype == np.uint8 and decoded[0, :3, 0].tolist() == [0, 255, 128]
    assert np.abs(decoded - values / 257).max() < 1  # Pillow drops the lower byte
    deep = channels_last(decode(encoded, 3, value_range=FULL_16))
    assert np.abs(deep - values / 257).max() < 1e-4
    assert np.array_equal(decode_stored(encoded, 3).transpose(1, 2, 0), values)
    luma = (values * np.array(LUMA)).sum(-1) / 65536 / 257
    assert np.abs(decode(encoded, 1, value_range=FULL_16)[0].numpy() - luma).max() < 0.01


def test_colour_of_16_bits_that_pillow_halves_counts_as_16_bits():
    """Formats of which only the upper bytes can be had stay in the units of the file."""
    values = random_values(4, 5, 3, dtype=np.uint16)
    ppm = b"P6 5 4 65535\n" + values.astype(">u2").tobytes()
    deep = channels_last(decode(ppm, 3, value_range=FULL_16))
    assert np.abs(deep - values / 257).max() < 1


def test_12_bits_of_a_pgm_are_its_full_range():
    values = random_values(4, 5, dtype=np.uint16) % 4096
    pgm = b"P5 5 4 4095\n" + values.astype(">u2").tobytes()
    assert np.abs(decode(pgm, 1)[0].numpy() - values / 4095 * 255).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_both_byte_orders_of_a_picture(mode):
    values = np.array([[0, 1, 256, 65535]], np.uint16)
    order = ">u2" if mode.endswith("B") else "<u2"
    picture = Image.frombytes(mode, (4, 1), values.astype(order).tobytes())
    processor = VitMaeImageProcessor(size=16, num_channels=1, value_range=FULL_16)
    stored = processor._to_tensor(picture, None)
    assert np.abs(stored[0].numpy() - values / 257).max() < 1e-4


# Other types


@pytest.mark.parametrize("kind", ["tiff", "npy"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_values_of_any_type_take_a_range(kind, dtype):
    values = np.array([[-1000, -500, 0, 250, 999, 3000]]).astype(dtype)
    encoded = tiff(values) if kind == "tiff" else npy(values)
    decoded = decode(encoded, 1, value_range=(-1000, 1000))
    expected = [0, 63.75, 127.5, 159.375, 254.8725, 255]  # the last is clipped
    assert decoded.dtype == torch.float32
    assert decoded.flatten().tolist() == pytest.approx(expected, abs=1e-3)
    with pytest.raises(BadImage, match=r"^a\.tif holds (float|32-bit|negative) .*hf-vitmae stats"):
        decode(encoded, 1, "a.tif")


@pytest.mark.parametrize("byteorder", "<>")
def test_bands_of_64_bits_take_a_range(byteorder):
    values = np.arange(2 * 3 * 5, dtype=np.uint64).reshape(2, 3, 5)
    decoded = decode(bands_tiff(values, byteorder=byteorder), 5, value_range=(0, 255))
    assert np.array_equal(channels_last(decoded), values)


def test_large_integers_keep_their_differences():
    values = np.array([[10**9, 10**9 + 128, 10**9 + 255]])
    decoded = decode(npy(values), 1, value_range=(10**9, 10**9 + 255))
    assert decoded.flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("encoder", [tiff, npy])
def test_values_that_are_no_numbers_are_refused(value, encoder):
    encoded = encoder(np.array([[0, value]], np.float32))
    with pytest.raises(BadImage, match=r"^a holds values that are no finite numbers"):
        decode(encoded, 1, "a", (0, 1))


def test_one_bit_is_black_and_white():
    picture = Image.new("1", (2, 1))
    picture.putpixel((1, 0), 1)
    for format in ("PNG", "TIFF", "PPM"):
        assert decode(encode(picture, format), 3)[:, 0].tolist() == [[0, 255]] * 3
        assert decode(encode(picture, format), 1, value_range=(0, 510)).max() == 127.5
    plain = b"P1 2 1\n1 0\n"  # 1 is black
    assert decode(plain, 1, value_range=(0, 255)).flatten().tolist() == [0, 255]


# Bands


@pytest.mark.parametrize("bands", [2, 4, 5, 12])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16), "byteorder": ">"}],
    ids=["plain", "deflate", "tiled"],
)
def test_a_tiff_of_any_number_of_bands(bands, dtype, planar, options):
    values = random_values(bands, 20, 33, dtype=dtype)
    stored = values if planar == "separate" else np.ascontiguousarray(np.moveaxis(values, 0, -1))
    encoded = tiff(stored, photometric="minisblack", planarconfig=planar, **options)
    decoded = decode(encoded, bands)
    assert decoded.shape == (bands, 20, 33) and decoded.dtype == torch.uint8
    white = np.iinfo(dtype).max
    assert np.abs(decoded.numpy() - values * (255 / white)).max() <= 0.5
    deep = decode(encoded, bands, value_range=(0, white))
    assert np.abs(deep.numpy() - values * (255 / white)).max() < 1e-4
    for num_channels in (3, bands + 1):
        with pytest.raises(BadImage, match=f"has {bands} bands and the model takes {num_channels}"):
            decode(encoded, num_channels)


def test_red_green_blue_and_more_are_colour_or_bands():
    values = random_values(6, 7, 5)
    encoded = tiff(values, photometric="rgb", extrasamples=["unspecified"] * 2)
    assert np.array_equal(channels_last(decode(encoded, 3)), values[..., :3])  # as the file says
    assert np.array_equal(channels_last(decode(encoded, 5)), values)


@pytest.mark.parametrize("shape", [(6, 7, 4), (6, 7, 2)])
def test_bands_are_not_taken_for_transparency(shape):
    values = random_values(*shape)
    photometric = "rgb" if shape[2] == 4 else "minisblack"
    options: Any = {"planarconfig": "contig", "extrasamples": ["unspecified"]}
    encoded = tiff(values, photometric=photometric, **options)
    assert np.array_equal(channels_last(decode(encoded, shape[2])), values)


def test_without_tifffile_the_mend_is_named(monkeypatch):
    monkeypatch.setattr(arrays, "tifffile", None)
    encoded = bands_tiff(random_values(6, 7, 5))
    with pytest.raises(BadImage, match=r"pip install 'hf-vitmae\[bands\]'\.$") as caught:
        decode(encoded, 5, "a.tif")
    assert "\n" not in str(caught.value)
    values = random_values(6, 7, 3)
    assert np.array_equal(channels_last(decode(tiff(values, photometric="rgb"), 3)), values)


def test_a_compression_that_could_grow_without_limit_is_refused():
    encoded = bands_tiff(random_values(6, 7, 5), compression="lzma")
    with pytest.raises(BadImage, match="is compressed as LZMA, .* save it with deflate"):
        decode(encoded, 5)


def test_only_the_first_page_is_read():
    pages = random_values(3, 6, 7)
    encoded = tiff(pages, photometric="minisblack", planarconfig=None)
    assert np.array_equal(decode(encoded, 1)[0].numpy(), pages[0])


# Arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("num_channels", [1, 2, 3, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_file_in_either_layout(dtype, num_channels, order):
    values = random_values(num_channels, 6, 7, dtype=dtype)
    expected = np.round(values * (255 / np.iinfo(dtype).max))
    for stored in (values, np.moveaxis(values, 0, -1)):
        encoded = npy(np.asarray(stored, order=order))
        assert np.array_equal(decode(encoded, num_channels).numpy(), expected)
    part = decode_crop(npy(values), num_channels, lambda height, width: (1, 2, 3, 4), (2, 2))
    assert np.array_equal(part.numpy(), expected[:, 1:4, 2:6])


def test_gray_and_colour_of_an_array_become_each_other():
    gray, colour = random_values(6, 7), random_values(6, 7, 3)
    assert np.array_equal(decode(npy(gray), 3).numpy(), [gray] * 3)
    picture = Image.fromarray(colour).convert("L")
    assert np.array_equal(decode(npy(colour), 1)[0].numpy(), np.array(picture))


@pytest.mark.parametrize(
    ("values", "num_channels", "reason"),
    [
        (np.zeros((3, 5, 3), np.uint8), 3, r"has the shape \(3, 5, 3\), in which"),
        (np.zeros((6, 5, 7), np.uint8), 3, r"has the shape \(6, 5, 7\), in which"),
        (np.zeros((5, 7), np.uint8), 4, "has 1 bands and the model takes 4"),
        (np.zeros(5, np.uint8), 1, r"has the shape \(5,\), not"),
        (np.zeros((2, 5, 7, 3), np.uint8), 3, r"has the shape \(2, 5, 7, 3\), not"),
        (np.zeros((0, 5), np.uint8), 1, r"has the shape \(0, 5\), not"),
        (np.zeros((5, 5), np.complex64), 1, "holds values of type complex64"),
        (np.zeros((5, 5), [("a", "u1")]), 1, "holds values of type"),
        (np.array([["a"]]), 1, "holds values of type <U1"),
    ],
)
def test_other_arrays_are_refused(values, num_channels, reason):
    with pytest.raises(BadImage, match=reason):
        decode(npy(values), num_channels)


def test_an_array_of_objects_is_never_unpickled():
    class Trap:
        def __reduce__(self):
            return sys.exit, ("unpickled",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(BadImage, match="holds values of type object"):
        decode(buffer.getvalue(), 1)


# Animations


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "MPO", "TIFF", "AVIF"])
def test_of_several_pictures_the_first_is_taken(format):
    colours = [(200, 40, 0), (0, 0, 255), (0, 255, 0)]
    first, *others = [Image.new("RGB", (32, 24), colour) for colour in colours]
    options = {"lossless": True} if format == "WEBP" else {}
    encoded = encode(first, format, save_all=True, append_images=others, **options)
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(encoded))))) == 3
    decoded = decode(encoded, 3)
    assert decoded.shape == (3, 24, 32)
    assert (decoded[:, 12, 16].int() - torch.tensor(colours[0])).abs().max() <= 3


# Ranges


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "npy"])
def test_8_bits_beside_deeper_images_are_float_too(num_channels, format):
    values = random_values(20, 30, 3)
    encoded = npy(values) if format == "npy" else encode(Image.fromarray(values), format)
    plain = decode(encoded, num_channels)
    full = decode(encoded, num_channels, value_range=(0, 255))
    assert full.dtype == torch.float32 and (full - plain).abs().max() < 1e-4
    half = decode(encoded, num_channels, value_range=(100, 151))
    assert (half - ((plain.double() - 100) * 5).clamp(0, 255)).abs().max() < 1e-4


@pytest.mark.parametrize("num_channels", [1, 3, 5])
def test_training_keeps_depth_and_stays_in_range(num_channels):
    generator = rng()
    values = generator.integers(1000, 1100, (60, 80, num_channels), dtype=np.uint16)
    options: dict[str, Any] = {"image_size": (16, 24), "num_channels": num_channels}
    transform = TrainTransform(**options, value_range=(1000, 1099))
    image = transform.read(npy(values), rng(3), "a.npy")
    assert image.shape == (num_channels, 16, 24) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 255 and image.std() > 5
    assert len(image.unique()) > 300  # not rounded to 256 levels
    coarse = TrainTransform(**options).read(npy(values), rng(3), "a.npy")
    assert coarse.dtype == torch.uint8 and len(coarse.unique()) < 3


def test_what_bicubic_overshoots_is_clipped():
    values = np.kron(np.indices((6, 6)).sum(0) % 2, np.ones((5, 5), int)).astype(np.uint16) * 1000
    transform = TrainTransform((47, 47), 1, (1.0, 1.0), (1.0, 1.0), value_range=(0, 1000))
    image = transform.read(npy(values), rng(), "a.npy")
    assert image.min() == 0 and image.max() == 255
    processor = VitMaeImageProcessor(size=48, num_channels=1, value_range=(0, 1000))
    image = EvalTransform(processor).read(npy(values), rng(), "a.npy")
    assert image.min() == 0 and image.max() == 255


def test_a_transform_reads_as_it_transforms():
    encoded = png_16(random_values(50, 40, 3, dtype=np.uint16))
    transform = TrainTransform((16, 24), value_range=(500, 60_000))
    image = decode(encoded, 3, "a.png", (500, 60_000))
    assert torch.equal(transform.read(encoded, rng(1), "a.png"), transform(image, rng(1)))


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("value_range", [FULL_16, (300, 5000), (0, 255)])
@pytest.mark.parametrize("kind", ["gray", "RGB", "8-bit", "JPEG"])
def test_evaluation_sees_the_pixels_that_inference_sees(num_channels, value_range, kind):
    values = random_values(40, 70, 3, dtype=np.uint16)
    encoded = {
        "gray": lambda: encode(Image.fromarray(values[..., 0])),
        "RGB": lambda: png_16(values),
        "8-bit": lambda: encode(Image.fromarray((values >> 8).astype(np.uint8))),
        "JPEG": lambda: encode(Image.fromarray((values >> 8).astype(np.uint8)), "JPEG"),
    }[kind]()
    processor = VitMaeImageProcessor(
        size=(32, 48), patch_size=8, num_channels=num_channels, value_range=value_range
    )
    ours = EvalTransform(processor).read(encoded, rng(), "a")
    picture = Image.open(io.BytesIO(encoded))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert ours.dtype == torch.float32 and torch.equal(processor.normalize(ours), theirs)
    array = decode_stored(encoded, num_channels)
    again = processor(array, return_tensors="pt", input_data_format="channels_first")
    assert (again["pixel_values"][0] - theirs).abs().max() < 1e-5
