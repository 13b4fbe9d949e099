"""Flips and quarter turns move whole pixels, and image and label map alike."""

import numpy as np
import pytest
import torch

from hf_vitmae.data.augmentation.geometry import Orientation, RandomOrientation


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def numbered(*shape: int) -> torch.Tensor:
    """Every value another one, as far as uint8 goes."""
    return torch.arange(int(np.prod(shape))).reshape(shape).to(torch.uint8)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (Orientation(False, 0), [[0, 1], [2, 3]]),
        (Orientation(True, 0), [[2, 3], [0, 1]]),
        (Orientation(False, 1), [[1, 3], [0, 2]]),  # counterclockwise
        (Orientation(False, 2), [[3, 2], [1, 0]]),
        (Orientation(False, 3), [[2, 0], [3, 1]]),
        (Orientation(True, 1), [[3, 1], [2, 0]]),
    ],
)
def test_pixels_go_where_they_should(orientation, expected):
    assert orientation.of(torch.tensor([[0, 1], [2, 3]])).tolist() == expected


def test_the_eight_orientations_of_a_square_are_equally_likely():
    transform, generator, image = RandomOrientation(0.5, True), rng(), numbered(1, 2, 2)
    results = [tuple(transform(image, generator).flatten().tolist()) for _ in range(4000)]
    counts = np.unique(results, axis=0, return_counts=True)[1]
    assert len(counts) == 8 and (abs(counts - 500) < 100).all()  # 21 is one standard deviation


def test_the_probability_is_that_of_a_flip():
    transform, generator, image = RandomOrientation(0.2), rng(), numbered(1, 2, 2)
    flips = sum(bool(transform(image, generator)[0, 0, 0] == 2) for _ in range(2000))
    assert 320 < flips < 480
    assert all(torch.equal(RandomOrientation()(image, rng(seed)), image) for seed in range(20))


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_an_image_that_is_not_square_keeps_its_size(channels):
    transform, generator, image = RandomOrientation(0.0, True), rng(), numbered(channels, 2, 3)
    results = [transform(image, generator) for _ in range(200)]
    assert {tuple(result.shape) for result in results} == {(channels, 2, 3)}
    turned = sum(torch.equal(result, image.flip(-1, -2)) for result in results)
    assert turned + sum(torch.equal(result, image) for result in results) == 200
    assert 60 < turned < 140


@pytest.mark.parametrize("shape", [(5, 5), (4, 6)])
@pytest.mark.parametrize("seed", range(10))
def test_a_label_map_turns_with_its_image(shape, seed):
    image = numbered(2, *shape)
    label_map = image[1].long() * 1000
    transform = RandomOrientation(0.5, True)
    turned, ids = transform.with_label_map(image, label_map, rng(seed))
    assert torch.equal(ids, turned[1].long() * 1000) and ids.dtype == torch.int64
    assert torch.equal(turned, transform(image, rng(seed)))  # as without a map
