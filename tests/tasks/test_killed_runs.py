"""Runs that are killed or told to end at any moment, and started again until they are done."""

import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from .fork_server import ForkServer
from .runs import end_group, is_running, last_step, last_tensors, log_without_clock, wait_for

STEPS = 90
KILLS, KILLS_IN_A_SAVE = 20, 8
TERMINATIONS = 20
LONG = 100_000  # steps that no test waits for


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def command(run: Path, source: Path, steps: int = STEPS, workers: int = 2) -> list[str]:
    flags = ["--steps", str(steps), "--log-every", "1", "--checkpoint-every", "3"]
    flags += ["--optim.warmup-steps", "5", "--ema-decay", "0.9", "--batch-size", "8"]
    flags += ["--data.source", str(source), "--data.num-workers", str(workers)]
    return ["pretrain", "smoke", *flags, "--output-dir", str(run)]


def read_batches(path: Path) -> dict[int, set[str]]:
    """Number of each batch -> the hashes that it was seen with."""
    seen: dict[int, set[str]] = {}
    for line in path.read_text().splitlines():
        number, digest = line.split()
        seen.setdefault(int(number), set()).add(digest)
    return seen


@pytest.fixture(scope="module")
def whole(server: ForkServer, flat_folder: Path, tmp_path_factory) -> tuple[Path, Path]:
    """An uninterrupted run, and the list of its batches."""
    root = tmp_path_factory.mktemp("whole")
    process = server.start(command(root / "run", flat_folder), root / "said", root / "batches")
    assert server.wait(process) == 0, (root / "said").read_text()
    return root / "run", root / "batches"


def assert_same(run: Path, batches: Path, whole: tuple[Path, Path]) -> None:
    """Bytes, log lines and batches are those of the uninterrupted run."""
    assert last_tensors(run) == last_tensors(whole[0])
    assert log_without_clock(run) == log_without_clock(whole[0])
    assert not list(run.rglob("*unfinished*"))
    seen, expected = read_batches(batches), read_batches(whole[1])
    assert set(range(STEPS)) <= seen.keys()
    for number in range(STEPS):
        assert seen[number] == expected[number], number


@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_between_two_checkpoints(server, flat_folder: Path, tmp_path: Path, workers: int):
    runs = {name: command(tmp_path / name, flat_folder, 9, workers) for name in ("whole", "broken")}
    assert server.wait(server.start(runs["whole"], tmp_path / "said")) == 0
    process = server.start(runs["broken"], tmp_path / "said")
    wait_for(lambda: last_step(tmp_path / "broken") >= 5 or not is_running(process), "step 5")
    end_group(process, signal.SIGKILL)
    assert server.wait(process) == -signal.SIGKILL
    assert not (tmp_path / "broken" / "model").exists()
    assert server.wait(server.start(runs["broken"], tmp_path / "said")) == 0
    assert last_tensors(tmp_path / "broken") == last_tensors(tmp_path / "whole")
    assert log_without_clock(tmp_path / "broken") == log_without_clock(tmp_path / "whole")


@pytest.mark.slow
def test_sigkill_at_random_moments(server, whole, flat_folder: Path, tmp_path: Path):
    """Twenty kills, eight of them or more while a checkpoint is being written, in as many runs as
    it takes; each run is started again until it is done.
    """
    draw = random.Random(0)
    kills = in_a_save = runs = 0
    while kills < KILLS or in_a_save < KILLS_IN_A_SAVE:
        run, batches = tmp_path / f"run-{runs}", tmp_path / f"batches-{runs}"
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            process = server.start(command(run, flat_folder), tmp_path / "said", batches)
            start = last_step(run)
            wait_for_a_step(run, start, process)
            if draw.random() < 0.6:
                wait_for(partial(is_saving_or_over, run, process), "a save")
                time.sleep(draw.random() * 0.01)
            else:
                time.sleep(draw.random() * 0.2)
            if kills < KILLS or in_a_save < KILLS_IN_A_SAVE:
                end_group(process, signal.SIGKILL)  # of a run that has ended, too: its workers
            status = server.wait(process)
            kills += status == -signal.SIGKILL
            in_a_save += status == -signal.SIGKILL and unfinished(run)
        assert status == 0, (tmp_path / "said").read_text()
        assert_same(run, batches, whole)
        runs += 1
    print(f"{kills} kills in {runs} runs, {in_a_save} of them in a save")


