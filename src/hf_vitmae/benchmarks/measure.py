"""Measures sides in turns, and what their hardware could do.

Every phase of a step is timed apart; rounds are interleaved in changing order, since machines are
shared and noisy.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_vitmae.benchmarks.clock import Clock
from hf_vitmae.benchmarks.sides import Side

PHASES = ("forward", "backward", "optimizer")
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}  # relative, between losses; between norms of outputs
MOST_SHAPES = 24  # whose matrix products give the limit, the costliest first


@dataclass
class Measured:
    """What one side did.

    Args:
        seconds: of each round, by phase; "step" is all of it.
        flops: of one step, counted in matrix products and attention.
        saved_bytes: what autograd keeps of a step for its backward pass, weights left out.
        peak_bytes: most memory that the device had allocated in a step.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    flops: float = 0.0
    saved_bytes: int | None = None
    peak_bytes: int | None = None

    def median(self, phase: str = "step") -> float:
        return statistics.median(self.seconds[phase])


def measure(
    sides: Sequence[Side],
    inputs: Mapping[str, Tensor],
    *,
    dtype: str,
    device: torch.device,
    rounds: int,
) -> dict[str, Measured]:
    """All sides on the same inputs, after a check that they compute the same.

    Raises:
        ValueError: if a side's result is another one than the first's.
    """
    clock = Clock(device)
    precision = _precision(dtype, device, is_training=sides[0].optimizer is not None)
    check_equal(sides, inputs, dtype, precision)
    results = {side.name: Measured() for side in sides}
    for side in sides:
        found = results[side.name]
        found.flops = count_flops(side, inputs, precision)
        if side.optimizer is not None:
            found.saved_bytes = saved_bytes(side, inputs, precision)
        found.peak_bytes = clock.peak_bytes(lambda side=side: step(side, inputs, clock, precision))
    for number in range(rounds + 1):
        turn = sides if number % 2 else sides[::-1]
        for side in turn:
            seconds = step(side, inputs, clock, precision)
            if number:  # the first warms up
                for phase, value in seconds.items():
                    results[side.name].seconds.setdefault(phase, []).append(value)
    return results


def step(
    side: Side,
    inputs: Mapping[str, Tensor],
    clock: Clock,
    precision: Callable[[], AbstractContextManager[Any]],
) -> dict[str, float]:
    """One step of training or inference: seconds by phase."""
    if side.optimizer is None:
        with torch.inference_mode(), precision():
            marks = [clock.mark()]
            side.compute(inputs)
            marks.append(clock.mark())
        (seconds,) = clock.seconds(marks)
        return {"forward": seconds, "step": seconds}
    marks = [clock.mark()]
    with precision():
        loss = side.compute(inputs)
    marks.append(clock.mark())
    loss.backward()
    marks.append(clock.mark())
    side.optimizer.step()
    side.optimizer.zero_grad()
    marks.append(clock.mark())
    seconds = clock.seconds(marks)
    return {**dict(zip(PHASES, seconds, strict=True)), "step": sum(seconds)}


