"""Whatever the bytes are: an image of the right shape or a `BadImage`, in bounded time and memory.

Pillow's own test images are read too where PILLOW_IMAGES names their folder, Tests/images of its
source package: `pip download --no-binary pillow --no-deps pillow`, unpack it, and run
`PILLOW_IMAGES=pillow-12.3.0/Tests/images pytest -m slow tests/data/decoding/test_nasty_files.py`.
"""

import io
import os
import signal
import struct
import subprocess
import threading
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, JpegImagePlugin, PngImagePlugin

from hf_vitmae.data.augmentation.transforms import EvalTransform, TrainTransform
from hf_vitmae.data.decoding import arrays, decode, limits
from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.data.decoding.limits import TookTooLong, check_size, time_limit
from hf_vitmae.data.files import IMAGE_SUFFIXES, list_files
from hf_vitmae.models import pictures
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor

from ..nasty_files import (
    BOMBS,
    MEGABYTE,
    SOUND,
    chunk,
    encode,
    memory_limit,
    npy,
    picture,
    png_header,
    tiff_bomb,
)

SIZE = (32, 48)


def transforms(num_channels: int) -> list[TrainTransform | EvalTransform]:
    processor = VitMaeImageProcessor(size=SIZE, patch_size=16, num_channels=num_channels)
    deep = VitMaeImageProcessor(
        size=SIZE, patch_size=16, num_channels=num_channels, value_range=(0, 1000)
    )
    return [
        TrainTransform(SIZE, num_channels),
        EvalTransform(processor),
        TrainTransform(SIZE, num_channels, value_range=(0, 1000)),
        EvalTransform(deep),
    ]


TRANSFORMS = {num_channels: transforms(num_channels) for num_channels in (1, 3, 5)}


def read(encoded: bytes, num_channels: int = 3) -> list[bool]:
    """Read bytes in every way: for each whether they are an image; nothing else may happen."""
    outcomes = []
    for transform in TRANSFORMS[num_channels]:
        try:
            image = transform.read(encoded, np.random.default_rng(0), "nasty/a.b")
        except BadImage as error:
            assert error.name == "nasty/a.b" and "\n" not in str(error) and len(str(error)) < 400
            assert str(error).endswith("."), error
            outcomes.append(False)
            continue
        is_deep = transform.value_range is not None
        assert image.shape == (num_channels, *SIZE)
        assert image.dtype == (torch.float32 if is_deep else torch.uint8)
        outcomes.append(True)
    return outcomes


def channels_of(kind: str) -> int:
    return 5 if kind == "tiff-bands" else 3


# Damage


@pytest.mark.parametrize("kind", SOUND)
def test_the_files_themselves_are_sound(kind):
    is_float = kind == "tiff-float"
    expected = [False, False, True, True] if is_float else [True] * 4
    assert read(SOUND[kind], channels_of(kind)) == expected


@pytest.mark.parametrize("kind", SOUND)
def test_a_file_that_ends_early_is_bad(kind):
    encoded = SOUND[kind]
    for share in (0.02, 0.1, 0.5, 0.9):
        outcomes = read(encoded[: int(len(encoded) * share)], channels_of(kind))
        assert not any(outcomes) or share == 0.9  # some formats need not be whole


@pytest.mark.parametrize("kind", SOUND)
def test_flipped_bits_do_no_harm(kind):
    generator = np.random.default_rng(1)
    for _ in range(12):
        damaged = np.frombuffer(SOUND[kind], np.uint8).copy()
        places = generator.integers(0, len(damaged), 4)
        places[0] %= 64  # in the header
        damaged[places] ^= 1 << generator.integers(0, 8, 4).astype(np.uint8)
        read(damaged.tobytes(), channels_of(kind))


