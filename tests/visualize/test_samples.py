"""The sheet of samples: originals first, then draws that can be drawn again."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.visualize import samples
from hf_vitmae.visualize.panel import PanelRow
from hf_vitmae.visualize.samples import sample_sheet


def flat(*values: int, height: int = 20, width: int = 10) -> Tensor:
    channels = torch.tensor(values, dtype=torch.uint8)[:, None, None]
    return channels.expand(-1, height, width).clone()


def shade(image: Tensor, generator: np.random.Generator) -> Tensor:
    """An image of 16x16 (height x width) with a drawn value in its first channel."""
    result = image[:, :1, :1].expand(-1, 16, 16).clone()
    result[0] = int(generator.integers(256))
    return result


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[PanelRow]:
    """What goes on the sheet, kept beside drawing it."""
    kept: list[PanelRow] = []
    draw = samples.picture_panel

    def keep(given: Any, *parts: Any) -> Image.Image:
        kept.extend(given)
        return draw(given, *parts)

    monkeypatch.setattr(samples, "picture_panel", keep)
    return kept


def test_originals_come_first_and_then_the_draws(rows: list[PanelRow]) -> None:
    sample_sheet([flat(1, 2, 3), flat(4, 5, 6)], shade, num_draws=3)
    assert [list(row.pictures) for row in rows] == [["original", "draw 1", "draw 2", "draw 3"]] * 2
    assert rows[0].pictures["original"].getpixel((0, 0)) == (1, 2, 3)
    assert rows[1].pictures["original"].getpixel((0, 0)) == (4, 5, 6)
    for index, number in ((0, 0), (0, 2), (1, 1)):
        generator = np.random.default_rng((0, index, number))
        expected = (int(generator.integers(256)), *((2, 3), (5, 6))[index])
        assert rows[index].pictures[f"draw {number + 1}"].getpixel((0, 0)) == expected


def test_the_original_is_whole_and_as_large_as_fits(rows: list[PanelRow]) -> None:
    image = flat(0, 0, 0, height=40, width=20)
    image[0, :20], image[1, 20:] = 255, 255  # red above green
    sample_sheet([image, flat(9, 9, 9, height=2, width=400)], shade, num_draws=1)
    original = rows[0].pictures["original"]
    assert original.size == (8, 16)
    assert original.getpixel((4, 2)) == (255, 0, 0) and original.getpixel((4, 13)) == (0, 255, 0)
    assert rows[1].pictures["original"].size == (16, 1)


def test_a_sheet_can_be_drawn_again_and_another_seed_is_another(rows: list[PanelRow]) -> None:
    pages = [sample_sheet([flat(1, 2, 3)], shade, seed=seed) for seed in (0, 0, 1)]
    assert pages[0].tobytes() == pages[1].tobytes() != pages[2].tobytes()
    values = {rows[0].pictures[f"draw {number}"].tobytes() for number in range(1, 7)}
    assert len(values) == 6  # every draw is its own


@pytest.mark.parametrize(
    ("channels", "mode", "value"),
    [((50,), "L", 50), ((50, 60), "L", 50), ((1, 2, 3, 4, 5), "RGB", (1, 2, 3))],
)
def test_channels_that_make_a_picture_are_shown(
    rows: list[PanelRow], channels: tuple[int, ...], mode: str, value: Any
) -> None:
    sample_sheet([flat(*channels)], lambda image, _: image[:, :8, :8], num_draws=1)
    for picture in rows[0].pictures.values():
        assert picture.mode == mode and picture.getpixel((0, 0)) == value


def test_captions_say_the_size_or_what_is_given(rows: list[PanelRow]) -> None:
    sample_sheet([flat(1, height=30, width=12)], shade)
    sample_sheet([flat(1)], shade, captions=["a cat"])
    assert [row.caption for row in rows] == ["30 x 12 (height x width)", "a cat"]


def test_the_footer_is_below() -> None:
    plain = sample_sheet([flat(1, 2, 3)], shade)
    assert sample_sheet([flat(1, 2, 3)], shade, footer=["the end"]).height > plain.height


def test_nothing_to_show_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="an image and a draw at least, got 0 and 6"):
        sample_sheet([], shade)
    with pytest.raises(ValueError, match="got 1 and 0"):
        sample_sheet([flat(1)], shade, num_draws=0)
    with pytest.raises(ValueError, match="1 images need as many captions, got 2"):
        sample_sheet([flat(1)], shade, captions=["one", "two"])
