"""Confusions: the right numbers in the right cells, and sheets where nothing overlaps."""

import sys

import numpy as np
import pytest
from PIL import Image

from hf_vitmae.visualize.confusion import (
    Confusion,
    confusion_picture,
    mistake_sheet,
    most_confused,
    shortened,
)
from hf_vitmae.visualize.panel import MARGIN, TILE

CELLS = [Confusion(0, 0, 30), Confusion(0, 2, 10), Confusion(1, 1, 5), Confusion(2, 0, 12_345)]
NAMES = ["cat", "dog", "owl"]


def axes_drawn(monkeypatch: pytest.MonkeyPatch, *args, **kwargs):
    """The axes that `confusion_picture` draws on."""
    from matplotlib.figure import Figure

    figures = []
    start = Figure.__init__
    monkeypatch.setattr(
        Figure, "__init__", lambda self, *a, **k: figures.append(self) or start(self, *a, **k)
    )
    confusion_picture(*args, **kwargs)
    return figures[0].axes[0]


def test_rows_are_true_columns_predicted_and_colours_shares_of_the_row(monkeypatch) -> None:
    axes = axes_drawn(monkeypatch, CELLS, NAMES, unit="pixels")
    shares = axes.images[0].get_array()
    assert shares.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [1, 0, 0]]
    numbers = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    assert numbers == {(0, 0): "30", (0, 2): "10", (1, 1): "5", (2, 0): "12k"}
    assert [t.get_text() for t in axes.get_xticklabels()] == NAMES
    assert [t.get_text() for t in axes.get_yticklabels()] == NAMES
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.get_title() == "12,390 pixels"


def test_many_classes_show_the_pairs_that_are_confused_most(monkeypatch) -> None:
    axes = axes_drawn(monkeypatch, CELLS, NAMES, most_classes=2)
    words = [t.get_text() for t in axes.get_yticklabels()]
    assert words == ["owl, taken for cat", "cat, taken for owl"]
    assert [bar.get_width() for bar in axes.patches] == [12_345, 10]
    title = axes.figure.get_suptitle()
    assert "3 classes" in title and "12,355 images are wrong" in title


@pytest.mark.parametrize("count", [2, 50, 51])
def test_any_number_of_classes_can_be_drawn(count: int) -> None:
    had_pyplot = "matplotlib.pyplot" in sys.modules
    names = [f"class {i}: $\\alpha$ {'x' * 40}" for i in range(count)]
    cells = [Confusion(i, (i * 7) % count, i + 1) for i in range(count)]
    picture = confusion_picture(cells, names)
    assert picture.mode == "RGB" and min(picture.size) > 200 and max(picture.size) < 2000
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_names_in_any_script_and_a_model_that_is_always_right() -> None:
    assert confusion_picture([Confusion(0, 0, 1), Confusion(1, 1, 1)], ["猫", "🦉"]).width > 200
    many = [f"class {i}" for i in range(60)]
    assert confusion_picture([Confusion(0, 0, 1)], many).width > 200


def test_the_most_confused_come_first_and_the_right_ones_never() -> None:
    cells = [*CELLS, Confusion(1, 0, 10)]
    assert most_confused(cells, 2) == [Confusion(2, 0, 12_345), Confusion(0, 2, 10)]
    assert most_confused(cells, 9)[2:] == [Confusion(1, 0, 10)]


@pytest.mark.parametrize(("cells", "words"), [([], "nothing"), (CELLS, "Class 2 has no name")])
def test_what_cannot_be_drawn_is_refused(cells, words) -> None:
    with pytest.raises(ValueError, match=words):
        confusion_picture(cells, ["cat", "dog"])


def test_without_matplotlib_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hf-vitmae\[viz\]"):
        confusion_picture(CELLS, NAMES)


def test_a_sheet_has_every_picture_in_its_shape_above_its_words() -> None:
    colors = [(255, 0, 0), (0, 160, 0), (0, 0, 255)] * 3
    pictures = [Image.new("RGB", (8, 4), color) for color in colors]
    words = [("is cat", "taken for owl " * 9)] * len(pictures)
    sheet = np.asarray(mistake_sheet(pictures, words))
    for color in colors[:3]:
        found = (sheet == color).all(axis=2)
        assert found.sum() == 3 * TILE * TILE // 2  # each enlarged, none covered by words
    column = sheet[MARGIN + TILE // 2 :, MARGIN : MARGIN + TILE]
    assert (column[TILE // 2 :] < 100).all(axis=2).any()  # words below
    assert (sheet[:, -MARGIN:] == 255).all()  # what was too long has been cut
    single = mistake_sheet([Image.new("L", (300, 600))], [("is cat",)])
    assert single.width < 2 * TILE < single.height + TILE


@pytest.mark.parametrize("captions", [[], [("a",), ("b",)]])
def test_a_sheet_needs_a_caption_for_each_picture(captions) -> None:
    with pytest.raises(ValueError, match=f"got 1 and {len(captions)}"):
        mistake_sheet([Image.new("RGB", (4, 4))], captions)
    with pytest.raises(ValueError, match="got 0 and 0"):
        mistake_sheet([], [])


def test_long_names_are_shortened() -> None:
    assert shortened("owl") == "owl" and shortened("a" * 24) == "a" * 24
    assert shortened("b" * 25) == "b" * 23 + "…"
