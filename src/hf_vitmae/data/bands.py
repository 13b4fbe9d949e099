"""Drawn pictures of eight bands, as a satellite sees land: what covers it, and how it lies there.

The rule: one of five materials lies on a ground of soil and grass in one of five layouts, and the
class is the pair. Each material occurs in two layouts and each layout with two materials, so
neither the spectrum nor the form alone tells more than half of it:

|          | rows    | disc    | winding | plots       | scattered |
|----------|---------|---------|---------|-------------|-----------|
| crop     | `crops` | `pivot` |         |             |           |
| water    |         | `lake`  | `river` |             |           |
| concrete |         |         | `road`  | `town`      |           |
| sand     |         |         |         | `sand pits` | `dunes`   |
| trees    | `orchard` |       |         |             | `savanna` |

Spectra vary from picture to picture, light, haze, texture and noise do, and up to three spots of
other materials lie anywhere. The reflectances are made up, in the order of real ones from blue to
short-wave infrared. Picture i of a seed is always the same, stored as `.npy`, uint8 (H, W, 8).
"""

import io
import math
from functools import lru_cache

import numpy as np
from datasets import Dataset

from .drawn import SPLITS, Drawn, Plane, drawn_dataset, inside
from .order import Stream, random_stream

NUM_BANDS = 8
SIDE = 32  # of a picture, in pixels
FULL = 0.8  # the reflectance that is stored as 255
NOISE = 0.012  # its deviation, in reflectance
FROM_BLUE = np.linspace(0, 1, NUM_BANDS, dtype=np.float32)  # of each band, to infrared
SPECTRA = {
    "crop": (0.03, 0.04, 0.10, 0.06, 0.26, 0.42, 0.24, 0.14),
    "trees": (0.02, 0.03, 0.05, 0.04, 0.14, 0.35, 0.11, 0.05),
    "water": (0.06, 0.07, 0.07, 0.05, 0.03, 0.02, 0.01, 0.01),
    "concrete": (0.17, 0.19, 0.22, 0.24, 0.26, 0.28, 0.31, 0.29),
    "sand": (0.14, 0.18, 0.25, 0.31, 0.35, 0.38, 0.44, 0.41),
}
SOIL = (0.07, 0.09, 0.12, 0.17, 0.20, 0.24, 0.31, 0.27)
GRASS = (0.04, 0.05, 0.08, 0.08, 0.18, 0.28, 0.25, 0.15)
CLASSES = {  # name -> material and layout
    "crops": ("crop", "rows"),
    "pivot": ("crop", "disc"),
    "lake": ("water", "disc"),
    "river": ("water", "winding"),
    "road": ("concrete", "winding"),
    "town": ("concrete", "plots"),
    "sand pits": ("sand", "plots"),
    "dunes": ("sand", "scattered"),
    "savanna": ("trees", "scattered"),
    "orchard": ("trees", "rows"),
}
BAND_CLASS_NAMES = tuple(CLASSES)

PLANE = Plane(SIDE)
Random = np.random.Generator


@lru_cache(maxsize=2)
def bands_dataset(split: str) -> Dataset:
    """One split as encoded arrays, columns `image` and `label`."""
    return drawn_dataset(_drawn, SPLITS[split], BAND_CLASS_NAMES)