@pytest.mark.skipif(pictures.simplejpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("kind", ["jpeg", "jpeg-gray", "jpeg-progressive", "jpeg-cmyk"])
def test_damaged_jpegs_are_to_simplejpeg_what_they_are_to_pillow(kind, monkeypatch):
    generator = np.random.default_rng(4)
    for _ in range(30):
        damaged = np.frombuffer(SOUND[kind], np.uint8).copy()
        places = generator.integers(0, len(damaged), 3)
        damaged[places] ^= 1 << generator.integers(0, 8, 3).astype(np.uint8)
        outcomes = []
        for simplejpeg in (pictures.simplejpeg, None):
            with monkeypatch.context() as patch:
                patch.setattr(pictures, "simplejpeg", simplejpeg)
                outcomes.append(image_or_reason(damaged.tobytes()))
        assert outcomes[0] == outcomes[1]


def image_or_reason(encoded: bytes) -> str | list[float]:
    try:
        return decode.decode(encoded, 3).flatten().tolist()
    except BadImage as error:
        return error.reason


@pytest.mark.parametrize("kind", SOUND)
def test_zeros_and_noise_within_do_no_harm(kind):
    encoded = SOUND[kind]
    middle = len(encoded) // 2
    noise = np.random.default_rng(2).bytes(60)
    for hole in (bytes(60), noise, b"\xff" * 60):
        for start in (4, 40, middle):
            read(encoded[:start] + hole + encoded[start + 60 :], channels_of(kind))


@pytest.mark.parametrize(
    "encoded",
    [b"", b"\0", bytes(5000), b"a text, not an image\n", b"<svg></svg>", b"\xff\xd8", b"II*\0"],
)
def test_what_is_no_image_is_bad(encoded):
    for num_channels in TRANSFORMS:
        assert not any(read(encoded, num_channels))


@pytest.mark.parametrize(
    "magic", [b"II*\0", b"MM\0*", b"II+\0", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"]
)
def test_noise_behind_a_known_beginning_is_bad(magic):
    generator = np.random.default_rng(3)
    for _ in range(8):
        assert not any(read(magic + generator.bytes(400), 5))


def test_the_name_of_a_file_does_not_matter():
    transform = TRANSFORMS[3][1]
    image = transform.read(SOUND["png"], np.random.default_rng(0), "a.jpg")
    assert torch.equal(image, transform.read(SOUND["png"], np.random.default_rng(0), "a.png"))


def test_a_folder_with_the_name_of_an_image_is_no_image(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "b.jpg").write_bytes(SOUND["jpeg"])
    assert list_files(tmp_path, IMAGE_SUFFIXES) == ["b.jpg"]


# Odd but sound, or not


def test_bad_checksums_of_a_png_are_bad():
    encoded = bytearray(SOUND["png"])
    place = encoded.index(b"IDAT") + 20
    encoded[place] ^= 255
    assert not any(read(bytes(encoded)))


def test_only_the_first_frame_must_be_sound():
    frames = [picture(), picture().rotate(90), picture().rotate(180)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert all(read(encoded[: int(len(encoded) * 0.6)]))


def test_a_palette_with_too_few_colours_does_no_harm():
    lines = b"".join(b"\0" + bytes(range(60)) for _ in range(40))
    for colours in (0, 3, 300):
        palette = chunk(b"PLTE", bytes(colours)) if colours else b""
        data = palette + chunk(b"tRNS", b"\0" * 5) + chunk(b"IDAT", zlib.compress(lines))
        read(png_header(60, 40, kind=3) + data + chunk(b"IEND", b""))


def test_large_and_deep_metadata_does_no_harm():
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "deep " * 1000, zip=True)
    assert all(read(encode(picture(), "PNG", pnginfo=text)))
    profile = np.random.default_rng(0).bytes(3 * MEGABYTE)
    for format in ("JPEG", "WEBP"):
        assert all(read(encode(picture(), format, icc_profile=profile)))
    assert all(read(encode(picture(), "PNG", icc_profile=profile[:MEGABYTE])))
    assert not any(read(encode(picture(), "PNG", icc_profile=profile)))  # as Pillow will have it


def test_exif_that_points_at_itself_does_no_harm():
    first = struct.pack("<HHHIIHHIII", 2, 0x8769, 4, 1, 8, 0x0112, 3, 1, 6, 8)
    encoded = encode(picture(), "JPEG", exif=b"Exif\0\0II*\0" + struct.pack("<I", 8) + first)
    assert all(read(encoded))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_metadata_that_grows_without_end_is_bounded(kind):
    grown = zlib.compress(bytes(120 * MEGABYTE))
    begin = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    encoded = SOUND["png"][:33] + chunk(kind, begin + grown) + SOUND["png"][33:]
    with memory_limit(80):
        read(encoded)


# Bombs


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("side", [9_500, 16_000])  # Pillow warns of the first, refuses the other
def test_a_bomb_is_refused_before_memory_is_taken(kind, side):
    with memory_limit(64):
        assert not any(read(BOMBS[kind](side, side), 5 if kind == "tiff-bands" else 3))
    with pytest.raises(BadImage, match="exceeds limit|are the most that|cut short|cannot be decod"):
        TRANSFORMS[3][0].read(BOMBS[kind](side, side), np.random.default_rng(0), "a")


@pytest.mark.parametrize("kind", sorted(BOMBS.keys() - {"webp"}))
def test_the_reason_of_a_bomb_is_its_size(kind):
    with pytest.raises(BadImage, match="exceeds limit of|are the most that fit"):
        decode.decode(BOMBS[kind](9_500, 9_500), 5 if kind == "tiff-bands" else 3)


def test_a_decoder_that_holds_several_pictures_gets_fewer_pixels():
    side = int((limits.MAX_BYTES // 8) ** 0.5)
    with pytest.raises(BadImage, match="of its kind 33,554,432 are the most that fit"):
        decode.decode(BOMBS["blp"](side + 1, side + 1), 3)
    for kind, larger in (("blp", 0), ("bmp", 1000)):
        encoded = BOMBS[kind](side + larger, side + larger)
        limits.check_picture(Image.open(io.BytesIO(encoded)), has_range=False)


def test_an_array_that_ends_early_says_so():
    with pytest.raises(BadImage, match=r"is cut short: its shape \(80, 120, 3\) needs more bytes"):
        decode.decode(SOUND["npy"][:-1], 3)


def test_bands_and_bytes_count_too():
    side = int((limits.MAX_BYTES // 3) ** 0.5)
    check_size(side, side, 3)
    for pixel_bytes, has_range in ((4, False), (24, False), (3, True)):
        with pytest.raises(pictures.UnfitPicture, match=rf"has {side}x{side} pixels \(height x"):
            check_size(side, side, pixel_bytes, has_range)
    for pixel_bytes in (4, 24):
        check_size(1, limits.MAX_BYTES // pixel_bytes, pixel_bytes)


TAG_KINDS = {"text": 2, "fraction": 5, "bytes": 7, "float": 11, "unknown": 99}


@pytest.mark.parametrize("kind", TAG_KINDS)
@pytest.mark.parametrize("samples", [3, 5])
def test_tags_of_another_kind_do_no_harm(kind, samples):
    sound = tiff_bomb(2, 2, samples) + bytes(64)
    for place in range(10, 10 + 9 * 12, 12):
        for count in (1, 3, 9):
            damaged = bytearray(sound)
            struct.pack_into("<HI", damaged, place + 2, TAG_KINDS[kind], count)
            read(bytes(damaged), 5)


def test_a_compression_that_nobody_knows_is_named_by_its_number():
    known = struct.pack("<HHII", 259, 3, 1, 1)
    encoded = tiff_bomb(2, 2, 5).replace(known, struct.pack("<HHII", 259, 3, 1, 12_345))
    with pytest.raises(BadImage, match="is compressed as 12345, which is not read for bands"):
        decode.decode(encoded, 5)


def test_deflated_bands_that_grow_beyond_their_header_are_refused(monkeypatch):
    monkeypatch.setattr(arrays, "MAX_BYTES", 4 * MEGABYTE)
    grown = zlib.compress(bytes(40 * MEGABYTE), 9)
    with memory_limit(32), pytest.raises(pictures.UnfitPicture, match="far larger than its header"):
        arrays._check_deflated(grown)
    arrays._check_deflated(zlib.compress(bytes(3 * MEGABYTE), 9))
    noise = np.random.default_rng(0).bytes(3 * MEGABYTE)
    arrays._check_deflated(zlib.compress(noise))  # long, and looked into


def test_a_bomb_in_a_strip_of_bands_is_refused(monkeypatch):
    monkeypatch.setattr(arrays, "MOST_DEFLATED", 10**9)  # look into every strip
    checked = []
    monkeypatch.setattr(arrays, "_check_deflated", checked.append)
    assert all(read(SOUND["tiff-bands"], 5))
    assert len(checked) == 5 * 4 and all(zlib.decompress(strip) for strip in checked)


@pytest.mark.parametrize("shape", [(1, 3_000_000), (3_000_000, 1), (2, 900_000)])
def test_a_strip_does_not_grow_on_its_way_to_the_model(shape):
    encoded = npy(np.full((*shape, 3), 77, np.uint8))
    with memory_limit(200):
        assert all(read(encoded))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_bad(size):
    for encoded in (b"P6 %d %d 255\n" % size, npy(np.zeros((*size, 3), np.uint8))):
        assert not any(read(encoded))
    assert not any(read(tiff_bomb(*size, samples=5), 5))


# Programs, warnings and other files


def eps() -> bytes:
    return encode(picture(), "EPS")


def test_no_program_is_started(monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a program is started: {arguments}")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
    for name in ("Popen", "check_call", "check_output", "run"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(os, "system", refuse)
    assert not any(read(eps()))
    with pytest.raises(BadImage, match=r"is a drawing \(EPS\) .* save it as PNG"):
        decode.decode(eps(), 3)


def test_nothing_is_printed_or_logged(capfd, recwarn):
    """Neither for damage nor for oddities: who asked hears it from the `BadImage` alone."""
    corrupt_exif = encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\0\0junk")
    odd_tag = tiff_bomb(2, 2).replace(
        struct.pack("<HHI", 258, 3, 1), struct.pack("<HHI", 258, 9, 9)
    )
    many_samples = tiff_bomb(2, 2, samples=65_535)
    for encoded in (corrupt_exif, odd_tag, many_samples, SOUND["tiff-bands"][:300]):
        read(encoded)
        read(encoded, 5)
    assert capfd.readouterr() == ("", "") and not recwarn.list


# Time


def endless() -> None:
    start = time.monotonic()
    while time.monotonic() - start < 20:
        pass


@pytest.fixture
def is_limited() -> None:
    if not hasattr(signal, "setitimer"):
        pytest.skip("the system has no interval timers")


def test_what_takes_too_long_is_stopped(is_limited):
    start = time.monotonic()
    with pytest.raises(TookTooLong), time_limit(0.1):
        endless()
    assert time.monotonic() - start < 5


def test_a_reader_that_swallows_the_first_signal_is_stopped_by_the_next(is_limited):
    start = time.monotonic()
    with pytest.raises(TookTooLong), time_limit(0.1):
        try:
            endless()
        except Exception:
            endless()
    assert time.monotonic() - start < 10


def test_an_image_that_takes_too_long_is_bad(is_limited, monkeypatch):
    monkeypatch.setattr(decode, "time_limit", partial(time_limit, 0.2))
    numbers = b"P3 3000 3000 255\n" + b"1 " * 27_000_000  # read by Python, number by number
    start = time.monotonic()
    with pytest.raises(BadImage, match=r"^a takes more than 10 seconds to decode; remove it"):
        decode.decode(numbers, 3, "a")
    assert time.monotonic() - start < 8


def test_the_limit_leaves_timers_and_handlers_as_they_were(is_limited):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        handler = signal.getsignal(signal.SIGALRM)
        with time_limit(5):
            pass
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.7)
        with time_limit(5):
            time.sleep(0.4)
        assert not rung  # it was due within the block
        time.sleep(0.1)
        assert rung == [True]
        assert signal.getitimer(signal.ITIMER_REAL)[1] == pytest.approx(0.7)
        with pytest.raises(TookTooLong), time_limit(0.1):
            endless()
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("place", ["thread", "no timers"])
def test_where_nothing_can_be_interrupted_the_limit_is_none(place, monkeypatch):
    outcomes = []

    def work() -> None:
        with time_limit(0.05):
            time.sleep(0.15)
        outcomes.append(read(SOUND["png"]))

    if place == "thread":
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        monkeypatch.delattr(signal, "setitimer", raising=False)
        work()
    assert outcomes == [[True] * 4]


def test_a_jpeg_of_many_scans_is_decoded_by_pillow_in_short_steps(monkeypatch):
    if pictures.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    encoded = SOUND["jpeg-progressive"]
    expected = decode.decode(encoded, 3)
    sizes = []
    load_read = JpegImagePlugin.JpegImageFile.load_read

    def note(file: Any, size: int) -> bytes:
        sizes.append(size)
        return load_read(file, size)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("simplejpeg cannot be interrupted")

    monkeypatch.setattr(pictures, "MAX_SCANNED_PIXELS", 120 * 80)
    monkeypatch.setattr(pictures.simplejpeg, "decode_jpeg", refuse)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load_read", note)
    assert torch.equal(decode.decode(encoded, 3), expected)
    assert sizes and max(sizes) <= 4096


# Pillow's own images


@pytest.mark.slow
@pytest.mark.skipif("PILLOW_IMAGES" not in os.environ, reason="PILLOW_IMAGES names no folder")
def test_pillows_own_images(capfd):
    files = sorted(path for path in Path(os.environ["PILLOW_IMAGES"]).rglob("*") if path.is_file())
    assert len(files) > 1000
    counts = {1: 0, 3: 0}
    for path in files:
        for num_channels in counts:
            start = time.monotonic()
            with memory_limit(1024):
                counts[num_channels] += read(path.read_bytes(), num_channels)[0]
            assert time.monotonic() - start < 10, path
    assert min(counts.values()) > 800, counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [("RGBA", "PNG", {"compress_level": 1}), ("I;16", "PNG", {"compress_level": 1})],
)
def test_the_largest_pictures_fit_into_a_gigabyte(mode, format, options):
    side = int((limits.MAX_BYTES // (4 if mode == "RGBA" else 3)) ** 0.5)
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(Image.new(mode, (side, side)), format, exif=exif, **options)
    with memory_limit(1024):
        assert TRANSFORMS[3][0].read(encoded, np.random.default_rng(0), "a").shape == (3, *SIZE)
