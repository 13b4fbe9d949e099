"""Measures sides in turns, and in the same rounds what their hardware could do.

Every phase of a step is timed apart; rounds are interleaved in changing order, since machines are
shared and noisy.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_vitmae.benchmarks.clock import Clock
from hf_vitmae.benchmarks.count import count_flops, layer_products, own_bytes, saved_bytes
from hf_vitmae.benchmarks.limit import Cube, Products
from hf_vitmae.benchmarks.sides import Precision, Side, running

PHASES = ("forward", "backward", "optimizer")
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}  # relative
# Of norms. Two bf16 models of equal weights are each 0.8 % off float32, and 1 % from each other.
OUTPUT_TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
TURN_SECONDS = 0.2  # how long a side goes on in its turn, where one step is shorter
FEWEST_STEPS_ON_A_GPU, MOST_STEPS = 3, 20
CUBE_LENGTH = 8192


@dataclass
class Measured:
    """What one side did.

    Args:
        seconds: of a step in each round, by phase; "step" is all of it.
        flops: of one step, counted in matrix products, convolutions and attention.
        saved_bytes: what autograd keeps of a step for its backward pass, weights left out.
        peak_bytes: most memory that the device had allocated for it: weights, optimiser, a step.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    flops: float = 0.0
    saved_bytes: int | None = None
    peak_bytes: int | None = None

    def median(self, phase: str = "step") -> float:
        return statistics.median(self.seconds[phase])

    def rate(self) -> float:
        """Floating-point operations a second."""
        return self.flops / self.median()


@dataclass
class Measurement:
    """All sides of a case, and what the hardware did meanwhile.

    Args:
        products: the matrix products of the first side's linear layers alone.
        cube: one large square product; None on a CPU.
    """

    sides: dict[str, Measured]
    products: Measured
    cube: Measured | None = None


def measure(
    sides: Sequence[Side],
    inputs: Mapping[str, Tensor],
    *,
    dtype: str,
    device: torch.device,
    rounds: int,
    cube_length: int = CUBE_LENGTH,
) -> Measurement:
    """All sides on the same inputs, after a check that they compute the same.

    Raises:
        ValueError: if a side's result is another one than the first's.
    """
    clock, is_training = Clock(device), sides[0].optimizer is not None
    precision = make_precision(dtype, device, is_training)
    check_equal(sides, inputs, dtype, precision)
    found = {side.name: _count(side, inputs, clock, precision) for side in sides}
    num_steps = _num_steps(sides[0], inputs, clock, precision)
    turns: dict[str, Callable[[], Mapping[str, float]]] = {
        side.name: lambda side=side: time_steps(side, inputs, clock, precision, num_steps)
        for side in sides
    }
    options = {"dtype": KINDS[dtype], "device": inputs["pixel_values"].device}
    limits: dict[str, Products | Cube] = {}
    limits["products"] = Products(
        layer_products(sides[0], inputs), is_training=is_training, **options
    )
    if clock.is_cuda:
        limits["cube"] = Cube(cube_length, **options)
    turns |= {name: lambda limit=limit: limit.turn(clock) for name, limit in limits.items()}
    for name, seconds in take_turns(turns, rounds).items():
        if name in limits:
            found[name] = Measured(flops=limits[name].flops)
        found[name].seconds = seconds
    products, cube = found.pop("products"), found.pop("cube", None)
    return Measurement(found, products, cube)


def _count(
    side: Side, inputs: Mapping[str, Tensor], clock: Clock, precision: Precision
) -> Measured:
    """All but the time, after a first step, which makes the optimiser's state."""
    time_steps(side, inputs, clock, precision)
    added = clock.added_bytes(lambda: time_steps(side, inputs, clock, precision))
    return Measured(
        flops=count_flops(side, inputs, precision),
        saved_bytes=None if side.optimizer is None else saved_bytes(side, inputs, precision),
        peak_bytes=None if added is None else added + own_bytes(side),
    )


def take_turns(
    turns: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """What each turn gives in each round, by its own names; a first round only warms up.

    Each round begins with another one, and each cycle goes the other way round.
    """
    names = list(turns)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(rounds + 1):
        cycle, first = divmod(number, len(names))
        order = names[first:] + names[:first]
        for name in order[::-1] if cycle % 2 else order:
            seconds = turns[name]()
            if number:
                for phase, value in seconds.items():
                    found[name].setdefault(phase, []).append(value)
    return found


def time_steps(
    side: Side,
    inputs: Mapping[str, Tensor],
    clock: Clock,
    precision: Precision,
    num_steps: int = 1,
) -> dict[str, float]:
    """Steps of training or inference, one after another: mean seconds of each phase.

    The device is waited for at the end alone, so that a GPU works while the next is prepared.
    """
    marks = [clock.mark()]
    for _ in range(num_steps):
        marks += _step(side, inputs, clock, precision)
    seconds = clock.seconds(marks)
    phases = PHASES[:1] if side.optimizer is None else PHASES
    means = {
        phase: statistics.fmean(seconds[place :: len(phases)]) for place, phase in enumerate(phases)
    }
    return {**means, "step": sum(means.values())}


def _step(
    side: Side, inputs: Mapping[str, Tensor], clock: Clock, precision: Precision
) -> list[object]:
    """One step: the marks at the end of each phase."""
    with running(side, precision):
        result = side.compute(inputs)
    marks = [clock.mark()]
    if side.optimizer is None:
        return marks
    result.backward()
    marks.append(clock.mark())
    side.optimizer.step()
    side.optimizer.zero_grad()
    return [*marks, clock.mark()]


def _num_steps(side: Side, inputs: Mapping[str, Tensor], clock: Clock, precision: Precision) -> int:
    """How many of them a turn has, by the first side's time for one."""
    seconds = time_steps(side, inputs, clock, precision)["step"]
    fewest = FEWEST_STEPS_ON_A_GPU if clock.is_cuda else 1
    return min(MOST_STEPS, max(fewest, math.ceil(TURN_SECONDS / max(seconds, 1e-9))))


def check_equal(
    sides: Sequence[Side], inputs: Mapping[str, Tensor], dtype: str, precision: Precision
) -> None:
    """Raise `ValueError` unless all sides give the first's loss or outputs."""
    tolerances = OUTPUT_TOLERANCE if sides[0].optimizer is None else LOSS_TOLERANCE
    allowed, expected = tolerances[dtype], None
    for side in sides:
        with running(side, precision):
            got = side.compute(inputs).detach().float()
        expected = got if expected is None else expected
        error = float((got - expected).norm() / expected.norm().clamp(min=1e-12))
        if not error <= allowed:
            raise ValueError(
                f"{side.name} gives another result than {sides[0].name}: they differ by {error:.1e}"
                f" and may differ by {allowed:.0e}; speeds of the two mean nothing."
            )


def make_precision(dtype: str, device: torch.device, is_training: bool) -> Precision:
    """bf16 is autocast in training, as the loop has it; inference has the weights in it."""

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16)

    return autocast if dtype == "bf16" and is_training else nullcontext
