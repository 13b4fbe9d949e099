"""How a loss went: curves over steps from the `metrics.jsonl` of one run or of several."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLUMNS, SMALL = 3, (3.6, 2.3)  # plots side by side, and the inches of one
LINES = ("-", "--", ":", "-.")  # of metrics, where colours stand for runs

Metrics = str | PathLike[str] | Sequence[Mapping[str, Any]]


def loss_curve(
    metrics: Metrics | Mapping[str, Metrics], *, baselines: Mapping[str, float] | None = None
) -> Image.Image:
    """Training loss, evaluation loss and learning rate over steps, each where there is one.

    Args:
        metrics: a `metrics.jsonl` or its records, {"step", "loss", "lr"} and {"step", "eval_loss"};
            or several of these by name, to lie over one another.
        baselines: losses by name, drawn as dashed horizontal lines.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no JSON record, or a run has no loss.
        ImportError: without matplotlib.
    """
    figure = _figure((8, 5))
    sources = metrics if isinstance(metrics, Mapping) else {"": metrics}
    runs = {name: _records(source) for name, source in sources.items()}
    has_lr = any("lr" in record for run in runs.values() for record in run)
    ratios = (4, 1) if has_lr else (1,)
    grid = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)
    top, bottom = grid[0, 0], grid[-1, 0]
    for index, (name, run) in enumerate(runs.items()):
        color = f"C{index}"
        _plot(top, run, "loss", label=f"{name} training".strip(), color=color, alpha=0.6)
        _plot(top, run, "eval_loss", label=f"{name} evaluation".strip(), color=color, marker="o")
        if has_lr:
            _plot(bottom, run, "lr", color=color)
    for name, value in (baselines or {}).items():
        top.axhline(value, color="gray", linestyle="--", linewidth=1)
        top.text(0.99, value, name, ha="right", va="bottom", transform=top.get_yaxis_transform())
    if has_lr:
        bottom.set(ylabel="learning rate", ylim=(0, None))
    top.set(ylabel="loss", ylim=(0, None))
    top.legend(frameon=False)
    bottom.set_xlabel("step")
    return _drawn(figure)


def metric_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], groups: Mapping[str, Sequence[str]]
) -> Image.Image | None:
    """Small plots over steps, one for each group of metrics that any run has; None without any.

    Args:
        runs: the records of `metrics.jsonl` by the run's name, to lie over one another; the name
            of a single run is not shown.
        groups: names of metrics by the title of their plot.

    Raises:
        ImportError: without matplotlib.
    """
    known = {key for records in runs.values() for record in records for key in record}
    groups = {title: [key for key in keys if key in known] for title, keys in groups.items()}
    groups = {title: keys for title, keys in groups.items() if keys}
    if not groups:
        return None
    num_rows = -(-len(groups) // COLUMNS)
    figure = _figure((COLUMNS * SMALL[0], num_rows * SMALL[1]))
    grid = list(figure.subplots(num_rows, COLUMNS, squeeze=False).flat)
    for axes, (title, keys) in zip(grid, groups.items(), strict=False):
        for index, (run, records) in enumerate(runs.items()):
            for number, key in enumerate(keys):
                names = [run] * (len(runs) > 1) + [_tail(key, keys)] * (len(keys) > 1)
                color = f"C{index if len(runs) > 1 else number}"
                style = {"linestyle": LINES[number % len(LINES)]} if len(runs) > 1 else {}
                _plot(axes, records, key, label=" ".join(names), color=color, **style)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        if len(runs) > 1 or len(keys) > 1:
            axes.legend(frameon=False, fontsize=7)
    for axes in grid[len(groups) :]:
        axes.set_axis_off()
    return _drawn(figure)


def _figure(inches: tuple[float, float]) -> Any:
    """An empty figure that needs no screen.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Curves need matplotlib: pip install "hf-vitmae[viz]"') from error
    figure = Figure(figsize=inches, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Any) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def _tail(key: str, keys: Sequence[str]) -> str:
    """What distinguishes a metric from the others of its plot; nothing does of the model's own."""
    return key.removeprefix(commonprefix(list(keys))).replace("_", " ").strip() or "model"


def _records(source: Metrics) -> Sequence[Mapping[str, Any]]:
    """The records of a run, from its file or as they are, checked to hold some loss."""
    records = _read_lines(Path(source)) if isinstance(source, str | PathLike) else source
    if not any("loss" in record or "eval_loss" in record for record in records):
        where = source if isinstance(source, str | PathLike) else f"{len(records)} records"
        raise ValueError(f"No `loss` and no `eval_loss` in {where}: there is nothing to draw.")
    return records


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line."""
    if not path.is_file():
        raise FileNotFoundError(f"No metrics at {path}; pass the `metrics.jsonl` of a run folder.")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(dict(json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Line {number} of {path} is no JSON record: {line:.80}") from error
    return records


def _plot(axes: Any, records: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    """One line through the records that have the key; a gap where a value is not finite."""
    points = [(r["step"], float(r[key])) for r in records if r.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
