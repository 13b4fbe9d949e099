"""What a comparison says: a table, which differences are more than chance, and how it was done.

Everything follows from the lines of results.jsonl, so it can be checked by hand.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hf_vitmae.tasks.compare_plan import Arm
from hf_vitmae.visualize.comparison import comparison_plot
from hf_vitmae.whole_or_absent import whole_or_absent, write_whole

METHODS = {"knn": "kNN", "linear-probe": "linear probe", "finetune": "fine-tuning"}
# Student's t, two-sided 95 %, for 1 to 10 degrees of freedom; for more, that of 10 is stricter.
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True)
class Row:
    """The accuracies of one model by one method, in the order of the seeds."""

    method: str
    model: str
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None of a single value."""
        return _deviation(self.accuracies)


@dataclass(frozen=True)
class Difference:
    """How far a model is above another one, draw by draw."""

    method: str
    model: str
    reference: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None of a single value."""
        deviation = _deviation(self.values)
        return None if deviation is None else deviation / len(self.values) ** 0.5

    @property
    def verdict(self) -> Literal["above", "below", "cannot be told"]:
        """Which side of zero the 95 % interval of the mean is on, if it is on one."""
        if self.standard_error is None:
            return "cannot be told"
        margin = T_95[min(len(self.values) - 1, len(T_95)) - 1] * self.standard_error
        if self.mean > margin:
            return "above"
        return "below" if self.mean < -margin else "cannot be told"


@dataclass(frozen=True)
class Comparison:
    """What came out, and how: of `arms`, from the lines of results.jsonl.

    Args:
        settings: name -> value, as comparison.json has them.
        notes: how it was done, a sentence each.
    """

    arms: Sequence[Arm]
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def rows(self) -> list[Row]:
        """A row for each method and model that has results, in the order of the arms."""
        rows = []
        for method in METHODS:
            for arm in self.arms:
                own = [r for r in self.records if (r["method"], r["model"]) == (method, arm.name)]
                if own:
                    own.sort(key=lambda record: record["seed"])
                    rows.append(Row(method, arm.name, tuple(r["accuracy"] for r in own)))
        return rows

    @property
    def differences(self) -> list[Difference]:
        """The best checkpoint by each method, against what was not pretrained."""
        found = []
        for method in METHODS:
            rows = {row.model: row for row in self.rows if row.method == method}
            checkpoints = [a.name for a in self.arms if a.is_checkpoint and a.name in rows]
            if not checkpoints:
                continue
            best = max(checkpoints, key=lambda name: rows[name].mean)
            for other in self._references(best, [name for name in rows if name != best]):
                pairs = zip(rows[best].accuracies, rows[other].accuracies, strict=True)
                found.append(Difference(method, best, other, tuple(a - b for a, b in pairs)))
        return found

    def _references(self, best: str, others: Sequence[str]) -> list[str]:
        """What the best checkpoint is set against: the other checkpoints if there is nothing else,
        and of longer runs from scratch only the one that has its own compute.
        """
        arms = [arm for arm in self.arms if arm.name in others]
        plain = [a.name for a in arms if not a.is_checkpoint and best in (a.compute_of or (best,))]
        return plain or [arm.name for arm in arms]

    @property
    def conclusion(self) -> list[str]:
        """In words: every difference, and whether pretraining helped."""
        num_images = self.settings["eval_images"]
        lines = [sentence(difference) for difference in self.differences]
        if sum(arm.is_checkpoint for arm in self.arms) > 1:
            lines.append(
                "The best checkpoint is picked by the very accuracies that are shown, which "
                "flatters it a little."
            )
        lines.append(
            f"All of it is measured on the same {num_images} images; as many other ones would move "
            f"each accuracy by up to {0.5 / num_images**0.5:.3f} (one standard error)."
        )
        return [*lines, *self._answer()]

    def _answer(self) -> Iterator[str]:
        """Did it help? One line, where there is a model from scratch to tell it by."""
        scratch = {arm.name: arm for arm in self.arms if arm.is_random}
        said: dict[str, list[str]] = {"above": [], "below": [], "cannot be told": []}
        for difference in self.differences:
            if difference.reference in scratch:
                longer = scratch[difference.reference].extra_steps > 0
                words = " at the same total compute" if longer else ""
                said[difference.verdict].append(METHODS[difference.method] + words)
        names = {"above": "Yes by", "below": "No by", "cannot be told": "Cannot be told by"}
        parts = [f"{names[verdict]} {', '.join(by)}." for verdict, by in said.items() if by]
        if parts:
            yield f"Did pretraining help, with {self.settings['labels']} labels? {' '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """Everything, as comparison.json has it."""
        rows = [asdict(r) | {"mean": r.mean, "spread": r.spread} for r in self.rows]
        differences = [
            asdict(d) | {"mean": d.mean, "standard_error": d.standard_error, "verdict": d.verdict}
            for d in self.differences
        ]
        return {
            "settings": dict(self.settings),
            "rows": rows,
            "differences": differences,
            "conclusion": self.conclusion,
        }

    def table(self) -> str:
        """The table for a terminal."""
        width = max(len(row.model) for row in self.rows)
        lines = [f"{'method':<13} {'model':<{width}} {'accuracy':>8} {'spread':>7} {'seeds':>5}"]
        lines += [
            f"{METHODS[row.method]:<13} {row.model:<{width}} {row.mean:>8.3f} "
            f"{_number(row.spread):>7} {len(row.accuracies):>5}"
            for row in self.rows
        ]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table, what it says, the picture and how it was done."""
        settings = self.settings
        return "\n".join(
            [
                f"# Comparison on {settings['source']}",
                "",
                f"Accuracy on {settings['eval_images']} images, from {settings['labels']} labelled "
                f"ones ({settings['labels_per_class']} a class): mean and spread (sample standard "
                f"deviation) over {settings['seeds']} draws of the labelled images, the same draws "
                "for every model.",
                "",
                "| method | model | accuracy | spread | each draw |",
                "|---|---|---|---|---|",
                *(
                    f"| {METHODS[row.method]} | {row.model} | {row.mean:.3f} | "
                    f"{_number(row.spread)} | {' '.join(f'{a:.3f}' for a in row.accuracies)} |"
                    for row in self.rows
                ),
                "",
                *(f"- {line}" for line in self.conclusion),
                "",
                "![Accuracy of every model by every method](comparison.png)",
                "",
                "## How it was done",
                "",
                *(f"- {note}" for note in self.notes),
                "",
            ]
        )