def check_equal(
    sides: Sequence[Side],
    inputs: Mapping[str, Tensor],
    dtype: str,
    precision: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Raise `ValueError` unless all sides give the first's loss or outputs."""
    expected = None
    for side in sides:
        with torch.no_grad(), precision():
            got = side.compute(inputs).float()
        expected = got if expected is None else expected
        error = float((got - expected).norm() / expected.norm().clamp(min=1e-12))
        if not error <= TOLERANCE[dtype]:
            raise ValueError(
                f"{side.name} gives another result than {sides[0].name}: they differ by {error:.1e}"
                f" and may differ by {TOLERANCE[dtype]:.0e}; speeds of the two mean nothing."
            )


def count_flops(
    side: Side,
    inputs: Mapping[str, Tensor],
    precision: Callable[[], AbstractContextManager[Any]],
) -> float:
    """Floating-point operations of a step's matrix products and attention."""
    if "compiled" in side.name:
        return 0.0  # the graph hides them; they are those of the model as it is
    with FlopCounterMode(display=False, custom_mapping=_uncounted()) as counter, precision():
        result = side.compute(inputs)
        if side.optimizer is not None:
            result.backward()
            side.optimizer.zero_grad()
    return float(counter.get_total_flops())


def _uncounted() -> dict[Any, Any]:
    """Formulas for products that torch's counter does not know."""
    operators = getattr(torch.ops, "mkldnn", None)
    if not hasattr(operators, "_linear_pointwise"):
        return {}

    def of_linear(rows: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * rows.numel() * weight[0]

    return {torch.ops.mkldnn._linear_pointwise: of_linear}


def saved_bytes(
    side: Side,
    inputs: Mapping[str, Tensor],
    precision: Callable[[], AbstractContextManager[Any]],
) -> int | None:
    """Bytes that autograd keeps, each storage once; weights, and what autocast made of them, are
    left out. None for compiled sides.
    """
    if "compiled" in side.name:
        return None
    weights = {tuple(p.shape) for p in side.model.parameters()}
    weights |= {shape[::-1] for shape in weights if len(shape) == 2}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage  # alive, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision():
        result = side.compute(inputs)
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def matmul_limit(
    side: Side,
    inputs: Mapping[str, Tensor],
    *,
    dtype: str,
    device: torch.device,
    rounds: int = 5,
) -> float:
    """Floating-point operations a second of the model's own matrix products, alone and at their
    best: forward, and with an optimiser both products of the backward pass.
    """
    clock = Clock(device)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    flops, seconds = 0.0, 0.0
    for (rows, inner, columns), count in product_shapes(side, inputs):
        one = torch.randn(rows, inner, device=device, dtype=kind)
        other = torch.randn(inner, columns, device=device, dtype=kind)
        torch.mm(one, other)
        times = []
        for _ in range(rounds):
            marks = [clock.mark()]
            torch.mm(one, other)
            marks.append(clock.mark())
            times += clock.seconds(marks)
        flops += count * 2.0 * rows * inner * columns
        seconds += count * min(times)
    return flops / seconds


def product_shapes(
    side: Side, inputs: Mapping[str, Tensor]
) -> list[tuple[tuple[int, int, int], int]]:
    """(M, K, N) of every product of a linear layer in a step, and how often; costliest first."""
    counts: dict[tuple[int, int, int], int] = {}

    def note(layer: Any, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        rows, (columns, inner) = arguments[0].numel() // arguments[0].shape[-1], layer.weight.shape
        products = [(rows, inner, columns)]
        if side.optimizer is not None:
            products += [(rows, columns, inner), (columns, rows, inner)]
        for product in products:
            counts[product] = counts.get(product, 0) + 1

    layers = [layer for layer in side.model.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            side.compute(inputs)
    finally:
        for handle in handles:
            handle.remove()
    ordered = sorted(
        counts.items(), key=lambda item: -item[1] * item[0][0] * item[0][1] * item[0][2]
    )
    return ordered[:MOST_SHAPES]


def cube_rate(device: torch.device, dtype: str, side_length: int = 8192, rounds: int = 20) -> float:
    """Floating-point operations a second of one large square product, a GPU's usual measure."""
    clock = Clock(device)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    one, other = torch.randn(2, side_length, side_length, device=device, dtype=kind).unbind()
    times = []
    for _ in range(rounds):
        marks = [clock.mark()]
        torch.mm(one, other)
        marks.append(clock.mark())
        times += clock.seconds(marks)
    return 2.0 * side_length**3 / statistics.median(times)


def _precision(
    dtype: str, device: torch.device, is_training: bool
) -> Callable[[], AbstractContextManager[Any]]:
    """bf16 is autocast in training, as the loop has it; inference has the weights in it."""
    if dtype == "bf16" and is_training:
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext
