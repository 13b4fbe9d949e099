"""Averaged weights, and which weights a run ends with."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_vitmae.training.ema import Ema
from hf_vitmae.training.loop_config import Best, LoopConfig

from .test_loop import CONFIG, Stop, log, read_log, run_toy, stop_before, tensor_bytes

EVERY = replace(CONFIG, checkpoint_every=1, keep_checkpoints=12, eval_every=1, ema_decay=0.8)


def saved(folder: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def test_the_average_follows_its_formula(tmp_path: Path):
    _, model = run_toy(tmp_path, EVERY)
    average = saved(tmp_path, 1, "ema")
    for step in range(2, 13):
        decay = min(0.8, (1 + step) / (10 + step))
        for name, value in saved(tmp_path, step, "model").items():
            average[name] = decay * average[name] + (1 - decay) * value
        for name, value in saved(tmp_path, step, "ema").items():
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dict(model.state_dict()), saved(tmp_path, 12, "ema"), rtol=0, atol=0)
    assert saved(tmp_path, 12, "model")["linear.bias"].ne(average["linear.bias"]).any()


def test_the_average_is_what_is_evaluated_and_training_does_not_notice(tmp_path: Path):
    _, averaged = run_toy(tmp_path / "averaged", EVERY)
    run_toy(tmp_path / "plain", replace(EVERY, ema_decay=0.0))
    assert tensor_bytes(tmp_path / "averaged") == tensor_bytes(tmp_path / "plain")
    evaluations = [r["eval_logit"] for r in log(tmp_path / "averaged") if "eval_logit" in r]
    averaged.eval()
    expected = averaged(torch.ones(1, 3, 8, 8)).logits.mean().item()
    assert evaluations[-1] == expected
    losses = [
        [r["loss"] for r in log(tmp_path / run) if "loss" in r] for run in ("averaged", "plain")
    ]
    assert losses[0] == losses[1]


def test_a_resumed_run_has_the_same_average(tmp_path: Path):
    _, whole = run_toy(tmp_path / "whole", EVERY)
    with pytest.raises(Stop):
        run_toy(tmp_path / "parts", EVERY, batches=stop_before(7))
    _, parts = run_toy(tmp_path / "parts", EVERY)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)
    _, again = run_toy(tmp_path / "parts", EVERY)  # finished: handed back once more
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert set(Ema(model, 0.9).tensors) == {"1.weight", "1.bias"}


def test_an_error_in_an_evaluation_gives_the_weights_back():
    model = nn.Linear(2, 2)
    average = Ema(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
    with pytest.raises(RuntimeError), average.in_place():
        assert model.weight.ne(3.0).all()
        raise RuntimeError
    assert model.weight.eq(3.0).all()


@pytest.mark.parametrize("which", ["lowest", "highest"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_the_best_checkpoint_stays_and_can_be_what_the_run_ends_with(
    tmp_path: Path, which: Literal["lowest", "highest"], ema_decay: float
):
    values = iter([3.0, 1.0, 2.0, 5.0, 4.0, 3.0])
    config = replace(CONFIG, eval_every=2, keep_checkpoints=1, ema_decay=ema_decay)
    config = replace(config, best=Best("eval_score", which), hand_back_best=True)
    _, model = run_toy(tmp_path, config, evaluators=[lambda _: {"eval_score": next(values)}])
    best = 4 if which == "lowest" else 8
    steps = sorted(int(path.name[-8:]) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [best, 12]
    expected = saved(tmp_path, best, "ema" if ema_decay else "model")
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)
    run_toy(tmp_path, config, evaluators=[])  # the best of a finished run is remembered
    (tmp_path / "checkpoints" / f"step-{best:08d}" / "state.json").unlink()
    with pytest.raises(ValueError, match=f"that of step {best}, .* leave --best-model out"):
        run_toy(tmp_path, config, evaluators=[])


def test_an_evaluation_that_is_not_a_number_is_never_the_best():
    best = Best("eval_loss", "lowest")
    assert not best.is_better(float("nan"), None)
    assert not best.is_better(float("nan"), 1.0)
    assert best.is_better(1.0, None)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_wrong_decay_is_named(decay: float):
    with pytest.raises(ValueError, match="ema_decay is"):
        LoopConfig(steps=1, batch_size=1, ema_decay=decay)


def test_the_log_of_a_run_without_average_or_best_is_as_it_was(tmp_path: Path):
    run_toy(tmp_path)
    assert not list(tmp_path.rglob("ema*"))
    assert not any("best" in key for record in read_log(tmp_path) for key in record)
