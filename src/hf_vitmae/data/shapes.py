"""Drawn pictures whose every pixel has a known class: circles, squares and triangles.

Small enough to draw when they are opened, learned in minutes on a CPU, and hard enough to need more
than colour: shapes of any colours, size and rotation cover one another on a background that changes
in colour and is noisy. Circles are plain, squares striped and triangles checked, since forms alone
take a small model much longer. Picture i of a seed is always the same.
"""

import io
import math

import numpy as np
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw

from .order import Stream, random_stream

SHAPE_CLASS_NAMES = ("background", "circle", "square", "triangle")
CIRCLE, SQUARE, TRIANGLE = 1, 2, 3
SHAPE_SPLITS = {"train": range(1000), "test": range(1000, 1200)}  # numbers of the pictures
SIDE = 64  # of a picture, in pixels
RADII = (9.0, 18.0)  # of the circle that has the area of a shape, whatever its class
SLIMMEST = 0.6  # short by long side of a square: some are rectangles
MOST_SHAPES = 3
LEAST_CONTRAST = 64  # in some channel, from all other colours of the picture
MOST_NOISE = 12
STRIPE = 3  # pixels, the width of stripes and checks
FINE = 3  # drawn so much larger, then reduced: soft edges


def shapes_dataset(split: str) -> Dataset:
    """One split as encoded pictures, columns `image` and `label_map`."""
    columns: dict[str, list[dict]] = {"image": [], "label_map": []}
    for number in SHAPE_SPLITS[split]:
        for column, picture in zip(columns.values(), draw_shapes(number), strict=True):
            column.append({"bytes": _encode(picture), "path": None})
    features = Features(image=ImageFeature(), label_map=ImageFeature())
    return Dataset.from_dict(columns, features=features)


def draw_shapes(number: int, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    """One picture (RGB) of one to three shapes, and the class of each of its pixels (L).

    Where shapes overlap, the later one is seen. A pixel has the class of a shape that covers at
    least half of it.
    """
    generator = random_stream(Stream.SHAPES, seed, slot=number)
    colours = generator.integers(0, 256, (2, 3))
    picture, classes = _gradient(colours, generator), Image.new("L", (SIDE, SIDE))
    for _ in range(generator.integers(1, MOST_SHAPES, endpoint=True)):
        class_id = int(generator.integers(CIRCLE, TRIANGLE, endpoint=True))
        coverage = _coverage(class_id, generator)
        for _ in range(2):
            colours = np.vstack([colours, _new_colour(colours, generator)])
        picture.paste(_fill(class_id, colours[-2:]), mask=coverage)
        classes.paste(class_id, mask=coverage.convert("1", dither=Image.Dither.NONE))
    return _add_noise(picture, generator), classes


def _gradient(colours: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """From one colour to another in some direction: (2, 3) -> RGB."""
    angle = generator.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    way = across * math.sin(angle) + across[:, None] * math.cos(angle)  # (H, W)
    share = (way - way.min()) / (way.max() - way.min())
    first, last = colours.astype(np.float32)
    pixels = first + share[..., None] * (last - first)  # (H, W, 3)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _add_noise(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    most = generator.integers(MOST_NOISE, endpoint=True)
    pixels = np.asarray(picture).astype(np.int16)  # (H, W, 3)
    pixels += generator.integers(-most, most, pixels.shape, dtype=np.int8, endpoint=True)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _new_colour(colours: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random colour that differs from those of the picture: (n, 3) -> (3,)."""
    candidates = generator.integers(0, 256, (16, 3))
    distances = np.abs(candidates[:, None] - colours).max(axis=2).min(axis=1)  # (16,)
    return candidates[np.minimum(distances, LEAST_CONTRAST).argmax()]  # the first that suffices


def _fill(class_id: int, colours: np.ndarray) -> Image.Image:
    """What a class is painted with, over the whole picture: (2, 3) -> RGB."""
    rows, columns = np.mgrid[:SIDE, :SIDE] // STRIPE  # (H, W) each
    which = {CIRCLE: np.zeros_like(rows), SQUARE: rows, TRIANGLE: rows + columns}
    return Image.fromarray(colours[which[class_id] % 2].astype(np.uint8))


def _coverage(class_id: int, generator: np.random.Generator) -> Image.Image:
    """A shape somewhere in the picture: L, 255 where it covers the whole pixel."""
    radius = generator.uniform(*RADII)
    x, y = generator.uniform(radius, SIDE - radius, 2)
    outline = _outline(class_id, generator) * radius + (x, y)  # (corners, 2)
    canvas = Image.new("L", (SIDE * FINE, SIDE * FINE))
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in outline * FINE], fill=255)
    return canvas.reduce(FINE)


def _outline(class_id: int, generator: np.random.Generator) -> np.ndarray:
    """Corners of a turned shape around the origin, of the area of a circle of radius 1: (n, 2)."""
    start = generator.uniform(0, 2 * math.pi)
    if class_id == SQUARE:
        ratio = generator.uniform(SLIMMEST, 1)
        half = np.sqrt([math.pi / ratio, math.pi * ratio]) / 2  # half its width and height
        corners = half * [(1, 1), (-1, 1), (-1, -1), (1, -1)]
        turn = [(math.cos(start), math.sin(start)), (-math.sin(start), math.cos(start))]
        return corners @ np.array(turn)
    num_corners = 3 if class_id == TRIANGLE else 64
    angles = start + np.arange(num_corners) * (2 * math.pi / num_corners)
    area = num_corners / 2 * math.sin(2 * math.pi / num_corners)  # of a polygon of radius 1
    return math.sqrt(math.pi / area) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=0)  # it lives in memory: speed before size
    return buffer.getvalue()
