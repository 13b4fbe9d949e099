"""Coordinates and noise of drawn pictures are what their docstrings say."""

import math

import numpy as np
import pytest

from hf_vitmae.data.drawn import Drawn, Plane, drawn_dataset, inside


def test_coordinates_are_turned_and_keep_distances():
    plane = Plane(9)
    along, across = plane.turned(0.0)
    assert along[0].tolist() == list(range(-4, 5)) and across[:, 0].tolist() == list(range(-4, 5))
    along, across = plane.turned(math.pi / 2, y=1.0, x=-2.0)  # now along runs down
    assert np.allclose(along, plane.y - 1) and np.allclose(across, -(plane.x + 2))
    along, across = plane.turned(0.7, y=1.0, x=-2.0)
    assert np.allclose(np.hypot(along, across), plane.distance(1.0, -2.0), atol=1e-5)
    assert plane.distance(-4.0, 4.0)[0, 8] == 0


@pytest.mark.parametrize(
    ("angle", "step"), [(0.0, (0, 1)), (math.pi / 2, (1, 0)), (math.pi / 4, (1, 1))]
)
def test_noise_is_smooth_along_its_direction_and_not_across(angle: float, step: tuple[int, int]):
    noise = Plane(48).soft_noise(np.random.default_rng(0), length=12, width=1, angle=angle)
    assert noise.shape == (48, 48) and noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=1e-4) and noise.std() == pytest.approx(1, abs=1e-3)
    along, across = (
        np.abs(noise - np.roll(noise, way, axis=(0, 1))).mean()
        for way in (step, (-step[1], step[0]))
    )
    assert along < 0.25 * across


def test_an_edge_takes_one_pixel():
    assert inside(np.array([-2.0, -0.5, -0.25, 0.0, 0.5, 3.0])).tolist() == [0, 0, 0.25, 0.5, 1, 1]


def test_a_dataset_holds_bytes_and_classes():
    drawn = drawn_dataset(lambda i: Drawn(bytes([i]), i % 2), range(3, 6), ["even", "odd"])
    assert [image["bytes"] for image in drawn["image"]] == [b"\3", b"\4", b"\5"]
    assert drawn["label"][:] == [1, 0, 1] and drawn.features["label"].names == ["even", "odd"]
