"""Loss curves: read what runs write, draw it, leave matplotlib's global state alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_vitmae.visualize import curves, loss_curve, metric_curves

RECORDS = [
    {"step": 10, "loss": 1.0, "lr": 1e-3},
    {"step": 20, "loss": 0.5, "lr": 2e-3},
    {"step": 20, "eval_loss": 0.6, "eval_accuracy": 0.1},
]


def lines_drawn(monkeypatch: pytest.MonkeyPatch, *args, **kwargs) -> dict[str, list]:
    """What `loss_curve` puts on its axes: label -> [steps, values]."""
    from matplotlib.figure import Figure

    figures = []
    start = Figure.__init__
    monkeypatch.setattr(
        Figure, "__init__", lambda self, *a, **k: figures.append(self) or start(self, *a, **k)
    )
    loss_curve(*args, **kwargs)
    lines = [line for axes in figures[0].axes for line in axes.lines]
    return {
        str(line.get_label()): [np.asarray(line.get_data()[axis]).tolist() for axis in (0, 1)]
        for line in lines
    }


def test_a_file_and_its_records_give_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    had_pyplot = "matplotlib.pyplot" in sys.modules
    picture = loss_curve(path)
    assert picture.mode == "RGB"
    assert picture.tobytes() == loss_curve(RECORDS).tobytes()
    assert picture.tobytes() != loss_curve(RECORDS, baselines={"mean": 0.8}).tobytes()
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_every_series_is_drawn_with_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_drawn(monkeypatch, RECORDS)
    assert lines["training"] == [[10, 20], [1.0, 0.5]]
    assert lines["evaluation"] == [[20], [0.6]]
    assert [[10, 20], [1e-3, 2e-3]] in lines.values()


def test_runs_lie_over_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    only_loss = [{"step": 1, "loss": 2.0}]
    lines = lines_drawn(monkeypatch, {"a": only_loss, "b": RECORDS}, baselines={"mean": 0.8})
    assert lines["a training"] == [[1], [2.0]] and lines["b training"][0] == [10, 20]
    assert [[0, 1], [0.8, 0.8]] in lines.values()


@pytest.mark.parametrize("text", ["{not json}\n", "5\n"])
def test_a_bad_line_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + text)
    with pytest.raises(ValueError, match="Line 2"):
        loss_curve(path)


def test_missing_files_and_losses_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No metrics at .*nowhere"):
        loss_curve(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="nothing to draw"):
        loss_curve([{"step": 1, "lr": 0.1}])


def test_without_matplotlib_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hf-vitmae\[viz\]"):
        curves.loss_curve(RECORDS)


def test_small_plots_show_what_was_logged() -> None:
    runs = {"a": [{"step": 1, "x_one": 1.0, "x_two": 3.0}, {"step": 2, "x_one": 2.0, "y": 5.0}]}
    assert metric_curves(runs, {"never": ("z",)}) is None
    one = metric_curves(runs, {"x": ("x_one", "x_two"), "never": ("z",)})
    two = metric_curves(runs, {"x": ("x_one", "x_two"), "y": ("y",)})
    assert one is not None and two is not None and one.size == two.size
    assert np.asarray(one)[:, 420:700].min() == 255  # the second place stays empty
    assert np.asarray(two)[:, 420:700].min() < 255
    wider = metric_curves(runs, {str(n): ("x_one",) for n in range(4)})
    assert wider is not None and wider.height == 2 * one.height


def test_the_highest_learning_rate_of_any_run_is_in_the_picture() -> None:
    low, high = ([{"step": s, "loss": 1.0, "lr": s * rate} for s in (0, 1)] for rate in (1, 5))
    first, second = loss_curve({"a": low, "b": high}), loss_curve({"b": high, "a": low})
    colors = [np.asarray(one.crop((0, 390, 800, 460))) for one in (first, second)]
    widths = [
        (np.abs(one - np.array(color)).sum(axis=-1) < 9).any(axis=0).sum()
        for one, color in zip(colors, ([255, 127, 14], [31, 119, 180]), strict=True)
    ]
    assert widths[0] == pytest.approx(widths[1], abs=20)
    assert min(widths) > 400  # the steep line goes on to the last step in both
