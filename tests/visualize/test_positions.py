"""Each position's map lies in its place and is brightest at itself."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_vitmae import VitMaeConfig, VitMaeModel
from hf_vitmae.visualize import position_panel, position_similarity
from hf_vitmae.visualize.heat import RAMP
from hf_vitmae.visualize.panel import MARGIN
from hf_vitmae.visualize.positions import CELL, GUTTER


def tiny(**overrides: Any) -> VitMaeModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    sizes |= {"num_attention_heads": 2, "image_size": (16, 18), "patch_size": (4, 6)}
    return VitMaeModel(VitMaeConfig(**sizes | overrides))


@pytest.mark.parametrize("kind", ["sincos", "learned"])
def test_similarity_is_of_every_two_positions(kind: str) -> None:
    model = tiny(position_embedding=kind)
    table = model.embeddings.position_embeddings[0, 1:].detach()  # (N, D)
    found = position_similarity(model)
    assert found.shape == (4, 3, 4, 3)
    expected = torch.cosine_similarity(table[1 * 3 + 2], table[3 * 3 + 0], dim=0)
    torch.testing.assert_close(found[1, 2, 3, 0], expected)
    torch.testing.assert_close(found.flatten(2).flatten(0, 1).diagonal(), torch.ones(12))


def test_each_map_is_brightest_at_its_own_place() -> None:
    panel = np.asarray(position_panel(tiny()))
    top = next(y for y in range(MARGIN + 17, 99) if (panel[y, MARGIN] != 255).any())
    for row in range(4):
        for column in range(3):
            y = top + row * (4 * CELL + GUTTER) + row * CELL
            x = MARGIN + column * (3 * CELL + GUTTER) + column * CELL
            assert (panel[y : y + CELL, x : x + CELL] == RAMP[-1]).all()


def test_a_large_grid_fits_the_page() -> None:
    assert position_panel(tiny(image_size=(16, 120), patch_size=(4, 6))).width < 1000
