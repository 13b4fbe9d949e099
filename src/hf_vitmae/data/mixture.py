"""Several sources as one, each with a weight: how often an epoch shows each of its images."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeAlias, cast

import numpy as np
from datasets import concatenate_datasets

from hf_vitmae.data.streams.object_shards import SourceRows
from hf_vitmae.data.streams.segments import Member, Segment
from hf_vitmae.data.streams.shards import ShardMemory
from hf_vitmae.data.streams.stream import (
    DEFAULT_OPTIONS,
    CountedShard,
    StreamOptions,
    StreamSource,
    no_label_maps_in_streams,
    open_stream,
)

from .config import check_weights
from .image_source import ImageSource, Part, Quota
from .order import Stream, random_stream

AnySource: TypeAlias = ImageSource | StreamSource


def mix(
    sources: Sequence[AnySource],
    weights: Sequence[float] = (),
    *,
    options: StreamOptions = DEFAULT_OPTIONS,
    memory: ShardMemory | None = None,
    shuffle: bool = True,
) -> AnySource:
    """One source of several, a stream if one of them is.

    Args:
        weights: how often an epoch shows each image of a source; 0.5 is every other epoch.
        options: how a stream is read.
        memory: where the surveys of a stream's shards are kept.
        shuffle: take images with random access in an order by chance, where it is not the whole
            epoch that is shuffled; without it a source in order shows its members in order.

    Raises:
        ValueError: if some have labels or label maps and others do not, or a weight leaves nothing.
    """
    weights = list(weights) or [1.0] * len(sources)
    check_weights(weights, len(sources))
    if len(sources) == 1 and weights == [1.0]:
        return sources[0]
    name = " + ".join(source.name for source in sources)
    takes = [_per_epoch(*pair) for pair in zip(sources, weights, strict=True)]
    _check_alike(sources)
    sources = _with_same_classes(sources)
    if all(isinstance(source, ImageSource) for source in sources):
        mixed = _join_images(name, cast(list[ImageSource], sources))
        return mixed if set(weights) == {1.0} else _with_quotas(mixed, sources, takes)
    streams = [_as_stream(source, shuffle) for source in sources]
    return replace(_join_streams(name, streams, takes), options=options, memory=memory)


def _per_epoch(source: AnySource, weight: float) -> int:
    if not len(source):
        raise ValueError(f"{source.name} holds no images; leave it out of the mixture.")
    taken = round(weight * len(source))
    if not taken:
        raise ValueError(
            f"The weight {weight} of {source.name}, which has {len(source)} images, leaves none of "
            "them; give a larger one."
        )
    return taken


def _check_alike(sources: Sequence[AnySource]) -> None:
    has_labels = {source.class_names is not None: source.name for source in sources}
    has_maps = {
        isinstance(source, ImageSource) and source.label_map_column is not None: source.name
        for source in sources
    }
    for what, names in (("labels", has_labels), ("label maps", has_maps)):
        if len(names) == 2:
            raise ValueError(
                f"{names[True]} has {what} and {names[False]} has none; only pretraining can mix "
                "them."
            )


def _with_same_classes(sources: Sequence[AnySource]) -> list[AnySource]:
    """The sources with one list of classes: those of the first, then what the others add."""
    names = tuple(dict.fromkeys(name for s in sources for name in s.class_names or ()))
    return [source.with_classes(names) if names else source for source in sources]


def _join_images(name: str, sources: list[ImageSource]) -> ImageSource:
    """The images of all sources, in order."""
    tables, map_column = [], None
    for source in sources:
        table = source.dataset.rename_column(source.image_column, "image of a mixture")
        if source.label_map_column is not None:
            map_column = "label map of a mixture"
            table = table.rename_column(source.label_map_column, map_column)
        tables.append(table)
    starts = list(accumulate((len(table) for table in tables), initial=0))
    rows = [source.rows + start for source, start in zip(sources, starts, strict=False)]
    labels = [source.labels for source in sources if source.labels is not None]
    map_names = {source.map_class_names for source in sources}
    return ImageSource(
        name,
        concatenate_datasets(tables),
        "image of a mixture",
        np.concatenate(rows),
        labels=np.concatenate(labels) if labels else None,
        class_names=sources[0].class_names,
        label_map_column=map_column,
        map_class_names=map_names.pop() if len(map_names) == 1 else None,
        parts=tuple(
            Part(start + part.first_row, part.name)
            for source, start in zip(sources, starts, strict=False)
            for part in source.parts or (Part(0, source.name),)
        ),
    )


def _with_quotas(mixed: ImageSource, sources: Sequence[AnySource], takes: list[int]) -> ImageSource:
    """The mixture with its weights, each member in an order by chance: half of it is a fair one."""
    starts = accumulate((len(source) for source in sources), initial=0)
    orders = [start + _fixed_order(len(s)) for start, s in zip(starts, sources, strict=False)]
    quotas = [Quota(len(s), taken) for s, taken in zip(sources, takes, strict=True)]
    return replace(mixed.select(np.concatenate(orders)), quotas=tuple(quotas))


def _fixed_order(size: int) -> np.ndarray:
    return random_stream(Stream.MIXTURE, 0).permutation(size)


def _as_stream(source: AnySource, shuffle: bool) -> StreamSource:
    if isinstance(source, StreamSource):
        return source
    if source.label_map_column is not None:
        raise ValueError(no_label_maps_in_streams(source.name))
    source = source.select(_fixed_order(len(source))) if shuffle else source
    return open_stream(source.name, SourceRows(source))


def _join_streams(name: str, streams: list[StreamSource], takes: list[int]) -> StreamSource:
    """The shards of all streams, and a member for each stream."""
    shards: list[CountedShard] = []
    members = []
    for stream, taken in zip(streams, takes, strict=True):
        segments = [
            Segment(len(shards) + segment.shard, segment.rows)
            for member in stream.members
            for segment in member.segments
        ]
        members.append(Member(tuple(segments), taken))
        shards += stream.shards
    present = frozenset[str]().union(*(stream.present for stream in streams))
    return StreamSource(name, tuple(shards), tuple(members), streams[0].class_names, present)
