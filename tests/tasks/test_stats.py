"""What `hf-vitmae stats` says is what numpy and the files say; mistakes are one line."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_vitmae.cli import main
from hf_vitmae.data.decoding.stored import stored_image
from hf_vitmae.data.measure import Bad, even_shares, measure_all, spread_sample
from hf_vitmae.data.sources import open_images
from hf_vitmae.data.statistics import PixelStatistics, read_statistics
from hf_vitmae.tasks.stats import StatsRequest, run

from ..small import write_images
from .test_command_line import fails

RED, GREEN = (200, 10, 20), (10, 200, 30)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_deep(folder: Path, count: int = 12, low: int = 300, high: int = 4100) -> list[np.ndarray]:
    """16-bit gray PNGs of several sizes, smooth, with values as a 12-bit microscope gives them."""
    generator = np.random.default_rng(0)
    images = []
    for number in range(count):
        coarse = generator.uniform(low, high, (4, 5)).astype(np.float32)
        size = (40 + number, 32 + 2 * number)  # width, height
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
        images.append(np.asarray(smooth).round().astype(np.uint16))
        write(folder / f"{number:02d}.png", images[-1])
    return images


def stats(source: object, output: Path, *flags: object) -> PixelStatistics:
    """Run the verb in this process and read what it wrote."""
    words = ["stats", source, "-o", output, "--num-workers", 0, *flags]
    assert main([str(word) for word in words]) == 0
    return read_statistics(output)


def pixels_of(images: list[np.ndarray]) -> np.ndarray:
    """All pixels of images (H, W, C): float64 (n, C)."""
    return np.concatenate([image.reshape(-1, image.shape[-1]) for image in images]).astype(float)


def test_color_equals_numpy(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", 7)
    write(folder / "large.png", np.random.default_rng(1).integers(0, 256, (300, 500, 3), np.uint8))
    found = stats(folder, tmp_path / "stats.json")
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    pixels = pixels_of(images) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), atol=1e-12)
    assert (found.range, found.value_range, found.num_images) == ((0.0, 255.0), None, 8)


def test_deep_gray_equals_numpy(tmp_path: Path) -> None:
    images = write_deep(tmp_path / "cells")
    found = stats(tmp_path / "cells", tmp_path / "stats.json")
    pixels = np.concatenate([image.ravel() for image in images]).astype(float)
    low, high = pixels.min(), pixels.max()
    assert found.range == found.value_range == (low, high)
    np.testing.assert_allclose(found.mean, [(pixels.mean() - low) / (high - low)], atol=1e-12)
    np.testing.assert_allclose(found.std, [pixels.std() / (high - low)], atol=1e-12)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_deep_pixels_are_as_stored_and_upright(tmp_path: Path, suffix: str) -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its side
    file = io.BytesIO()
    kind = {".tif": "TIFF", ".png": "PNG"}[suffix]
    Image.fromarray(values).save(file, kind, exif=turned)
    header, pixels = stored_image(file.getvalue(), None)
    assert (header.format, header.depth, pixels.dtype) == (kind, "16 bits", np.uint16)
    np.testing.assert_array_equal(pixels, np.rot90(values, -1)[None])


def test_float_values_keep_their_range(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [generator.normal(-3, 0.5, (6, 5)).astype(np.float32) for _ in range(3)]
    for number, values in enumerate(images):
        write(tmp_path / "floats" / f"{number}.tif", values)
    bad = images[0].copy()
    bad[2, 2] = np.nan
    write(tmp_path / "floats" / "bad.tif", bad)
    found = stats(tmp_path / "floats", tmp_path / "stats.json")
    values = np.stack(images).astype(float)
    low, high = values.min(), values.max()
    assert found.value_range == (low, high) and found.num_images == 3
    assert found.mean == (pytest.approx((values.mean() - low) / (high - low)),)


@pytest.mark.parametrize(
    ("shape", "channels"), [((9, 7), 1), ((9, 7, 3), 3), ((5, 9, 7), 5), ((1, 9, 7), 1)]
)
def test_arrays_have_the_channels_of_their_shape(
    tmp_path: Path, shape: tuple[int, ...], channels: int
) -> None:
    values = np.random.default_rng(0).integers(0, 5000, shape).astype(np.uint16)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "a.npy", values)
    with open(tmp_path / "arrays" / "a.npy", "rb") as file:
        header, pixels = stored_image(file.read(), None)
    assert (header.format, header.depth, len(pixels)) == ("NPY", "16 bits", channels)
    first = values if values.ndim == 3 and len(values) == channels else np.atleast_3d(values).T
    assert sorted(pixels[0].ravel()) == sorted(first[0].ravel())


def test_bands_of_a_tiff_are_channels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 5000, (5, 9, 7)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="separate")
    header, pixels = stored_image(file.getvalue(), None)
    assert (header.format, header.depth) == ("TIFF", "16 bits")
    np.testing.assert_array_equal(pixels, values)


def test_transparency_lies_on_white_and_gray_counts_as_colour(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (*RED, 255)
    write(tmp_path / "mixed" / "rgba.png", rgba)
    write(tmp_path / "mixed" / "gray.png", np.full((4, 8), 51, np.uint8))
    found = stats(tmp_path / "mixed", tmp_path / "stats.json")
    expected = np.array([[RED] * 8 + [(255,) * 3] * 8 + [(51,) * 3] * 32])[0] / 255
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.std, expected.std(axis=0), atol=1e-12)


def test_the_channels_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "red" / "a.png", np.full((4, 4, 3), RED, np.uint8))
    write(tmp_path / "red" / "b.png", np.zeros((4, 4, 4), np.uint8))
    luma = stats(tmp_path / "red", tmp_path / "1.json", "--num-channels", 1)
    gray = round(0.299 * 200 + 0.587 * 10 + 0.114 * 20)
    assert luma.mean == (pytest.approx((gray + 255) / 2 / 255),)
    write(tmp_path / "red" / "c.png", np.zeros((4, 4), np.uint8))
    bands = stats(tmp_path / "red", tmp_path / "4.json", "--num-channels", 4)
    assert (bands.num_channels, bands.num_images) == (4, 1)
    counts = json.loads((tmp_path / "4.json").read_text())["counts"]
    assert [bad["reason"][:11] for bad in counts["bad"]] == ["has 3 bands", "has 1 bands"]


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos = tmp_path / "photos"
    for number in range(11):
        pixels = np.full((8, 6 + max(0, number - 4), 3), RED, np.uint8)
        pixels[0, 0] = number
        write(photos / "cats" / f"{number:02d}.png", pixels)
    write(photos / "dogs" / "one.png", np.full((20, 6, 3), GREEN, np.uint8))
    (photos / "dogs" / "broken.jpg").write_bytes(b"no image")
    twin = Image.open(photos / "dogs" / "one.png")
    twin.save(photos / "cats" / "twin.bmp")  # another file, the same pixels
    stats(photos, tmp_path / "stats.json")
    text = capsys.readouterr().out
    for words in (
        "14 images",
        "height    8 to 20 pixels, median 8",
        "width     6 to 12 pixels, median 6",  # of 13 images, but of 8 sizes it would be 8
        "most common: 8x6 (height x width), 5 images",
        "PNG (12), BMP (1)",
        "mode      RGB\n",
        "depth     8 bits\n",
        "channels  3\n",
        "range     0 to 255",
        "2 classes: cats (12), dogs (1); unbalanced: the largest has 12 times",
        "1 image cannot be used: ",
        "broken.jpg cannot be decoded",
        "1 image with the very pixels of an earlier one: ",
        "one.png = ",
        "cats/twin.bmp",
    ):
        assert words in text, words
    assert "warning" not in text
    counts = json.loads((tmp_path / "stats.json").read_text())["counts"]
    assert counts["images"] == 13 and len(counts["bad"]) == len(counts["duplicates"]) == 1


def test_another_shape_is_no_duplicate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for height, width in ((2, 8), (4, 4), (8, 2)):
        write(tmp_path / "flat" / f"{height}.png", np.full((height, width), 7, np.uint8))
    stats(tmp_path / "flat", tmp_path / "stats.json")
    assert "duplicates" not in capsys.readouterr().out


def test_warnings_name_what_is_mixed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mixed = tmp_path / "mixed"
    write(mixed / "a.png", np.full((4, 4, 3), RED, np.uint8))
    write(mixed / "b.png", np.full((4, 4, 3), RED, np.uint8) + 1)
    write(mixed / "c.png", np.full((4, 4), 9, np.uint8))
    write(mixed / "d.png", np.arange(16, dtype=np.uint16).reshape(4, 4))
    stats(mixed, tmp_path / "stats.json")
    warnings = [w for w in capsys.readouterr().out.splitlines() if w.startswith("warning")]
    assert len(warnings) == 2
    assert "2 images of 3, 2 images of 1 channels" in warnings[0]
    assert "uint8 (3), uint16 (1)" in warnings[1] and "full range" in warnings[1]


def test_a_constant_channel_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0] = np.arange(16).reshape(4, 4)
    write(tmp_path / "one" / "a.png", pixels)
    found = stats(tmp_path / "one", tmp_path / "stats.json")
    assert found.std[1:] == (1.0, 1.0)
    assert "channel 2 is the same in all pixels" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_workers_and_streams_change_no_number(tmp_path: Path, streaming: bool) -> None:
    folder = write_images(tmp_path / "photos", 21)
    (folder / "bad.png").write_bytes(b"no image")
    files = sorted(folder.iterdir())
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = tmp_path / "photos.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(table)
    images = open_images(str(table), streaming=streaming)
    alone = list(measure_all(images, num_workers=0))
    several = list(measure_all(images, num_workers=2))
    by_file = list(measure_all(open_images(folder), num_workers=0))
    assert len(alone) == 22
    for other, same_names in ((several, True), (by_file, False)):
        for first, second in zip(alone, other, strict=True):
            assert (first.name == second.name) is same_names
            assert _facts(first) == _facts(second)


def _facts(found) -> list[str]:
    return [str(value) for name, value in found._asdict().items() if name != "name"]


def test_a_file_that_is_gone_is_bad(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", 4)
    images = open_images(folder).select(np.arange(4))
    (folder / "002.jpg").unlink()
    found = list(measure_all(images))
    assert [isinstance(one, Bad) for one in found] == [False, False, True, False]
    assert isinstance(found[2], Bad)
    assert "002.jpg" in found[2].name and "is not there" in found[2].reason


def test_a_sample_is_spread(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = open_images(write_images(tmp_path / "photos", 20))
    names = [Path(record.name).name for record in spread_sample(images, 4).records()]
    assert names == ["000.jpg", "005.jpg", "010.jpg", "015.jpg"]
    assert spread_sample(images, 20) is images
    stats(tmp_path / "photos", tmp_path / "stats.json", "--sample", 4)
    assert "20, of which a sample of 4 images" in capsys.readouterr().out


def test_a_sample_of_a_stream_takes_the_first_of_every_shard(tmp_path: Path) -> None:
    rows = [{"bytes": bytes([i]), "path": None} for i in range(10)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    for shard, part in enumerate((rows[:1], rows[1:6], rows[6:])):
        table = datasets.Dataset.from_dict({"image": part}, features=features)
        table.to_parquet(tmp_path / f"{shard}.parquet")
    images = open_images(str(tmp_path / "*.parquet"), streaming=True)
    sample = spread_sample(images, 5)
    assert [record.encoded[0] for record in sample.records()] == [0, 1, 2, 6, 7]


@pytest.mark.parametrize(
    ("sizes", "most", "shares"),
    [
        ([10, 10], 4, [2, 2]),
        ([1, 10, 10], 9, [1, 4, 4]),
        ([10, 0, 3], 8, [5, 0, 3]),
        ([5, 5, 5, 5, 5, 5], 3, [1, 0, 1, 0, 1, 0]),
        ([2, 9], 7, [2, 5]),
    ],
)
def test_even_shares(sizes: list[int], most: int, shares: list[int]) -> None:
    assert even_shares(sizes, most) == shares


def test_the_sheet_shows_every_draw(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", 8)
    sheet = tmp_path / "new" / "sheet.png"
    flags = ["--sheet", sheet, "--image-size", 48]
    stats(folder, tmp_path / "stats.json", *flags)
    first = np.asarray(Image.open(sheet))
    stats(folder, tmp_path / "stats.json", *flags)
    assert (np.asarray(Image.open(sheet)) == first).all()
    for more in (["--seed", 1], ["--augment.color-jitter", 0.9, 0.9, 0.9, 0.5]):
        stats(folder, tmp_path / "stats.json", *flags, *more)
        other = np.asarray(Image.open(sheet))
        assert other.shape == first.shape and (other != first).mean() > 0.1


def test_a_sheet_of_deep_images(tmp_path: Path) -> None:
    write_deep(tmp_path / "cells", 4)
    sheet = tmp_path / "sheet.png"
    flags = ["--sheet", sheet, "--image-size", 48, "--augment.gaussian-blur", 0.5]
    stats(tmp_path / "cells", tmp_path / "stats.json", *flags)
    pixels = np.asarray(Image.open(sheet).convert("L"))
    assert pixels[:, 70:].std() > 20 and 0.2 < (pixels[40:80] / 255).mean() < 0.9


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, output = write_images(tmp_path / "photos", 2), tmp_path / "stats.json"
    command = ["stats", folder, "-o", output]
    fails(capsys, 1, ["stats", "no/such/folder", "-o", output], "no/such/folder")
    fails(capsys, 2, [*command, "--sample", 0], "sample", "0")
    fails(capsys, 2, [*command, "--sheet", "sheet.jpg"], "sheet.jpg", ".png")
    fails(capsys, 1, [*command, "--split", "other"], "other", "train")
    (tmp_path / "texts").mkdir()
    fails(capsys, 1, ["stats", tmp_path / "texts", "-o", output], "no images")
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    fails(capsys, 1, command, "None of 2 images", "000.jpg")
    assert not output.exists()
    output.write_text('{"mine": 1}')
    fails(capsys, 1, command, str(output), "-o FILE")
    assert output.read_text() == '{"mine": 1}'


def test_an_empty_source(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    empty = datasets.Dataset.from_dict({"image": []}, features=features)
    with pytest.raises(ValueError, match="holds no images"):
        run(StatsRequest(source="empty", output=tmp_path / "stats.json"), empty)
