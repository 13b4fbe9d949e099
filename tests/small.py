"""Flags for a run of seconds, and small image files."""

from pathlib import Path

import numpy as np
from PIL import Image

# Every part of a task once, in a second or two.
FAST = ["--steps", "4", "--log-every", "2", "--checkpoint-every", "2", "--eval-images", "16"]


def write_images(folder: Path, count: int, suffix: str = ".jpg", seed: int = 0) -> Path:
    """Write `count` pictures of 40 x 48 pixels (height x width) with a smooth random pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}{suffix}")
    return folder
