"""Memory that runs out is recognised, a batch that fits is found, and the line says what to do."""

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hf_vitmae.training.memory import (
    OutOfMemory,
    agree_on_batch_size,
    explaining_out_of_memory,
    find_batch_size,
    is_out_of_memory,
    settings_to_lower,
    smaller_sizes,
    smallest_of,
    training_trial,
)
from hf_vitmae.training.resources import free_memory, usable_cores, within_free_memory

GIB = 1 << 30


def fits_up_to(most: int, tried: list[int] | None = None) -> Callable[[int], None]:
    """A step that runs out of memory above `most` images."""

    def try_step(size: int) -> None:
        if tried is not None:
            tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return try_step


@pytest.mark.parametrize(
    ("error", "is_want"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("could not create a primitive"), True),
        (MemoryError("Unable to allocate 3 GiB for an array"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA out of memory."), False),
        (KeyError("x"), False),
    ],
)
def test_what_is_a_want_of_memory(error: Exception, is_want: bool):
    assert is_out_of_memory(error) is is_want


def test_a_cpu_that_has_no_more_is_recognised():
    with within_free_memory(0.02), pytest.raises(RuntimeError) as error:
        torch.empty(free_memory() // 4, dtype=torch.uint8).fill_(1)
    assert is_out_of_memory(error.value)
    assert torch.ones(1 << 26, dtype=torch.uint8).sum() == 1 << 26  # the limit is off again


@pytest.mark.parametrize(
    ("most", "multiple_of", "sizes"),
    [
        (64, 1, [64, 32, 16, 8, 4, 2, 1]),
        (12, 1, [12, 6, 3, 1]),
        (100, 1, [100, 50, 25, 10, 5, 2, 1]),
        (7, 1, [7, 1]),
        (1, 1, [1]),
        (48, 4, [48, 24, 12, 4]),
        (36, 6, [36, 18, 6]),
    ],
)
def test_sizes_halve_and_divide(most: int, multiple_of: int, sizes: list[int]):
    found = list(smaller_sizes(most, multiple_of))
    assert found == sizes
    assert all(most % size == 0 and size % multiple_of == 0 for size in found)
    assert all(2 * size <= before for before, size in zip(found, found[1:], strict=False))


@pytest.mark.parametrize(
    ("most", "limit", "found"), [(64, 100, 64), (64, 64, 64), (64, 63, 32), (4, 1, 1), (12, 5, 3)]
)
def test_the_largest_that_fits_is_found(most: int, limit: int, found: int):
    tried: list[int] = []
    assert find_batch_size(fits_up_to(limit, tried), most) == found
    assert tried == [size for size in smaller_sizes(most) if size >= found]


def test_nothing_fits():
    with pytest.raises(OutOfMemory, match="Not even a batch size of 4 .*image size.*bf16"):
        find_batch_size(fits_up_to(2), 16, multiple_of=4)
    assert issubclass(OutOfMemory, MemoryError)


def test_other_errors_pass():
    def try_step(_: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        find_batch_size(try_step, 8)


def test_memory_is_free_again_between_tries(monkeypatch: pytest.MonkeyPatch):
    """What a failed step holds is gone when the cache is emptied, although its error had it."""
    held: list[weakref.ref] = []
    at_clearing: list[list[bool]] = []

    def try_step(size: int) -> None:
        activations = torch.zeros(size)
        held.append(weakref.ref(activations))
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(
        "hf_vitmae.training.memory.clear_device_cache",
        lambda garbage_collection: at_clearing.append([r() is None for r in held]),
    )
    assert find_batch_size(try_step, 8) == 2
    assert at_clearing == [[True], [True, True], [True, True, True]]


def test_processes_take_the_smallest():
    assert smallest_of([64, 16, 32]) == 16
    with pytest.raises(OutOfMemory, match="none here"):
        smallest_of([64, OutOfMemory("none here"), 32])
    assert agree_on_batch_size(lambda: 8) == 8
    with pytest.raises(OutOfMemory):
        agree_on_batch_size(lambda: find_batch_size(fits_up_to(0), 4))


def test_the_line_keeps_the_effective_batch():
    line = settings_to_lower(64, 2, (224, 192), "no")
    assert "64 x 224x192" in line and "--batch-size 32 --accumulation 4" in line
    assert "--precision bf16" in line and "image size" in line and "\n" not in line
    line = settings_to_lower(64, 2, (224, 192), "bf16")
    assert "--precision" not in line
    line = settings_to_lower(12, None, (8, 8), "no", multiple_of=4)
    assert "--batch-size 4, which" in line and "--accumulation" not in line
    line = settings_to_lower(1, 7, (8, 8), "no")
    assert "--batch-size" not in line and "--precision bf16" in line


def test_a_want_of_memory_becomes_the_line():
    with pytest.raises(OutOfMemory, match="^take less$") as error:
        with explaining_out_of_memory(lambda: "take less"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
    assert isinstance(error.value.__cause__, torch.OutOfMemoryError)
    with pytest.raises(OutOfMemory, match="^said already$"):
        with explaining_out_of_memory(lambda: "take less"):
            raise OutOfMemory("said already")
    with pytest.raises(KeyError), explaining_out_of_memory(lambda: "take less"):
        raise KeyError


class Small(nn.Module):
    """Weights, a norm with running statistics, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 2)
        self.linear.bias.requires_grad = False
        self.sizes: list[int] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.sizes.append(len(pixel_values))
        assert self.training
        return SimpleNamespace(loss=self.linear(self.norm(pixel_values)).square().mean())


def test_a_trial_is_a_step_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch):
    model = Small().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept, empty_like = [], torch.empty_like
    monkeypatch.setattr(
        torch, "empty_like", lambda *a, **k: kept.append(a[0].shape) or empty_like(*a, **k)
    )
    example = {"pixel_values": torch.randn(4, 3), "valid": torch.ones(4, dtype=torch.bool)}
    seen = []

    def prepare(batch: dict) -> dict:
        seen.append(batch)
        return {"pixel_values": batch["pixel_values"]}

    try_step = training_trial(model, Accelerator(cpu=True), prepare, example, num_copies=3)
    kept.clear()
    try_step(6)
    assert model.sizes == [6, 6]
    assert torch.equal(seen[0]["pixel_values"], example["pixel_values"][:1].expand(6, 3))
    assert seen[0]["valid"].shape == (6,)
    trained = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    assert [kept.count(shape) for shape in trained] == [6, 6, 3]  # the norm has two of one shape
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_control_groups_of_version_2_limit(tmp_path: Path):
    groups = tmp_path / "sys/fs/cgroup"
    write(tmp_path / "proc/self/cgroup", "0::/jobs/one")
    assert usable_cores(tmp_path) == usable_cores()
    write(groups / "jobs/one/cpu.max", "max 100000")
    write(groups / "jobs/cpu.max", "50000 100000")
    write(groups / "jobs/one/memory.max", "max")
    write(groups / "jobs/memory.max", str(3 * GIB))
    write(groups / "jobs/memory.current", str(3 * GIB - 5000))
    assert usable_cores(tmp_path) == 1
    assert free_memory(tmp_path) == 5000


def test_control_groups_of_version_1_limit(tmp_path: Path):
    groups = tmp_path / "sys/fs/cgroup"
    write(tmp_path / "proc/self/cgroup", "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x")
    write(groups / "cpu/cpu.cfs_quota_us", "90000")  # a container sees its own at the top
    write(groups / "cpu/cpu.cfs_period_us", "100000")
    write(groups / "memory/memory.limit_in_bytes", "8000")
    write(groups / "memory/memory.usage_in_bytes", "7000")
    assert usable_cores(tmp_path) == 1
    assert free_memory(tmp_path) == 1000
    write(groups / "cpu/cpu.cfs_quota_us", "-1")
    assert usable_cores(tmp_path) == usable_cores()


def test_no_groups_at_all(tmp_path: Path):
    assert usable_cores(tmp_path) >= 1
    assert free_memory(tmp_path) > 0
