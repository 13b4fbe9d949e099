"""`from_pretrained` for another geometry: adapted weights, and what was done is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForPreTraining
from transformers.utils import logging

from hf_vitmae.models.adaptation import adapt_weights
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.embeddings import sincos_positions
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from .family import CLASSES, STEMS, family_config
from .tiny import random_images, stir, tiny_config

GEOMETRY: dict[str, Any] = {"image_size": (48, 32), "patch_size": (16, 16), "num_channels": 1}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[VitMaeForPreTraining, Path]:
    """A stirred autoencoder with learned positions, and its folder."""
    model = VitMaeForPreTraining(tiny_config(position_embedding="learned"))
    stir(model)
    model.save_pretrained(tmp_path)
    return model.eval(), tmp_path


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_opens_at_another_geometry(
    kind: type[VitMaePreTrainedModel], stem: str, tmp_path: Path
) -> None:
    saved = kind(family_config(stem))
    stir(saved)
    saved.save_pretrained(tmp_path / "first")
    model, report = kind.from_pretrained(tmp_path / "first", output_loading_info=True, **GEOMETRY)
    expected, lines = adapt_weights(saved.state_dict(), saved.config, model.config)
    assert report["adaptations"] == lines and len(lines) >= 3
    heads = {"patch_head"} if kind is VitMaeForMaskedPatchPrediction else set()
    assert {name.split(".")[0] for name in report["missing_keys"]} == heads
    for name, value in expected.items():
        assert torch.equal(model.state_dict()[name], value), name
    table = getattr(model, "vit", model).embeddings.position_embeddings
    assert torch.equal(table, sincos_positions((3, 2), 32))
    assert not model.training
    model(random_images(model.config))

    model.save_pretrained(tmp_path / "again")  # the adapted model is an ordinary one
    again, report = kind.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert "adaptations" not in report and again.config.image_pair == (48, 32)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_every_step_is_logged_on_one_line(
    saved: tuple[VitMaeForPreTraining, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, folder = saved
    logging.enable_propagation()
    try:
        VitMaeForPreTraining.from_pretrained(folder, **GEOMETRY)
    finally:
        logging.disable_propagation()
    said = [record.getMessage() for record in caplog.records if "loading" in record.name]
    assert all(str(folder) in line and "\n" not in line for line in said)
    for words in ("4x4 -> 3x2 patches", "4x4 -> 16x16 pixels", "3 -> 1 channels"):
        assert any(words in line for line in said), words


@pytest.mark.parametrize("how", ["config", "keywords", "auto"])
def test_the_geometry_may_come_in_a_config_or_by_keyword(
    how: str, saved: tuple[VitMaeForPreTraining, Path]
) -> None:
    model, folder = saved
    if how == "config":
        config = model.config.with_fields(image_size=(8, 24), id2label={0: "a"}, label2id={"a": 0})
        loaded: Any = VitMaeForImageClassification.from_pretrained(folder, config=config)
        assert config.image_pair == loaded.config.image_pair == (8, 24)
    else:
        auto = AutoModelForImageClassification if how == "auto" else VitMaeForImageClassification
        loaded = auto.from_pretrained(folder, image_size=(8, 24), num_labels=1)
    assert loaded.config.num_labels == 1
    assert loaded.vit.embeddings.position_embeddings.shape == (1, 1 + 2 * 6, 32)
    name = "layers.0.mlp.fc1.weight"
    assert torch.equal(loaded.vit.state_dict()[name], model.vit.state_dict()[name])
    loaded(random_images(loaded.config))


@pytest.mark.parametrize("fields", [{}, {"image_size": 16}, {"image_size": (16, 16)}])
def test_the_same_geometry_in_other_words_changes_nothing(
    fields: dict[str, Any], saved: tuple[VitMaeForPreTraining, Path]
) -> None:
    model, folder = saved
    loaded, report = VitMaeForPreTraining.from_pretrained(
        folder, output_loading_info=True, **fields
    )
    assert "adaptations" not in report
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_precision_attention_and_other_fields_stay(
    saved: tuple[VitMaeForPreTraining, Path],
) -> None:
    _, folder = saved
    options: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = AutoModelForPreTraining.from_pretrained(
        folder, image_size=24, mask_ratio=0.5, **options
    )
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert (model.config.mask_ratio, model.config.image_pair) == (0.5, (24, 24))
    assert model.config._name_or_path == str(folder)


def test_statistics_per_channel_go_with_the_channels(tmp_path: Path) -> None:
    VitMaeModel(tiny_config(image_mean=[0.4, 0.5, 0.6])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`image_mean` must be one number .*`num_channels` \(1\)"):
        VitMaeModel.from_pretrained(tmp_path, num_channels=1)
    model = VitMaeModel.from_pretrained(tmp_path, num_channels=1, image_mean=[0.5])
    assert model.config.image_mean == [0.5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 5}, "`image_size` must be a whole number of patches of 5x5"),
        ({"num_channels": 0}, "`num_channels` must be a positive integer, got 0"),
        ({"image_size": "large"}, "`image_size` must be .*, got 'large'"),
    ],
)
def test_what_makes_no_model_is_refused(
    fields: dict[str, Any], message: str, saved: tuple[VitMaeForPreTraining, Path]
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        VitMaeForPreTraining.from_pretrained(saved[1], **fields)
    assert "\n" not in str(caught.value)


def test_another_image_size_sees_the_same_in_the_same_patches(tmp_path: Path) -> None:
    """One patch alone has the same embedding, less its place, in a model for larger images."""
    small = VitMaeModel(tiny_config()).eval()
    small.save_pretrained(tmp_path)
    large = VitMaeModel.from_pretrained(tmp_path, image_size=(32, 24))
    image = random_images(VitMaeConfig(image_size=(32, 24), patch_size=4), batch=1)
    whole = large.embeddings.patch_embeddings(image).unflatten(1, (8, 6))
    crop = small.embeddings.patch_embeddings(image[:, :, :16, :16]).unflatten(1, (4, 4))
    torch.testing.assert_close(whole[:, :4, :4], crop)
    with torch.no_grad():
        resized = small(image, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(large(image).last_hidden_state, resized)
