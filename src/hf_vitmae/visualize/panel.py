"""Reconstructions side by side on a page, with words that say what one sees."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from hf_vitmae.visualize.reconstruction import Reconstruction

COLUMNS = ("input", "masked", "prediction", "pasted")
TILE = 160  # pixels that the longer side of a small picture should get
MIN_COLUMN = 90  # pixels, room for the longest of the words above
MARGIN, GAP = 16, 8
HEADER_FONT, CAPTION_FONT = 16, 13
UNTRAINED_NOTE = "the loss is on hidden patches only: at visible ones the prediction means nothing"


def reconstruction_panel(
    reconstructions: Sequence[Reconstruction], *, scale: int | None = None
) -> Image.Image:
    """Each image as a row: input, masked, prediction, pasted; below all, how to read them.

    Args:
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if there is nothing to show, or the scale is not a positive integer.
    """
    if not reconstructions or (scale is not None and scale < 1):
        raise ValueError(
            "A panel needs at least one reconstruction and a scale of 1 or more, "
            f"got {len(reconstructions)} and {scale}."
        )
    sizes = [item.input.size for item in reconstructions]
    scale = scale or max(1, round(TILE / max(map(max, sizes))))
    column = max(MIN_COLUMN, scale * max(width for width, _ in sizes)) + GAP
    header = {index * column: name for index, name in enumerate(COLUMNS)}
    strips = [_text_strip(header, HEADER_FONT)]
    for item in reconstructions:
        caption = f"{item.mask.mean():.0%} hidden, mean squared error there {item.error:.3f}"
        strips += [_picture_strip(item, column, scale), _text_strip({0: caption}, CAPTION_FONT)]
    notes = dict.fromkeys(item.statistics for item in reconstructions)
    footer = [f"prediction ({note})" for note in notes] + [UNTRAINED_NOTE]
    strips += [_text_strip({0: line}, CAPTION_FONT) for line in footer]
    return _stack(strips)


def _text_strip(texts: Mapping[int, str], size: int) -> Image.Image:
    """One line of words on white, each from its x on."""
    font = ImageFont.load_default(size)
    width = max(x + round(font.getlength(text)) for x, text in texts.items())
    strip = Image.new("RGB", (width, size + GAP), "white")
    for x, text in texts.items():
        ImageDraw.Draw(strip).text((x, 0), text, "black", font)
    return strip


def _picture_strip(item: Reconstruction, column: int, scale: int) -> Image.Image:
    """The pictures of an image side by side on white, enlarged without smoothing."""
    size = (item.input.width * scale, item.input.height * scale)
    strip = Image.new("RGB", (column * len(COLUMNS) - GAP, size[1] + GAP // 2), "white")
    for index, name in enumerate(COLUMNS):
        picture: Image.Image = getattr(item, name)
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
