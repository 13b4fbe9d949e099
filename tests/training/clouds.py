"""Labelled features drawn by chance, for tests of probes and neighbours."""

import numpy as np

from hf_vitmae.training.features import Features


def clouds(num_images: int = 300, width: int = 12, num_classes: int = 4, seed: int = 0) -> Features:
    """Clouds that overlap, a class each, whose features have different means and deviations."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes, num_images)
    centres = draw.normal(size=(num_classes, width))
    values = draw.normal(size=(num_images, width)) + centres[labels]
    values = values * draw.uniform(0.1, 5, width) + 3
    names = tuple(f"class {i}" for i in range(num_classes))
    return Features(values.astype(np.float32), labels.astype(np.int64), names)
