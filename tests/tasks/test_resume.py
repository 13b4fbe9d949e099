"""A run that is killed and started again ends with the bytes of one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 12


def start(run: Path, source: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_vitmae.cli", "pretrain", "smoke", "--steps", str(STEPS)]
    command += ["--checkpoint-every", "5", "--log-every", "1", "--output-dir", str(run)]
    command += ["--data.source", str(source), "--data.num-workers", str(workers)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Return as soon as the log has a line of `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = run / "metrics.jsonl"
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} did not come; exit code {process.poll()}")


@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_between_two_checkpoints(workers: int, flat_folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, flat_folder, workers).wait(timeout=120) == 0

    process = start(broken, flat_folder, workers)
    wait_for_step(broken, 7, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    checkpoints = sorted(path.name for path in (broken / "checkpoints").glob("step-*"))
    assert checkpoints == ["step-00000005"]
    assert not (broken / "model").exists()

    assert start(broken, flat_folder, workers).wait(timeout=120) == 0
    for name in ("model/model.safetensors", f"checkpoints/step-{STEPS:08d}/optimizer.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
