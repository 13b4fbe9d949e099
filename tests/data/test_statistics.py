"""Sums over images equal numpy's over all of their pixels at once; the file keeps every digit."""

import json
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest

from hf_vitmae.data.statistics import (
    Moments,
    PixelStatistics,
    Values,
    combine,
    read_statistics,
    write_statistics,
)

STATISTICS = PixelStatistics(
    mean=(0.1, 1 / 3), std=(0.25, 0.3), range=(7.0, 4095.0), value_range=(7.0, 4095.0), num_images=9
)


def of_all(images: list[np.ndarray]) -> np.ndarray:
    """The pixels of all images, (C, n) float64."""
    return np.concatenate([i.reshape(len(i), -1) for i in images], axis=1).astype(np.float64)


@pytest.mark.parametrize("offset", [0, 1e7], ids=["near 0", "far from 0"])
def test_moments_of_images_are_those_of_their_pixels(offset: float) -> None:
    generator = np.random.default_rng(0)
    shapes = [(3, 700, 200), (3, 1, 1), (3, 5, 90000)]  # several strips, one pixel, long rows
    images = [generator.normal(offset, 2.0, shape) for shape in shapes]
    total = reduce(add, map(Moments.of, images))
    pixels = of_all(images)
    assert total.num_pixels == pixels.shape[1]
    np.testing.assert_allclose(total.mean, pixels.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(total.std, pixels.std(axis=1), rtol=1e-9)


def test_strips_of_a_view_that_is_not_contiguous() -> None:
    values = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    turned = values.transpose(2, 1, 0)[:, ::-1]  # as EXIF turns pictures
    np.testing.assert_allclose(Moments.of(turned).std, values.std(axis=(0, 1)), rtol=1e-12)


def test_deep_values_are_in_units_of_what_they_hold() -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(100, 4000, (1, 8, 9)).astype(np.uint16) for _ in range(3)]
    values = reduce(add, map(Values.of, images))
    found = combine({(1, "uint16"): values}, 3)
    pixels = of_all(images)
    low, high = pixels.min(), pixels.max()
    assert found.range == found.value_range == (low, high)
    np.testing.assert_allclose(found.mean, (pixels.mean() - low) / (high - low), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std() / (high - low), rtol=1e-12)


def test_gray_counts_in_all_channels_and_16_bits_beside_8_by_their_full_range() -> None:
    generator = np.random.default_rng(0)
    gray = generator.integers(0, 65536, (1, 6, 7)).astype(np.uint16)
    color = generator.integers(0, 256, (3, 5, 4)).astype(np.uint8)
    found = combine({(1, "uint16"): Values.of(gray), (3, "uint8"): Values.of(color)}, 2)
    pixels = of_all([gray.repeat(3, axis=0) / 65535, color / 255])
    np.testing.assert_allclose(found.mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=1), rtol=1e-12)
    assert found.value_range is None


def test_8_bits_have_their_full_range_whatever_they_hold() -> None:
    found = combine({(1, "uint8"): Values.of(np.array([[[10, 20]]], dtype=np.uint8))}, 1)
    assert (found.range, found.value_range) == ((0.0, 255.0), None)
    assert found.mean == (pytest.approx(15 / 255),)


def test_floats_beside_8_bits_share_one_range() -> None:
    floats, eight = np.array([[[-2.0, 3.0]]], np.float32), np.array([[[10, 18]]], np.uint8)
    found = combine({(1, "float32"): Values.of(floats), (1, "uint8"): Values.of(eight)}, 2)
    assert found.value_range == (-2.0, 18.0)
    assert found.mean == (pytest.approx((29 / 4 + 2) / 20),)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_a_constant_channel_has_deviation_one(kind: str) -> None:
    values = np.full((2, 300, 300), 77, dtype=kind)
    values[0, ::2] = 99
    found = combine({(2, kind): Values.of(values)}, 1)
    assert found.std[1] == 1.0 and 0 < found.std[0] < 1
    assert found.constant_channels == [1]
    alone = combine({(1, kind): Values.of(values[1:])}, 1)
    assert alone.std == (1.0,)
    assert alone.value_range is None or alone.value_range[0] < alone.value_range[1]


def test_gray_is_for_models_of_one_and_of_three_channels() -> None:
    gray = PixelStatistics(mean=(0.4,), std=(0.2,), range=(0.0, 255.0), num_images=5)
    shown = gray.for_channels(3)
    assert shown is not None and shown.mean == (0.4,) * 3 and shown.std == (0.2,) * 3
    assert gray.for_channels(1) == gray
    assert gray.for_channels(2) is None
    assert shown.for_channels(1) is None


def test_the_file_keeps_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "stats.json"
    write_statistics(path, STATISTICS, counts={"bad": []})
    assert read_statistics(path) == STATISTICS
    assert json.loads(path.read_text())["channels"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["stats.json"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kind": "something else"}, "something else"),
        ({"mean": [0.1]}, "1 means"),
        ({"std": [0.0, 1.0]}, "above 0"),
        ({"std": ["wide", 1.0]}, "wide"),
        ({"mean": [float("nan"), 0.0]}, "finite"),
        ({"value_range": [5, 5]}, "low below high"),
        ({"value_range": [5]}, "stats.json"),
        ({"mean": 0.5}, "stats.json"),
        ({"range": None}, "stats.json"),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path: Path, change: dict, word: str) -> None:
    path = tmp_path / "stats.json"
    write_statistics(path, STATISTICS)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="no file of statistics") as raised:
        read_statistics(path)
    assert word in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"mean": [1]}', "\x00\xff"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="no file of statistics"):
        read_statistics(path)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        read_statistics(tmp_path / "absent.json")
