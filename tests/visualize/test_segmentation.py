"""Colours of classes: distinct, at the right pixels, blended exactly, and explained."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae.training.metrics import MeanIoU
from hf_vitmae.visualize import (
    class_legend,
    class_palette,
    overlay,
    picture_panel,
    segmentation_rows,
)

WHITE = (255, 255, 255)
NAMES = ("background", "circle", "square")
# Linear RGB as people without red or green cones see it: Machado, Oliveira and Fernandes, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency" (2009), severity 1.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def lab(colors: np.ndarray, blindness: np.ndarray) -> np.ndarray:
    """sRGB uint8 (n, 3) -> CIELAB (n, 3), D65."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ blindness.T).clip(0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    curved = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = curved.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def nearest_pair(colors: np.ndarray, blindness: np.ndarray) -> float:
    """The smallest CIELAB distance of two colours."""
    points = lab(colors, blindness)
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    return distances[~np.eye(len(points), dtype=bool)].min()


def class_map(*rows: str) -> np.ndarray:
    """A digit for each pixel; "x" is to be ignored."""
    return np.array([[255 if char == "x" else int(char) for char in row] for row in rows])


def random_picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values)


def colors_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(color) for color in np.asarray(picture).reshape(-1, 3).tolist()}


def test_twenty_colours_are_easy_to_tell_apart() -> None:
    colors = np.vstack([class_palette(20), WHITE])
    least = {"none": 25.0, "protanopia": 15.0, "deuteranopia": 15.0}
    for name, matrix in BLINDNESS.items():
        assert nearest_pair(colors, matrix) > least[name], name


def test_palettes_begin_alike_and_never_repeat() -> None:
    palette = class_palette(300)
    assert palette.dtype == np.uint8 and palette.shape == (300, 3)
    assert len(colors_of(Image.fromarray(palette[None])) | {WHITE}) == 301
    assert palette[0].tolist() == [64, 64, 64]  # dark gray
    for count in (1, 7, 20, 21, 150):
        np.testing.assert_array_equal(class_palette(count), palette[:count])
    points = lab(palette, BLINDNESS["none"])
    assert np.linalg.norm(np.diff(points, axis=0), axis=1).min() > 25  # classes that are neighbours


@pytest.mark.parametrize("count", [0, -3])
def test_a_palette_of_nothing_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 class, got {count}"):
        class_palette(count)


def test_an_overlay_blends_exactly() -> None:
    picture, ids = random_picture(2, 3), class_map("012", "21x")
    palette = np.array([(0, 0, 0), (255, 101, 7), (10, 20, 30)], dtype=np.uint8)
    before = np.asarray(picture).astype(float)
    for opacity in (0.0, 0.3, 0.5, 1.0):
        blended = np.asarray(overlay(picture, ids, palette, opacity=opacity))
        for y, x in np.ndindex(2, 3):
            expected = before[y, x]
            if ids[y, x] != 255:
                color = palette[ids[y, x]].astype(float)
                expected = (1 - opacity) * before[y, x] + opacity * color
            assert (np.abs(blended[y, x] - expected) <= 0.5 + 1e-6).all()
    assert blended[0, 1].tolist() == [255, 101, 7]
    assert blended[1, 2].tolist() == before[1, 2].tolist()
    assert (
        overlay(picture, ids, palette).tobytes()
        == overlay(picture, ids, palette, opacity=0.5).tobytes()
    )


