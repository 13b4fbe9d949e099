"""Steps that are not finite leave the weights as they were, are counted, and end a run if many."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_vitmae.training.faults import RunningStatistics

from .test_loop import CONFIG, log, read_log, run_toy, tensor_bytes, toy_batches

WATCHED = replace(CONFIG, log_every=1, checkpoint_every=1, keep_checkpoints=12)


def poisoned(value: float, *steps: int):
    """The toy's batches, with a value that is not finite in one image of some steps."""

    def batches(micro_step: int) -> Iterator[dict]:
        for batch in toy_batches(CONFIG, 0, 1, micro_step):
            if micro_step in {step * CONFIG.accumulation - 1 for step in steps}:
                batch["pixel_values"][1, 0, 0, 0] = value
            micro_step += 1
            yield batch

    return batches


def weights(folder: Path, step: int) -> bytes:
    return tensor_bytes(folder, step)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, value: float):
    metrics, model = run_toy(tmp_path, WATCHED, batches=poisoned(value, 7))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert tensor_bytes(tmp_path, 7) == tensor_bytes(tmp_path, 6)
    assert weights(tmp_path, 8) != weights(tmp_path, 7)
    assert metrics["skipped_steps"] == 1
    lines = [record for record in read_log(tmp_path) if record["step"] == 7]
    assert [line["loss"] for line in lines] == ["nan", None]  # its own, and the mean of none
    assert "skipped_steps" not in next(r for r in read_log(tmp_path) if r["step"] == 6)


def test_a_mean_in_the_log_is_that_of_the_good_steps(tmp_path: Path):
    run_toy(tmp_path / "each", WATCHED, batches=poisoned(math.nan, 3))
    run_toy(tmp_path / "mean", replace(CONFIG, log_every=6), batches=poisoned(math.nan, 3))
    each = {record["step"]: record for record in log(tmp_path / "each") if "loss" in record}
    (mean,) = [r for r in log(tmp_path / "mean") if r["step"] == 6]
    good = [each[step] for step in (1, 2, 4, 5, 6)]
    assert mean["loss"] == pytest.approx(sum(r["loss"] for r in good) / 5)
    assert mean["grad_norm"] == pytest.approx(sum(r["grad_norm"] for r in good) / 5)


def test_too_many_in_a_row_stop_the_run(tmp_path: Path):
    config = replace(CONFIG, checkpoint_every=4, max_skipped=3)
    with pytest.raises(FloatingPointError, match="Step 9: the loss is nan .* 3 steps in a row"):
        run_toy(tmp_path, config, batches=poisoned(math.nan, 2, 3, 7, 8, 9, 10))
    lines = [(record["step"], record["skipped_steps"]) for record in log(tmp_path)[-2:]]
    assert lines == [(8, 4), (9, 5)]
    assert sorted(path.name[-1:] for path in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]


def test_the_count_goes_on_after_a_resume(tmp_path: Path):
    config = replace(CONFIG, checkpoint_every=1, max_skipped=3)
    for _ in range(2):  # the second start has seen two of them already
        with pytest.raises(FloatingPointError, match=r"Step 6: .* 3 steps in a row"):
            run_toy(tmp_path, config, batches=poisoned(math.nan, 4, 5, 6))
    assert [r["skipped_steps"] for r in log(tmp_path) if "skipped_steps" in r] == [1, 2, 2, 3]


def test_a_learning_rate_far_too_high_leaves_finite_weights(tmp_path: Path):
    with pytest.raises(FloatingPointError, match=r"not finite, which is `max_skipped`"):
        run_toy(tmp_path, replace(CONFIG, steps=60, checkpoint_every=1), lr=1e30)
    left = list((tmp_path / "checkpoints").glob("*/*.safetensors"))
    assert len(left) == 4
    assert all(value.isfinite().all() for path in left for value in load_file(path).values())


def test_running_statistics_are_put_back():
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm, nn.Linear(3, 2))
    model(torch.randn(4, 3))
    statistics = RunningStatistics(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    statistics.remember()
    model(torch.full((4, 3), math.nan))
    assert norm.running_mean is not None and norm.running_mean.isnan().all()
    statistics.restore()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
