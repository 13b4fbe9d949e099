"""The drawn surfaces are always the same, every defect is what its class says, and nothing simple
tells the class.
"""

import io

import numpy as np
import pytest
from PIL import Image

from hf_vitmae.data import defects
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.decoding.decode import decode
from hf_vitmae.data.defects import DEFECT_CLASS_NAMES, draw_defect
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import open_source, open_train_and_eval

CLASS_NAMES = ("none", "scratch", "crack", "hole", "pits", "stain", "dent", "worn")


def draw(number: int, seed: int = 0) -> tuple[np.ndarray, str]:
    """Picture (H, W) and the name of its class."""
    picture, class_id = draw_defect(number, seed)
    assert picture.mode == "L"
    return np.asarray(picture), DEFECT_CLASS_NAMES[class_id]


def change(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> np.ndarray:
    """What a defect adds to its surface, without noise: (H, W)."""
    monkeypatch.setattr(defects, "NOISE", (0.0, 0.0))
    generator = np.random.default_rng(number)
    scene = defects._scene(generator)
    return defects._DEFECTS[name](scene) - scene.surface


def test_a_picture_is_always_the_same_and_another_one_is_another():
    picture, name = draw(5)
    again, name_again = draw(5)
    assert np.array_equal(picture, again) and name == name_again
    for other, _ in (draw(6), draw(5, seed=1)):
        assert not np.array_equal(picture, other)


def test_sizes_and_classes():
    assert DEFECT_CLASS_NAMES == CLASS_NAMES
    drawn = [draw(number) for number in range(200)]
    assert all(p.shape == (48, 48) and p.dtype == np.uint8 for p, _ in drawn)
    counts = [sum(name == n for _, n in drawn) for name in CLASS_NAMES]
    assert min(counts) >= 12 and max(counts) <= 40
    assert all(20 < p.mean() < 235 and p.std() > 5 for p, _ in drawn)


def test_every_defect_lies_in_one_place_and_no_defect_changes_nothing(monkeypatch):
    for number in range(20):
        assert not change(monkeypatch, "none", number).any()
        for name in CLASS_NAMES[1:]:
            changed = np.abs(change(monkeypatch, name, number)) > 4
            assert 0.002 < changed.mean() < 0.5, name


def test_a_crack_is_dark_and_holes_and_pits_are_but_a_scratch_may_be_bright(monkeypatch):
    for name in ("crack", "pits", "hole"):
        darkest = [change(monkeypatch, name, number).min() for number in range(20)]
        assert max(darkest) < -20, name
    brightest = np.array([change(monkeypatch, "scratch", number).max() for number in range(20)])
    assert (brightest > 38).any() and (brightest < 38).any()


def test_a_dent_is_as_bright_as_dark_and_lit_along_the_light(monkeypatch):
    for number in range(20):
        added = change(monkeypatch, "dent", number)
        scene = defects._scene(np.random.default_rng(number))
        weights = np.abs(added)
        along, across = (
            direction * added for direction in defects.PLANE.turned(scene.light, scene.y, scene.x)
        )
        assert abs(added.sum()) < 0.2 * weights.sum()
        assert abs(along.sum()) > 2 * abs(across.sum())


def test_a_worn_spot_has_lost_its_texture_and_a_stain_has_not(monkeypatch):
    for number in range(20):
        scene = defects._scene(np.random.default_rng(number))
        worn = change(monkeypatch, "worn", number)
        spot = np.abs(worn + 0.95 * scene.texture) < 1e-3
        assert 0.03 < spot.mean() < 0.25
        stained = change(monkeypatch, "stain", number) / scene.surface
        spot = np.abs(stained) > 0.2
        assert 0.015 < spot.mean() < 0.25 and np.ptp(stained[spot]) < 0.3


def test_neither_brightness_nor_contrast_tells_the_class():
    """The most similar of 500 pictures by both is rarely of the same class (chance: 0.125)."""
    drawn = [(picture, CLASS_NAMES.index(name)) for picture, name in map(draw, range(600))]
    values = np.array([(picture.mean(), picture.std()) for picture, _ in drawn])
    labels = np.array([class_id for _, class_id in drawn])
    values = values / values.std(axis=0)
    distances = np.linalg.norm(values[500:, None] - values[:500], axis=2)
    assert (labels[:500][distances.argmin(axis=1)] == labels[500:]).mean() < 0.3


@pytest.fixture(scope="module")
def evaluation_images() -> ImageSource:
    return open_source("defects", "test")


def test_it_opens_by_name_with_classes(evaluation_images):
    assert evaluation_images.name == "defects/test" and len(evaluation_images) == 1000
    assert evaluation_images.class_names == CLASS_NAMES


def test_a_source_holds_what_is_drawn(evaluation_images):
    for index in (0, 7):
        picture, name = draw(3000 + index)
        encoded = evaluation_images[index].encoded
        assert Image.open(io.BytesIO(encoded)).format == "PNG"
        assert np.array_equal(decode(encoded, 1)[0].numpy(), picture)
        assert CLASS_NAMES[evaluation_images.labels[index]] == name


@pytest.mark.slow
def test_splits_have_pictures_of_their_own(evaluation_images):
    train, evaluation = open_train_and_eval(DataConfig(source="defects"), 0)
    assert isinstance(train, ImageSource) and isinstance(evaluation, ImageSource)
    assert (len(train), len(evaluation)) == (3000, 1000)
    assert evaluation[5].encoded == evaluation_images[5].encoded
    encoded = [source[i].encoded for source in (train, evaluation) for i in range(len(source))]
    assert len(set(encoded)) == 4000
