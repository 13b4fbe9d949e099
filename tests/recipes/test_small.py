"""The recipes for small data fit the sources that they were tried on, and each other."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from hf_vitmae import VitMaeForPreTraining
from hf_vitmae.recipes.small import finetune_small_data, mae_small_data
from hf_vitmae.tasks import pretrain

SCRIPT = Path(__file__).parents[2] / "scripts" / "experiments" / "low_labels.py"


@pytest.fixture(scope="module")
def low_labels():
    spec = importlib.util.spec_from_file_location("low_labels", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_is_as_small_as_it_says():
    model = VitMaeForPreTraining(mae_small_data().model.to_config())
    parts = {"vit": 0, "decoder": 0}
    for name, parameter in model.named_parameters():
        parts["vit" if name.startswith("vit.") else "decoder"] += parameter.numel()
    assert parts["vit"] == pytest.approx(0.45e6, rel=0.03)
    assert parts["decoder"] == pytest.approx(0.06e6, rel=0.1)


def test_fine_tuning_starts_from_what_pretraining_leaves():
    pretraining, tuning = mae_small_data(), finetune_small_data()
    assert Path(tuning.model) == pretraining.output_dir / "model"
    assert tuning.data.stats == "none"  # the checkpoint has those of `auto`
    assert pretraining.data.stats == "auto"


@pytest.mark.parametrize("source", ["emoji", "defects", "bands"])
def test_the_experiment_compares_what_it_pretrains_on_the_same_images(low_labels, source):
    request = low_labels.Request()
    pretraining, comparison = request.pretraining(source), request.comparison(source)
    assert comparison.models == (str(pretraining.output_dir / "model"), "random", "pixels")
    assert comparison.source == pretraining.data.source == source
    assert pretraining.data.samples_per_class is None and pretraining.data.eval_share == 0
    assert len(comparison.base_lrs) > 1 and comparison.seeds >= 5 and comparison.same_compute
    turns = pretraining.augment.rotate_quarters
    assert turns == comparison.finetune.augment.rotate_quarters == (source != "emoji")


@pytest.mark.slow
@pytest.mark.parametrize(("source", "channels"), [("defects", 1), ("bands", 8)])
def test_it_trains_on_gray_and_on_bands(low_labels, source, channels, tmp_path):
    recipe = low_labels.Request(pretrain_steps=3).pretraining(source)
    metrics = pretrain.run(
        replace(
            recipe,
            data=replace(recipe.data, split="test", num_workers=0),
            tracker=("none",),
            output_dir=tmp_path / "run",
        )
    )
    assert metrics["step"] == 3 and 0 < metrics["loss"] < 5
    model = VitMaeForPreTraining.from_pretrained(tmp_path / "run" / "model")
    assert model.config.num_channels == channels
