"""What one pass over a source finds: of every image its facts and the moments of its pixels.

Pixels are taken upright and in full, at the depth at which they are stored, and otherwise as
training decodes them: transparency lies on white, a palette becomes colours.
"""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.data.decoding.stored import Header, stored_image
from hf_vitmae.data.streams.lanes import starts_of

from .image_source import ImageSource
from .mixture import AnySource
from .request import Missing, Record
from .statistics import PixelStatistics, Values, combine
from .workers import serve

IMAGES_AT_ONCE = 8  # that a worker measures before it answers


class Measurement(NamedTuple):
    """What is known of one image; `digest` is the same for the same pixels."""

    name: str
    label: int | None
    num_bytes: int
    header: Header
    height: int
    width: int
    digest: bytes
    group: tuple[int, str]  # number of channels and numpy type
    values: Values


class Bad(NamedTuple):
    """An image that cannot be used."""

    name: str
    reason: str


def measure(record: Record, num_channels: int | None = None) -> Measurement:
    """Decode one image and measure it.

    Args:
        num_channels: of the model that will see it, as in `stored_image`.

    Raises:
        BadImage: as `stored_image`, and for values that are no numbers.
    """
    header, pixels = stored_image(record.encoded, num_channels, record.name)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise BadImage(record.name, "holds values that are no finite numbers; mend or remove it.")
    channels, height, width = pixels.shape
    return Measurement(
        record.name,
        record.label,
        len(record.encoded),
        header,
        height,
        width,
        _digest(pixels),
        (channels, str(pixels.dtype)),
        Values.of(pixels),
    )


@dataclass
class Tally:
    """What all images together are like; `add` takes them one after another, always in order."""

    num_images: int = 0
    num_bytes: int = 0
    groups: dict[tuple[int, str], Values] = field(default_factory=dict)
    group_sizes: Counter[tuple[int, str]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    depths: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (name, the earlier image's)
    bad: list[Bad] = field(default_factory=list)
    first_names: dict[bytes, str] = field(default_factory=dict)

    def add(self, found: "Measurement | Bad") -> None:
        """Count one image."""
        if isinstance(found, Bad):
            self.bad.append(found)
            return
        self.num_images += 1
        self.num_bytes += found.num_bytes
        self._add_values(found)
        self.formats[found.header.format] += 1
        self.modes[found.header.mode] += 1
        self.depths[found.header.depth] += 1
        self.sizes[found.height, found.width] += 1
        if found.label is not None:
            self.labels[found.label] += 1
        if found.digest in self.first_names:
            self.duplicates.append((found.name, self.first_names[found.digest]))
        else:
            self.first_names[found.digest] = found.name

    def _add_values(self, found: Measurement) -> None:
        group = found.group
        before = self.groups.get(group)
        self.groups[group] = found.values if before is None else before + found.values
        self.group_sizes[group] += 1

    @property
    def channel_counts(self) -> Counter[int]:
        """Images by their number of channels."""
        counts: Counter[int] = Counter()
        for (channels, _), size in self.group_sizes.items():
            counts[channels] += size
        return counts

    def statistics(self, name: str) -> PixelStatistics:
        """Of all images, gray ones shown in colour beside colours; where the channels do not agree,
        of those with the most common number.

        Args:
            name: what an error calls the source.

        Raises:
            ValueError: if there was no image that can be used.
        """
        if not self.groups:
            raise ValueError(
                f"None of {len(self.bad)} images of {name} can be used; the first: "
                f"{self.bad[0].name} {self.bad[0].reason}"
            )
        most_common = self.channel_counts.most_common(1)[0][0]
        fitting = {1, 3} if most_common in (1, 3) else {most_common}
        groups = {group: values for group, values in self.groups.items() if group[0] in fitting}
        return combine(groups, sum(self.group_sizes[group] for group in groups))

    def counts(self) -> dict[str, Any]:
        """What was counted, for a JSON file; the images that need attention by name."""
        return {
            "images": self.num_images,
            "bytes": self.num_bytes,
            "formats": dict(self.formats),
            "modes": dict(self.modes),
            "depths": dict(self.depths),
            "channels": {str(channels): n for channels, n in self.channel_counts.items()},
            "bad": [bad._asdict() for bad in self.bad],
            "duplicates": [{"name": name, "same_as": first} for name, first in self.duplicates],
        }


def measure_all(
    source: AnySource, num_channels: int | None = None, num_workers: int = 0
) -> Generator[Measurement | Bad, None, None]:
    """Measure every image of a source once, in order.

    Raises:
        ValueError: if a shard of a stream cannot be read, or a worker dies again and again.
    """
    by_index = source if isinstance(source, ImageSource) else None
    wanted = source.records() if by_index is None else range(len(source))
    measurer = _Measurer(by_index, num_channels)
    answers = serve(measurer, _several(wanted), num_workers, names=measurer.names)
    with closing(answers):
        for answer in answers:
            yield from answer


@dataclass(frozen=True)
class _Measurer(Dataset[list[Measurement | Bad]]):
    """Measures images, which it looks up by index or, of a stream, is handed."""

    source: ImageSource | None
    num_channels: int | None

    def __getitem__(self, request: list[int | Record]) -> list[Measurement | Bad]:
        return [self._measure(self._look_up(wanted)) for wanted in request]

    def names(self, request: list[int | Record]) -> list[str]:
        """What the images of a request are known by."""
        return [self._look_up(wanted).name for wanted in request]

    def _look_up(self, wanted: int | Record) -> Record:
        if isinstance(wanted, Record):
            return wanted
        assert self.source is not None
        return self.source.record(wanted)

    def _measure(self, record: Record) -> Measurement | Bad:
        if isinstance(record.encoded, Missing):  # no image in the row, or its file is gone
            return Bad(record.name, record.encoded.reason)
        try:
            return measure(record, self.num_channels)
        except BadImage as error:
            return Bad(error.name, error.reason)


def _several(wanted: Iterable[int | Record]) -> Iterator[list[int | Record]]:
    """What the workers are asked for: several images at once, in order."""
    wanted = iter(wanted)
    while several := list(islice(wanted, IMAGES_AT_ONCE)):
        yield several


def spread_sample(source: AnySource, most: int) -> AnySource:
    """At most so many images, spread evenly; of a stream the first ones of every shard, so that not
    all of it is read.
    """
    if len(source) <= most:
        return source
    if isinstance(source, ImageSource):
        return source.select(np.arange(most) * len(source) // most)
    sizes = [len(segment.rows) for member in source.members for segment in member.segments]
    starts = starts_of(sizes)
    pairs = zip(starts, even_shares(sizes, most), strict=False)
    rows = [np.arange(start, start + share) for start, share in pairs]
    return source.select(np.concatenate(rows))


def even_shares(sizes: Sequence[int], most: int) -> list[int]:
    """How many to take of each part, `most` in all: alike, and more of others where one is small.

    Of more parts than `most`, one each of some that are spread evenly.
    """
    shares = [0] * len(sizes)
    filled = [index for index, size in enumerate(sizes) if size]
    if len(filled) > most:
        filled = [filled[i * len(filled) // most] for i in range(most)]
    ascending = sorted(filled, key=lambda index: sizes[index])
    for place, index in enumerate(ascending):
        shares[index] = min(sizes[index], most // (len(ascending) - place))
        most -= shares[index]
    return shares


def _digest(pixels: np.ndarray) -> bytes:
    """The same for the same pixels, whatever file they lie in."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()[:16]
