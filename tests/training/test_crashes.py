"""A crash at any moment of a save leaves a good checkpoint, even where only one is kept."""

import functools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.training import checkpoint as module
from hf_vitmae.training.checkpoint import (
    checkpoints,
    find_damage,
    latest_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

from .small_run import average_of, flip_a_bit, names, trained

Run = tuple[nn.Module, Optimizer, dict[str, Tensor]]

# All that a save does to the disk.
ON_DISK = [(os, name) for name in ("fsync", "rename", "mkdir", "unlink", "rmdir", "chmod")]
ON_DISK += [(module, "save_file"), (module, "_write_json")]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is always on here; that files are flushed first is shown in test_checkpoint.py."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """Stands for SIGKILL."""


def strike(patch: pytest.MonkeyPatch, at: int, blow: Callable[[int], None]) -> list[int]:
    """Call `blow` before each change to the disk from number `at` on; returns the count so far."""
    done = [0]

    def struck(change: Callable) -> Callable:
        def wrapper(*arguments, **options):
            done[0] += 1
            if done[0] >= at:
                blow(done[0] - at)
            return change(*arguments, **options)

        return wrapper

    for owner, name in ON_DISK:
        patch.setattr(owner, name, struck(getattr(owner, name)))
    return done


def killed(_: int) -> None:
    raise Killed  # again at each attempt to tidy up: a dead process changes nothing


def failed(since: int) -> None:
    if since == 0:
        raise OSError("Input/output error")


@functools.cache
def run_of(step: int) -> Run:
    """What a run has at a step; 7 is to be loaded into, the others are not to be changed."""
    model, optimizer = trained(step)
    return model, optimizer, average_of(model)


def save(folder: Path, step: int, keep: int = 1) -> Path:
    model, optimizer, ema = run_of(step)
    return save_checkpoint(folder, step, model, optimizer, {"step": step}, keep, ema=ema)


def first(folder: Path) -> None:
    """Nothing is there yet."""


def next_one(folder: Path) -> None:
    save(folder, 1)


def again(folder: Path) -> None:
    save(folder, 2)


def over_a_damaged_one(folder: Path) -> None:
    save(folder, 1)
    flip_a_bit(save(folder, 2, keep=2) / "model.safetensors")


def after_a_crash(folder: Path) -> None:
    save(folder, 1)
    for name in (".unfinished-step-00000002", ".unfinished-removed-step-00000000"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("half")


@pytest.mark.parametrize("before", [first, next_one, again, over_a_damaged_one, after_a_crash])
@pytest.mark.parametrize("blow", [killed, failed])
def test_a_crash_at_any_change_to_the_disk(tmp_path: Path, monkeypatch, before, blow):
    (tmp_path / "before").mkdir()
    before(tmp_path / "before" / "checkpoints")
    at, finished = 0, False
    while not finished:
        at += 1
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(at)) / "checkpoints"
        with monkeypatch.context() as patch:
            done = strike(patch, at, blow)
            try:
                save(folder, 2)
                finished = done[0] < at
            except (Killed, OSError):
                pass
        assert_goes_on(folder, before)
    assert at > 20


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill a copy of this process")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("before", [next_one, again])
def test_sigkill_at_any_change_to_the_disk(tmp_path: Path, monkeypatch, before):
    run_of(2)  # here: the copy of the process only saves
    before(tmp_path / "before" / "checkpoints")
    at, code = 0, -1
    while code != 0:
        at += 1
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(at)) / "checkpoints"
        child = os.fork()
        if child == 0:
            strike(monkeypatch, at, lambda _: os.kill(os.getpid(), signal.SIGKILL))
            save(folder, 2)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        assert_goes_on(folder, before)
    assert at > 20


def assert_goes_on(folder: Path, before: Callable) -> None:
    """There is a good checkpoint, old or new, and the next save leaves just one folder."""
    found = latest_good_checkpoint(folder)
    if found is None:
        assert before is first
    else:
        step = next(step for step, path in checkpoints(folder).items() if path == found)
        assert step == 2 or before is not again
        model, optimizer, ema = run_of(7)
        with torch.no_grad():
            for tensor in [*model.state_dict().values(), *ema.values()]:
                tensor.zero_()
        assert load_checkpoint(found, model, optimizer, ema=ema) == {"step": step}
        expected_model, _, expected_ema = run_of(step)
        expected = expected_model.state_dict()
        torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
        torch.testing.assert_close(ema, expected_ema, rtol=0, atol=0)
    path = save(folder, 2)
    assert names(folder) == [path.name]
    assert find_damage(path) is None
