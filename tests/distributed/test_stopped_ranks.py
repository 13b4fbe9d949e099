"""Processes of which one dies or is told to stop, and runs that go on with more or fewer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..tasks.runs import last_step, last_tensors, log_without_clock, wait_for

pytestmark = pytest.mark.slow

STEPS = 24
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@contextmanager
def started(
    run: Path, processes: int, *flags: str, restarts: int = 0
) -> Iterator[subprocess.Popen]:
    """A run of steps of eight images, whatever the number of processes."""
    command = ["-m", "hf_vitmae.cli", "pretrain", "smoke", "--steps", str(STEPS)]
    command += ["--effective-batch", "8", "--batch-size", "4", "--log-every", "1"]
    command += ["--checkpoint-every", "4", "--ema-decay", "0.9", "--eval-every", "8"]
    command += ["--output-dir", str(run), *flags]
    if processes > 1:
        command = [*TORCHRUN, str(processes), "--max-restarts", str(restarts), *command]
    else:
        command = [sys.executable, *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as launcher:
        try:
            yield launcher
        finally:
            launcher.kill()


def finish(run: Path, processes: int, *flags: str) -> None:
    with started(run, processes, *flags) as launcher:
        assert launcher.wait(timeout=300) == 0


def pid_of_rank(launcher: subprocess.Popen, rank: int) -> int | None:
    """The process that a launcher started as a rank, if it is there."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == launcher.pid and b"RANK=%d" % rank in environment:
            return int(folder.name)
    return None


def signal_rank(launcher: subprocess.Popen, run: Path, step: int, rank: int, signum: int) -> None:
    """Send a signal to a rank as soon as the run has got to a step."""
    wait_for(lambda: last_step(run) >= step or launcher.poll() is not None, f"step {step}", 300)
    process = pid_of_rank(launcher, rank)
    assert process is not None, launcher.poll()
    os.kill(process, signum)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(run, 2)
    return run


def test_a_rank_that_is_killed_three_times_costs_nothing(whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    with started(run, 2, restarts=3) as launcher:
        for step in (6, 13, 21):
            signal_rank(launcher, run, step, 1, signal.SIGKILL)
            time.sleep(2)  # until the launcher has seen it
        assert launcher.wait(timeout=300) == 0
    assert last_tensors(run) == last_tensors(whole)
    assert log_without_clock(run) == log_without_clock(whole)


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_all_stop_at_the_same_step_when_one_is_told_to(whole: Path, tmp_path: Path, shard: bool):
    run, flags = tmp_path / "run", ["--shard"] if shard else []
    with started(run, 2, *flags) as launcher:
        signal_rank(launcher, run, 5, 1, signal.SIGTERM)
        assert launcher.wait(timeout=300) != 0
    stopped = last_step(run)
    assert 5 <= stopped < STEPS
    assert (run / "checkpoints" / f"step-{stopped:08d}").is_dir()
    finish(run, 2, *flags)
    assert_close(run, whole)
    if not shard:
        assert last_tensors(run) == last_tensors(whole)


@pytest.mark.parametrize("processes", [(2, 1, 2), (1, 2)])
def test_a_sharded_run_goes_on_with_more_or_fewer_processes(
    whole: Path, tmp_path: Path, processes: tuple[int, ...]
):
    run = tmp_path / "run"
    for number, count in enumerate(processes[:-1]):
        with started(run, count, *(["--shard"] if count > 1 else [])) as launcher:
            step = 6 * (number + 1)
            wait_for(lambda s=step: last_step(run) >= s, f"step {step}")
            if count > 1:
                signal_rank(launcher, run, step, 0, signal.SIGTERM)
            else:
                launcher.terminate()
            assert launcher.wait(timeout=300) != 0
    finish(run, processes[-1], "--shard")
    assert_close(run, whole)


def assert_close(run: Path, whole: Path) -> None:
    """Losses and evaluations are those of the run that nothing happened to."""
    log, expected = log_without_clock(run)[1:], log_without_clock(whole)[1:]
    for record, wanted in zip(log, expected, strict=True):
        assert record["step"] == wanted["step"]
        for name in ("loss", "eval_loss"):
            assert record.get(name) == pytest.approx(wanted.get(name), abs=1e-6), record["step"]
