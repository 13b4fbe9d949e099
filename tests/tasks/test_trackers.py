"""Runs are shown by TensorBoard without being asked; what it shows is what metrics.jsonl says."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import parameters_to_vector

from hf_vitmae import VitMaeForPreTraining
from hf_vitmae.cli import main
from hf_vitmae.recipes import PRETRAIN
from hf_vitmae.tasks import fit, pretrain
from hf_vitmae.tasks.pretrain import PretrainRecipe
from hf_vitmae.training.run_folder import RunFolder

from ..event_files import make_older, picture_steps, scalars
from ..small import FAST
from .runs import Stopped, stop_at


def small_recipe(folder: Path, **changes: Any) -> PretrainRecipe:
    short: dict[str, Any] = dict(steps=8, log_every=2, eval_every=4, checkpoint_every=3)
    return replace(PRETRAIN["smoke"](), output_dir=folder, eval_images=16, **(short | changes))


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What `scalars` shall be by metrics.jsonl; an evaluated step has two lines with one epoch."""
    values: dict[str, dict[int, Any]] = {}
    for record in RunFolder(run).read_metrics():
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                values.setdefault(name, {})[record["step"]] = pytest.approx(value)
    return {name: sorted(by_step.items()) for name, by_step in values.items()}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Runs of pretraining draw a picture for their trackers; the weights that it was drawn of."""
    weights: list[torch.Tensor] = []

    def draw(model: nn.Module) -> dict[str, Image.Image]:
        assert not model.training and not torch.is_grad_enabled()
        weights.append(parameters_to_vector(model.parameters()).clone())
        return {"panel": Image.new("RGB", (4, 2))}

    def fit_and_draw(*arguments: Any, **options: Any) -> Any:
        return fit.fit(*arguments, **(options | {"pictures": draw}))

    monkeypatch.setattr(pretrain, "fit", fit_and_draw)
    return weights


def test_tensorboard_says_what_the_log_says_also_of_a_run_that_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, hook = small_recipe(tmp_path / "run"), threading.excepthook
    stop_at(monkeypatch, 5)  # after the line of step 4, past the checkpoint of step 3
    with pytest.raises(Stopped):
        pretrain.run(recipe)
    assert [step for step, _ in scalars(tmp_path / "run")["loss"]] == [2, 4]
    assert threading.excepthook is hook
    make_older(tmp_path / "run")
    stop_at(monkeypatch, None)
    pretrain.run(recipe)
    shown = scalars(tmp_path / "run")
    assert shown == logged(tmp_path / "run")
    assert [step for step, _ in shown["loss"]] == [2, 4, 6, 8]
    assert [step for step, _ in shown["eval_loss"]] == [4, 8]
    assert picture_steps(tmp_path / "run", "reconstruction") == [4, 8]


def test_a_finished_run_adds_nothing(tmp_path: Path, drawn: list) -> None:
    recipe = small_recipe(tmp_path / "run", steps=2)
    pretrain.run(recipe)
    before = sorted((tmp_path / "run" / "tensorboard").iterdir())
    pretrain.run(recipe)
    assert sorted((tmp_path / "run" / "tensorboard").iterdir()) == before and len(drawn) == 1


def test_pictures_are_of_the_weights_that_are_evaluated(tmp_path: Path, drawn: list) -> None:
    pretrain.run(small_recipe(tmp_path / "run", ema_decay=0.5))
    assert picture_steps(tmp_path / "run", "panel") == [4, 8]
    assert len(drawn) == 2
    model = VitMaeForPreTraining.from_pretrained(tmp_path / "run" / "model")
    assert torch.equal(drawn[-1], parameters_to_vector(model.parameters()))


def test_pictures_do_not_need_evaluators(
    tmp_path: Path, drawn: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_and_draw: Any = pretrain.fit

    def without_evaluators(*arguments: Any, **options: Any) -> Any:
        return fit_and_draw(*arguments[:6], [], *arguments[7:], **options)

    monkeypatch.setattr(pretrain, "fit", without_evaluators)
    pretrain.run(small_recipe(tmp_path / "run"))
    assert not any("eval_loss" in record for record in RunFolder(tmp_path / "run").read_metrics())
    assert picture_steps(tmp_path / "run", "panel") == [4, 8]


def test_none_leaves_pictures_in_the_run_alone(tmp_path: Path, drawn: list) -> None:
    arguments = ["pretrain", "smoke", *FAST, "--tracker", "none", "--output-dir"]
    assert main([*arguments, str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    (picture,) = (tmp_path / "run" / "samples" / "steps").iterdir()
    assert picture.name == "panel-00000004.png" and len(drawn) == 1


def test_a_tracker_that_is_not_installed_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_vitmae.training.trackers._is_installed", lambda name: name != "wandb")
    flags = ["--tracker", "tensorboard", "wandb", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "smoke", *FAST, *flags]) == 1
    assert capsys.readouterr().err == (
        "hf-vitmae pretrain: `tracker` wandb is not installed; run: pip install "
        "'hf-vitmae[track]', or leave it out.\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tracker", [["none", "wandb"], ["auto", "tensorboard"], ["nono"], []])
def test_trackers_that_exclude_each_other_are_refused(
    tracker: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "smoke", "--tracker", *tracker]) == 2
    assert "tracker" in capsys.readouterr().err


def test_a_recipe_takes_a_tuple_of_trackers() -> None:
    with pytest.raises(ValueError, match="`tracker` must be a tuple of auto, none, .* 'none'"):
        replace(PRETRAIN["smoke"](), tracker="none")  # type: ignore[arg-type]


@pytest.mark.slow
def test_neither_the_package_nor_a_run_without_trackers_imports_tensorboard(tmp_path: Path) -> None:
    arguments = ["pretrain", "smoke", *FAST, "--tracker", "none", "--output-dir", str(tmp_path)]
    code = (
        "import sys, hf_vitmae, hf_vitmae.cli as cli;"
        f"assert cli.main({arguments}) == 0;"
        "assert not {'tensorboard', 'wandb', 'trackio'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
