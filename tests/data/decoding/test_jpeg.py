"""JPEGs read fast are those that Pillow reads: to the bit, or nearly so where they are halved."""

import importlib.util
import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.decoding import jpeg
from hf_vitmae.data.decoding.decode import BadImage, decode, decode_crop
from hf_vitmae.models import pictures

ORIENTATION = 0x0112
DECODERS = ["simplejpeg", "pillow"]


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the pixels: with simplejpeg, and as if it were not installed."""
    if request.param == "pillow":
        monkeypatch.setattr(pictures, "simplejpeg", None)
    elif pictures.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


@pytest.fixture
def reductions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much smaller each decoded JPEG came, as they are decoded."""
    seen: list[int] = []

    def decode_and_note(picture: Image.Image, reduction: int = 1) -> np.ndarray:
        seen.append(reduction)
        return pictures.decode_jpeg(picture, reduction)

    monkeypatch.setattr(jpeg, "decode_jpeg", decode_and_note)
    return seen


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photograph(height: int, width: int, noise: float = 4.0) -> Image.Image:
    """Smooth colours, edges and some noise, as photographs have."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(7 * rows + 3 * columns), np.cos(9 * columns), np.sin(23 * rows * columns)]
    disc = (rows - 0.4) ** 2 + (columns - 0.3) ** 2 < 0.04
    colour = 128 + 60 * np.stack(waves, axis=-1) + 50 * disc[..., None]
    noisy = colour + rng().normal(0, noise, colour.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, orientation: int | None = None, **options: Any) -> bytes:
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(encoded: bytes, num_channels: int = 3) -> torch.Tensor:
    """All pixels as Pillow alone makes them: -> uint8 (C, H, W)."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if num_channels in (1, 3):
        picture = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        picture = picture.convert("L" if num_channels == 1 else "RGB")
    return torch.from_numpy(np.atleast_3d(np.array(picture))).permute(2, 0, 1)


def mean_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one.int() - other.int()).abs().float().mean().item()


# Whole pictures: the same bits


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (33, 64), (121, 83)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 10},
        {"quality": 95, "subsampling": "4:4:4"},
        {"quality": 80, "subsampling": "4:2:2"},
        {"quality": 80, "subsampling": "4:2:0", "progressive": True},
        {"quality": 85, "keep_rgb": True},
        {"quality": 85, "restart_marker_blocks": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_jpeg_is_what_pillow_reads(decoder, size, options, num_channels):
    for mode in ("RGB", "L"):
        encoded = encode(photograph(*size).convert(mode), **options)
        decoded = decode(encoded, num_channels)
        assert decoded.shape == (num_channels, *size) and decoded.dtype == torch.uint8
        assert torch.equal(decoded, by_pillow(encoded, num_channels))


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_every_orientation_is_turned_upright(decoder, orientation):
    encoded = encode(photograph(24, 56), orientation)
    expected = by_pillow(encoded)
    assert expected.shape == ((3, 56, 24) if orientation in (5, 6, 7, 8) else (3, 24, 56))
    assert torch.equal(decode(encoded, 3), expected)
    assert jpeg.upright_size(Image.open(io.BytesIO(encoded))) == expected.shape[1:]
    part = decode_crop(encoded, 3, lambda height, width: (3, 5, 11, 13), (11, 13))
    assert torch.equal(part, expected[:, 3:14, 5:18])


@pytest.mark.skipif(pictures.simplejpeg is None, reason="simplejpeg is not installed")
def test_simplejpeg_does_the_work_where_it_is_installed(monkeypatch):
    encoded = encode(photograph(40, 30), quality=80)
    expected = decode(encoded, 3)
    monkeypatch.setattr(pictures, "_by_pillow", None)
    assert torch.equal(decode(encoded, 3), expected)


def test_it_works_where_simplejpeg_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # its import raises ImportError
    spec = importlib.util.spec_from_file_location("without_simplejpeg", pictures.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.simplejpeg is None
    encoded = encode(photograph(20, 30), 6)
    image = module.picture_to_tensor(Image.open(io.BytesIO(encoded)), 3)
    assert torch.equal(image, by_pillow(encoded))


def test_a_jpeg_opened_by_its_path_is_read_closed_and_still_a_picture(decoder, tmp_path):
    encoded = encode(photograph(20, 30), 6)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded)
    picture = Image.open(path)
    file: Any = getattr(picture, "fp")  # noqa: B009
    assert torch.equal(pictures.picture_to_tensor(picture, 3), by_pillow(encoded))
    assert file.closed
    assert torch.equal(pictures.picture_to_tensor(picture, 3), by_pillow(encoded))  # once more
    assert picture.tobytes() == Image.open(io.BytesIO(encoded)).tobytes()  # decoded by itself now


def test_a_jpeg_in_a_file_that_the_user_opened_stays_open(decoder, tmp_path):
    encoded = encode(photograph(20, 30), 6)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded)
    with path.open("rb") as file:
        assert torch.equal(pictures.picture_to_tensor(Image.open(file), 3), by_pillow(encoded))
        assert not file.closed


