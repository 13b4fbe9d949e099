"""Painting patches of a picture over, and which channels are shown: pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae import VitMaeImageProcessor
from hf_vitmae.visualize.pictures import gray_out, paint_over, to_pictures

WHERE = np.array([[True, False, False], [False, False, True]])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_patches_are_painted_over_and_grayed_out_exactly(mode: str) -> None:
    generator = np.random.default_rng(0)
    shape = (8, 18) if mode == "L" else (8, 18, 3)  # patches of 4 x 6 pixels
    one, other = (generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    pixels = np.kron(WHERE, np.ones((4, 6), dtype=bool))
    painted = np.asarray(paint_over(Image.fromarray(one), Image.fromarray(other), WHERE))
    assert (painted[pixels] == other[pixels]).all() and (painted[~pixels] == one[~pixels]).all()
    grayed = np.asarray(gray_out(Image.fromarray(one), WHERE))
    assert (grayed[pixels] == 128).all() and (grayed[~pixels] == one[~pixels]).all()


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0]), (2, [0]), (3, [0, 1, 2]), (5, [0, 1, 2])]
)
def test_the_first_channels_are_shown(channels: int, shown: list[int]) -> None:
    processor = VitMaeImageProcessor(size=4, patch_size=2, num_channels=channels)
    levels = torch.arange(channels * 16, dtype=torch.uint8).reshape(1, channels, 4, 4)
    (picture,) = to_pictures(processor, processor.normalize(levels))
    assert picture.mode == ("L" if len(shown) == 1 else "RGB")
    expected = levels[0, shown].permute(1, 2, 0).numpy().reshape(np.asarray(picture).shape)
    np.testing.assert_array_equal(np.asarray(picture), expected)
