"""The loop: stopped and resumed is uninterrupted, accumulation is a larger batch.

Run as a program, this file trains the toy once; the tests kill that program, or start it twice.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from hf_vitmae.training.loop import LoopConfig, step_seed, train
from hf_vitmae.training.optim import OptimConfig, build_optimizer
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.schedule import cosine_schedule

CONFIG = LoopConfig(steps=12, batch_size=4, accumulation=2, log_every=5, checkpoint_every=4)
OPTIM = OptimConfig(base_lr=0.5, clip_grad_norm=1.0)


@dataclass(frozen=True)
class ToyRecipe:
    name: str = "toy"


class Toy(nn.Module):
    """A convolution, dropout and a linear layer; guesses a colour's mean."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4, 2)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        features = self.dropout(self.convolution(pixel_values).relu().mean(dim=(2, 3)))
        logits = self.linear(features)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def toy_batches(config: LoopConfig, rank: int, processes: int, micro_step: int) -> Iterator[dict]:
    """This process's share of each micro-step's images, the same for any number of processes."""
    while True:
        generator = torch.Generator().manual_seed(micro_step)
        images = torch.randn(config.batch_size * processes, 3, 8, 8, generator=generator)
        share = images[rank::processes]
        yield {"pixel_values": share, "labels": (share.mean(dim=(1, 2, 3)) > 0).long()}
        micro_step += 1


def mean_logit(model: nn.Module) -> dict[str, float]:
    assert not model.training
    assert not torch.is_grad_enabled()
    torch.rand(3)  # an evaluator may use randomness; training must not notice
    return {"eval_logit": model(torch.ones(1, 3, 8, 8)).logits.mean().item()}


def run_toy(
    folder: Path,
    config: LoopConfig = CONFIG,
    die_at: int | None = None,
    dropout: float = 0.5,
    lr: float = OPTIM.base_lr,
    **options,
) -> tuple[dict, Toy]:
    """Train the toy, or die by SIGKILL at the forward pass of a step."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = Toy(dropout)
    optimizer = build_optimizer(
        model, replace(OPTIM, base_lr=lr), config.effective_batch(accelerator.num_processes)
    )
    forwards = 0

    def batches(micro_step: int) -> Iterator[dict]:
        nonlocal forwards
        forwards = micro_step
        rank, processes = accelerator.process_index, accelerator.num_processes
        return toy_batches(config, rank, processes, micro_step)

    def prepare(batch: dict) -> dict:
        nonlocal forwards
        if die_at is not None and forwards // config.accumulation == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        forwards += 1
        return batch

    with accelerator.main_process_first():
        run = RunFolder.open(folder, ToyRecipe())
    arguments: dict[str, Any] = dict(
        batches=batches, prepare=prepare, num_samples=16, clip_grad_norm=1.0
    )
    arguments |= dict(accelerator=accelerator, config=config, run=run, evaluators=[mean_logit])
    metrics = train(model, optimizer, cosine_schedule(12, 2), **(arguments | options))
    return metrics, model


def tensor_bytes(folder: Path, step: int = 12) -> list[bytes]:
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    return [(checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]


def read_log(folder: Path) -> list[dict]:
    """metrics.jsonl as it is."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    records = read_log(folder)
    clock = ("images_per_second", "data_wait", "seconds")
    return [{k: v for k, v in record.items() if k not in clock} for record in records]


class Stop(Exception):
    """Ends a run from inside."""