@pytest.mark.parametrize("kind", ["CMYK", "MPO", "PNG", "four bands"])
def test_what_is_no_plain_jpeg_goes_to_pillow(kind, monkeypatch):
    monkeypatch.setattr(pictures, "decode_jpeg", None)  # calling it would raise
    image, buffer, num_channels = photograph(24, 32), io.BytesIO(), 3
    if kind == "MPO":
        image.save(buffer, "MPO", save_all=True, append_images=[image.rotate(180)])
    elif kind == "PNG":
        image.save(buffer, "PNG")
    else:
        image.convert("CMYK").save(buffer, "JPEG")  # Adobe's, with inverted values
        num_channels = 4 if kind == "four bands" else 3
    encoded = buffer.getvalue()
    assert torch.equal(decode(encoded, num_channels), by_pillow(encoded, num_channels))
    transform = TrainTransform((16, 16), num_channels)
    expected = transform(by_pillow(encoded, num_channels), rng(1))
    assert torch.equal(transform.read(encoded, rng(1), "a.jpg"), expected)


def test_the_bands_of_a_jpeg_are_not_turned_into_others():
    with pytest.raises(BadImage, match="has 3 bands"):
        decode(encode(photograph(8, 8)), 5)


# Damaged files: Pillow decides, whatever reads the pixels


def outcome(encoded: bytes) -> torch.Tensor | str:
    try:
        return decode(encoded, 3, "a.jpg")
    except BadImage as error:
        return str(error)


