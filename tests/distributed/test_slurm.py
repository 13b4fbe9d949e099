"""The Slurm script with a stand-in for Slurm: ahead of the limit it saves, queues again, goes on.

The stand-in starts a launcher for each of two machines, both here, and hands signals on to them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .launch import ROOT, free_port

pytestmark = pytest.mark.slow

STEPS = 300
SRUN = """#!/usr/bin/env bash
for machine in 0 1; do "$@" & done
trap 'kill -TERM $(jobs -p)' TERM
wait -n; code=$?
while [ -n "$(jobs -p)" ]; do wait -n; jobs > /dev/null; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
show) echo 127.0.0.1 ;;
requeue) echo "$2" >> "$REQUEUED" ;;
esac
"""


def start_job(folder: Path) -> subprocess.Popen:
    """What Slurm starts, on two machines with a process each."""
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "m[0-1]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_GPUS_ON_NODE": "1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    job |= {"REQUEUED": str(folder / "requeued")}
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    flags = ["--batch-size", "4", "--steps", str(STEPS), "--log-every", "1"]
    flags += ["--checkpoint-every", "0", "--output-dir", str(folder / "run")]
    return subprocess.Popen(
        ["bash", "scripts/accelerate/slurm.sh", "smoke", *flags],
        env=os.environ | job | {"PATH": path},
        cwd=ROOT,
    )


def logged_steps(folder: Path) -> list[int]:
    log = folder / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record["step"] for record in records if "loss" in record]


def wait_for_step(folder: Path, step: int, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while job.poll() is None and time.monotonic() < deadline:
        if step in logged_steps(folder):
            return
        time.sleep(0.05)
    pytest.fail(f"step {step} did not come; exit code {job.poll()}")


def test_a_job_that_meets_its_time_limit_queues_again_and_finishes(tmp_path: Path) -> None:
    job = start_job(tmp_path)
    wait_for_step(tmp_path, 5, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=120) != 0
    assert (tmp_path / "requeued").read_text() == "7\n"
    last = logged_steps(tmp_path)[-1]
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert last < STEPS and saved == [f"step-{last:08d}"]

    assert start_job(tmp_path).wait(timeout=300) == 0
    assert (tmp_path / "requeued").read_text() == "7\n"  # a job that is done does not
    assert logged_steps(tmp_path) == list(range(1, STEPS + 1))
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
