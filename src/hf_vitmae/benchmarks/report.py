"""What a benchmark found, as a table for people and JSON for machines."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers

from hf_vitmae.benchmarks.clock import device_name
from hf_vitmae.benchmarks.measure import Measured


@dataclass
class Case:
    """One task, size and precision, with all of its sides.

    Args:
        limit: floating-point operations a second of the model's own matrix products alone.
        cube: those of one large square product; None where it was not measured.
    """

    task: str
    size: str
    dtype: str
    batch_size: int
    sides: dict[str, Measured]
    limit: float
    cube: float | None = None

    def ratio(self, name: str, phase: str = "step") -> float:
        """How many times longer a side takes than ours, by medians."""
        return self.sides[name].median(phase) / self.sides["ours"].median(phase)

    def ratios(self, name: str) -> list[float]:
        """The same of each round."""
        pairs = zip(self.sides[name].seconds["step"], self._ours(), strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def images_per_second(self, name: str) -> float:
        return self.batch_size / self.sides[name].median()

    def share_of_limit(self, name: str) -> float | None:
        """Of what the hardware does at the model's own products; None where nothing was counted."""
        side = self.sides[name]
        return side.flops / side.median() / self.limit if side.flops else None

    def _ours(self) -> list[float]:
        return self.sides["ours"].seconds["step"]


@dataclass
class Report:
    """All cases of a run on one machine."""

    device: torch.device
    cases: list[Case] = field(default_factory=list)

    def machine(self) -> dict[str, Any]:
        """What the figures belong to."""
        return {
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }

    def to_json(self) -> str:
        """Everything, each round's seconds included."""
        cases = []
        for case in self.cases:
            ratios = {name: case.ratio(name) for name in case.sides if name != "ours"}
            cases.append({**asdict(case), "ratios": ratios})
        return json.dumps({"machine": self.machine(), "cases": cases}, indent=1)

    def to_markdown(self) -> str:
        """A row for each side of each case."""
        header = (
            "task | size | precision | batch | model | images/s | of the limit | saved | peak"
            " | step | forward | backward"
        ).split(" | ")
        rows = [row for case in self.cases for row in _rows(case)]
        return "\n".join([_line(header), _line(["---"] * len(header)), *map(_line, rows)])


def _rows(case: Case) -> Iterable[list[str]]:
    for name, side in case.sides.items():
        share = case.share_of_limit(name)
        ratio = "1" if name == "ours" else _ratio(case, name)
        yield [
            *(case.task, case.size, case.dtype, str(case.batch_size), name),
            f"{case.images_per_second(name):.3g}",
            "" if share is None else f"{share:.0%}",
            _megabytes(side.saved_bytes),
            _megabytes(side.peak_bytes),
            ratio,
            *(_phase(case, name, phase) for phase in ("forward", "backward")),
        ]


def _ratio(case: Case, name: str) -> str:
    ratios = case.ratios(name)
    return f"{case.ratio(name):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _phase(case: Case, name: str, phase: str) -> str:
    if phase not in case.sides[name].seconds:
        return ""
    return f"{case.ratio(name, phase):.2f}"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.4g} MiB"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def summary(case: Case) -> str:
    """One line as soon as a case is done."""
    parts = [f"{case.task} {case.size} {case.dtype} batch {case.batch_size}:"]
    for name, side in case.sides.items():
        middle = 1000 * side.median()
        low, high = (1000 * pick(side.seconds["step"]) for pick in (min, max))
        against = "" if name == "ours" else f", ratio {_ratio(case, name)}"
        parts.append(f"\n  {name} {middle:.1f} ms ({low:.1f} to {high:.1f}){against}")
    return "".join(parts)