def stop_before(step: int, config: LoopConfig = CONFIG):
    """A `batches` that ends the run where step `step` would fetch."""

    def batches(micro_step: int) -> Iterator[dict]:
        for batch in toy_batches(config, 0, 1, micro_step):
            if micro_step == step * config.accumulation:
                raise Stop
            micro_step += 1
            yield batch

    return batches


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """Accelerate keeps precision and accumulation for a process's life; each test starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_the_log_and_the_return_value_tell_the_run(tmp_path: Path):
    metrics, model = run_toy(tmp_path, replace(CONFIG, eval_every=6))
    start, *records = log(tmp_path)
    assert start == {
        "step": 0,
        "epoch": 0.0,
        "effective_batch": 8,
        "base_lr": 0.5,
        "effective_lr": 0.5 * 8 / 256,
        "num_processes": 1,
        "device": "cpu",
        "precision": "fp32",
    }
    assert [(record["step"], "loss" in record) for record in records] == [
        (5, True),
        (6, False),
        (10, True),
        (12, True),
        (12, False),
    ]
    assert records[0].keys() == {"step", "epoch", "loss", "lr", "grad_norm"}
    assert records[0]["epoch"] == 5 * 8 / 16
    assert records[0]["lr"] == cosine_schedule(12, 2)(4) * start["effective_lr"]
    assert metrics["loss"] == records[-2]["loss"]
    assert metrics["eval_logit"] == records[-1]["eval_logit"]
    assert metrics["images_per_second"] > 0 and 0 <= metrics["data_wait"] <= 1
    assert model.training
    assert sorted(path.name[-2:] for path in (tmp_path / "checkpoints").iterdir()) == ["08", "12"]


@pytest.mark.parametrize("part, seconds", [("data", 0.02), ("model", 0.02)])
def test_the_log_says_what_the_limit_is(tmp_path: Path, capsys, part: str, seconds: float):
    def batches(micro_step: int) -> Iterator[dict]:
        for batch in toy_batches(CONFIG, 0, 1, micro_step):
            time.sleep(seconds if part == "data" else 0)
            yield batch

    def prepare(batch: dict) -> dict:
        time.sleep(seconds if part == "model" else 0)
        return batch

    metrics, _ = run_toy(tmp_path, batches=batches, prepare=prepare)
    said = capsys.readouterr().err
    waits = [record["data_wait"] for record in read_log(tmp_path) if "loss" in record]
    assert len(waits) == 3 and metrics["data_wait"] == waits[-1]
    if part == "data":
        assert min(waits) > 0.5 and said.count("data is the limit: give more --data.num-work") == 1
    else:
        assert max(waits) < 0.5 and "data is the limit" not in said


def test_it_learns(tmp_path: Path):
    config = replace(CONFIG, steps=80, log_every=10)
    run_toy(tmp_path, config, dropout=0.0)
    losses = [record["loss"] for record in log(tmp_path) if "loss" in record]
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop: int):
    run_toy(tmp_path / "whole")
    with pytest.raises(Stop):
        run_toy(tmp_path / "parts", batches=stop_before(stop))
    run_toy(tmp_path / "parts")
    assert tensor_bytes(tmp_path / "parts") == tensor_bytes(tmp_path / "whole")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path):
    run_toy(tmp_path / "whole")
    command = [sys.executable, __file__, str(tmp_path / "killed"), "--die-at", "7"]
    killed = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    run_toy(tmp_path / "killed")
    assert tensor_bytes(tmp_path / "killed") == tensor_bytes(tmp_path / "whole")
    assert log(tmp_path / "killed") == log(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_steps_and_not_the_result(tmp_path: Path):
    run_toy(tmp_path / "whole")
    with pytest.raises(Stop):
        run_toy(tmp_path / "parts", batches=stop_before(10))
    checkpoints = tmp_path / "parts" / "checkpoints"
    (checkpoints / "step-00000008" / "model.safetensors").write_bytes(b"")
    (checkpoints / ".unfinished-step-00000009").mkdir()
    run_toy(tmp_path / "parts")
    assert tensor_bytes(tmp_path / "parts") == tensor_bytes(tmp_path / "whole")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert not list(checkpoints.glob(".unfinished*"))


def test_a_finished_run_says_so_and_touches_nothing(tmp_path: Path, capsys):
    first, _ = run_toy(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    again, _ = run_toy(tmp_path, batches=stop_before(12))
    assert again == first
    assert "is finished: 12 steps are done" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == files


@pytest.mark.parametrize(
    "config, options, words",
    [
        (replace(CONFIG, batch_size=2), {}, "8 images a step and would go on with 4"),
        (CONFIG, {"num_samples": 17}, "16 images and would go on with 17"),
    ],
)
def test_resuming_with_other_batches_is_refused(
    tmp_path: Path, config: LoopConfig, options: dict, words: str
):
    run_toy(tmp_path)
    before = tensor_bytes(tmp_path)
    with pytest.raises(ValueError, match=words):
        run_toy(tmp_path, config, **options)
    assert tensor_bytes(tmp_path) == before


def test_accumulation_is_a_larger_batch(tmp_path: Path):
    def halves(micro_step: int) -> Iterator[dict]:
        for batch in toy_batches(replace(CONFIG, batch_size=8), 0, 1, micro_step // 2):
            for half in range(2):
                yield {key: value[half * 4 : half * 4 + 4] for key, value in batch.items()}

    large = replace(CONFIG, batch_size=8, accumulation=1)
    _, whole = run_toy(tmp_path / "whole", large, dropout=0.0)
    _, accumulated = run_toy(tmp_path / "halves", dropout=0.0, batches=halves)
    torch.testing.assert_close(accumulated.state_dict(), whole.state_dict(), rtol=1e-5, atol=1e-6)
    for one, other in zip(log(tmp_path / "halves")[1:], log(tmp_path / "whole")[1:], strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_clipping_holds_the_step_back_and_logs_the_full_norm(tmp_path: Path):
    config = replace(CONFIG, steps=1)
    torch.manual_seed(0)
    start = Toy(0.5).linear.weight
    _, free = run_toy(tmp_path / "free", config, clip_grad_norm=None)
    _, clipped = run_toy(tmp_path / "clipped", config, clip_grad_norm=1e-10)
    moved = [(model.linear.weight - start).abs().max().item() for model in (free, clipped)]
    assert moved[1] < 0.1 * moved[0]
    assert log(tmp_path / "clipped")[1]["grad_norm"] == log(tmp_path / "free")[1]["grad_norm"]


def test_a_model_without_loss_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no loss for inputs \['pixel_values'\]; does the data"):
        run_toy(tmp_path, prepare=lambda batch: {"pixel_values": batch["pixel_values"]})


def test_accelerates_own_accumulation_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")  # as `accelerate launch` does
    with pytest.raises(ValueError, match="Accelerate accumulates 2 batches"):
        run_toy(tmp_path)


def test_bf16_trains_and_hands_the_model_back_without_a_wrapper(tmp_path: Path):
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    _, model = run_toy(tmp_path, accelerator=accelerator)
    assert log(tmp_path)[0]["precision"] == "bf16"
    assert model(torch.ones(1, 3, 8, 8)).logits.dtype == torch.float32
    assert model.linear(torch.ones(1, 4)).dtype == torch.float32
    assert not hasattr(model.forward, "__wrapped__")


def test_step_seeds_differ_by_seed_step_and_process():
    seeds = {step_seed(*args) for args in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("field, value", [("steps", 0), ("log_every", 0), ("checkpoint_every", -1)])
def test_a_wrong_value_is_named(field: str, value: int):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be"):
        replace(CONFIG, **{field: value})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(folder: Path, *arguments: str) -> None:
    """The toy on two CPU processes, with the environment that launchers set."""
    environment = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), *arguments],
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path):
    launch(tmp_path / "two", "--batch-size", "4", "--dropout", "0")
    run_toy(tmp_path / "one", replace(CONFIG, batch_size=8), dropout=0.0)
    two, one = log(tmp_path / "two"), log(tmp_path / "one")
    assert two[0]["num_processes"] == 2
    assert two[0]["effective_batch"] == one[0]["effective_batch"] == 16
    for record, expected in zip(two[1:], one[1:], strict=True):
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bytes(tmp_path: Path):
    launch(tmp_path / "whole")
    launch(tmp_path / "parts", "--steps", "8")
    launch(tmp_path / "parts")
    assert tensor_bytes(tmp_path / "parts") == tensor_bytes(tmp_path / "whole")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--batch-size", type=int, default=CONFIG.batch_size)
    parser.add_argument("--dropout", type=float, default=0.5)
    options = parser.parse_args()
    config = replace(CONFIG, steps=options.steps, batch_size=options.batch_size)
    run_toy(options.folder, config, options.die_at, options.dropout)


if __name__ == "__main__":
    main()
