"""Models side by side: what each reached by each method, draw by draw, and on average."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

ROW, MARGIN = 0.34, 0.95  # inches: a model's row, and what is above and below the rows


def comparison_plot(
    methods: Mapping[str, Mapping[str, Sequence[float]]], models: Sequence[str]
) -> Image.Image:
    """A column for each method and a row for each model: a dot a seed, and a bar at the mean.

    Args:
        methods: method -> model -> accuracies; a model may lack a method.
        models: their order from top to bottom.

    Raises:
        ValueError: if there is nothing to draw.
        ImportError: without matplotlib.
    """
    if not any(methods.values()):
        raise ValueError("There are no accuracies to draw.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "hf-vitmae[viz]"') from error
    size = (8.5, MARGIN + ROW * len(models))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    columns = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (method, accuracies) in zip(columns, methods.items(), strict=True):
        for place, model in enumerate(models):
            _draw_model(axes, place, accuracies.get(model, ()))
        axes.set_title(method, fontsize=11)
        axes.grid(axis="x", linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    columns[0].set_yticks(range(len(models)), labels=models)
    columns[0].set_ylim(len(models) - 0.5, -0.5)  # the first on top
    figure.supxlabel("accuracy (dots: draws of the labels; bars: their means)", fontsize=10)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_model(axes: Any, place: int, accuracies: Sequence[float]) -> None:
    """One row: dots, slightly apart so that equal ones show, and the mean."""
    if not len(accuracies):
        return
    color = f"C{place % 10}"
    apart = np.linspace(-0.15, 0.15, len(accuracies)) if len(accuracies) > 1 else np.zeros(1)
    axes.scatter(accuracies, place + apart, s=18, color=color, alpha=0.65, linewidths=0)
    mean = float(np.mean(accuracies))
    axes.plot([mean, mean], [place - 0.32, place + 0.32], color=color, linewidth=2.5)
