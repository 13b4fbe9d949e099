"""Bytes of every kind become the pixels that a person would see, or the class ids of a map."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from hf_vitmae.data.decoding import decode as decode_module
from hf_vitmae.data.decoding.decode import BUGS, BadImage, decode, decode_label_map
from hf_vitmae.models import pictures


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_rgb_is_exact_and_channels_come_first():
    pixels = random_pixels(5, 7, 3)
    decoded = decode(encode(Image.fromarray(pixels)), 3)
    assert decoded.dtype == torch.uint8 and decoded.shape == (3, 5, 7)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


def test_gray_is_repeated_and_colour_becomes_luma():
    gray = random_pixels(4, 6)
    as_rgb = decode(encode(Image.fromarray(gray)), 3)
    assert all(np.array_equal(channel.numpy(), gray) for channel in as_rgb)
    assert np.array_equal(decode(encode(Image.fromarray(gray)), 1)[0].numpy(), gray)
    red = decode(encode(Image.new("RGB", (2, 2), (255, 0, 0))), 1)
    assert red.shape == (1, 2, 2) and (red == 76).all()  # 0.299 * 255


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    decoded = decode(encode(image.convert(mode)), 3)
    assert decoded[:, 0].tolist() == [[0, 255]] * 3


def test_half_transparency_is_mixed_with_white():
    decoded = decode(encode(Image.new("RGBA", (1, 1), (255, 0, 0, 128))), 3)
    assert decoded.flatten().tolist() == [255, 127, 127]


def test_a_transparent_palette_entry_is_white_also_in_gray():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    encoded = encode(image, transparency=0)
    assert decode(encoded, 3)[:, 0].T.tolist() == [[255, 255, 255], [200, 100, 50]]
    assert decode(encoded, 1)[0, 0, 0] == 255


def test_an_opaque_palette_and_one_bit_and_cmyk():
    palette = Image.fromarray(random_pixels(4, 4, 3)).quantize(4)
    assert np.array_equal(
        decode(encode(palette), 3).permute(1, 2, 0), np.array(palette.convert("RGB"))
    )
    assert decode(encode(Image.new("1", (1, 1), 1)), 1).item() == 255
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert decode(encode(cmyk, "TIFF"), 3).flatten().tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_16_bit_gray_is_scaled_not_clipped(format, num_channels):
    values = np.array([[0, 257, 128 * 257, 65535, 200]], dtype=np.uint16)
    decoded = decode(encode(Image.fromarray(values), format), num_channels)
    assert decoded[0, 0].tolist() == [0, 1, 128, 255, 1]


def test_values_of_unknown_range_are_refused():
    image = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"^scan\.tif holds float .* 8 or 16 bits"):
        decode(encode(image, "TIFF"), 1, "scan.tif")
    image = Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32))
    with pytest.raises(ValueError, match="holds 32-bit values"):
        decode(encode(image, "TIFF"), 1)


def test_exif_orientation_is_applied():
    pixels = random_pixels(8, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    decoded = decode(encode(Image.fromarray(pixels), exif=exif), 3)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), np.rot90(pixels, -1))


def test_other_numbers_of_channels_are_the_bands_of_the_file():
    pixels = random_pixels(3, 4, 4)
    decoded = decode(encode(Image.fromarray(pixels, "RGBA")), 4)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)  # nothing laid on white
    assert decode(encode(Image.new("LA", (4, 3))), 2).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"has 3 bands \(RGB\) and the model takes 5 channels"):
        decode(encode(Image.new("RGB", (4, 3))), 5)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "it is not an image of a known format"),
        (b"not an image", "it is not an image of a known format"),
        (encode(Image.fromarray(random_pixels(64, 64, 3)))[:-4000], "truncated"),
        (encode(Image.fromarray(random_pixels(64, 64, 3)), "JPEG")[:900], "truncated"),
    ],
)
def test_a_damaged_image_is_named_in_one_line(encoded, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        decode(encoded, 3, "photos/a.png")
    assert str(caught.value).startswith("photos/a.png cannot be decoded: ")
    assert "remove it" in str(caught.value) and "\n" not in str(caught.value)


def test_a_decompression_bomb_is_an_error(monkeypatch):
    encoded = encode(Image.new("RGB", (20, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # above: Pillow only warns
    with pytest.raises(ValueError, match="cannot be decoded: .*exceeds limit of 300 pixels"):
        decode(encoded, 3)


# Whose fault it is


@pytest.mark.parametrize("error", [*BUGS, IndexError, SyntaxError, MemoryError])
def test_whatever_a_reader_raises_is_a_bad_image(error, monkeypatch):
    def fail(*arguments: object) -> None:
        raise error("a chunk of another kind")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", fail)
    with pytest.raises(BadImage, match="^a cannot be decoded: a chunk of another kind; remove it"):
        decode(encode(Image.new("RGB", (2, 2))), 3, "a")


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (pictures, "turn_upright", TypeError),
        (pictures, "check_bands", NameError),
        (decode_module, "Image", AttributeError),
        (decode_module, "picture_to_tensor", TypeError),
    ],
)
def test_a_bug_of_this_package_is_no_bad_image(module, name, error, monkeypatch):
    encoded = encode(Image.new("RGB", (2, 2)))
    if error is NameError:
        monkeypatch.delattr(module, name)
    else:
        monkeypatch.setattr(module, name, None)
    with pytest.raises(error) as caught:
        decode(encoded, 3)
    assert not isinstance(caught.value, BadImage)


# Label maps


@pytest.mark.parametrize(
    ("mode", "format", "dtype", "most"),
    [
        ("L", "PNG", np.uint8, 255),
        ("P", "PNG", np.uint8, 255),
        ("I;16", "PNG", np.uint16, 65535),
        ("I;16", "TIFF", np.uint16, 65535),
        ("I", "TIFF", np.int32, 100_000),
    ],
)
def test_a_label_map_is_its_values_whatever_they_look_like(mode, format, dtype, most):
    ids = np.random.default_rng(0).integers(0, most, (5, 7), endpoint=True).astype(dtype)
    ids[0, :2] = 0, most
    picture = Image.fromarray(ids, mode="P") if mode == "P" else Image.fromarray(ids)
    if mode == "P":
        picture.putpalette(random_pixels(768).tobytes())
    assert picture.mode == mode
    decoded = decode_label_map(encode(picture, format))
    assert decoded.dtype == torch.int64 and np.array_equal(decoded.numpy(), ids)


def test_a_one_bit_label_map_has_the_classes_0_and_1():
    picture = Image.new("1", (3, 2))
    picture.putpixel((2, 1), 1)
    assert decode_label_map(encode(picture)).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_a_label_map_is_turned_by_its_own_exif():
    ids, exif = random_pixels(8, 16), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    decoded = decode_label_map(encode(Image.fromarray(ids), exif=exif))
    assert np.array_equal(decoded.numpy(), np.rot90(ids, -1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_colours_are_no_label_map(mode):
    encoded = encode(Image.new(mode, (2, 2)), "TIFF")
    line = rf"^a\.png holds colours or fractions \(mode {mode}\), not class ids; save one id for"
    with pytest.raises(ValueError, match=line) as caught:
        decode_label_map(encoded, "a.png")
    assert "\n" not in str(caught.value)


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, ">u2", np.int64])
def test_a_label_map_may_be_an_array_of_integers(dtype):
    ids = random_pixels(5, 7).astype(dtype)
    for values in (ids, ids[None], ids[..., None], np.asfortranarray(ids)):
        decoded = decode_label_map(npy(values))
        assert decoded.dtype == torch.int64 and np.array_equal(decoded.numpy(), ids)


def test_an_array_of_something_else_is_no_label_map():
    for values in (np.ones((2, 2)), random_pixels(2, 2, 3), np.ones((2, 2), bool)):
        with pytest.raises(BadImage, match="^a.npy (is an array of|holds values of type)") as e:
            decode_label_map(npy(values), "a.npy")
        assert "\n" not in str(e.value)


def test_a_damaged_label_map_is_named():
    with pytest.raises(ValueError, match=r"^a\.png cannot be decoded: it is not an image"):
        decode_label_map(b"junk", "a.png")