def sentence(difference: Difference) -> str:
    """One difference in words."""
    title, error = METHODS[difference.method], difference.standard_error
    title = title[0].upper() + title[1:] if title != METHODS["knn"] else title
    if error is None:
        return (
            f"{title}: {difference.model} less {difference.reference} is {difference.mean:+.3f}; "
            "one draw has no spread, so nothing can be told from it (--seeds 5)."
        )
    size = f"{abs(difference.mean):.3f}"
    how = f"standard error {error:.3f}, paired over {len(difference.values)} draws"
    if difference.verdict == "cannot be told":
        return (
            f"{title}: {difference.model} and {difference.reference} cannot be told apart; "
            f"{difference.mean:+.3f} ({how}) is no more than draws of labels make by chance."
        )
    return (
        f"{title}: {difference.model} is {size} {difference.verdict} {difference.reference} "
        f"({how}), more than draws of labels make by chance."
    )


def write_report(folder: Path, comparison: Comparison) -> list[Path]:
    """Write comparison.json, comparison.md and, where matplotlib is installed, comparison.png.

    Returns:
        What was written.
    """
    paths = [folder / f"comparison{suffix}" for suffix in (".json", ".md", ".png")]
    text = json.dumps(comparison.as_json(), indent=1, allow_nan=False) + "\n"
    write_whole(paths[0], text)
    write_whole(paths[1], comparison.markdown())
    columns: dict[str, dict[str, Sequence[float]]] = {}
    for row in comparison.rows:
        columns.setdefault(METHODS[row.method], {})[row.model] = row.accuracies
    try:
        picture = comparison_plot(columns, [arm.name for arm in comparison.arms])
    except ImportError as error:
        print(f"No picture: {error}")
        return paths[:2]
    with whole_or_absent(paths[2]) as unfinished:
        picture.save(unfinished, format="png")
    return paths


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
