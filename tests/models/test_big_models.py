"""What large checkpoints need: shards, devices, precision, the meta device, and loading reports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AttentionInterface

from hf_vitmae.models.layers import eager_attention
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaePreTrainedModel,
)

from .family import CLASSES, family_config, family_inputs
from .tiny import random_images, stir, tiny_config

every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def assert_same_weights(got: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert got.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(got.state_dict()[name].cpu(), value), name


def stirred(kind: type[VitMaePreTrainedModel], stem: str = "linear") -> VitMaePreTrainedModel:
    model = kind(family_config(stem)).eval()
    stir(model)
    return model


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[VitMaeForImageClassification, Path]:
    """A stirred classifier for three classes, and its folder."""
    model = stirred(VitMaeForImageClassification)
    assert isinstance(model, VitMaeForImageClassification)
    model.save_pretrained(tmp_path / "classifier")
    return model, tmp_path / "classifier"


@every_class
@pytest.mark.parametrize("stem", ["linear", "hybrid"])
def test_shards_hold_all_weights_once_and_load_again(
    kind: type[VitMaePreTrainedModel], stem: str, tmp_path: Path
) -> None:
    model = stirred(kind, stem)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    names = [name for shard in shards for name in load_file(shard)]
    assert sorted(names) == sorted(index["weight_map"]) == sorted(model.state_dict())
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same_weights(loaded, model)


def test_shards_open_as_another_class_and_at_another_size(tmp_path: Path) -> None:
    model: Any = stirred(VitMaeForPreTraining)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    encoder = VitMaeForImageClassification.from_pretrained(tmp_path).vit
    assert_same_weights(encoder, model.vit)
    larger = VitMaeForPreTraining.from_pretrained(tmp_path, image_size=(32, 24))
    fc1 = "layers.0.mlp.fc1.weight"
    assert torch.equal(larger.vit.state_dict()[fc1], model.vit.state_dict()[fc1])
    assert torch.isfinite(larger(random_images(larger.config)).loss)


@every_class
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_maps(kind: type[VitMaePreTrainedModel], device_map: Any, tmp_path: Path) -> None:
    model = stirred(kind)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, device_map=device_map)
    assert_same_weights(loaded, model)
    inputs = {
        name: value.to(loaded.device) for name, value in family_inputs(kind, model.config).items()
    }
    assert_close_outputs(loaded(**inputs), model(**family_inputs(kind, model.config)))


def test_blocks_may_lie_on_disk(
    classifier: tuple[VitMaeForImageClassification, Path], tmp_path: Path
) -> None:
    model, folder = classifier
    places: dict[str, Any] = {
        "vit.embeddings": "cpu",
        "vit.layers.0": "cpu",
        "vit.layers.1": "disk",
    }
    places |= {"vit.layernorm": "cpu", "classifier": "cpu"}
    loaded = VitMaeForImageClassification.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "offload"
    )
    assert {parameter.device.type for parameter in loaded.vit.layers[1].parameters()} == {"meta"}
    images = random_images(model.config)
    torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=1e-5, atol=1e-6)


def test_an_even_split_never_cuts_a_block(
    classifier: tuple[VitMaeForImageClassification, Path],
) -> None:
    from accelerate import infer_auto_device_map

    model, _ = classifier
    sizes = sum(value.numel() * 4 for value in model.state_dict().values())
    places = infer_auto_device_map(
        model,
        max_memory={"cpu": sizes * 3 // 5, "disk": sizes},
        no_split_module_classes=list(model._no_split_modules or []),
    )
    assert set(places.values()) == {"cpu", "disk"}
    assert not [name for name in places if name.startswith("vit.layers.") and name.count(".") > 2]


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "float16"], ids=str)
def test_dtype(kind: type[VitMaePreTrainedModel], dtype: Any, tmp_path: Path) -> None:
    model = stirred(kind)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(wanted)), name
    loaded.save_pretrained(tmp_path / "again")
    on_disk = load_file(tmp_path / "again" / "model.safetensors")
    assert {value.dtype for value in on_disk.values()} == {wanted}


@every_class
def test_the_meta_device_takes_no_memory_and_keeps_every_shape(
    kind: type[VitMaePreTrainedModel], tmp_path: Path
) -> None:
    model = stirred(kind)
    model.save_pretrained(tmp_path)
    empty = kind.from_pretrained(tmp_path, device_map="meta")
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in empty.state_dict().items()} == shapes
    assert {value.device.type for value in empty.state_dict().values()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    assert_close_outputs(
        empty(**family_inputs(kind, model.config)), model(**family_inputs(kind, model.config))
    )


def test_a_large_model_is_described_without_its_memory() -> None:
    with torch.device("meta"):
        model = VitMaeForPreTraining(
            tiny_config(
                hidden_size=1280,
                num_hidden_layers=32,
                num_attention_heads=16,
                intermediate_size=5120,
                image_size=224,
                patch_size=14,
            )
        )
    blocks = 32 * (4 * 1280**2 + 2 * 1280 * 5120 + 5120 + 5 * 1280 + 4 * 1280)
    assert sum(value.numel() for value in model.vit.layers.parameters()) == blocks


def test_the_loading_report_names_missing_and_surplus_weights(
    classifier: tuple[VitMaeForImageClassification, Path],
) -> None:
    model, folder = classifier
    weights = load_file(folder / "model.safetensors")
    del weights["vit.layers.1.mlp.fc2.bias"]
    weights["vit.layers.9.mlp.fc2.bias"] = torch.zeros(3)
    weights["decoder.mask_token"] = torch.zeros(1, 1, 16)  # another class's: no surprise
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _, report = VitMaeForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert set(report["missing_keys"]) == {"vit.layers.1.mlp.fc2.bias"}
    assert set(report["unexpected_keys"]) == {"vit.layers.9.mlp.fc2.bias"}
    assert not report["mismatched_keys"]


def test_a_head_of_another_size_is_refused_or_starts_afresh(
    classifier: tuple[VitMaeForImageClassification, Path],
) -> None:
    model, folder = classifier
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        VitMaeForImageClassification.from_pretrained(folder, num_labels=7)
    loaded, report = VitMaeForImageClassification.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert sorted(report["mismatched_keys"]) == [
        ("classifier.bias", torch.Size([3]), torch.Size([7])),
        ("classifier.weight", torch.Size([3, 32]), torch.Size([7, 32])),
    ]
    assert_same_weights(loaded.vit, model.vit)
    assert loaded.classifier.bias.eq(0).all() and loaded.classifier.weight.std() > 0.05
    assert loaded(random_images(model.config)).logits.shape == (3, 7)


@every_class
def test_the_attention_may_be_changed_at_run_time(
    kind: type[VitMaePreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return eager_attention(*args, **kwargs)

    model, inputs = stirred(kind), family_inputs(kind, family_config("linear"))
    monkeypatch.setitem(AttentionInterface._global_mapping, "eager_counted", counted)
    expected = model(**inputs)
    assert not calls
    if kind.__name__ == "VitMaeForNextPatchPrediction":  # causal: only what is known to be able to
        model.set_attn_implementation("eager_counted")
        with pytest.raises(ValueError, match="does not run on `eager_counted`"):
            model(**inputs)
        return
    model.set_attn_implementation("eager_counted")
    assert_close_outputs(model(**inputs), expected)
    assert len(calls) == sum(type(module).__name__ == "Block" for module in model.modules())
    model.set_attn_implementation("sdpa")
    assert_close_outputs(model(**inputs), expected)
    with pytest.raises(ValueError, match="no_such_attention"):
        model.set_attn_implementation("no_such_attention")


def assert_close_outputs(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got.to_tuple(), expected.to_tuple(), rtol=1e-5, atol=1e-5)
