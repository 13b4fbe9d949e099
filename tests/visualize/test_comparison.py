"""The plot of a comparison: every draw is a dot at its value, every mean a bar."""

import sys
from typing import Any

import numpy as np
import pytest

from hf_vitmae.visualize.comparison import comparison_plot

MODELS = ["mae", "random", "pixels"]
METHODS = {
    "kNN": {"mae": (0.5, 0.6, 0.55), "pixels": (0.4, 0.45, 0.35)},
    "fine-tuning": {"mae": (0.7,), "random": (0.2, 0.3)},
}


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The columns that the plot consists of."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    start = Figure.__init__
    monkeypatch.setattr(
        Figure, "__init__", lambda self, *a, **k: figures.append(self) or start(self, *a, **k)
    )
    comparison_plot(METHODS, MODELS)
    return figures[0].axes


def test_a_column_for_each_method_and_a_row_for_each_model(axes: list[Any]) -> None:
    assert [column.get_title() for column in axes] == list(METHODS)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == MODELS
    assert axes[0].get_ylim() == (2.5, -0.5)  # the first model is on top
    assert axes[0].get_xlim() == axes[1].get_xlim()  # lengths mean the same in every column


def test_dots_are_the_draws_and_bars_the_means(axes: list[Any]) -> None:
    for column, accuracies in zip(axes, METHODS.values(), strict=True):
        dots = [np.asarray(dots.get_offsets()) for dots in column.collections]
        assert [tuple(d[:, 0]) for d in dots] == list(accuracies.values())
        assert [round(d[:, 1].mean(), 6) for d in dots] == [MODELS.index(m) for m in accuracies]
        bars = [line.get_xdata() for line in column.lines]
        for bar, values in zip(bars, accuracies.values(), strict=True):
            assert list(bar) == [np.mean(values)] * 2


def test_the_picture_fits_a_page_and_is_always_the_same() -> None:
    picture = comparison_plot(METHODS, MODELS)
    assert picture.mode == "RGB" and 1000 < picture.width < 1400
    assert picture.tobytes() == comparison_plot(METHODS, MODELS).tobytes()
    assert comparison_plot(METHODS, [*MODELS, "one more"]).height > picture.height


def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no accuracies"):
        comparison_plot({}, MODELS)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hf-vitmae\[viz\]"):
        comparison_plot(METHODS, MODELS)
