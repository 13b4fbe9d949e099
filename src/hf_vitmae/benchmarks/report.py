"""What a benchmark found, as a table for people and JSON for machines."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers

from hf_vitmae.benchmarks.clock import device_name
from hf_vitmae.benchmarks.measure import PHASES, Measured

HEADER = (
    *("task", "size", "precision", "batch", "model", "ms", "images/s", "of the products"),
    *("of 8192 cube", "saved", "peak", "step", *PHASES),
)


@dataclass
class Case:
    """One task, size and precision, with all of its sides.

    Args:
        products: the matrix products of our linear layers alone.
        cube: one large square product; None where it was not measured.
    """

    task: str
    size: str
    dtype: str
    batch_size: int
    sides: dict[str, Measured]
    products: Measured
    cube: Measured | None = None

    def ratio(self, name: str, phase: str = "step") -> float:
        """How many times longer a side takes than ours, by medians."""
        return self.sides[name].median(phase) / self.sides["ours"].median(phase)

    def ratios(self, name: str) -> list[float]:
        """The same of each round."""
        ours = self.sides["ours"].seconds["step"]
        pairs = zip(self.sides[name].seconds["step"], ours, strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def images_per_second(self, name: str) -> float:
        return self.batch_size / self.sides[name].median()

    def share(self, name: str, limit: Measured) -> float:
        """Of what the hardware does at a limit's products alone, in the same rounds."""
        return self.sides[name].rate() / limit.rate()


@dataclass
class Report:
    """All cases of a run on one machine."""

    device: torch.device
    rounds: int
    cases: list[Case] = field(default_factory=list)

    def machine(self) -> dict[str, Any]:
        """What the figures belong to."""
        return {
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }

    def to_json(self) -> str:
        """Everything, each round's seconds included."""
        cases = []
        for case in self.cases:
            ratios = {
                name: {"median": case.ratio(name), "rounds": case.ratios(name)}
                for name in case.sides
                if name != "ours"
            }
            cases.append({**asdict(case), "ratios": ratios})
        machine = self.machine()
        return json.dumps({"machine": machine, "rounds": self.rounds, "cases": cases}, indent=1)

    def to_markdown(self) -> str:
        """A row for each side of each case; columns that nothing is known of are left out."""
        rows = [row for case in self.cases for row in _rows(case)]
        filled = [place for place in range(len(HEADER)) if any(row[place] for row in rows)]
        table = [HEADER, ["---"] * len(HEADER), *rows]
        lines = [_line([row[place] for place in filled]) for row in table]
        return "\n".join([self._about(), "", *lines])

    def _about(self) -> str:
        machine = self.machine()
        return (
            f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
            f"transformers {machine['transformers']}: medians of {self.rounds} rounds in turns. "
            "The last columns are times over ours, with the range of the rounds' ratios."
        )


def _rows(case: Case) -> Iterable[list[str]]:
    for name, side in case.sides.items():
        yield [
            *(case.task, case.size, case.dtype, str(case.batch_size), name),
            _short(1000 * side.median()),
            _short(case.images_per_second(name)),
            f"{case.share(name, case.products):.0%}",
            "" if case.cube is None else f"{case.share(name, case.cube):.0%}",
            _megabytes(side.saved_bytes),
            _megabytes(side.peak_bytes),
            "1" if name == "ours" else _ratio(case, name),
            *(_phase(case, name, phase) for phase in PHASES),
        ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(case: Case, name: str) -> str:
    ratios = case.ratios(name)
    return f"{case.ratio(name):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _phase(case: Case, name: str, phase: str) -> str:
    if "backward" not in case.sides[name].seconds:
        return ""  # the forward pass is all of it
    return "1" if name == "ours" else f"{case.ratio(name, phase):.2f}"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f} MiB"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def summary(case: Case) -> str:
    """One line for each side as soon as a case is done."""
    parts = [f"{case.task} {case.size} {case.dtype} batch {case.batch_size}:"]
    for name, side in case.sides.items():
        middle = 1000 * side.median()
        low, high = (1000 * pick(side.seconds["step"]) for pick in (min, max))
        against = "" if name == "ours" else f", ratio {_ratio(case, name)}"
        parts.append(f"\n  {name} {middle:.1f} ms ({low:.1f} to {high:.1f}){against}")
    return "".join(parts)
