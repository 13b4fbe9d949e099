"""A number for each patch as colours over a picture: dark is low, bright is high."""

import numpy as np
from PIL import Image

# From low to high, each brighter than the one before, so that a gray print keeps the order.
RAMP = np.array([(0, 0, 32), (84, 15, 109), (187, 55, 84), (249, 142, 9), (252, 255, 164)])


def heat_colors(values: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Colours of values, the lowest black-blue and the highest pale: (h, w) -> uint8 (h, w, 3).

    Equal values everywhere all get the lowest colour.

    Args:
        limits: the values of the lowest and highest colour; by default those that there are.
    """
    low, high = limits or (float(values.min()), float(values.max()))
    shares = (values - low) / (high - low) if high > low else np.zeros(values.shape)
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(shares, stops, RAMP[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def heat_over(picture: Image.Image, values: np.ndarray, opacity: float = 0.6) -> Image.Image:
    """Lay the colours of values (h, w), one a patch, over a picture of any size.

    Raises:
        ValueError: if the opacity is no share.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be from 0 to 1, got {opacity}.")
    heat = Image.fromarray(heat_colors(values)).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("RGB"), heat, opacity)