def test_maps_of_any_kind_and_gray_pictures_give_the_same_overlay() -> None:
    picture, ids, palette = random_picture(2, 2, "L"), class_map("01", "1x"), class_palette(2)
    first = overlay(picture, ids, palette)
    assert first.mode == "RGB" and first.getpixel((1, 1)) == (picture.getpixel((1, 1)),) * 3
    kinds: list[Any] = [torch.from_numpy(ids), Image.fromarray(ids.astype(np.uint8)), ids[None]]
    for kind in kinds:
        assert overlay(picture, kind, palette).tobytes() == first.tobytes()
    other = np.where(ids == 255, -100, ids)
    assert overlay(picture, other, palette, ignore_index=-100).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        (class_map("00"), {}, "map of 1x2 pixels .* picture of 2x2"),
        (class_map("02", "00"), {}, "Class 2 is none of the 2"),
        (class_map("00", "00") - 1, {}, "Class -1 is none"),
        (class_map("0x", "00"), {"ignore_index": 9}, "Class 255 is none"),
        (class_map("00", "00"), {"opacity": 1.5}, "`opacity` .* 1.5"),
        (np.zeros((2, 2)), {}, "integers"),
    ],
)
def test_overlays_that_cannot_be_meant(ids: np.ndarray, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        overlay(random_picture(2, 2), ids, class_palette(2), **options)
    assert "\n" not in str(raised.value)


def test_rows_show_every_map_in_its_colours() -> None:
    pictures = [random_picture(2, 3), random_picture(4, 4)]
    predicted = [class_map("012", "000"), class_map(*["2222"] * 4)]
    labels = [class_map("01x", "001"), class_map(*["1111"] * 4)]
    palette = class_palette(3)
    rows = segmentation_rows(pictures, predicted, labels, NAMES)
    for row, picture, guess, true in zip(rows, pictures, predicted, labels, strict=True):
        assert list(row.pictures) == ["input", "labels", "prediction", "overlay"]
        assert row.pictures["input"].tobytes() == picture.tobytes()
        assert row.pictures["overlay"].tobytes() == overlay(picture, guess, palette).tobytes()
        for name, ids in (("labels", true), ("prediction", guess)):
            painted = np.asarray(row.pictures[name])
            for y, x in np.ndindex(*ids.shape):
                color = WHITE if ids[y, x] == 255 else palette[ids[y, x]]
                assert painted[y, x].tolist() == list(color)


def test_captions_say_how_right_a_picture_is() -> None:
    # Labelled pixels: 0 0 0 1 1, of which the last 0 and the first 1 are predicted 1 and 2.
    predicted, labels = class_map("001", "212"), class_map("000", "11x")
    (row,) = segmentation_rows([random_picture(2, 3)], [predicted], [labels], NAMES)
    # IoU: background 2 of 3, circle 1 of 3, square 0 of 1; the mean is 1/3.
    assert row.caption == (
        "pixel accuracy 60.0%, mean IoU 0.33 (background 0.67, circle 0.33), 17% ignored"
    )
    (row,) = segmentation_rows([random_picture(2, 3)], [predicted], [labels])
    assert "(class 0 0.67, class 1 0.33)" in row.caption
    (row,) = segmentation_rows([random_picture(1, 2)], [class_map("11")], [class_map("11")], NAMES)
    assert row.caption == "pixel accuracy 100.0%, mean IoU 1.00 (circle 1.00)"


def test_captions_agree_with_the_metric() -> None:
    generator = np.random.default_rng(1)
    predicted, labels = generator.integers(0, 9, (2, 6, 12, 12))
    labels[generator.random(labels.shape) < 0.3] = 255
    rows = segmentation_rows([random_picture(12, 12)] * 6, predicted, labels)
    for row, guess, true in zip(rows, predicted, labels, strict=True):
        metric = MeanIoU(9)
        scores = metric.compute(predictions=[guess], references=[true])
        assert scores is not None
        words = f"pixel accuracy {scores['pixel_accuracy']:.1%}, mean IoU {scores['mean_iou']:.2f} "
        assert row.caption.startswith(words)
        assert row.caption.count("class") == 4  # the largest: there is no room for all


def test_captions_of_ignored_pixels() -> None:
    picture = random_picture(1, 4)
    (row,) = segmentation_rows([picture], [class_map("0000")], [class_map("xxxx")], NAMES)
    assert row.caption == "no pixel has a label"
    (row,) = segmentation_rows([picture], [class_map("x011")], [class_map("0011")], NAMES)
    assert row.caption == "pixel accuracy 75.0%, mean IoU 0.75 (background 0.50, circle 1.00)"
    ids = class_map("0111") + 7  # here 7 does not count
    (row,) = segmentation_rows([picture], [ids], [ids], ignore_index=7)
    assert row.caption == "pixel accuracy 100.0%, mean IoU 1.00 (class 8 1.00), 25% ignored"


def test_without_labels_captions_say_what_is_there() -> None:
    (row,) = segmentation_rows([random_picture(1, 8)], [class_map("01222222")], class_names=NAMES)
    assert list(row.pictures) == ["input", "prediction", "overlay"]
    assert row.caption == "square 75%, background 12%, circle 12%"
    (row,) = segmentation_rows([random_picture(1, 6)], [class_map("012345")])
    assert row.caption == "class 0 17%, class 1 17%, class 2 17%, class 3 17%"


@pytest.mark.parametrize(
    ("predicted", "labels", "words"),
    [
        ([class_map("01")] * 2, None, "2 class maps of `prediction` for 1 pictures"),
        ([class_map("01")], [], "0 class maps of `labels` for 1 pictures"),
        ([class_map("03")], None, "Class 3 is none of the 3"),
        ([class_map("00")], [class_map("03")], "Class 3 is none of the 3"),
        ([class_map("000")], None, "map of 1x3 pixels"),
    ],
)
def test_rows_that_cannot_be_meant(predicted: Any, labels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segmentation_rows([random_picture(1, 2)], predicted, labels, NAMES)


def test_a_legend_has_every_colour_beside_its_name() -> None:
    names = [f"a class of number {index}" for index in range(25)]
    strip = class_legend(names, width=300)
    pixels = np.asarray(strip)
    assert (pixels[2:14, :12] == class_palette(1)).all()
    places = [(2, 0)]
    for color in class_palette(25)[1:]:  # the first is a gray that is in words too
        rows, columns = np.nonzero((pixels == color).all(axis=2))
        swatch = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert swatch.shape[:2] == (12, 12) and (swatch == color).all()
        words = pixels[rows.min() : rows.max() + 1, columns.max() + 1 : columns.max() + 100]
        assert (words < 128).all(axis=2).any()
        places.append((rows.min().item(), columns.min().item()))
    assert places == sorted(places)  # in order, line by line
    assert strip.width <= 300 and len({row for row, _ in places}) > 10


def test_a_legend_of_long_names_is_not_cut_off() -> None:
    strip = class_legend(["x", "a name that is much longer than the line is wide"], width=40)
    assert strip.width > 200
    shorter = class_legend(["a name that is much longer than the line is wid"], width=40)
    assert shorter.width < strip.width


def test_a_page_has_the_legend_at_the_bottom() -> None:
    rows = segmentation_rows([random_picture(8, 8)], [np.zeros((8, 8), int)], class_names=NAMES)
    page = np.asarray(picture_panel(rows, [class_legend(NAMES)]))
    legend = class_legend(NAMES)
    below = page[-16 - legend.height : -16, 16 : 16 + legend.width]
    np.testing.assert_array_equal(below, np.asarray(legend))
