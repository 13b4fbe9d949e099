"""Mean, deviation and range of pixel values: added up image by image, and the file that keeps them.

Sums of squared deviations are combined as by Chan, Golub and LeVeque (1979), which loses no digits
where the values lie far from zero; so any split of the pixels gives the same to rounding.
"""

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_vitmae.whole_or_absent import write_whole

FILE_KIND = "hf_vitmae pixel statistics"  # tells such a file from any other JSON
VALUES_AT_ONCE = 1 << 16  # as float64 they stay in a core's cache
FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0}


class Moments(NamedTuple):
    """Number of pixels, and of each channel the mean and the summed squared deviation from it."""

    num_pixels: int
    mean: np.ndarray  # float64 (C,)
    squares: np.ndarray  # float64 (C,)

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Those of one image: (C, H, W), at least one pixel."""
        rows = max(1, VALUES_AT_ONCE // values.shape[2])
        tops = range(0, values.shape[1], rows)
        strips = [_of_strip(values[:, top : top + rows]) for top in tops]
        return reduce(operator.add, strips)

    def __add__(self, other: "Moments") -> "Moments":  # type: ignore[override]
        """Those of both, as of one larger image."""
        num_pixels = self.num_pixels + other.num_pixels
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.num_pixels / num_pixels)
        between = apart**2 * (self.num_pixels / num_pixels * other.num_pixels)
        return Moments(num_pixels, mean, self.squares + other.squares + between)

    def scaled(self, low: float, high: float) -> "Moments":
        """In units of a range: `low` becomes 0 and `high` becomes 1."""
        span = high - low
        return Moments(self.num_pixels, (self.mean - low) / span, self.squares / span**2)

    def repeated(self, num_channels: int) -> "Moments":
        """Of images whose one channel is shown in several."""
        return Moments(
            self.num_pixels, self.mean.repeat(num_channels), self.squares.repeat(num_channels)
        )

    @property
    def std(self) -> np.ndarray:
        """Standard deviation over all pixels: float64 (C,)."""
        return np.sqrt(self.squares / self.num_pixels)


class Values(NamedTuple):
    """What is known of the values of one image, or of several of one type and channel count."""

    moments: Moments
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Values":
        """Those of one image: (C, H, W)."""
        return cls(Moments.of(values), float(values.min()), float(values.max()))

    def __add__(self, other: "Values") -> "Values":  # type: ignore[override]
        return Values(
            self.moments + other.moments,
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
        )


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """What images are normalised with, in units of their value range.

    Args:
        mean, std: one number a channel; a channel that is the same everywhere has std 1.
        range: least and largest value as stored; of 8-bit images always 0 and 255.
        value_range: what becomes 0 and 1, as the image processor takes it; None is the full range
            of each image's type.
        num_images: how many images were measured.

    Raises:
        ValueError: if the numbers cannot be statistics of images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, float]
    value_range: tuple[float, float] | None = None
    num_images: int = 0

    def __post_init__(self) -> None:
        ends = self.value_range or (0.0, 1.0)
        if not all(map(math.isfinite, (*self.mean, *self.std, *self.range, *ends))):
            raise ValueError("mean, std and range must be finite numbers")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means do not go with {len(self.std)} deviations")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, not {min(self.std)}")
        if len(self.range) != 2 or len(ends) != 2 or not ends[0] < ends[1]:
            raise ValueError("a range must be (low, high) with low below high")

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    @property
    def constant_channels(self) -> list[int]:
        """Channels that are the same everywhere; values in 0..1 never have a deviation of 1."""
        return [channel for channel, std in enumerate(self.std) if std == 1.0]

    def for_channels(self, num_channels: int) -> "PixelStatistics | None":
        """The same for a model of so many channels, which shows gray in three; None if unfit."""
        if self.num_channels == num_channels:
            return self
        if (self.num_channels, num_channels) != (1, 3):
            return None
        return replace(self, mean=self.mean * 3, std=self.std * 3)


def combine(groups: Mapping[tuple[int, str], Values], num_images: int) -> PixelStatistics:
    """The statistics of all images, from those of every group of alike ones.

    Gray beside colour counts in all three channels. Images of 8 and of 16 bits are each taken by
    their full range; where all are deep, their range is what they hold.

    Args:
        groups: by the number of channels, all the same or 1 and 3, and the numpy type.
    """
    num_channels = max(channels for channels, _ in groups)
    types = {kind for _, kind in groups}
    lowest = min(values.lowest for values in groups.values())
    highest = max(values.highest for values in groups.values())
    value_range, ends = None, (0.0, 255.0)
    if types != {"uint8"}:
        ends = (lowest, highest)
    if not types <= {"uint8", "uint16"} or "uint8" not in types:
        value_range = (lowest, highest if highest > lowest else lowest + 1)
    total = None
    for (channels, kind), values in groups.items():
        moments = values.moments if channels == num_channels else values.moments.repeated(3)
        moments = moments.scaled(*(value_range or (0.0, FULL_SCALE[kind])))
        total = moments if total is None else total + moments
    assert total is not None
    std = tuple(1.0 if is_constant(value) else float(value) for value in total.std)
    return PixelStatistics(
        mean=tuple(map(float, total.mean)),
        std=std,
        range=ends,
        value_range=value_range,
        num_images=num_images,
    )


def is_constant(std: float) -> bool:
    """Whether a deviation, in units of the range, is none but for rounding."""
    return bool(std < 1e-9)


def write_statistics(path: Path, statistics: PixelStatistics, **counts: Any) -> None:
    """Write a JSON file, whole or not at all, with anything else that was counted beside it."""
    written = {"kind": FILE_KIND, "channels": statistics.num_channels, **asdict(statistics)}
    write_whole(path, json.dumps(written | counts, indent=2) + "\n")


def read_statistics(path: Path) -> PixelStatistics:
    """What `write_statistics` wrote.

    Raises:
        FileNotFoundError: if there is no such file. ValueError: if it is none of statistics.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {str(path)!r} of statistics; write one with hf-vitmae stats SOURCE "
            f"-o {path}."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] != FILE_KIND:
            raise ValueError(f"its kind is {found['kind']!r}")
        ends = found["value_range"]
        return PixelStatistics(
            mean=_numbers(found["mean"]),
            std=_numbers(found["std"]),
            range=_pair(found["range"]),
            value_range=None if ends is None else _pair(ends),
            num_images=int(found["num_images"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is no file of statistics ({reason}); write one with hf-vitmae stats SOURCE."
        ) from error


def _of_strip(values: np.ndarray) -> Moments:
    """The moments of some rows, each channel by itself, which is six times as fast: (C, h, W)."""
    mean, squares = np.empty(len(values)), np.empty(len(values))
    for channel, plane in enumerate(values):
        flat = plane.astype(np.float64).ravel()  # (h * W,)
        mean[channel] = flat.mean()
        flat -= mean[channel]
        squares[channel] = flat @ flat
    return Moments(values[0].size, mean, squares)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _pair(values: Sequence[Any]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
