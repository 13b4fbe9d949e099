"""Drawn pictures of surfaces with and without a defect, gray, as industrial inspection sees them.

The rule: a surface (brushed, grained, cloudy, ribbed or woven; of any direction, scale, contrast
and brightness) is lit from some side and seen with noise. On it lies one defect or none, and its
kind is the class:

- `scratch`: a thin smooth line, bright or dark, with a shadow beside it; `crack`: a dark line that
  turns at random and branches.
- `hole`: dark, with a sharp edge and a lit rim; `pits`: several small dark points.
- `stain`: a cloudy spot that is darker or lighter, through which the surface shows.
- `dent`: one side bright and the other dark, as the light falls; the surface is whole.
- `worn`: a spot where the surface has lost its structure and nothing else.

Place, size and strength are random, so neither brightness nor single pixels tell the class. Picture
i of a seed is always the same.
"""

import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw

from .drawn import SPLITS, Drawn, Plane, drawn_dataset, inside
from .order import Stream, random_stream

DEFECT_CLASS_NAMES = ("none", "scratch", "crack", "hole", "pits", "stain", "dent", "worn")
SIDE = 48  # of a picture, in pixels
BRIGHTNESS = (85.0, 165.0)  # of 255, before the light
TEXTURE = (7.0, 16.0)  # its deviation
MOST_LIGHT = 35.0  # brighter at one side of the picture, and darker at the other
NOISE = (1.0, 3.5)  # its deviation
MARGIN = 11  # pixels from the edge to the middle of a defect
FINE = 3  # cracks are drawn so much larger, then reduced: soft edges

PLANE = Plane(SIDE)
Random = np.random.Generator


class Scene(NamedTuple):
    """A surface, and where a defect lies on it."""

    brightness: np.ndarray  # (H, W)
    texture: np.ndarray  # (H, W)
    light: float  # where it comes from, as an angle
    y: float
    x: float
    generator: Random

    @property
    def surface(self) -> np.ndarray:
        return self.brightness + self.texture


@lru_cache(maxsize=2)
def defects_dataset(split: str) -> Dataset:
    """One split as encoded pictures, columns `image` and `label`."""
    return drawn_dataset(_drawn, SPLITS[split], DEFECT_CLASS_NAMES)


def draw_defect(number: int, seed: int = 0) -> tuple[Image.Image, int]:
    """One picture (L) and its class."""
    generator = random_stream(Stream.DEFECTS, seed, slot=number)
    class_id = int(generator.integers(len(DEFECT_CLASS_NAMES)))
    pixels = _DEFECTS[DEFECT_CLASS_NAMES[class_id]](_scene(generator))  # (H, W)
    noise = generator.standard_normal(pixels.shape, dtype=np.float32)
    pixels = pixels + generator.uniform(*NOISE) * noise
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)), class_id


def _drawn(number: int) -> Drawn:
    picture, class_id = draw_defect(number)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=0)  # it lives in memory: speed before size
    return Drawn(buffer.getvalue(), class_id)


def _scene(generator: Random) -> Scene:
    light = generator.uniform(0, 2 * math.pi)
    along, _ = PLANE.turned(light)
    brightness = (
        generator.uniform(*BRIGHTNESS) + along * generator.uniform(0, MOST_LIGHT) * 2 / SIDE
    )
    texture = generator.uniform(*TEXTURE) * _texture(generator)
    y, x = generator.uniform(MARGIN - SIDE / 2, SIDE / 2 - MARGIN, 2)
    return Scene(brightness, texture, light, y, x, generator)


def _texture(generator: Random) -> np.ndarray:
    """A surface of some kind: (H, W), deviation 1."""
    angle = generator.uniform(0, math.pi)
    kind = generator.integers(5)
    if kind == 0:  # brushed
        return PLANE.soft_noise(generator, generator.uniform(15, 40), 1.0, angle)
    if kind == 1:  # grained
        size = generator.uniform(1.0, 2.5)
        return PLANE.soft_noise(generator, size, size)
    if kind == 2:  # cloudy
        coarse = PLANE.soft_noise(generator, 9, generator.uniform(5, 9), angle)
        return 0.8 * coarse + 0.6 * PLANE.soft_noise(generator, 1.5, 1.5)
    along, across = PLANE.turned(angle)
    frequency = 2 * math.pi / generator.uniform(4.0, 9.0)
    bent = frequency * (across + PLANE.soft_noise(generator, 20, 20))
    if kind == 3:  # ribbed
        return 1.2 * np.sin(bent) + 0.5 * PLANE.soft_noise(generator, 1.5, 1.5)
    warp, weft = np.sin(bent), np.sin(frequency * along)  # woven
    return 1.3 * warp * weft + 0.5 * np.abs(warp) + 0.4 * PLANE.soft_noise(generator, 2, 2)


