"""A disk that is full, or refuses to write, costs no checkpoint and is said in one line."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_vitmae.training import checkpoint as module
from hf_vitmae.training.checkpoint import find_damage, save_checkpoint

from .small_run import names

resource = pytest.importorskip("resource", reason="needs limits on a process, as Unix has them")

DISK = 4 * 2**20
ROOM_BESIDE = 2**20  # of a checkpoint, for what is no tensor
PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"needs `mount`: {error}")
    if done.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def save(folder: Path, step: int, keep: int = 1) -> Path:
    """A checkpoint of 0.4 MB, half of it weights."""
    torch.manual_seed(step)
    model = nn.Linear(200, 250)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 200)).sum().backward()
    optimizer.step()
    return save_checkpoint(folder, step, model, optimizer, {"step": step}, keep)


def leave_free(disk: Path, free: int) -> Path:
    """Fill the disk up to `free` bytes with a file."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(disk)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - free))
    return filler


def fails(folder: Path, step: int) -> str:
    with pytest.raises(OSError) as caught:
        save(folder, step)
    line = str(caught.value)
    assert line.startswith(f"{folder / f'step-{step:08d}'} could not be written (")
    assert "\n" not in line
    return line


def assert_only(good: Path) -> None:
    assert names(good.parent) == [good.name]
    assert find_damage(good) is None


def test_without_room_nothing_is_written(disk: Path):
    good = save(disk / "run", 1)
    filler = leave_free(disk, 300 * 1024)
    line = fails(disk / "run", 2)
    assert "(not enough room); it needs 1.5 MB and 0.3 MB is free." in line
    assert line.endswith("the same command resumes at step 1.")
    assert_only(good)
    filler.unlink()
    assert_only(save(disk / "run", 2))


@pytest.mark.parametrize("pages", [0, 1, 3, 51, 60, 101, 102])
def test_a_disk_that_fills_up_in_the_middle(disk: Path, monkeypatch, pages: int):
    """As another program may do, or a quota that `shutil.disk_usage` does not know."""
    good = save(disk / "run", 1)
    filler = leave_free(disk, pages * PAGE)
    monkeypatch.setattr(module, "_check_room", lambda folder, needed: None)
    assert "No space left on device" in fails(disk / "run", 2)
    assert_only(good)
    filler.unlink()
    assert_only(save(disk / "run", 2))


def test_what_a_killed_save_left_makes_room(disk: Path):
    save(disk / "run", 1)
    leftover = disk / "run" / ".unfinished-step-00000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(bytes(DISK - 2**20))
    assert_only(save(disk / "run", 2))


def test_a_disk_that_became_read_only(disk: Path):
    good = save(disk / "run", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "(Read-only file system)" in fails(disk / "run", 2)
    assert_only(good)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_only(save(disk / "run", 2))


@pytest.mark.parametrize("limit", [64, 4096, 150_000])
def test_a_limit_on_the_size_of_files(tmp_path: Path, limit: int):
    good = save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in str(caught.value)
    assert "resumes at step 1." in str(caught.value)
    assert_only(good)
    assert_only(save(tmp_path, 2))


def test_the_room_is_that_of_all_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(module, "_check_room", lambda folder, needed: asked.append(needed))
    path = save(tmp_path, 1)
    tensors = [t for file in path.glob("*.safetensors") for t in load_file(file).values()]
    assert asked == [ROOM_BESIDE + sum(tensor.nbytes for tensor in tensors)]
    on_disk = sum(file.stat().st_size for file in path.iterdir())
    assert on_disk < asked[0]


def test_a_disk_that_tells_nothing_of_its_room_is_tried(tmp_path: Path, monkeypatch):
    unknown = type("Usage", (), {"total": 0, "used": 0, "free": 0})()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: unknown)
    assert_only(save(tmp_path, 1))
