"""One process at a time has a run's folder; after its end, however it ended, the next one may."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import UnixFileLock

from hf_vitmae.training import run_lock as module
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.run_lock import HOLDER, LOCK, Holder, lock_holder, run_lock

from .test_run_folder import Recipe

# Loads the module alone, so that no second goes by for torch.
HOLD = """
import importlib.util, os, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("run_lock", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.run_lock(Path(sys.argv[2])):
    if "fork" in sys.argv and (worker := os.fork()) == 0:
        time.sleep(60)  # as a worker that outlives its parent
    print(worker if "fork" in sys.argv else 0, flush=True)
    time.sleep(60)
"""


def hold(folder: Path, *words: str) -> tuple[subprocess.Popen, int]:
    """Start a process that has the lock: -> the process, and the number of the worker it forked."""
    command = [sys.executable, "-c", HOLD, str(module.__file__), str(folder), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def test_the_second_process_hears_of_the_first_and_follows_after_a_kill(tmp_path: Path):
    folder = tmp_path / "run"
    process, _ = hold(folder)
    try:
        with pytest.raises(ValueError) as error, run_lock(folder):
            pass
        host = os.uname().nodename
        words = rf"{folder} is in use by process {process.pid} on {host} since 20.* UTC; .*stop it"
        assert re.match(words, str(error.value)) and "--output-dir" in str(error.value)
        assert "\n" not in str(error.value)
        assert (holder := lock_holder(folder)) is not None and holder.pid == process.pid
    finally:
        kill(process)
    assert process.returncode == -signal.SIGKILL
    assert (folder / HOLDER).exists() and lock_holder(folder) is None
    with run_lock(folder):
        assert (holder := lock_holder(folder)) is not None and holder.pid == os.getpid()


def test_a_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path):
    process, worker = hold(tmp_path, "fork")
    try:
        kill(process)
        os.kill(worker, 0)  # it is still there
        with run_lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_one_process_has_it_once(tmp_path: Path):
    with run_lock(tmp_path):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
            with run_lock(tmp_path):
                pytest.fail("it was taken twice")
        assert lock_holder(tmp_path) is not None


@pytest.mark.parametrize("text", [None, "", "{", '{"pid": 3}x', "[]", '{"name": 1}'])
def test_a_holder_that_cannot_be_read_is_another_process(text: str | None, tmp_path: Path):
    with run_lock(tmp_path):
        (tmp_path / HOLDER).unlink()
        if text is not None:
            (tmp_path / HOLDER).write_text(text)
        assert lock_holder(tmp_path) == Holder() and str(Holder()) == "another process"


def test_nothing_is_left_of_it(tmp_path: Path):
    with run_lock(tmp_path / "deep" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), run_lock(tmp_path / "deep" / "run"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "run"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


def test_an_empty_folder_with_a_lock_is_free_for_a_run(tmp_path: Path):
    process, _ = hold(tmp_path)
    kill(process)
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, HOLDER}
    with run_lock(tmp_path):
        RunFolder.open(tmp_path, Recipe())
    with run_lock(tmp_path):
        RunFolder.open(tmp_path, Recipe())
    (tmp_path / "recipe.yaml").rename(tmp_path / "notes.yaml")
    with pytest.raises(ValueError, match="not the folder of a run"), run_lock(tmp_path):
        RunFolder.open(tmp_path, Recipe())


def test_one_starts_of_many_that_come_at_once(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(module.__file__), str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    try:
        deadline = time.monotonic() + 30
        while sum(process.poll() is None for process in processes) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        refused = [process for process in processes if process.poll() is not None]
        assert all("in use by process" in process.communicate()[1] for process in refused)
        assert lock_holder(tmp_path) is not None
    finally:
        for process in processes:
            kill(process)


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="not a folder; choose another"), run_lock(path):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fcntl.flock", _failing(number))
    words = r"without file locks .*--output-dir.*-o flock"
    with pytest.raises(ValueError, match=words) as error, run_lock(tmp_path):
        pytest.fail("there is no lock")
    assert "\n" not in str(error.value)


def test_a_disk_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(UnixFileLock, "_acquire", _failing(errno.EROFS))
    words = r"cannot be written \(Read-only file system\); .*--output-dir"
    with pytest.raises(ValueError, match=words), run_lock(tmp_path):
        pytest.fail("there is no lock")


def _failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user(tmp_path: Path):
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path.name.startswith(("pytest", "popen", "test")):
            path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match="cannot be written"), run_lock(tmp_path):
            pass
        with pytest.raises(ValueError, match="cannot be written"), run_lock(tmp_path / "run"):
            pass
    finally:
        os.seteuid(0)
    assert list(tmp_path.iterdir()) == []
