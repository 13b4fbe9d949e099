"""Colours of features: one basis for all images, the same whatever sign an eigenvector has."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae import VitMaeForPreTraining, VitMaeModel
from hf_vitmae.visualize import FeatureBasis, feature_panel, patch_features

from ..models.tiny import tiny_config


def tiny() -> VitMaeModel:
    torch.manual_seed(0)
    return VitMaeModel(tiny_config(image_size=(16, 18), patch_size=(4, 6)))


def features() -> np.ndarray:
    """(5, 4, 3, 6), of three clearly different deviations and some noise."""
    generator = np.random.default_rng(0)
    widths = np.array([9.0, 5.0, 2.0, 0.1, 0.1, 0.1])
    turned = np.linalg.qr(generator.standard_normal((6, 6)))[0]
    return (generator.standard_normal((5, 4, 3, 6)) * widths) @ turned + 7


def test_the_first_component_is_red_and_holds_the_largest_deviation() -> None:
    found = features()
    basis = FeatureBasis.fit(found)
    places = (found.reshape(-1, 6) - basis.mean) @ basis.directions.T
    deviations = places.std(axis=0)
    assert deviations[0] > deviations[1] > deviations[2] > 1
    np.testing.assert_allclose(basis.directions @ basis.directions.T, np.eye(3), atol=1e-5)
    red = basis.colors(found)[..., 0].reshape(-1).astype(int)
    order = places[:, 0].argsort()
    assert (np.diff(red[order]) >= 0).all()
    assert (red.min(), red.max()) == (0, 255)


def test_signs_do_not_depend_on_the_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    found = features()
    before = FeatureBasis.fit(found).colors(found)
    eigh = np.linalg.eigh

    def turned(matrix: np.ndarray) -> Any:
        values, vectors = eigh(matrix)
        return values, -vectors

    monkeypatch.setattr(np.linalg, "eigh", turned)
    np.testing.assert_array_equal(FeatureBasis.fit(found).colors(found), before)


def test_like_features_get_like_colours_in_every_image() -> None:
    found = features()
    found[3, 1, 2] = found[0, 0, 0]
    colors = FeatureBasis.fit(found).colors(found)
    assert colors.shape == (5, 4, 3, 3)
    np.testing.assert_array_equal(colors[3, 1, 2], colors[0, 0, 0])
    assert (FeatureBasis.fit(np.ones((4, 6))).colors(np.ones((4, 6))) == 0).all()


@pytest.mark.parametrize("shape", [(1, 6), (9, 2)])
def test_too_little_to_find_three_components(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"got {shape[0]} of {shape[1]}"):
        FeatureBasis.fit(np.zeros(shape))


def test_features_are_those_of_ordered_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixel_values = tiny().eval(), torch.randn(3, 3, 16, 18)
    with torch.no_grad():
        tokens = model(pixel_values).last_hidden_state[:, 1:]
    monkeypatch.setattr("hf_vitmae.visualize.features.BATCH_SIZE", 2)
    found = patch_features(model.train(), pixel_values)
    torch.testing.assert_close(found, tokens.unflatten(1, (4, 3)))
    assert model.training


def test_of_a_masked_autoencoder_nothing_is_hidden() -> None:
    torch.manual_seed(0)
    model = VitMaeForPreTraining(tiny_config())
    assert patch_features(model, torch.randn(2, 3, 16, 16)).shape[1:3] == (4, 4)


def test_the_panel_takes_a_basis_from_elsewhere() -> None:
    model = tiny()
    pictures = [Image.effect_noise((18, 16), 90).convert("RGB"), Image.new("RGB", (18, 16), "red")]
    basis = FeatureBasis.fit(np.random.default_rng(0).standard_normal((20, 32)) * 100)
    own, other = feature_panel(model, pictures), feature_panel(model, pictures, basis=basis)
    assert own.size == other.size
    assert own.tobytes() != other.tobytes()
    assert feature_panel(model, pictures).tobytes() == own.tobytes()
