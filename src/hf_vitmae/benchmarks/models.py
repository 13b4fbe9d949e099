"""Our MAE step, fine-tuning step and inference against transformers', on a CPU or a GPU."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_vitmae.benchmarks.clock import Clock
from hf_vitmae.benchmarks.measure import cube_rate, matmul_limit, measure, step
from hf_vitmae.benchmarks.report import Case, Report, summary
from hf_vitmae.benchmarks.sides import SIZES, TASKS, Side, make_config, make_inputs, make_sides
from hf_vitmae.models.configuration_vitmae import VitMaeConfig

PEERS = ("recomputed", "compiled")
DTYPES = ("fp32", "bf16")
CPU_BATCHES = {"ti": 8, "s": 4, "b": 4, "l": 1, "smoke": 4}
FIRST_TRIAL = 8  # images; a GPU's batch is doubled from there until its memory is full


@dataclass(frozen=True, kw_only=True)
class ModelBenchmark:
    """What to measure.

    Args:
        peers: besides transformers as it is: "compiled" (ours and theirs), "recomputed" (ours).
        batch_size: None takes one by size on a CPU, and what fits on a GPU; inference has 1 and it.
        threads: of a CPU; None leaves torch's.
        output: folder for benchmark.json, benchmark.md and profiles.
        profile: write a profile of one of our steps for each case.

    Raises:
        ValueError: for a task, size, precision or peer that there is none of.
    """

    tasks: Sequence[str] = TASKS
    sizes: Sequence[str] = ("ti", "b")
    dtypes: Sequence[str] = DTYPES
    peers: Sequence[str] = ("recomputed",)
    device: str = "cpu"
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
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"`{name}` has {value!r}; choose from {', '.join(allowed)}.")
        for name in ("batch_size", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


def run(request: ModelBenchmark, say: Callable[[str], None] = print) -> Report:
    """Measure every case, saying each as it is done; writes to `request.output` as it goes on.

    Raises:
        ValueError: if two sides do not compute the same.
    """
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    report = Report(torch.device(request.device))
    for task in request.tasks:
        for size in request.sizes:
            for dtype in request.dtypes:
                for batch_size in _batch_sizes(request, task, size, dtype):
                    report.cases.append(_measure(request, task, size, dtype, batch_size))
                    say(summary(report.cases[-1]))
                    _write(request, report)
    say(report.to_markdown())
    return report


def _measure(request: ModelBenchmark, task: str, size: str, dtype: str, batch_size: int) -> Case:
    device, config = torch.device(request.device), make_config(size)
    sides = _sides(request, task, config, dtype)
    inputs = make_inputs(task, config, batch_size)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    if task == "inference" and dtype == "bf16":
        inputs = {name: value.bfloat16() for name, value in inputs.items()}
    found = measure(sides, inputs, dtype=dtype, device=device, rounds=request.rounds)
    limit = matmul_limit(sides[0], inputs, dtype=dtype, device=device)
    cube = cube_rate(device, dtype) if device.type == "cuda" else None
    if request.profile and request.output is not None:
        name = f"profile-{task}-{size}-{dtype}-{batch_size}.txt"
        _profile(sides[0], inputs, dtype, device, request.output / name)
    return Case(task, size, dtype, batch_size, found, limit, cube)


def _sides(request: ModelBenchmark, task: str, config: VitMaeConfig, dtype: str) -> list[Side]:
    """The sides on the device; inference in bf16 has the weights in it."""
    gc.collect()
    torch.compiler.reset()  # one case's graphs are of no use to the next
    sides = make_sides(task, config, tuple(request.peers))
    for side in sides:
        side.model.to(request.device)
        if task == "inference" and dtype == "bf16":
            side.model.bfloat16()
    return sides


def _batch_sizes(request: ModelBenchmark, task: str, size: str, dtype: str) -> list[int]:
    """What to measure a case with."""
    largest = request.batch_size
    if largest is None and request.device == "cpu":
        largest = CPU_BATCHES[size]
    if largest is None:
        largest = largest_batch(request, task, size, dtype)
    return sorted({1, largest}) if task == "inference" else [largest]


def largest_batch(request: ModelBenchmark, task: str, size: str, dtype: str) -> int:
    """Half of the first power of two that does not fit into the GPU with every side."""
    device, config = torch.device(request.device), make_config(size)
    sides = _sides(request, task, config, dtype)
    clock, batch_size = Clock(device), FIRST_TRIAL
    precision = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")
    while batch_size < 2**14:
        inputs = make_inputs(task, config, batch_size)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        if task == "inference" and dtype == "bf16":
            inputs = {name: value.bfloat16() for name, value in inputs.items()}
        try:
            for side in sides:
                step(side, inputs, clock, lambda: precision)
        except torch.OutOfMemoryError:
            break
        batch_size *= 2
    del sides
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return max(1, batch_size // 2)


def _profile(
    side: Side, inputs: dict[str, torch.Tensor], dtype: str, device: torch.device, path: Path
) -> None:
    """What a step of ours spends its time on, by torch's profiler."""
    clock = Clock(device)
    autocast = dtype == "bf16" and side.optimizer is not None
    precision = torch.autocast(device.type, torch.bfloat16, enabled=autocast)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    step(side, inputs, clock, lambda: precision)
    with torch.profiler.profile(activities=kinds) as profile:
        step(side, inputs, clock, lambda: precision)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profile.key_averages().table(sort_by=order, row_limit=25))


def _write(request: ModelBenchmark, report: Report) -> None:
    if request.output is None:
        return
    request.output.mkdir(parents=True, exist_ok=True)
    (request.output / "benchmark.json").write_text(report.to_json())
    (request.output / "benchmark.md").write_text(report.to_markdown() + "\n")
