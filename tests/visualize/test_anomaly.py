"""Each patch is predicted once, while it is hidden, and scored in its own place."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae import VitMaeConfig, VitMaeForPreTraining, VitMaeModel
from hf_vitmae.visualize.anomaly import anomaly_maps, complementary_masks
from hf_vitmae.visualize.heat import RAMP, heat_colors, heat_over

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def tiny() -> VitMaeForPreTraining:
    """A fresh model with a grid of 4x3 patches of 4x6 pixels."""
    torch.manual_seed(0)
    decoder = {f"decoder_{name}": value for name, value in SIZES.items()}
    return VitMaeForPreTraining(
        VitMaeConfig(image_size=(16, 18), patch_size=(4, 6), **SIZES, **decoder)
    )


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, 16, 18), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("num_masks", [2, 4, 5, 12])
def test_masks_hide_each_patch_exactly_once(num_masks: int) -> None:
    masks = complementary_masks(12, num_masks)
    assert masks.shape == (num_masks, 12)
    assert torch.equal(masks.sum(dim=0), torch.ones(12, dtype=torch.int64))
    assert masks.sum(dim=1).max() - masks.sum(dim=1).min() <= 1


@pytest.mark.parametrize("num_masks", [1, 13])
def test_masks_need_a_number_that_fits(num_masks: int) -> None:
    with pytest.raises(ValueError, match=f"12; got {num_masks}"):
        complementary_masks(12, num_masks)


def test_a_prediction_knows_nothing_of_its_own_patch() -> None:
    model, before = tiny(), images()
    changed = before.clone()
    changed[0, :, 4:8, 6:12] = 255 - changed[0, :, 4:8, 6:12]  # row 1, column 1: patch 4
    first, second = anomaly_maps(model, before)[0], anomaly_maps(model, changed)[0]
    assert first.scores.shape == (4, 3)
    np.testing.assert_allclose(first.prediction[4], second.prediction[4], atol=1e-6)
    assert not np.allclose(first.prediction, second.prediction, atol=1e-6)
    assert first.scores[1, 1] != second.scores[1, 1]


def test_a_model_without_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="has no decoder"):
        anomaly_maps(VitMaeModel(VitMaeConfig(image_size=16, patch_size=4, **SIZES)), images())  # pyright: ignore[reportArgumentType]


def test_heat_runs_from_the_lowest_colour_to_the_highest() -> None:
    colors = heat_colors(np.array([[0.0, 1.0], [0.5, 1.0]]))
    assert colors.tolist() == [[RAMP[0].tolist(), RAMP[4].tolist()]] + [
        [RAMP[2].tolist(), RAMP[4].tolist()]
    ]
    assert (heat_colors(np.full((2, 2), 3.0)) == RAMP[0]).all()


def test_heat_lies_over_its_own_patch() -> None:
    heat = heat_over(Image.new("RGB", (6, 4)), np.array([[0.0, 0, 1], [0, 0, 0]]), opacity=1)
    pixels = np.asarray(heat)
    assert (pixels[:2, 4:] == RAMP[4]).all()
    assert (pixels[2:] == RAMP[0]).all()