def wait_for_a_step(run: Path, start: int, process: int) -> None:
    """Until the log's last step is another one than at the start, or the run has ended."""
    wait_for(lambda: last_step(run) != start or not is_running(process), "a step")


def is_saving_or_over(run: Path, process: int) -> bool:
    return unfinished(run) or not is_running(process)


def unfinished(run: Path) -> bool:
    """Whether a checkpoint is being written, or was when the run was killed."""
    return bool(list(run.glob("checkpoints/.unfinished*")))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_random_moments_loses_no_step(
    server, flat_folder: Path, tmp_path: Path, signum: int
):
    draw = random.Random(signum)
    run = tmp_path / "run"
    for number in range(TERMINATIONS):
        workers = 2 * (number % 2)
        arguments = command(run, flat_folder, LONG, workers)
        process = server.start([*arguments, "--eval-every", "4"], tmp_path / "said")
        start = last_step(run)
        wait_for_a_step(run, start, process)
        time.sleep(draw.random() * 0.5)
        assert is_running(process), (tmp_path / "said").read_text()
        end_group(process, signum)
        assert server.wait(process) == 128 + signum
        newest = max(path.name for path in (run / "checkpoints").glob("step-*"))
        assert int(newest.removeprefix("step-")) == last_step(run)


@pytest.mark.slow
def test_terminated_and_started_again_is_the_uninterrupted_run(
    server, whole, flat_folder: Path, tmp_path: Path
):
    draw = random.Random(2)
    run, batches = tmp_path / "run", tmp_path / "batches"
    status = 143
    while status == 143:
        process = server.start(command(run, flat_folder), tmp_path / "said", batches)
        start = last_step(run)
        wait_for_a_step(run, start, process)
        time.sleep(draw.random() * 0.3)
        if is_running(process) and last_step(run) < STEPS - 3:
            end_group(process, signal.SIGTERM)
        status = server.wait(process)
    assert status == 0, (tmp_path / "said").read_text()
    assert_same(run, batches, whole)


@pytest.mark.slow
def test_a_signal_before_the_first_step_leaves_nothing_half(
    server, whole, flat_folder: Path, tmp_path: Path
):
    """While data and model are opened, or the first batch is fetched."""
    run = tmp_path / "run"
    for delay in (0.0, 0.05, 0.1, 0.2, 0.4):
        process = server.start(command(run, flat_folder), tmp_path / "said", tmp_path / "batches")
        time.sleep(delay)
        end_group(process, signal.SIGTERM)
        assert server.wait(process) in (143, -signal.SIGTERM)  # the latter before `main` began
    process = server.start(command(run, flat_folder), tmp_path / "said", tmp_path / "batches")
    assert server.wait(process) == 0, (tmp_path / "said").read_text()
    assert_same(run, tmp_path / "batches", whole)


@pytest.mark.slow
def test_two_thousand_steps_take_no_more_memory_or_files(server, flat_folder, tmp_path: Path):
    run, keep = tmp_path / "run", 2
    arguments = command(run, flat_folder, 2000, workers=0)
    arguments[arguments.index("--checkpoint-every") + 1] = "20"
    process = server.start(arguments, tmp_path / "said")
    memory: list[int] = []
    files: list[int] = []
    most_checkpoints = 0
    for step in (400, 800, 1200, 1600, 1950):
        wait_for(lambda s=step: last_step(run) >= s or not is_running(process), "a step", 600)
        assert is_running(process), (tmp_path / "said").read_text()
        status = Path(f"/proc/{process}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        memory.append(int(line.split()[1]))
        files.append(len(list(Path(f"/proc/{process}/fd").iterdir())))
        checkpoints = [p for p in (run / "checkpoints").glob("step-*") if p.is_dir()]
        most_checkpoints = max(most_checkpoints, len(checkpoints))
    assert server.wait(process) == 0
    print(f"memory in KB {memory}, open files {files}, checkpoints {most_checkpoints}")
    assert max(memory[1:]) < 1.05 * memory[0]
    assert max(files) - min(files) <= 2  # one may be open at that moment
    assert len(list((run / "checkpoints").glob("step-*"))) == keep
    assert most_checkpoints <= keep + 1  # for an instant, before the oldest goes