def draw_bands(number: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """One picture, uint8 (H, W, 8), and its class."""
    generator = random_stream(Stream.BANDS, seed, slot=number)
    class_id = int(generator.integers(len(CLASSES)))
    material, layout = CLASSES[BAND_CLASS_NAMES[class_id]]
    reflected = _ground(generator)  # (H, W, 8)
    others = [name for name in SPECTRA if name != material]
    spots = generator.integers(len(others), size=generator.integers(1, 4))
    layers = [(others[which], _spot(generator)) for which in spots]
    for covering, coverage in (*layers, (material, _coverage(layout, generator))):
        coverage = coverage[..., None]  # (H, W, 1)
        reflected = reflected * (1 - coverage) + _spectrum(SPECTRA[covering], generator) * coverage
    seen = _seen(reflected, generator)
    return (seen * (255 / FULL)).round().clip(0, 255).astype(np.uint8), class_id


def _drawn(number: int) -> Drawn:
    pixels, class_id = draw_bands(number)
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return Drawn(buffer.getvalue(), class_id)


def _spectrum(usual: tuple[float, ...], generator: Random) -> np.ndarray:
    """A material as it is in one picture: (8,)."""
    change = generator.normal(0, 0.06, NUM_BANDS) + generator.normal(0, 0.18)
    change += generator.normal(0, 0.15) * (2 * FROM_BLUE - 1)
    return (np.array(usual) * np.exp(change)).astype(np.float32)


def _ground(generator: Random) -> np.ndarray:
    """Soil and grass, mixed differently from place to place: (H, W, 8)."""
    size = generator.uniform(4, 14)
    mixed = generator.uniform(-1, 2) + 0.4 * PLANE.soft_noise(generator, size, size)
    grassy = mixed.clip(0, 1)[..., None]  # (H, W, 1)
    return _spectrum(SOIL, generator) * (1 - grassy) + _spectrum(GRASS, generator) * grassy


def _seen(reflected: np.ndarray, generator: Random) -> np.ndarray:
    """Reflectance (H, W, 8) in the light of a day: with texture, a slope, haze and noise."""
    texture = generator.uniform(0.04, 0.15) * PLANE.soft_noise(generator, 1.5, 1.5)
    along, _ = PLANE.turned(generator.uniform(0, 2 * math.pi))
    light = generator.uniform(0.65, 1.3) + generator.uniform(0, 0.2) * along / (SIDE / 2)
    haze = generator.uniform(0, 0.07) * (1 - FROM_BLUE) ** 2
    noise = generator.standard_normal(reflected.shape, dtype=np.float32)
    return reflected * (light * (1 + texture))[..., None] + haze + NOISE * noise


def _spot(generator: Random) -> np.ndarray:
    """A small disc anywhere: (H, W)."""
    y, x = generator.uniform(-SIDE / 2, SIDE / 2, 2)
    return inside(generator.uniform(1.5, 4.5) - PLANE.distance(y, x))


def _coverage(layout: str, generator: Random) -> np.ndarray:
    """How much of each pixel the material covers: (H, W) in 0..1."""
    along, across = PLANE.turned(generator.uniform(0, 2 * math.pi))
    if layout == "rows":
        return _rows(across, generator)
    if layout == "disc":
        y, x = generator.uniform(-7, 7, 2)
        return inside(generator.uniform(6, 11) - PLANE.distance(y, x))
    if layout == "winding":
        bend, length = generator.uniform(1, 5), generator.uniform(20, 40)
        phase = generator.uniform(0, 2 * math.pi)
        middle = bend * np.sin(2 * math.pi * along / length + phase) + generator.uniform(-7, 7)
        return inside(generator.uniform(1.2, 3) - np.abs(across - middle))
    if layout == "plots":
        return _plots(along, across, generator)
    return _scattered(generator)


def _rows(across: np.ndarray, generator: Random) -> np.ndarray:
    """Parallel stripes, as wide as the gaps between them or nearly so: (H, W)."""
    distance = generator.uniform(4, 8)
    place = np.abs((across / distance + generator.uniform(0, 1)) % 1 - 0.5) * distance
    return inside(generator.uniform(0.2, 0.3) * distance - place)


def _plots(along: np.ndarray, across: np.ndarray, generator: Random) -> np.ndarray:
    """Rectangles on a grid, some of them missing: (H, W)."""
    covered = np.ones_like(along)
    which = []
    for position in (along, across):
        distance = generator.uniform(6, 10)
        shifted = position / distance + generator.uniform(0, 1)
        place = np.abs(shifted % 1 - 0.5) * distance
        covered = covered * inside(generator.uniform(0.28, 0.4) * distance - place)
        which.append(np.floor(shifted).astype(int) % 8)
    return covered * (generator.random((8, 8)) < 0.7)[which[0], which[1]]


def _scattered(generator: Random) -> np.ndarray:
    """Small discs anywhere: (H, W)."""
    count = generator.integers(8, 17)
    y, x = generator.uniform(-SIDE / 2, SIDE / 2, (2, count, 1, 1))
    radii = generator.uniform(1.2, 3, (count, 1, 1)).astype(np.float32)
    return inside(radii - PLANE.distance(y, x)).max(axis=0)
