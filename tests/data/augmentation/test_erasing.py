"""Erased boxes: as often, as large and as noisy as asked for; the rest of the image as it was."""

import numpy as np
import pytest
import torch

from hf_vitmae.data.augmentation.erasing import RandomErasing, draw_box

MEAN, STD = (120.0, 100.0, 60.0), (20.0, 10.0, 30.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def white(channels: int = 3, height: int = 64, width: int = 48) -> torch.Tensor:
    return torch.full((channels, height, width), 255, dtype=torch.uint8)


def test_boxes_keep_to_area_and_ratio_and_lie_inside():
    generator, areas, ratios = rng(), [], []
    for _ in range(2000):
        box = draw_box(640, 480, 1, generator)
        assert box is not None
        top, left, height, width = box
        assert 0 <= top <= 640 - height and 0 <= left <= 480 - width
        areas.append(height * width / (640 * 480))
        ratios.append(height / width)
    assert 0.0195 < min(areas) < 0.025 and 0.32 < max(areas) < 0.334
    assert 0.298 < min(ratios) < 0.33 and 3.0 < max(ratios) < 3.36
    assert np.median(np.log(ratios)) == pytest.approx(0.02, abs=0.12)


def test_boxes_of_several_share_the_area():
    areas = [np.prod(draw_box(600, 600, 4, rng(seed))[2:]) for seed in range(500)]  # type: ignore
    assert 0.005 < min(areas) / 360_000 < 0.008 and 0.078 < max(areas) / 360_000 < 0.0834


def test_only_a_box_is_touched_and_the_image_itself_is_not():
    image = white()
    erased = RandomErasing(1.0, MEAN, STD)(image, rng(1))
    rows, columns = torch.nonzero((erased != 255).any(dim=0), as_tuple=True)
    inside = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (inside != 255).all()  # the noise is eight standard deviations from white, at least 4.5
    assert (erased != 255).sum() == inside.numel() < erased.numel() / 2
    assert (image == 255).all()


def test_noise_has_the_mean_and_deviation_of_each_channel():
    erased = RandomErasing(1.0, MEAN, STD)(white(3, 600, 600), rng())
    noise = erased[:, (erased != 255).any(dim=0)].float()  # (3, n)
    assert noise.shape[1] > 5000
    assert noise.mean(dim=1).tolist() == pytest.approx(MEAN, abs=1.0)
    # Of the third channel's noise some lies below black.
    assert noise.std(dim=1).tolist() == pytest.approx(STD, abs=1.0)
    assert noise[0].unique().numel() > 80  # every pixel has its own
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.05


def test_noise_beyond_black_and_white_is_clipped_not_wrapped():
    erased = RandomErasing(1.0, (0.0,), (500.0,))(white(1, 200, 200) - 55, rng())
    noise = erased[erased != 200]
    assert (noise == 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (noise == 255).float().mean() == pytest.approx(0.305, abs=0.03)  # P(z > 0.51)


def test_as_many_images_are_erased_as_asked_for():
    erasing, generator, image = RandomErasing(0.25, MEAN, STD), rng(), white(3, 16, 16)
    erased = [not torch.equal(erasing(image, generator), image) for _ in range(2000)]
    assert 420 < sum(erased) < 580


def test_the_number_of_boxes_is_drawn(monkeypatch):
    counts = []
    monkeypatch.setattr(
        "hf_vitmae.data.augmentation.erasing.draw_box",
        lambda height, width, count, _: counts.append(count),
    )
    image, totals = white(3, 16, 16), []
    for seed in range(300):
        counts.clear()
        RandomErasing(1.0, MEAN, STD, count=3)(image, rng(seed))
        assert counts == [len(counts)] * len(counts)
        totals.append(len(counts))
    assert all(70 < totals.count(number) < 130 for number in (1, 2, 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 2)])
def test_an_image_of_a_few_pixels_passes(shape):
    for seed in range(20):
        image = white(2, *shape)
        assert RandomErasing(1.0, MEAN[:2], STD[:2])(image, rng(seed)).shape == image.shape
    assert draw_box(1, 1, 1, rng()) is None
