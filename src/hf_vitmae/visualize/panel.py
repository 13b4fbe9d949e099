"""Pictures side by side on a page, with words that say what one sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from hf_vitmae.visualize.reconstruction import Reconstruction

COLUMNS = ("input", "masked", "prediction", "pasted")  # of a reconstruction
TILE = 160  # pixels that the longer side of a small picture should get
MIN_COLUMN = 90  # pixels, so that words in narrow columns do not crowd
MARGIN, GAP = 16, 8
HEADER_FONT, CAPTION_FONT = 16, 13
UNTRAINED_NOTE = "the loss is on hidden patches only: at visible ones the prediction means nothing"


@dataclass(frozen=True, eq=False)
class PanelRow:
    """What a page shows of one image.

    Args:
        pictures: by the name of their column, from left to right.
        caption: words below them, one line or several.
    """

    pictures: Mapping[str, Image.Image]
    caption: str


def picture_panel(
    rows: Sequence[PanelRow], footer: Sequence[str | Image.Image] = (), *, scale: int | None = None
) -> Image.Image:
    """Rows of pictures under the names of their columns; below all, the footer.

    Args:
        footer: lines of words, and strips that are shown as they are, such as a legend.
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if there is nothing to show, rows have other columns than the first, or the
            scale is not a positive integer.
    """
    names = _column_names(rows, scale)
    sizes = [picture.size for row in rows for picture in row.pictures.values()]
    scale = scale or max(1, round(TILE / max(map(max, sizes))))
    column = max(_widest(names), scale * max(width for width, _ in sizes)) + GAP
    header = {index * column: name for index, name in enumerate(names)}
    strips = [_text_strip(header, HEADER_FONT)]
    for row in rows:
        strips.append(_picture_strip(list(row.pictures.values()), column, scale))
        strips += [_text_strip({0: line}, CAPTION_FONT) for line in row.caption.splitlines()]
    for item in footer:
        strips.append(_text_strip({0: item}, CAPTION_FONT) if isinstance(item, str) else item)
    return _stack(strips)


def reconstruction_panel(
    reconstructions: Sequence[Reconstruction], *, scale: int | None = None
) -> Image.Image:
    """Each image as a row: input, masked, prediction, pasted; below all, how to read them.

    Args:
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if there is nothing to show, or the scale is not a positive integer.
    """
    notes = dict.fromkeys(item.statistics for item in reconstructions)
    footer = [f"prediction ({note})" for note in notes] + [UNTRAINED_NOTE]
    return picture_panel([_row(item) for item in reconstructions], footer, scale=scale)


def _row(item: Reconstruction) -> PanelRow:
    caption = f"{item.mask.mean():.0%} hidden, mean squared error there {item.error:.3f}"
    return PanelRow({name: getattr(item, name) for name in COLUMNS}, caption)


def _column_names(rows: Sequence[PanelRow], scale: int | None) -> list[str]:
    """The names that the pictures of every row have, in their order; also checks the scale."""
    names = list(rows[0].pictures) if rows else []
    if not names or (scale is not None and scale < 1):
        raise ValueError(
            "A panel needs at least one row of pictures and a scale of 1 or more, "
            f"got {len(rows)} and {scale}."
        )
    for row in rows:
        if list(row.pictures) != names:
            raise ValueError(
                f"All rows of a panel must have the columns of the first, {names}, "
                f"but one has {list(row.pictures)}; draw two panels."
            )
    return names


def _widest(names: Sequence[str]) -> int:
    """Pixels for the longest of the words above."""
    font = ImageFont.load_default(HEADER_FONT)
    return max(MIN_COLUMN, *(round(font.getlength(name)) for name in names))


def _text_strip(texts: Mapping[int, str], size: int) -> Image.Image:
    """One line of words on white, each from its x on."""
    font = ImageFont.load_default(size)
    width = max(x + round(font.getlength(text)) for x, text in texts.items())
    strip = Image.new("RGB", (width, size + GAP), "white")
    for x, text in texts.items():
        ImageDraw.Draw(strip).text((x, 0), text, "black", font)
    return strip


def _picture_strip(pictures: Sequence[Image.Image], column: int, scale: int) -> Image.Image:
    """Pictures side by side on white, enlarged without smoothing."""
    sizes = [(picture.width * scale, picture.height * scale) for picture in pictures]
    height = max(height for _, height in sizes)
    strip = Image.new("RGB", (column * len(pictures) - GAP, height + GAP // 2), "white")
    for index, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        strip.paste(picture.resize(size, Image.Resampling.NEAREST), (index * column, 0))
    return strip


def _stack(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips below one another on a white page with margins."""
    width, height = max(strip.width for strip in strips), sum(strip.height for strip in strips)
    page = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), "white")
    y = MARGIN
    for strip in strips:
        page.paste(strip, (MARGIN, y))
        y += strip.height
    return page
