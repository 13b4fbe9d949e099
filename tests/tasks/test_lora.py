"""LoRA: what is trained, what is folded in, what is saved, and that runs resume exactly."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageClassification

from hf_vitmae.cli import main
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification
from hf_vitmae.recipes import finetune as finetune_recipes
from hf_vitmae.tasks import finetune
from hf_vitmae.tasks.lora import TARGETS, add_adapters, count_parameters, merged
from hf_vitmae.training.optim import OptimConfig, build_optimizer

from ..models.tiny import random_images, stir, tiny_config
from .runs import Stopped, stop_at

NAMES = Path(__file__).parents[1] / "models" / "golden_parameter_names.json"
GOLDEN = json.loads(NAMES.read_text())["VitMaeForImageClassification"]
RANK = 4


def adapted(**fields: Any) -> VitMaeForImageClassification:
    """A small classifier with adapters that do something."""
    torch.manual_seed(0)
    model = VitMaeForImageClassification(tiny_config(num_labels=3, **fields)).eval()
    add_adapters(model, RANK, alpha=6)
    stir(model)
    return model


def copied(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fine_tune(run: Path, source: Path, model: Path, **changes: Any) -> bytes:
    """The bytes of the adapters of a short run."""
    recipe = finetune_recipes.smoke()
    recipe = replace(
        recipe,
        model=str(model),
        data=replace(recipe.data, source=str(source)),
        steps=4,
        checkpoint_every=2,
        lora_rank=RANK,
        output_dir=run,
    )
    finetune.run(replace(recipe, **changes))
    return (run / "adapter/adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, class_folder: Path, pretrained: Path) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("lora") / "run"
    fine_tune(run, class_folder, pretrained, lora_alpha=6)
    return run


def test_new_adapters_change_nothing_and_only_they_and_the_head_are_trained() -> None:
    torch.manual_seed(0)
    config = tiny_config(num_labels=3, position_embedding="learned")
    model = VitMaeForImageClassification(config).eval()
    images = random_images(model.config)
    expected = model(images).logits
    total = sum(parameter.numel() for parameter in model.parameters())
    add_adapters(model, RANK)
    assert torch.equal(model(images).logits, expected)

    optimizer = build_optimizer(model, OptimConfig(base_lr=0.1, layer_decay=0.5), 256)
    model.train()
    before = copied(model)
    for _ in range(2):  # A moves once B has left zero
        model(images, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    maps = [name for name in before if ".lora_" in name]
    assert len(maps) == 2 * 2 * len(TARGETS)  # A and B, two layers
    now = model.state_dict()
    changed = {name for name, tensor in before.items() if not tensor.equal(now[name])}
    assert changed == {*maps, "classifier.weight", "classifier.bias"}

    attention, mlp = 4 * RANK * (32 + 32), 2 * RANK * (32 + 48)
    adapters = 2 * (attention + mlp)
    assert count_parameters(model) == (adapters + 3 * 32 + 3, total + adapters)


def test_dropout_acts_on_the_adapters_in_training_alone() -> None:
    model = VitMaeForImageClassification(tiny_config(num_labels=3))
    add_adapters(model, RANK, dropout=0.5)
    stir(model)
    images = random_images(model.config)
    assert not torch.equal(model.train()(images).logits, model(images).logits)
    assert torch.equal(model.eval()(images).logits, model(images).logits)


def test_merged_is_a_plain_model_with_the_same_logits() -> None:
    model = adapted(num_hidden_layers=1, layer_scale_init_value=None)
    images = random_images(model.config)
    before, expected = copied(model), model(images).logits
    plain = merged(model)
    assert type(plain) is VitMaeForImageClassification and not plain.training
    assert sorted(plain.state_dict()) == GOLDEN
    assert all(parameter.requires_grad for parameter in plain.parameters())
    map_name = "vit.layers.0.mlp.fc2"
    a, b = (before[f"{map_name}.lora_{part}.default.weight"] for part in "AB")
    weight = before[f"{map_name}.base_layer.weight"] + 6 / RANK * b @ a
    torch.testing.assert_close(plain.state_dict()[f"{map_name}.weight"], weight)
    torch.testing.assert_close(plain(images).logits, expected, rtol=0, atol=1e-5)
    without = {n.replace(".base_layer.", "."): t for n, t in before.items() if ".lora_" not in n}
    plain.load_state_dict(without)
    assert (plain(images).logits - expected).abs().max() > 1e-2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_model_of_a_run_is_an_ordinary_checkpoint(tuned: Path, pretrained: Path) -> None:
    model, report = AutoModelForImageClassification.from_pretrained(
        tuned / "model", output_loading_info=True
    )
    assert type(model) is VitMaeForImageClassification and not any(report.values())
    saved = load_file(tuned / "model/model.safetensors")
    assert {re.sub(r"layers\.\d+", "layers.0", name) for name in saved} == set(GOLDEN)
    base = load_file(pretrained / "model.safetensors")
    changed = {name for name in saved.keys() & base.keys() if not saved[name].equal(base[name])}
    maps = {name for name in base if name.startswith("vit.") and name.split(".")[-2] in TARGETS}
    assert changed == {name for name in maps if name.endswith(".weight")}


# PEFT asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")
def test_peft_puts_the_adapters_on_the_base(tuned: Path, pretrained: Path) -> None:
    folder = tuned / "adapter"
    expected = VitMaeForImageClassification.from_pretrained(tuned / "model").eval()
    images = random_images(expected.config)
    config = VitMaeConfig.from_pretrained(folder)
    base = VitMaeForImageClassification.from_pretrained(pretrained, config=config)
    assert list(base.config.id2label.values()) == ["cats", "dogs", "owls"]
    loaded = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(loaded(images).logits, expected(images).logits, rtol=0, atol=1e-5)
    with loaded.disable_adapter():
        assert (loaded(images).logits - expected(images).logits).abs().max() > 1e-3

    processors = [
        VitMaeImageProcessor.from_pretrained(tuned / kind) for kind in ("adapter", "model")
    ]
    assert processors[0].to_dict() == processors[1].to_dict()
    saved = load_file(folder / "adapter_model.safetensors")
    depth = expected.config.num_hidden_layers
    assert len(saved) == 2 * len(TARGETS) * depth + 2
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(pretrained.resolve())
    assert settings["target_modules"] == sorted(TARGETS)
    assert (settings["r"], settings["lora_alpha"]) == (RANK, 6)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    class_folder: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"lora_dropout": 0.3, "drop_path_rate": 0.2, "accumulation": 2, "batch_size": 4}
    whole = fine_tune(tmp_path / "whole", class_folder, pretrained, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 5)
        fine_tune(tmp_path / "parts", class_folder, pretrained, **options)
    assert not (tmp_path / "parts/adapter").exists()
    assert fine_tune(tmp_path / "parts", class_folder, pretrained, **options) == whole
    files = [tmp_path / name / "model/model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()

    options["lora_dropout"] = 0.0
    assert fine_tune(tmp_path / "other", class_folder, pretrained, **options) != whole


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lora-rank", "-1"], "`lora_rank` must be at least 0, got -1"),
        (["--lora-rank", "4", "--lora-alpha", "0"], "`lora_alpha` must be at least 1, got 0"),
        (["--lora-rank", "4", "--lora-dropout", "1"], "at least 0 and below 1, got 1.0"),
        (["--lora-dropout", "0.1"], "`lora_dropout` 0.1 is for adapters; set `lora_rank` too"),
        (["--lora-rank", "4", "--from-scratch"], "`from_scratch` has none"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    flags: list[str], line: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["finetune", "smoke", *flags, "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_without_peft_the_mend_is_named_before_anything_is_written(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    command = ["finetune", "smoke", "--lora-rank", "4", "--output-dir", str(tmp_path / "run")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "pip install 'hf-vitmae[peft]'" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
