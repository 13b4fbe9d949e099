"""The drawn land is always the same, its class is a material in a layout, and nothing simple tells
the class.
"""

from collections import Counter

import numpy as np
import pytest

from hf_vitmae.data import bands
from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.bands import BAND_CLASS_NAMES, CLASSES, SPECTRA, draw_bands
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.decoding.decode import decode
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.sources import open_source, open_train_and_eval

LAYOUTS = ("rows", "disc", "winding", "plots", "scattered")


def coverages(layout: str, num_pictures: int = 40) -> np.ndarray:
    """Coverage of many pictures: (n, H, W)."""
    drawn = [bands._coverage(layout, np.random.default_rng(i)) for i in range(num_pictures)]
    return np.stack(drawn)


def test_a_picture_is_always_the_same_and_another_one_is_another():
    (picture, class_id), (again, class_again) = draw_bands(5), draw_bands(5)
    assert np.array_equal(picture, again) and class_id == class_again
    for other, _ in (draw_bands(6), draw_bands(5, seed=1)):
        assert not np.array_equal(picture, other)


def test_sizes_and_classes():
    drawn = [draw_bands(number) for number in range(200)]
    assert all(p.shape == (32, 32, 8) and p.dtype == np.uint8 for p, _ in drawn)
    counts = np.bincount([class_id for _, class_id in drawn], minlength=10)
    assert len(counts) == 10 and counts.min() >= 12 and counts.max() <= 40
    pictures = np.stack([p for p, _ in drawn])
    assert (pictures == 255).mean() < 0.001 and (pictures == 0).mean() < 0.02


def test_each_material_and_each_layout_occurs_in_two_classes():
    materials, layouts = zip(*CLASSES.values(), strict=True)
    assert len(set(CLASSES.values())) == len(CLASSES) == 10
    assert Counter(materials) == dict.fromkeys(SPECTRA, 2)
    assert Counter(layouts) == dict.fromkeys(LAYOUTS, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_covers_a_part_of_the_picture(layout):
    covered = coverages(layout)
    assert covered.min() >= 0 and covered.max() <= 1
    shares = covered.mean(axis=(1, 2))
    assert 0.02 < shares.min() and shares.max() < 0.65 and np.ptp(shares) > 0.1


def test_rows_run_through_and_a_disc_is_round():
    for covered in coverages("rows"):
        power = np.abs(np.fft.fft2(covered - covered.mean())) ** 2
        assert np.sort(power.ravel())[-16:].sum() > 0.5 * power.sum()  # one frequency, any way
    for covered in coverages("disc"):
        inside = covered > 0.5
        if inside[[0, -1]].any() or inside[:, [0, -1]].any():
            continue  # cut off by the edge
        points = np.argwhere(inside)
        reach = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
        assert 2.6 < len(points) / (reach + 0.25) ** 2 < 3.4


def test_a_winding_band_crosses_the_picture():
    for covered in coverages("winding"):
        inside = covered > 0.5
        assert inside[[0, -1]].any() or inside[:, [0, -1]].any()
        assert max(inside.any(axis=0).sum(), inside.any(axis=1).sum()) > 20


def test_materials_differ_in_their_spectrum_more_than_chance_changes_it():
    """By the angle between spectra, which no brightness changes."""
    generator = np.random.default_rng(0)
    usual = {name: np.array(spectrum) for name, spectrum in SPECTRA.items()}
    for name, spectrum in usual.items():
        drawn = np.stack([bands._spectrum(tuple(spectrum), generator) for _ in range(100)])
        angles = {other: _angle(drawn, known) for other, known in usual.items()}
        nearest = np.stack(list(angles.values())).argmin(axis=0)
        assert (np.array(list(usual))[nearest] == name).mean() > 0.75


def _angle(spectra: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n, 8), (8,) -> (n,)."""
    lengths = np.linalg.norm(spectra, axis=1) * np.linalg.norm(known)
    return np.arccos((spectra @ known / lengths).clip(-1, 1))


def test_the_mean_spectrum_does_not_tell_the_class():
    """The nearest of 500 pictures by their mean spectrum: chance is 0.1, a material alone 0.5."""
    drawn = [draw_bands(number) for number in range(600)]
    means = np.stack([picture.mean(axis=(0, 1)) for picture, _ in drawn])
    means = means / means.std(axis=0)
    labels = np.array([class_id for _, class_id in drawn])
    known, asked = means[:500], means[500:]
    nearest = np.linalg.norm(asked[:, None] - known, axis=2).argmin(axis=1)
    assert (labels[:500][nearest] == labels[500:]).mean() < 0.45


@pytest.fixture(scope="module")
def evaluation_images() -> ImageSource:
    return open_source("bands", "test")


def test_it_opens_by_name_with_classes(evaluation_images):
    assert evaluation_images.name == "bands/test" and len(evaluation_images) == 1000
    assert evaluation_images.class_names == BAND_CLASS_NAMES


def test_a_source_holds_what_is_drawn(evaluation_images):
    for index in (0, 7):
        picture, class_id = draw_bands(3000 + index)
        decoded = decode(evaluation_images[index].encoded, 8)
        assert np.array_equal(decoded.permute(1, 2, 0).numpy(), picture)
        assert evaluation_images.labels[index] == class_id


def test_batches_of_it_have_eight_channels(evaluation_images):
    transform = TrainTransform((32, 32), 8)
    batch = next(train_batches(evaluation_images, transform, seed=0, batch_size=4))
    assert batch["pixel_values"].shape == (4, 8, 32, 32) and batch["labels"].shape == (4,)


@pytest.mark.slow
def test_splits_have_pictures_of_their_own(evaluation_images):
    train, evaluation = open_train_and_eval(DataConfig(source="bands"), 0)
    assert isinstance(train, ImageSource) and isinstance(evaluation, ImageSource)
    assert (len(train), len(evaluation)) == (3000, 1000)
    assert evaluation[5].encoded == evaluation_images[5].encoded
    encoded = [source[i].encoded for source in (train, evaluation) for i in range(len(source))]
    assert len(set(encoded)) == 4000
