"""Attention is that of the pooled tokens, in the place of the patch that it goes to."""

from typing import Any

import pytest
import torch
from PIL import Image

from hf_vitmae import VitMaeConfig, VitMaeModel
from hf_vitmae.visualize.attention import (
    attention_maps,
    attention_panel,
    attention_rollout,
    rollout,
)
from hf_vitmae.visualize.panel import GAP, MARGIN


def tiny(pooling: str) -> VitMaeModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    heads: dict[str, Any] = {"num_attention_heads": 2, "pooling": pooling}
    return VitMaeModel(VitMaeConfig(image_size=(16, 18), patch_size=(4, 6), **sizes, **heads))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_maps_are_the_weights_of_the_pooled_tokens(pooling: str) -> None:
    model, pixels = tiny(pooling).eval(), torch.randn(2, 3, 16, 18)
    with torch.no_grad():
        weights = model(pixels, output_attentions=True).attentions[-1]
    rows = weights[:, :, 0] if pooling == "cls" else weights[:, :, 1:].mean(dim=2)
    maps = attention_maps(model, pixels)
    assert maps.shape == (2, 2, 4, 3)
    torch.testing.assert_close(maps.flatten(2), rows[..., 1:])
    assert attention_rollout(model, pixels).shape == (2, 4, 3)


def test_rollout_follows_the_layers_in_order() -> None:
    first, second = torch.rand(2, 1, 3, 3).softmax(dim=-1)
    expected = (second + torch.eye(3)) @ (first + torch.eye(3)) / 4
    torch.testing.assert_close(rollout([first, second]), expected)


def test_the_panel_shows_rollout_and_every_head() -> None:
    model = tiny("cls")
    pictures = [Image.effect_noise((18, 16), 90).convert("RGB") for _ in range(2)]
    panel = attention_panel(model, pictures)
    columns, side = 5, 18 * 9  # input, rollout, mean, two heads; each pixel 9 x 9
    assert panel.width == columns * (side + GAP) - GAP + 2 * MARGIN
    assert attention_panel(model, pictures, layer=0).tobytes() != panel.tobytes()


def test_the_panel_goes_through_the_model_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mean")
    pictures = [Image.effect_noise((18, 16), 90).convert("RGB") for _ in range(3)]
    whole = attention_panel(model, pictures)
    monkeypatch.setattr("hf_vitmae.visualize.attention.BATCH_SIZE", 2)
    assert attention_panel(model, pictures).tobytes() == whole.tobytes()


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(ValueError, match=f"0 to 1, or -1 for the last; got {layer}"):
        attention_panel(tiny("cls"), [Image.new("RGB", (18, 16))], layer=layer)


def test_the_attention_of_the_model_stays_as_it_was() -> None:
    model = tiny("cls")
    model.set_attn_implementation("sdpa")
    attention_maps(model, torch.randn(1, 3, 16, 18))
    assert model.config._attn_implementation == "sdpa"
