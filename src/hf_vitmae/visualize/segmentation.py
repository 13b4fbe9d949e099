"""Classes of pixels in colours: beside a picture, laid over it, and what the colours mean."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hf_vitmae.models.segmentation_maps import class_ids
from hf_vitmae.visualize.panel import CAPTION_FONT, GAP, PanelRow

ClassMap = Image.Image | np.ndarray | Tensor

# Class 0 is most often the background. The next seven are the colours of Okabe and Ito ("Color
# Universal Design", 2008). Each of the others is the one of a 16-step RGB grid that is furthest, in
# CIELAB, from white and those before it, to people with and without red-green blindness.
PALETTE = (
    (64, 64, 64),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (0, 0, 255),
    (51, 17, 136),
    (0, 255, 136),
    (102, 0, 0),
    (221, 34, 255),
    (170, 153, 85),
    (153, 0, 119),
    (0, 238, 255),
    (170, 238, 187),
    (204, 0, 34),
    (153, 221, 85),
    (102, 17, 204),
)
GOLDEN_RATIO = 0.618034  # of a turn: hues in such steps stay far apart longest
MOST_NAMED = 4  # classes that a caption has room for
SWATCH = 12  # pixels, the side of a legend's colour
LEGEND_WIDTH = 640


def class_palette(num_classes: int) -> np.ndarray:
    """A colour for each class: -> uint8 (num_classes, 3).

    A class has the same colour in a palette of any size; the first twenty are easy to tell apart,
    also for the colour-blind. White is none of them: it stands for what has no class.

    Raises:
        ValueError: for less than one class.
    """
    if num_classes < 1:
        raise ValueError(f"A palette needs at least 1 class, got {num_classes}.")
    colors = [*PALETTE, *(_further_color(index) for index in range(len(PALETTE), num_classes))]
    return np.array(colors[:num_classes], dtype=np.uint8)


def overlay(
    picture: Image.Image,
    class_map: ClassMap,
    palette: np.ndarray,
    ignore_index: int = 255,
    opacity: float = 0.5,
) -> Image.Image:
    """Lay the colours of classes over a picture of the same size.

    Args:
        class_map: class ids, (H, W) or a picture of one band.
        palette: uint8 (classes, 3).
        ignore_index: where the map has it, the picture stays as it is.
        opacity: share of the class's colour, from 0 to 1.

    Raises:
        ValueError: if map and picture differ in size, a class has no colour, or the opacity is no
            share.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be from 0 to 1, got {opacity}.")
    ids = _ids(class_map)
    if ids.shape != (picture.height, picture.width):
        raise ValueError(
            f"A class map of {ids.shape[0]}x{ids.shape[1]} pixels (height x width) does not fit a "
            f"picture of {picture.height}x{picture.width}; resize the map, nearest, to the picture."
        )
    counted = ids != ignore_index
    _check_classes(ids[counted], len(palette))
    pixels = np.array(picture.convert("RGB"))  # (H, W, 3)
    colors = palette[ids[counted]]  # (counted pixels, 3)
    pixels[counted] = np.rint((1 - opacity) * pixels[counted] + opacity * colors)
    return Image.fromarray(pixels)


def segmentation_rows(
    pictures: Sequence[Image.Image],
    predicted: Sequence[ClassMap] | Tensor | np.ndarray,
    labels: Sequence[ClassMap] | Tensor | np.ndarray | None = None,
    class_names: Sequence[str] = (),
    *,
    ignore_index: int = 255,
) -> list[PanelRow]:
    """Pictures and their classes: -> a row for a panel of each, with how right they are.

    The columns are the picture, the labels if there are any, the prediction, and the prediction
    over the picture. Pixels to be ignored are white. With labels the caption has the share of
    labelled pixels whose class is right, the mean intersection over union (IoU) of the classes that
    are in labels or prediction of that picture, and that of the largest classes; without, how large
    they are.

    Args:
        predicted, labels: class ids of each picture, (H, W) of its size.
        class_names: as many as there are classes; `class_legend` shows which colour each has.
        ignore_index: the label of pixels that do not count.

    Raises:
        ValueError: if maps and pictures differ in number or size, or a class has no name.
    """
    maps = {} if labels is None else {"labels": [_ids(one) for one in labels]}
    maps["prediction"] = [_ids(one) for one in predicted]
    for name, several in maps.items():
        if len(several) != len(pictures):
            raise ValueError(
                f"There are {len(several)} class maps of `{name}` for {len(pictures)} pictures; "
                "pass one for each."
            )
    names = list(class_names) or _numbered_names(maps, ignore_index)
    palette = class_palette(len(names))
    rows = []
    for index, picture in enumerate(pictures):
        own = {name: several[index] for name, several in maps.items()}
        white = Image.new("RGB", picture.size, "white")
        columns = {"input": picture} | {
            name: overlay(white, one, palette, ignore_index, opacity=1) for name, one in own.items()
        }
        columns["overlay"] = overlay(picture, own["prediction"], palette, ignore_index)
        rows.append(PanelRow(columns, _caption(names, ignore_index, **own)))
    return rows


