"""Checkpoints of transformers take the options of `from_pretrained` that ours take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTForImageClassification, ViTMAEForPreTraining, ViTModel

from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
)

from .tiny import random_images, random_noise
from .transformers_models import save_with_old_names, their_model

PAIRS = [
    (ViTModel, VitMaeModel),
    (ViTForImageClassification, VitMaeForImageClassification),
    (ViTMAEForPreTraining, VitMaeForPreTraining),
]
every_pair = pytest.mark.parametrize(
    ("source", "kind"), PAIRS, ids=[kind.__name__ for kind, _ in PAIRS]
)


@torch.no_grad()
def answer(model: Any, ours: Any) -> torch.Tensor:
    """What a model makes of images, and of noise where it hides patches, that fit ours."""
    inputs = {"pixel_values": random_images(ours.config)}
    if isinstance(ours, VitMaeForPreTraining):
        inputs["noise"] = random_noise(ours.config)
    output = model(**inputs)
    return output.last_hidden_state if "last_hidden_state" in output else output.logits


def assert_same_weights(got: Any, expected: Any) -> None:
    assert got.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(got.state_dict()[name].cpu(), value), name


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[Any, Path]:
    """A classifier of transformers for three classes, and its folder."""
    theirs = their_model(ViTForImageClassification, num_labels=3)
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, tmp_path / "theirs"


@every_pair
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_maps(source: Any, kind: Any, device_map: Any, tmp_path: Path) -> None:
    theirs = their_model(source)
    theirs.save_pretrained(tmp_path)
    ours = kind.from_pretrained(tmp_path, device_map=device_map)
    got, expected = answer(ours.cpu(), ours), answer(theirs, ours)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_every_part_may_have_its_place(classifier: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, folder = classifier
    places = dict.fromkeys(["vit.embeddings", "vit.layers.0", "vit.layernorm", "classifier"], "cpu")
    ours: Any = VitMaeForImageClassification.from_pretrained(
        folder,
        device_map=places | {"vit.layers.1": "disk"},
        offload_folder=tmp_path / "offload",
    )
    assert {weight.device.type for weight in ours.vit.layers[1].parameters()} == {"meta"}
    got, expected = answer(ours, ours), answer(theirs, ours)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_pair
def test_the_meta_device_keeps_every_shape(source: Any, kind: Any, tmp_path: Path) -> None:
    their_model(source).save_pretrained(tmp_path)
    empty = kind.from_pretrained(tmp_path, device_map="meta").state_dict()
    full = kind.from_pretrained(tmp_path).state_dict()
    assert {value.device.type for value in empty.values()} == {"meta"}
    assert {name: v.shape for name, v in empty.items()} == {n: v.shape for n, v in full.items()}


@every_pair
@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "auto"], ids=str)
def test_dtype(source: Any, kind: Any, dtype: Any, tmp_path: Path) -> None:
    theirs = their_model(source).to(torch.float64)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = kind.from_pretrained(tmp_path / "theirs", dtype=dtype)
    wanted = {"auto": torch.float64, "float16": torch.float16}.get(dtype, dtype)
    full = kind.from_pretrained(tmp_path / "theirs", dtype=torch.float64)
    for name, value in full.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value.to(wanted)), name
    ours.save_pretrained(tmp_path / "ours")
    on_disk = load_file(tmp_path / "ours" / "model.safetensors")
    assert {value.dtype for value in on_disk.values()} == {wanted}
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == (
        str(wanted).removeprefix("torch.")
    )


@every_pair
def test_shards_read_and_written(source: Any, kind: Any, tmp_path: Path) -> None:
    theirs = their_model(source)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    theirs.save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    ours = kind.from_pretrained(tmp_path / "theirs")
    assert_same_weights(ours, kind.from_pretrained(tmp_path / "whole"))
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    assert_same_weights(kind.from_pretrained(tmp_path / "ours"), ours)


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    their_model(ViTModel).save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        VitMaeModel.from_pretrained(tmp_path)


def test_another_number_of_labels_is_refused_or_allowed(classifier: tuple[Any, Path]) -> None:
    theirs, folder = classifier
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        VitMaeForImageClassification.from_pretrained(folder, num_labels=5)
    ours, report = VitMaeForImageClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert sorted(report["mismatched_keys"]) == [
        ("classifier.bias", torch.Size([3]), torch.Size([5])),
        ("classifier.weight", torch.Size([3, 32]), torch.Size([5, 32])),
    ]
    assert ours.classifier.bias.eq(0).all() and ours.classifier.weight.std() > 0.05
    assert_same_weights(ours.vit.layers[0].mlp.fc1, theirs.vit.layers[0].mlp.fc1)
    assert answer(ours, ours).shape == (3, 5)


@pytest.mark.parametrize("old_names", [True, False])
def test_the_report_has_what_that_of_ours_has(old_names: bool, tmp_path: Path) -> None:
    theirs = their_model(ViTForImageClassification, num_labels=3)
    save_with_old_names(theirs, tmp_path) if old_names else theirs.save_pretrained(tmp_path)
    ours, report = VitMaeForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(value for name, value in report.items() if name != "adaptations")
    ours.save_pretrained(tmp_path / "ours")
    _, of_ours = VitMaeForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert report.keys() - of_ours.keys() == {"adaptations"}
    assert of_ours.keys() <= report.keys()
    _, report = VitMaeForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"decoder"}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]


def test_options_go_together(classifier: tuple[Any, Path]) -> None:
    _, folder = classifier
    ours, report = VitMaeForImageClassification.from_pretrained(
        folder,
        device_map="cpu",
        dtype=torch.bfloat16,
        num_labels=5,
        ignore_mismatched_sizes=True,
        image_size=24,
        output_loading_info=True,
    )
    assert {value.dtype for value in ours.state_dict().values()} == {torch.bfloat16}
    assert ours.classifier.weight.shape == (5, 32) and ours.config.image_pair == (24, 24)
    assert any(line.startswith("position table 4x4 -> 6x6") for line in report["adaptations"])
    assert answer(ours.float(), ours).isfinite().all()
