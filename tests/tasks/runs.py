"""What tests of stopped, killed and resumed runs share."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_vitmae.data.loader import train_batches
from hf_vitmae.tasks import fit

CLOCK = ("images_per_second", "data_wait", "seconds")


class Stopped(Exception):
    """Stands for whatever ends a run."""


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    """Let runs from here on end where they would get this micro-batch, counted from their start of
    training; None lets them go on to their end.
    """

    def stopped_batches(*arguments: Any, **options: Any) -> Iterator[dict]:
        batches = train_batches(*arguments, **options)
        for count, batch in enumerate(batches, options["start_step"]):
            if count == number:
                raise Stopped
            yield batch

    monkeypatch.setattr(fit, "train_batches", stopped_batches)


def wait_for(condition, what: str, seconds: float = 120) -> None:
    """Return as soon as something holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.002)
    pytest.fail(f"{what} did not come in {seconds} s")


def last_step(run: Path) -> int:
    """The step of the newest line of a run's log; -1 if there is none."""
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=-1)


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Return as soon as the log has a line of `step`."""
    wait_for(lambda: last_step(run) >= step or process.poll() is not None, f"step {step}")
    assert process.poll() is None, f"exit code {process.returncode}"


def is_running(process: int) -> bool:
    """Whether a process, not of this one's children, has not ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def log_without_clock(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def last_tensors(run: Path) -> dict[str, bytes]:
    """Name -> bytes of every tensor of the newest checkpoint and of the model that was saved."""
    newest = max((run / "checkpoints").glob("step-*"))
    tensors = {}
    for path in [*newest.glob("*.safetensors"), run / "model" / "model.safetensors"]:
        for name, value in load_file(path).items():
            tensors[f"{path.parent.name}/{path.name}/{name}"] = value.numpy().tobytes()
    return tensors


def end_group(process: int, signum: int) -> None:
    """Send a signal to a run and to its workers."""
    os.killpg(process, signum)
