"""What `hf-vitmae stats` says: a table of what was found, and what needs attention."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from hf_vitmae.data.measure import Tally
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.statistics import PixelStatistics

NUM_NAMED = 3  # bad images and duplicates that are named
NUM_CLASSES = 3  # largest and smallest classes that are named
UNBALANCED = 10  # times more images of the largest class than of the smallest one


def report(images: AnySource, tally: Tally, statistics: PixelStatistics) -> Iterator[str]:
    """The lines that a person reads."""
    seen = tally.num_images + len(tally.bad)
    of_all = "" if seen == len(images) else f"{len(images):,}, of which a sample of "
    yield f"{images.name}: {of_all}{seen:,} images, {tally.num_bytes / 1e6:,.1f} MB"
    for name, words in _table(tally, statistics):
        yield f"  {name:9} {words}"
    if images.class_names is not None:
        yield _classes(tally.labels, images.class_names)
    yield from _attention(tally, statistics)


def _table(tally: Tally, statistics: PixelStatistics) -> Iterator[tuple[str, str]]:
    for axis, name in enumerate(("height", "width")):
        sides = np.repeat([size[axis] for size in tally.sizes], list(tally.sizes.values()))
        yield name, f"{sides.min()} to {sides.max()} pixels, median {np.median(sides):g}"
    (height, width), count = tally.sizes.most_common(1)[0]
    yield "size", f"most common: {height}x{width} (height x width), {_images(count)}"
    yield "format", _listed(tally.formats)
    yield "mode", _listed(tally.modes)
    yield "depth", _listed(tally.depths)
    yield "channels", _listed(tally.channel_counts)
    low, high = statistics.range
    yield "range", f"{low:g} to {high:g} as stored"
    yield "mean", f"{_numbers(statistics.mean)} in units of the range"
    yield "std", f"{_numbers(statistics.std)}"


def _attention(tally: Tally, statistics: PixelStatistics) -> Iterator[str]:
    """What a run should not begin without knowing."""
    if tally.bad:
        named = [f"{bad.name} {bad.reason}" for bad in tally.bad]
        yield f"bad: {_images(len(named))} cannot be used: {_first(named, ' ')}"
    if tally.duplicates:
        named = [f"{name} = {first}" for name, first in tally.duplicates]
        count = _images(len(named))
        yield f"duplicates: {count} with the very pixels of an earlier one: {_first(named)}"
    if len(tally.channel_counts) > 1:
        yield f"warning: {_mixed_channels(tally, statistics)}"
    if len({kind for _, kind in tally.groups}) > 1:
        yield f"warning: {_mixed_depths(tally, statistics)}"
    for channel in statistics.constant_channels:
        yield f"warning: channel {channel} is the same in all pixels; its std is taken as 1."


def _classes(labels: Counter[int], class_names: Sequence[str]) -> str:
    """How many images the classes have, and how unequal they are."""
    ranked = [(class_names[label], count) for label, count in labels.most_common()]
    if len(ranked) > 2 * NUM_CLASSES:
        largest, smallest = ranked[:NUM_CLASSES], ranked[-NUM_CLASSES:]
        listed = f"{_counted(largest)} ... {_counted(smallest)}"
    else:
        listed = _counted(ranked)
    words = f"{len(class_names)} classes: {listed}"
    if without := len(class_names) - len(ranked):
        words += f"; {without} without an image"
    ratio = ranked[0][1] / ranked[-1][1] if ranked else 1
    if ratio >= UNBALANCED:
        words += f"; unbalanced: the largest has {ratio:.0f} times the images of the smallest"
    return words


def _mixed_channels(tally: Tally, statistics: PixelStatistics) -> str:
    ranked = tally.channel_counts.most_common()
    counts = ", ".join(f"{_images(count)} of {channels}" for channels, count in ranked)
    if set(tally.channel_counts) == {1, 3}:
        return f"gray and colour are mixed ({counts} channels); gray is counted in all three."
    return (
        f"images differ in their channels ({counts} channels); mean and std are those of the "
        f"{_images(statistics.num_images)} that fit {statistics.num_channels}."
    )


def _mixed_depths(tally: Tally, statistics: PixelStatistics) -> str:
    counts: Counter[str] = Counter()
    for (_, kind), size in tally.group_sizes.items():
        counts[kind] += size
    rule = "each is taken by the full range of its type"
    if statistics.value_range is not None:
        rule = "one range is taken for all of them, which may suit none"
    return f"images have different depths ({_listed(counts)}); {rule}."


def _listed(counts: Mapping) -> str:
    """Each with its number, the most common first; the number alone is left out."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return str(ranked[0][0]) if len(ranked) == 1 else _counted(ranked)


def _counted(pairs: Iterable[tuple[object, int]]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in pairs)


def _first(named: Sequence[str], separator: str = ", ") -> str:
    """Some of many, and how many more there are."""
    more = len(named) - NUM_NAMED
    words = separator.join(named[:NUM_NAMED])
    return f"{words}{separator}and {more:,} more" if more > 0 else words


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