def class_legend(class_names: Sequence[str], *, width: int = LEGEND_WIDTH) -> Image.Image:
    """Each class's colour and name, as a strip for the footer of a panel.

    Args:
        width: pixels after which a new line starts.

    Raises:
        ValueError: if there is no class.
    """
    palette, font = class_palette(len(class_names)), ImageFont.load_default(CAPTION_FONT)
    places, right, x, y, line = [], 0, 0, 0, CAPTION_FONT + GAP
    for name in class_names:
        length = SWATCH + GAP // 2 + round(font.getlength(name))
        if x > 0 and x + length > width:
            x, y = 0, y + line
        places.append((x, y))
        right = max(right, x + length)
        x += length + 2 * GAP
    strip = Image.new("RGB", (right, y + line), "white")
    draw = ImageDraw.Draw(strip)
    for (x, y), name, color in zip(places, class_names, palette.tolist(), strict=True):
        draw.rectangle((x, y + 2, x + SWATCH - 1, y + 2 + SWATCH - 1), tuple(color))
        draw.text((x + SWATCH + GAP // 2, y), name, "black", font)
    return strip


def _further_color(index: int) -> tuple[int, ...]:
    """Hues by the golden ratio, in turns strong, dark and pale."""
    saturation, value = ((0.9, 0.9), (0.9, 0.55), (0.45, 0.8))[index % 3]
    color = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, saturation, value)
    return tuple(round(255 * channel) for channel in color)


def _ids(class_map: ClassMap) -> np.ndarray:
    """int64 (H, W)."""
    return class_ids(class_map).cpu().numpy()


def _check_classes(ids: np.ndarray, num_classes: int) -> None:
    unknown = ids[(ids < 0) | (ids >= num_classes)]
    if unknown.size:
        raise ValueError(
            f"Class {unknown[0]} is none of the {num_classes} that have a name or a colour; pass "
            "one for each, counted from 0, or mark what does not count with `ignore_index`."
        )


def _numbered_names(maps: Mapping[str, Sequence[np.ndarray]], ignore_index: int) -> list[str]:
    """Names for all classes up to the largest that occurs."""
    every = [one[one != ignore_index] for several in maps.values() for one in several]
    largest = max((int(one.max(initial=0)) for one in every), default=0)
    return [f"class {number}" for number in range(largest + 1)]


def _caption(
    names: Sequence[str],
    ignore_index: int,
    prediction: np.ndarray,
    labels: np.ndarray | None = None,
) -> str:
    """How right the prediction is where labels are given, else what it is: (H, W) -> words."""
    if labels is None:
        classes, shares = _by_area(prediction[prediction != ignore_index])
        shown = list(zip(classes, shares, strict=True))[:MOST_NAMED]
        return ", ".join(f"{names[class_id]} {share:.0%}" for class_id, share in shown)
    counted = labels != ignore_index
    if not counted.any():
        return "no pixel has a label"
    predicted, true = prediction[counted], labels[counted]  # (counted pixels,)
    ious = {class_id: _iou(predicted, true, class_id) for class_id in np.union1d(predicted, true)}
    ious.pop(ignore_index, None)  # a prediction that was ignored misses its pixel, no more
    shown = _by_area(true)[0][:MOST_NAMED]
    listing = ", ".join(f"{names[class_id]} {ious[class_id]:.2f}" for class_id in shown)
    mean = sum(ious.values()) / len(ious)
    words = f"pixel accuracy {(predicted == true).mean():.1%}, mean IoU {mean:.2f} ({listing})"
    return words if counted.all() else f"{words}, {1 - counted.mean():.0%} ignored"


def _by_area(ids: np.ndarray) -> tuple[list[int], list[float]]:
    """The classes that occur, the largest first, and their shares: (pixels,) -> classes, shares."""
    classes, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return classes[order].tolist(), (counts[order] / ids.size).tolist()


def _iou(predicted: np.ndarray, true: np.ndarray, class_id: int) -> float:
    """Intersection over union of a class that is in one of the two at least: (pixels,) twice."""
    predicted, true = predicted == class_id, true == class_id
    return float((predicted & true).sum() / (predicted | true).sum())
