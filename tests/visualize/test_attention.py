"""Attention is that of the pooled tokens, in the place of the patch that it goes to."""

from typing import Any

import pytest
import torch

from hf_vitmae import VitMaeConfig, VitMaeModel
from hf_vitmae.visualize.attention import attention_maps, attention_rollout, rollout


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
