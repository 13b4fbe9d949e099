"""The drawn set is always the same, maps agree with pictures, and shapes with their classes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae.data import shapes
from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.decoding.decode import decode, decode_label_map
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.shapes import SHAPE_CLASS_NAMES, draw_shapes
from hf_vitmae.data.sources import open_source, open_train_and_eval

BACKGROUND, CIRCLE, SQUARE, TRIANGLE = range(4)


def draw(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Picture (H, W, 3) and classes (H, W)."""
    picture, classes = draw_shapes(number, seed)
    assert picture.mode == "RGB" and classes.mode == "L"
    return np.asarray(picture), np.asarray(classes)


def test_a_picture_is_always_the_same_and_another_one_is_another():
    (picture, classes), (again, classes_again) = draw(5), draw(5)
    assert np.array_equal(picture, again) and np.array_equal(classes, classes_again)
    for other, classes_other in (draw(6), draw(5, seed=1)):
        assert not np.array_equal(picture, other) and not np.array_equal(classes, classes_other)


def test_sizes_and_classes():
    drawn = [draw(number) for number in range(60)]
    assert all(p.shape == (64, 64, 3) and c.shape == (64, 64) for p, c in drawn)
    present = [set(np.unique(classes)) for _, classes in drawn]
    assert all(BACKGROUND in here and 2 <= len(here) <= 4 for here in present)
    assert set.union(*present) == {BACKGROUND, CIRCLE, SQUARE, TRIANGLE}
    assert {len(here) for here in present} == {2, 3, 4}
    shares = np.bincount(np.concatenate([c.ravel() for _, c in drawn])) / (60 * 64 * 64)
    assert 0.7 < shares[0] < 0.9 and shares[1:].min() > 0.04


def test_the_map_agrees_with_the_picture_where_shapes_overlap_too(monkeypatch):
    """Without noise a colour belongs to one shape: it has one class, that of the shape on top."""
    monkeypatch.setattr(shapes, "MOST_NOISE", 0)
    for number in range(40):
        picture, classes = draw(number)
        colours, where, counts = np.unique(
            picture.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
        )
        large = np.flatnonzero(counts >= 40)  # the background and soft edges have many colours
        for colour in large:
            assert len(set(classes.ravel()[where.ravel() == colour])) == 1, colours[colour]
        in_large = np.isin(where.ravel(), large)
        assert in_large[classes.ravel() > 0].mean() > 0.6  # else nothing was shown above


def test_shapes_have_the_form_of_their_class(monkeypatch):
    """Area by squared reach from the centre: pi of a circle, at most 2, and 1.3 of a triangle.

    (A little more where a pixel does not show the tip.)
    """
    monkeypatch.setattr(shapes, "MOST_SHAPES", 1)
    forms: dict[int, list[float]] = {CIRCLE: [], SQUARE: [], TRIANGLE: []}
    for number in range(150):
        _, classes = draw(number)
        inside = classes > 0
        if inside[[0, -1]].any() or inside[:, [0, -1]].any():
            continue  # cut off by the edge
        points = np.argwhere(inside)
        reach = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
        forms[int(classes.max())].append(len(points) / (reach + 0.25) ** 2)
    assert min(map(len, forms.values())) >= 8
    assert 2.75 < min(forms[CIRCLE]) and max(forms[CIRCLE]) < 3.3
    assert 1.6 < min(forms[SQUARE]) and max(forms[SQUARE]) < 2.2
    assert 1.1 < min(forms[TRIANGLE]) and max(forms[TRIANGLE]) < 1.55


def test_shapes_differ_from_both_colours_of_the_background(monkeypatch):
    monkeypatch.setattr(shapes, "MOST_NOISE", 0)
    monkeypatch.setattr(shapes, "MOST_SHAPES", 1)
    for number in range(60):
        picture, classes = draw(number)
        corners = picture[[0, -1, 0, -1], [0, -1, -1, 0]].astype(int).reshape(2, 2, 3)
        ends = max(corners, key=lambda pair: np.abs(pair[0] - pair[1]).sum())  # of the gradient
        if not classes[[0, 0, -1, -1], [0, -1, 0, -1]].any():
            for inside in commonest_colours(picture[classes > 0]):
                assert np.abs(inside - ends).max(axis=1).min() >= 64


def commonest_colours(pixels: np.ndarray) -> np.ndarray:
    """Those of at least a quarter of the pixels: (n, 3) -> (colours, 3)."""
    colours, counts = np.unique(pixels.astype(int), axis=0, return_counts=True)
    return colours[counts >= len(pixels) / 4]


def test_every_class_has_a_fill_of_its_own(monkeypatch):
    monkeypatch.setattr(shapes, "MOST_NOISE", 0)
    monkeypatch.setattr(shapes, "MOST_SHAPES", 1)
    rows, columns = np.mgrid[:64, :64] // 3
    patterns = {SQUARE: rows % 2, TRIANGLE: (rows + columns) % 2}
    seen = set()
    for number in range(30):
        picture, classes = draw(number)
        inside, class_id = classes > 0, int(classes.max())
        colours = commonest_colours(picture[inside])
        assert len(colours) == (1 if class_id == CIRCLE else 2)
        if class_id in patterns:
            for colour in colours:  # soft edges have neither
                places = patterns[class_id][inside & (picture == colour).all(axis=2)]
                assert len(set(places)) == 1
        seen.add(class_id)
    assert seen == {CIRCLE, SQUARE, TRIANGLE}


def test_it_opens_by_name_with_two_splits_of_its_own_pictures():
    config = DataConfig(source="shapes")
    train, evaluation = open_train_and_eval(config, 0, use_label_maps=True)
    assert evaluation is not None and (len(train), len(evaluation)) == (1000, 200)
    assert (train.name, evaluation.name) == ("shapes/train", "shapes/test")
    assert train.map_class_names == evaluation.map_class_names == SHAPE_CLASS_NAMES
    assert SHAPE_CLASS_NAMES == ("background", "circle", "square", "triangle")
    train.require_label_maps()
    encoded = [source[i].encoded for source in (train, evaluation) for i in range(len(source))]
    assert len(set(encoded)) == 1200


@pytest.mark.parametrize(("split", "first"), [("train", 0), ("test", 1000)])
def test_a_source_holds_what_is_drawn(split, first):
    source = open_source("shapes", split, use_label_maps=True)
    for index in (0, 7):
        record, (picture, classes) = source[index], draw(first + index)
        assert Image.open(io.BytesIO(record.encoded)).format == "PNG"
        assert np.array_equal(decode(record.encoded, 3).permute(1, 2, 0).numpy(), picture)
        assert record.label_map is not None
        assert np.array_equal(decode_label_map(record.label_map).numpy(), classes)


def test_without_label_maps_it_is_a_source_of_images():
    source = open_source("shapes", "test")
    assert source.map_class_names is source.label_map_column is source.class_names is None
    batch = next(train_batches(source, TrainTransform((32, 32)), seed=0, batch_size=4))
    assert batch.keys() == {"pixel_values"}


def test_batches_of_it_hold_the_class_of_every_pixel():
    source = open_source("shapes", "test", use_label_maps=True)
    batch = next(train_batches(source, TrainTransform((32, 48)), seed=0, batch_size=16))
    assert batch["pixel_values"].shape == (16, 3, 32, 48)
    assert batch["labels"].shape == (16, 32, 48) and batch["labels"].dtype == torch.int64
    assert batch["labels"].unique().tolist() == [BACKGROUND, CIRCLE, SQUARE, TRIANGLE]