def _none(scene: Scene) -> np.ndarray:
    return scene.surface


def _scratch(scene: Scene) -> np.ndarray:
    draw = scene.generator
    angle, half_length = draw.uniform(0, 2 * math.pi), draw.uniform(8, 18)
    along, across = PLANE.turned(angle, scene.y, scene.x)
    across = across - draw.uniform(-0.02, 0.02) * along**2
    width = draw.uniform(0.7, 1.2)
    ends = inside(half_length - np.abs(along))
    line, shadow = np.exp(-((across / width) ** 2)), np.exp(-(((across - 1.8) / width) ** 2))
    depth = draw.uniform(40, 75) * draw.choice((-1, 1))
    return scene.surface + depth * ends * (line - 0.5 * shadow)


def _crack(scene: Scene) -> np.ndarray:
    draw = scene.generator
    canvas = Image.new("L", (SIDE * FINE, SIDE * FINE))
    pen = ImageDraw.Draw(canvas)
    heading = draw.uniform(0, 2 * math.pi)
    middle = np.array([scene.x, scene.y]) + SIDE / 2
    for turn in (0.0, math.pi, draw.choice((-1, 1)) * draw.uniform(0.7, 1.5)):  # the last: a branch
        angles = heading + turn + np.cumsum(draw.normal(0, 0.7, draw.integers(4, 8)))
        steps = draw.uniform(2, 4, (len(angles), 1))
        steps = steps * np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (corners, 2)
        points = np.vstack([middle, middle + np.cumsum(steps, axis=0)]) * FINE
        pen.line([tuple(point) for point in points], fill=255, width=FINE + 1)
    coverage = np.asarray(canvas.reduce(FINE), np.float32) / 255  # (H, W)
    return scene.surface - draw.uniform(45, 80) * coverage


def _hole(scene: Scene) -> np.ndarray:
    draw = scene.generator
    radius = draw.uniform(2.5, 6.0)
    depth = radius - _ellipse(scene)
    far_side = -(PLANE.turned(scene.light, scene.y, scene.x)[0] / radius).clip(-1, 1)
    rim = np.exp(-((depth + 0.8) ** 2)) * far_side * draw.uniform(20, 50)
    within = inside(depth)
    return (scene.surface + rim) * (1 - within) + draw.uniform(15, 50) * within


def _pits(scene: Scene) -> np.ndarray:
    draw = scene.generator
    count, spread = draw.integers(6, 13), draw.uniform(4, 8)
    y, x = draw.normal((scene.y, scene.x), spread, (count, 2)).T[..., None, None]
    deep = inside(draw.uniform(0.7, 1.5, (count, 1, 1)) - PLANE.distance(y, x))  # (n, H, W)
    return scene.surface - (draw.uniform(45, 85, (count, 1, 1)) * deep).sum(axis=0)


def _stain(scene: Scene) -> np.ndarray:
    spot = _spot(scene, scene.generator.uniform(5, 10))
    strength = scene.generator.uniform(0.25, 0.45) * scene.generator.choice((-1, 1))
    return scene.surface * (1 + strength * spot)


def _dent(scene: Scene) -> np.ndarray:
    radius = scene.generator.uniform(3.5, 7.0)
    along, _ = PLANE.turned(scene.light, scene.y, scene.x)
    slope = along / radius * np.exp(-0.5 * (_ellipse(scene) / radius) ** 2)
    strength = scene.generator.uniform(55, 100) * scene.generator.choice((-1, 1))  # or a bump
    return scene.surface - strength * slope


def _worn(scene: Scene) -> np.ndarray:
    spot = _spot(scene, scene.generator.uniform(7, 11))
    return scene.brightness + scene.texture * (1 - 0.95 * spot)


def _ellipse(scene: Scene) -> np.ndarray:
    """Distance from the defect's middle, up to a fourth larger across some direction: (H, W)."""
    along, across = PLANE.turned(scene.generator.uniform(0, math.pi), scene.y, scene.x)
    return np.hypot(along, across * scene.generator.uniform(1.0, 1.25))


def _spot(scene: Scene, radius: float) -> np.ndarray:
    """A spot with an uneven edge: (H, W) in 0..1."""
    edge = radius - _ellipse(scene) + 1.5 * PLANE.soft_noise(scene.generator, 6, 6)
    return np.clip(edge / 2 + 0.5, 0, 1)


_DEFECTS: dict[str, Callable[[Scene], np.ndarray]] = {
    "none": _none,
    "scratch": _scratch,
    "crack": _crack,
    "hole": _hole,
    "pits": _pits,
    "stain": _stain,
    "dent": _dent,
    "worn": _worn,
}
