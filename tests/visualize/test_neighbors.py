"""The nearest images stand beside a query, nearest first."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae import VitMaeModel
from hf_vitmae.visualize import image_features, neighbor_panel
from hf_vitmae.visualize.panel import GAP, MARGIN

from ..models.tiny import tiny_config


def tiny() -> VitMaeModel:
    torch.manual_seed(0)
    return VitMaeModel(tiny_config()).train()


def pictures(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in arrays]


def shown(panel: Image.Image, column: int, side: int) -> np.ndarray:
    """The pixels of the first row's picture in a column, each once."""
    top = next(
        y for y in range(MARGIN + 17, panel.height) if panel.getpixel((MARGIN, y)) != (255,) * 3
    )
    left = MARGIN + column * (side + GAP)
    return np.asarray(panel.crop((left, top, left + side, top + side)))[::10, ::10]


def test_a_picture_is_nearest_to_itself() -> None:
    gallery = pictures(7)
    panel = neighbor_panel(tiny(), [gallery[4]], gallery, k=3)
    query, first, second = (shown(panel, column, 160) for column in range(3))
    np.testing.assert_array_equal(query, np.asarray(gallery[4]))
    np.testing.assert_array_equal(first, query)
    assert any((second == np.asarray(other)).all() for other in gallery)
    assert (second != query).any()


def test_neighbours_come_by_similarity_less_the_mean_of_the_gallery() -> None:
    model, gallery = tiny(), pictures(9)
    panel = neighbor_panel(model, gallery[:1], gallery, k=9)
    pixel_values = torch.stack(
        [torch.from_numpy(np.array(one)).permute(2, 0, 1) / 127.5 - 1 for one in gallery]
    )
    found = image_features(model, pixel_values)
    found = found - found.mean(dim=0)
    order = torch.cosine_similarity(found[:1], found).argsort(descending=True).tolist()
    for column, number in enumerate(order, start=1):
        np.testing.assert_array_equal(shown(panel, column, 160), np.asarray(gallery[number]))


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_fit_the_gallery(k: int) -> None:
    with pytest.raises(ValueError, match=f"3 images of the gallery, got {k}"):
        neighbor_panel(tiny(), pictures(1), pictures(3), k=k)


def test_features_are_means_of_patches_without_cls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixel_values = tiny().eval(), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state[:, 1:].mean(dim=1)
    monkeypatch.setattr("hf_vitmae.visualize.neighbors.BATCH_SIZE", 2)
    torch.testing.assert_close(image_features(model, pixel_values), expected)