def damaged(encoded: bytes) -> list[bytes]:
    """Files cut short, with a byte or two changed, and with something behind their end."""
    cut = [encoded[:length] for length in (0, 2, 30, 400, len(encoded) // 2, -200, -3, -2, -1)]
    more = [encoded + b"more", encoded + bytes(3000), encoded[:-2] + b"\x00\x00\xff\xd9"]
    generator, changed = rng(), []
    for _ in range(150):
        copy = bytearray(encoded)
        for place in generator.integers(2, len(copy), 2):
            copy[place] = generator.integers(256)
        changed.append(bytes(copy))
    return cut + more + changed


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_damaged_files_have_the_same_outcome_without_simplejpeg(options, monkeypatch):
    files = damaged(encode(photograph(48, 64), quality=85, **options))
    fast = [outcome(file) for file in files]
    monkeypatch.setattr(pictures, "simplejpeg", None)
    slow = [outcome(file) for file in files]
    num_bad = sum(isinstance(result, str) for result in slow)
    assert 10 < num_bad < len(files) - 10
    for one, other in zip(fast, slow, strict=True):
        same = one == other if isinstance(other, str) else torch.equal(torch.as_tensor(one), other)
        assert same, (one, other)


@pytest.mark.parametrize("height", [40, 400])  # the latter would be halved
def test_a_truncated_file_is_refused_by_name(decoder, height):
    encoded = encode(photograph(height, height), quality=85)
    transform = TrainTransform((32, 32), crop_scale=(0.9, 1.0))
    with pytest.raises(BadImage, match=r"^photos/a\.jpg cannot be decoded: .*truncated") as caught:
        transform.read(encoded[:-100], rng(), "photos/a.jpg")
    assert "\n" not in str(caught.value)


def test_what_simplejpeg_complains_of_and_pillow_reads_is_read():
    encoded = encode(photograph(32, 32), quality=85, restart_marker_blocks=1)
    start = encoded.index(b"\xff\xd0")
    odd = encoded[:start] + b"\x00" + encoded[start:]  # an extraneous byte before a marker
    if pictures.simplejpeg is not None:
        picture = Image.open(io.BytesIO(odd))
        assert pictures._by_simplejpeg(encoded, picture, 1) is not None
        assert pictures._by_simplejpeg(odd, picture, 1) is None
    assert torch.equal(decode(odd, 3), by_pillow(encoded))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    encoded = encode(Image.new("RGB", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    monkeypatch.setattr(pictures, "decode_jpeg", None)
    with pytest.raises(BadImage, match="exceeds limit of 600 pixels"):
        decode(encoded, 3)


# Crops, halved where that is near enough


@pytest.mark.parametrize("size", [(50, 40), (375, 500), (401, 301)])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_small_crop_is_to_the_bit_that_of_the_whole(decoder, size, num_channels, reductions):
    encoded = encode(photograph(*size), quality=90)
    transform = TrainTransform((64, 80), num_channels)
    for seed in range(6):
        generators = rng(seed), rng(seed)
        fast = transform.read(encoded, generators[0], "a.jpg")
        assert torch.equal(fast, transform(by_pillow(encoded, num_channels), generators[1]))
        assert generators[0].random() == generators[1].random()  # as much was drawn
    assert set(reductions) == {1}


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_large_crop_is_halved_and_nearly_that_of_the_whole(
    decoder, orientation, subsampling, reductions
):
    encoded = encode(
        photograph(480, 620), orientation, subsampling=subsampling, quality=40 + 7 * orientation
    )
    transform = TrainTransform((40, 48), crop_scale=(0.6, 1.0))
    whole = by_pillow(encoded)
    for seed in range(4):
        generators = rng(seed), rng(seed)
        fast = transform.read(encoded, generators[0], "a.jpg")
        slow = transform(whole, generators[1])
        assert 0 < mean_difference(fast, slow) < 0.5
        assert generators[0].random() == generators[1].random()
    assert reductions == [2] * 4


@pytest.mark.parametrize("options", [{"progressive": True}, {"gray": True}], ids=str)
@pytest.mark.parametrize("size", [(480, 620), (481, 621)])
def test_progressive_and_gray_are_halved_too(decoder, options, size, reductions):
    image = photograph(*size)
    encoded = encode(image.convert("L") if options.pop("gray", False) else image, **options)
    for num_channels in (1, 3):
        transform = TrainTransform((32, 32), num_channels, crop_scale=(0.5, 1.0))
        fast = transform.read(encoded, rng(3), "a.jpg")
        assert fast.shape == (num_channels, 32, 32)
        assert mean_difference(fast, transform(by_pillow(encoded, num_channels), rng(3))) < 0.5
    assert reductions == [2, 2]


def test_halved_pixels_are_the_same_by_simplejpeg_and_by_pillow(monkeypatch):
    encoded = encode(photograph(481, 623), 6, quality=85)
    transform = TrainTransform((32, 32), crop_scale=(0.5, 1.0))
    by_both = []
    for module in (pictures.simplejpeg, None):
        monkeypatch.setattr(pictures, "simplejpeg", module)
        by_both.append([transform.read(encoded, rng(seed), "a.jpg") for seed in range(8)])
    assert all(torch.equal(one, other) for one, other in zip(*by_both, strict=True))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mirrored_picture_of_odd_size_is_not_halved(decoder, orientation, reductions):
    """Its even edges are odd ones as it is stored, in the middle of a halved pixel."""
    encoded = encode(photograph(481, 621), orientation)
    transform = TrainTransform((32, 32), crop_scale=(0.5, 1.0))
    fast = transform.read(encoded, rng(), "a.jpg")
    assert torch.equal(fast, transform(by_pillow(encoded), rng())) and reductions == [1]


def fine_lines(height: int, width: int) -> Image.Image:
    lines = rng().integers(0, 2, (height, 1, 1)) * 255
    return Image.fromarray(np.broadcast_to(lines, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_lines_and_noise_are_decoded_in_full(decoder, turned, quality, reductions):
    for image in (fine_lines(480, 620), photograph(480, 620, noise=60)):
        image = image.transpose(Image.Transpose.TRANSPOSE) if turned else image
        encoded = encode(image, quality=quality)
        transform = TrainTransform((32, 32), crop_scale=(0.5, 1.0))
        fast = transform.read(encoded, rng(1), "a.jpg")
        assert torch.equal(fast, transform(by_pillow(encoded), rng(1)))
    assert reductions == [2, 1, 2, 1]


def test_a_crop_is_halved_only_where_three_times_the_pixels_are_left(reductions):
    encoded = encode(photograph(400, 400))
    for side, reduction in ((192, 2), (190, 1)):
        part = decode_crop(encoded, 3, lambda h, w, side=side: (10, 20, side, 200), (32, 32))
        assert part.shape == (3, side // reduction, 200 // reduction)
    assert reductions == [2, 1]


@pytest.mark.parametrize("size", [(400, 400), (399, 501), (398, 397)])
def test_large_crops_have_even_edges_and_small_ones_stay(size):
    transform = TrainTransform((32, 32), crop_scale=(0.05, 1.0))
    (height, width), num_odd = size, 0
    for seed in range(300):
        box = transform.crop_box(height, width, rng(seed))
        drawn = transform._draw_box(height, width, rng(seed))
        if min(drawn[2:]) < 192:
            assert box == drawn
            continue
        num_odd += box != drawn
        assert not any(edge % 2 for edge in box)
        assert max(abs(a - b) for a, b in zip(box, drawn, strict=True)) <= 2
        for start, length, full in zip(box[:2], box[2:], size, strict=True):
            assert 0 <= start and start + length <= full
    assert num_odd > 20


def test_the_box_is_asked_for_once_with_the_upright_size(decoder):
    for format, orientation in (("JPEG", 6), ("JPEG", 1), ("PNG", 6)):
        exif, asked, buffer = Image.Exif(), [], io.BytesIO()
        exif[ORIENTATION] = orientation
        photograph(200, 300).save(buffer, format, exif=exif)

        def choose(height: int, width: int, asked: list = asked) -> tuple[int, int, int, int]:
            asked.append((height, width))
            return 0, 0, height, width

        decode_crop(buffer.getvalue(), 3, choose, (8, 8))
        assert asked == [(200, 300) if orientation == 1 else (300, 200)]


def test_a_halved_crop_lies_where_the_whole_one_does(decoder):
    """A shift of half a pixel would be an error of many levels at the edge of the disc."""
    encoded = encode(photograph(600, 600, noise=0), quality=95)
    box = (100, 60, 400, 420)
    half = decode_crop(encoded, 3, lambda height, width: box, (32, 32))
    assert half.shape == (3, 200, 210)
    whole = decode(encoded, 3)[:, 100:500, 60:480]
    area = F.avg_pool2d(whole[None].float(), 2)[0]
    assert (half.float() - area).abs().mean() < 0.6
