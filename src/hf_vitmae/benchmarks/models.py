"""Our MAE step, fine-tuning step and inference against transformers', on a CPU or a GPU."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_vitmae.benchmarks.clock import Clock
from hf_vitmae.benchmarks.measure import KINDS, make_precision, measure, time_steps
from hf_vitmae.benchmarks.report import Case, Report, summary
from hf_vitmae.benchmarks.sides import (
    SIZES,
    TASKS,
    TRAINING,
    Side,
    make_config,
    make_inputs,
    make_sides,
)
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.whole_or_absent import write_whole

PEERS = ("recomputed", "compiled", "timm")
DTYPES = tuple(KINDS)
CPU_BATCHES = {"ti": 8, "s": 4, "b": 4, "l": 1, "smoke": 4}
FIRST_TRIAL = 8  # images; a GPU's batch is doubled from there until its memory is full
MOST_IMAGES = 2048
LINES_OF_PROFILE = 25


@dataclass(frozen=True, kw_only=True)
class ModelBenchmark:
    """What to measure. Names may be joined by commas.

    Args:
        tasks: "mae", "finetune", "inference" (a classifier's), "features" (the encoder's).
        peers: besides transformers as it is: "compiled" (ours and theirs), "recomputed" (ours),
            "timm" (not for mae).
        image_size: None takes 224, or what size "smoke" has.
        batch_size: None takes one by size on a CPU, and what fits on a GPU; inference has 1 and it.
        threads: of a CPU; None leaves torch's.
        output: folder for benchmark.json, benchmark.md and profiles.
        profile: write a profile of one of our steps for each case.

    Raises:
        ValueError: for a task, size, precision or peer that there is none of.
    """

    tasks: Sequence[str] = TASKS[:3]
    sizes: Sequence[str] = ("ti", "b")
    dtypes: Sequence[str] = DTYPES
    peers: Sequence[str] = ("recomputed",)
    device: str = "cpu"
    image_size: int | None = None
    batch_size: int | None = None
    rounds: int = 7
    threads: int | None = None
    output: Path | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("tasks", TASKS),
            ("sizes", tuple(SIZES)),
            ("dtypes", DTYPES),
            ("peers", PEERS),
        ):
            values = tuple(value for part in getattr(self, name) for value in part.split(","))
            object.__setattr__(self, name, values)
            for value in values:
                if value not in allowed:
                    raise ValueError(f"`{name}` has {value!r}; choose from {', '.join(allowed)}.")
        for name in ("image_size", "batch_size", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.profile and self.output is None:
            raise ValueError("`profile` needs a folder to write to; give `output` too.")

    def make_config(self, size: str) -> VitMaeConfig:
        """Of a standard size, for the images that are asked for."""
        return make_config(
            size, **({} if self.image_size is None else {"image_size": self.image_size})
        )


def run(request: ModelBenchmark, say: Callable[[str], None] = print) -> Report:
    """Measure every case, saying each as it is done; writes to `request.output` as it goes on.

    Raises:
        ValueError: if two sides do not compute the same, or there is no such device.
    """
    _prepare(request)
    report = Report(torch.device(request.device), request.rounds)
    for task in request.tasks:
        for size in request.sizes:
            for dtype in request.dtypes:
                for batch_size in _batch_sizes(request, task, size, dtype):
                    report.cases.append(_measure(request, task, size, dtype, batch_size))
                    say(summary(report.cases[-1]))
                    _write(request, report)
    say(report.to_markdown())
    return report


def _prepare(request: ModelBenchmark) -> None:
    if torch.device(request.device).type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"There is no device {request.device!r} here; take `device` cpu.")
        # Else torch has convolutions in less than float32, and products of matrices not.
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    if request.threads is not None:
        torch.set_num_threads(request.threads)


def _measure(request: ModelBenchmark, task: str, size: str, dtype: str, batch_size: int) -> Case:
    device, config = torch.device(request.device), request.make_config(size)
    sides = _sides(request, task, config, dtype, tuple(request.peers))
    inputs = _inputs(task, config, dtype, batch_size, device)
    found = measure(sides, inputs, dtype=dtype, device=device, rounds=request.rounds)
    if request.profile and request.output is not None:
        name = f"profile-{task}-{size}-{dtype}-{batch_size}.txt"
        write_whole(request.output / name, profile(sides[0], inputs, dtype, device))
    return Case(task, size, dtype, batch_size, found.sides, found.products, found.cube)


def _sides(
    request: ModelBenchmark, task: str, config: VitMaeConfig, dtype: str, peers: tuple[str, ...]
) -> list[Side]:
    """The sides on the device; inference in bf16 has the weights in it."""
    gc.collect()
    if torch.device(request.device).type == "cuda":
        torch.cuda.empty_cache()
    sides = make_sides(task, config, peers)
    for side in sides:
        side.model.to(request.device)
        if task not in TRAINING:
            side.model.to(KINDS[dtype])
    return sides


def _inputs(
    task: str, config: VitMaeConfig, dtype: str, batch_size: int, device: torch.device
) -> dict[str, Tensor]:
    kind = KINDS["fp32" if task in TRAINING else dtype]
    inputs = make_inputs(task, config, batch_size)
    return {
        name: value.to(device, kind if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def _batch_sizes(request: ModelBenchmark, task: str, size: str, dtype: str) -> list[int]:
    """What to measure a case with."""
    largest = request.batch_size
    if largest is None and torch.device(request.device).type == "cpu":
        largest = CPU_BATCHES[size]
    if largest is None:
        largest = largest_batch(request, task, size, dtype)
    return [largest] if task in TRAINING else sorted({1, largest})


def largest_batch(request: ModelBenchmark, task: str, size: str, dtype: str) -> int:
    """Half of the first power of two that does not fit into the GPU with every side."""
    device, config = torch.device(request.device), request.make_config(size)
    peers = tuple(peer for peer in request.peers if peer != "compiled")  # for each batch anew
    sides = _sides(request, task, config, dtype, peers)
    clock, batch_size = Clock(device), FIRST_TRIAL
    precision = make_precision(dtype, device, task in TRAINING)
    while batch_size <= MOST_IMAGES:
        try:
            inputs = _inputs(task, config, dtype, batch_size, device)
            for side in sides:
                time_steps(side, inputs, clock, precision)
        except torch.OutOfMemoryError:
            break
        batch_size *= 2
    return max(1, batch_size // 2)


def profile(side: Side, inputs: dict[str, Tensor], dtype: str, device: torch.device) -> str:
    """What a step of ours spends its time on, by torch's profiler."""
    clock = Clock(device)
    precision = make_precision(dtype, device, side.optimizer is not None)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if clock.is_cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    time_steps(side, inputs, clock, precision)
    with torch.profiler.profile(activities=kinds) as recorded:
        time_steps(side, inputs, clock, precision)
    order = "self_device_time_total" if clock.is_cuda else "self_cpu_time_total"
    table: Any = recorded.key_averages()
    return table.table(sort_by=order, row_limit=LINES_OF_PROFILE)


def _write(request: ModelBenchmark, report: Report) -> None:
    if request.output is not None:
        write_whole(request.output / "benchmark.json", report.to_json() + "\n")
        write_whole(request.output / "benchmark.md", report.to_markdown() + "\n")
