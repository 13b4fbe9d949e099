"""Panels: every picture at its place, small ones enlarged without smoothing, words below."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_vitmae.visualize import (
    PanelRow,
    Reconstruction,
    panel,
    picture_panel,
    reconstruction_panel,
)

COLORS = {"input": "red", "masked": "lime", "prediction": "blue", "pasted": "yellow"}


def make(size: tuple[int, int] = (8, 16), mode: str = "RGB") -> Reconstruction:
    """Four flat pictures (width, height), of a colour each."""
    pictures = {name: Image.new(mode, size, color) for name, color in COLORS.items()}
    mask = np.array([[True, False], [True, True]])
    return Reconstruction(**pictures, statistics="made up", mask=mask, error=0.25)


def area(page: Image.Image, color: tuple[int, int, int]) -> tuple[int, int]:
    """Width and height of what is exactly of one colour."""
    rows, columns = np.nonzero((np.asarray(page) == color).all(axis=2))
    return len(set(columns.tolist())), len(set(rows.tolist()))


def test_small_pictures_grow_to_about_160_pixels() -> None:
    page = reconstruction_panel([make()])
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)):
        assert area(page, color) == (80, 160)


def test_columns_stand_in_order_and_rows_below_one_another() -> None:
    page = np.asarray(reconstruction_panel([make(), make()], scale=4))
    middle = page[panel.MARGIN + panel.HEADER_FONT + panel.GAP + 2]
    changes = [tuple(pixel) for pixel in middle[::4].tolist() if pixel != [255] * 3]
    assert list(dict.fromkeys(changes)) == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    assert area(Image.fromarray(page), (255, 0, 0)) == (32, 128)


def test_enlarging_keeps_pixels_square_and_hard() -> None:
    item = make((2, 1))
    item.input.putpixel((1, 0), (0, 255, 255))
    page = reconstruction_panel([item], scale=5)
    assert area(page, (255, 0, 0)) == (5, 5) and area(page, (0, 255, 255)) == (5, 5)


def test_words_say_what_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    draw = panel._text_strip
    monkeypatch.setattr(
        panel, "_text_strip", lambda texts, size: lines.append(texts) or draw(texts, size)
    )
    reconstruction_panel([make(), make()])
    words = [text for texts in lines for text in texts.values()]
    assert words[:4] == ["input", "masked", "prediction", "pasted"]
    assert words[4] == "75% hidden, mean squared error there 0.250"
    assert words.count("prediction (made up)") == 1


def test_long_words_are_not_cut_off_by_narrow_pictures() -> None:
    page = np.asarray(reconstruction_panel([make()], scale=1))
    assert (page[:, -panel.MARGIN :] == 255).all()
    assert (page[-panel.MARGIN :] == 255).all()


def test_gray_and_rows_of_unequal_size_fit() -> None:
    page = reconstruction_panel([make(), make((16, 8), "L")], scale=2)
    assert page.mode == "RGB" and area(page, (255, 0, 0)) == (16, 32)


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        reconstruction_panel([])
    with pytest.raises(ValueError, match="-1"):
        reconstruction_panel([make()], scale=-1)


def flat(name: str, color: str, size: tuple[int, int] = (8, 8), caption: str = "") -> PanelRow:
    """A row of one picture."""
    return PanelRow({name: Image.new("RGB", size, color)}, caption)


def words_of(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> list[str]:
    """What `picture_panel` writes, line by line."""
    lines: list[Mapping[int, str]] = []
    draw = panel._text_strip
    with monkeypatch.context() as patch:
        patch.setattr(
            panel, "_text_strip", lambda texts, size: lines.append(texts) or draw(texts, size)
        )
        picture_panel(*arguments)
    return [text for texts in lines for text in texts.values()]


def test_columns_are_named_by_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    row = PanelRow({"b": Image.new("RGB", (4, 4), "red"), "a": Image.new("L", (4, 4), 9)}, "one")
    assert words_of(monkeypatch, [row, row], ["last"]) == ["b", "a", "one", "one", "last"]
    page = np.asarray(picture_panel([row], scale=2))
    red, gray = ((page == color).all(axis=2).any(axis=0).argmax() for color in ((255, 0, 0), 9))
    assert red == panel.MARGIN and gray == panel.MARGIN + panel.MIN_COLUMN + panel.GAP


def test_a_caption_may_have_several_lines_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [flat("a", "red", caption="one\ntwo"), flat("a", "red")]
    assert words_of(monkeypatch, rows) == ["a", "one", "two"]


def test_the_footer_takes_strips_as_they_are() -> None:
    strip = Image.new("RGB", (400, 6), "blue")
    page = picture_panel([flat("a", "red")], ["words", strip], scale=3)
    assert area(page, (0, 0, 255)) == (400, 6)
    assert page.width == 400 + 2 * panel.MARGIN
    assert page.getpixel((panel.MARGIN, page.height - panel.MARGIN - 1)) == (0, 0, 255)


def test_long_names_do_not_run_into_each_other() -> None:
    names = ("the first of two very long names", "the second")
    pictures = {name: Image.new("RGB", (8, 8), "red") for name in names}
    page = np.asarray(picture_panel([PanelRow(pictures, "")], scale=1))
    header = np.any(page[panel.MARGIN : panel.MARGIN + panel.HEADER_FONT] < 255, axis=(0, 2))
    second = np.nonzero((page == (255, 0, 0)).all(axis=2).any(axis=0))[0][8]  # its picture's left
    assert header[second : second + 3].any() and not header[second - panel.GAP : second].any()


def test_each_picture_of_a_row_keeps_its_own_size() -> None:
    pictures = {"a": Image.new("RGB", (4, 2), "red"), "b": Image.new("RGB", (2, 6), "blue")}
    page = picture_panel([PanelRow(pictures, "")], scale=3)
    assert area(page, (255, 0, 0)) == (12, 6) and area(page, (0, 0, 255)) == (6, 18)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one row"),
        ([PanelRow({}, "words")], "at least one row"),
        ([flat("a", "red"), flat("b", "red")], r"\['a'\], but one has \['b'\]"),
    ],
)
def test_rows_that_make_no_page_are_an_error(rows: list[PanelRow], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        picture_panel(rows)
