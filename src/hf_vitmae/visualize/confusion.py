"""Where a classifier goes wrong: the classes that it confuses, and the images it is sure about."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_vitmae.visualize.panel import CAPTION_FONT, GAP, MARGIN, TILE

MOST_CLASSES = 50  # whose names can still be read along both sides
MOST_COUNTED = 20  # classes whose cells have room for a number
MOST_PAIRS = 30  # bars of what is confused most, where there are more classes
LONGEST_NAME = 24  # characters
SHEET_COLUMNS = 6


class Confusion(NamedTuple):
    """How many images, or pixels, of class `true` were taken for class `predicted`."""

    true: int
    predicted: int
    count: int


def confusion_picture(
    cells: Sequence[Confusion],
    class_names: Sequence[str],
    *,
    unit: str = "images",
    most_classes: int = MOST_CLASSES,
) -> Image.Image:
    """The confusion matrix, rows true and columns predicted; of many classes the worst pairs alone.

    The colour of a cell is its share of the row, so that small classes show like large ones; up to
    20 classes it has its number too. Beyond `most_classes` bars show the pairs of different classes
    that are confused most often.

    Args:
        cells: those that are not 0, in any order.
        class_names: of classes 0, 1, ...
        unit: what is counted.

    Raises:
        ValueError: if there is nothing to draw, or a class has no name.
        ImportError: without matplotlib.
    """
    if not cells:
        raise ValueError("There is nothing to draw: no cell of the confusion matrix is given.")
    highest = max(max(cell.true, cell.predicted) for cell in cells)
    if highest >= len(class_names):
        raise ValueError(f"Class {highest} has no name; give {highest + 1} of them.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Drawing needs matplotlib: pip install "hf-vitmae[viz]"') from error
    names = [shortened(name) for name in class_names]
    figure = Figure(dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    if len(names) <= most_classes:
        _draw_matrix(figure, cells, names, unit)
    else:
        _draw_pairs(figure, cells, names, unit)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn instead
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def mistake_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]]
) -> Image.Image:
    """Pictures side by side, six in a row, each with its lines of words below it.

    Args:
        pictures: of any sizes; each is drawn 160 pixels wide or high, in its own shape.
        captions: lines for each picture; what is too wide for it ends in an ellipsis.

    Raises:
        ValueError: if there is nothing to show, or the captions are not one a picture.
    """
    if not pictures or len(captions) != len(pictures):
        raise ValueError(
            f"A sheet needs a picture at least and a caption for each, got {len(pictures)} and "
            f"{len(captions)}."
        )
    font = ImageFont.load_default(CAPTION_FONT)
    line_height = CAPTION_FONT + GAP // 2
    width = TILE + 2 * GAP
    height = TILE + max(map(len, captions)) * line_height + 2 * GAP
    num_rows = -(-len(pictures) // SHEET_COLUMNS)
    num_columns = min(len(pictures), SHEET_COLUMNS)
    size = (num_columns * width + 2 * MARGIN, num_rows * height + 2 * MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, SHEET_COLUMNS)
        x, y = MARGIN + column * width, MARGIN + row * height
        sheet.paste(_fit(picture), (x, y))
        for index, line in enumerate(lines):
            words = _cut(line, font, TILE)
            draw.text((x, y + TILE + GAP // 2 + index * line_height), words, "black", font)
    return sheet


def shortened(name: str, length: int = LONGEST_NAME) -> str:
    """A name of at most so many characters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _draw_matrix(figure: Any, cells: Sequence[Confusion], names: Sequence[str], unit: str) -> None:
    """All classes against all, coloured by the share of the row."""
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for true, predicted, count in cells:
        counts[true, predicted] = count
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 3 + len(names) * (0.45 if len(names) <= MOST_COUNTED else 0.22)  # inches
    figure.set_size_inches(side + 1, side)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.7)
    font_size = 9 if len(names) <= MOST_COUNTED else 7
    axes.set_xticks(range(len(names)), _plain(names), rotation=90, fontsize=font_size)
    axes.set_yticks(range(len(names)), _plain(names), fontsize=font_size)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{counts.sum():,} {unit}")
    if len(names) <= MOST_COUNTED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            words = _compact(int(counts[row, column]))
            axes.text(column, row, words, ha="center", va="center", fontsize=8, color=color)


def _draw_pairs(figure: Any, cells: Sequence[Confusion], names: Sequence[str], unit: str) -> None:
    """Bars for the pairs of different classes that are confused most."""
    pairs = most_confused(cells, MOST_PAIRS)
    figure.set_size_inches(8, 1.5 + 0.25 * max(1, len(pairs)))
    axes = figure.subplots()
    words = [f"{names[true]}, taken for {names[predicted]}" for true, predicted, _ in pairs]
    axes.barh(range(len(pairs)), [count for *_, count in pairs], color="C0")
    axes.set_yticks(range(len(pairs)), _plain(words), fontsize=8)
    axes.invert_yaxis()
    wrong = sum(count for true, predicted, count in cells if true != predicted)
    title = f"the most confused of {len(names)} classes; {wrong:,} {unit} are wrong in all"
    axes.set_xlabel(unit)
    figure.suptitle(title, fontsize=11)


def most_confused(cells: Sequence[Confusion], most: int) -> list[Confusion]:
    """The cells of two different classes with the highest counts, the highest first."""
    wrong = [cell for cell in cells if cell.true != cell.predicted]
    return sorted(wrong, key=lambda cell: (-cell.count, cell.true, cell.predicted))[:most]


def _plain(names: Sequence[str]) -> list[str]:
    """Names that matplotlib does not take for formulas."""
    return [name.replace("$", r"\$") for name in names]


def _compact(count: int) -> str:
    """A number in at most five characters or so, for millions of pixels."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**4)):
        if count >= size:
            return f"{count / (1000 if unit == 'k' else size):.0f}{unit}"
    return str(count)


def _fit(picture: Image.Image) -> Image.Image:
    """The whole picture with a longer side of a tile; small ones grow without smoothing."""
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return picture.convert("RGB").resize(size, how)


def _cut(line: str, font: Any, width: int) -> str:
    """The line, or as much of its beginning as has the width, with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
