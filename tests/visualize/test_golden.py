"""Drawings of fixed arrays look as they did when a person looked at them.

No model takes part, so only the drawing code can change them. After a wanted change: look at what
`HF_VITMAE_NEW_GOLDEN=1 pytest tests/visualize/test_golden.py` wrote into `golden/`, and keep it.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from hf_vitmae.visualize import (
    AnomalyMap,
    FeatureBasis,
    PanelRow,
    class_legend,
    class_palette,
    heat_over,
    overlay,
    picture_panel,
)
from hf_vitmae.visualize.pictures import gray_out, paint_over

FOLDER = Path(__file__).parent / "golden"
BOUND = 1.0  # mean difference in levels of 255: another version's rounding, no other drawing


def photograph() -> Image.Image:
    """Something with colours, edges and no symmetry: 48 x 32 pixels (width x height)."""
    y, x = np.mgrid[:32, :48]
    circle = (y - 12) ** 2 + (x - 30) ** 2 < 80
    colors = np.stack([5 * x, 7 * y, 3 * x + 2 * y], axis=-1) % 256
    return Image.fromarray(np.where(circle[..., None], [250, 200, 20], colors).astype(np.uint8))


def values() -> np.ndarray:
    """(4, 6), all different."""
    return np.sin(np.arange(24.0)).reshape(4, 6)


def features() -> Image.Image:
    places = np.arange(240).reshape(4, 6, 10)
    found = np.stack([np.sin(places * frequency).sum(-1) for frequency in range(1, 6)], axis=-1)
    return Image.fromarray(FeatureBasis.fit(found).colors(found)).resize((48, 32), 0)


def panel() -> Image.Image:
    image = photograph()
    hidden = values() > 0.3
    columns = {"input": image, "masked": gray_out(image, hidden)}
    return picture_panel([PanelRow(columns, "half is hidden")] * 2, ["the footer"], scale=2)


def segmented() -> Image.Image:
    classes = np.add.outer(np.arange(32) // 11, np.arange(48) // 16)  # (H, W), 0 to 4
    return overlay(photograph(), classes, class_palette(5))


DRAWINGS: dict[str, Callable[[], Image.Image]] = {
    "heat": lambda: heat_over(photograph(), values(), opacity=0.7),
    "anomaly": lambda: AnomalyMap(photograph(), photograph(), values(), "").picture(),
    "features": features,
    "masked": lambda: gray_out(photograph(), values() > 0),
    "pasted": lambda: paint_over(photograph(), Image.new("RGB", (48, 32), "teal"), values() > 0),
    "panel": panel,
    "segmentation": segmented,
    "legend": lambda: class_legend(["sky", "tree"]),
}


def distance(first: Image.Image, second: Image.Image) -> float:
    arrays = [np.asarray(one.convert("RGB"), dtype=np.float64) for one in (first, second)]
    return float(np.abs(arrays[0] - arrays[1]).mean())


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_looks_as_it_did(name: str) -> None:
    drawn, path = DRAWINGS[name](), FOLDER / f"{name}.png"
    if os.environ.get("HF_VITMAE_NEW_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        drawn.save(path, optimize=True)
    golden = Image.open(path)
    assert drawn.size == golden.size
    assert distance(drawn, golden) < BOUND


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_bound_notices_a_shift_and_other_colours(name: str) -> None:
    golden = Image.open(FOLDER / f"{name}.png").convert("RGB")
    red, green, blue = golden.split()
    assert distance(golden, ImageChops.offset(golden, 1, 0)) > BOUND
    if any(distance(red, other) for other in (green, blue)):
        assert distance(golden, Image.merge("RGB", (blue, green, red))) > BOUND
