"""A source that is read as a stream: shards of encoded images, each from front to back.

What a training step shows is a pure function of the seed and the position, as for a source with
random access: `segments` says which rows an epoch has, `lanes` in which order they come.
"""

import math
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from hf_vitmae.data.image_source import read_picture
from hf_vitmae.data.order import Place
from hf_vitmae.data.request import (
    Record,
    Request,
    Share,
    missing_labels,
    no_eval_labels,
    no_labels,
    other_classes,
)

from .lanes import (
    Block,
    block_order,
    block_ranges,
    emit_blocks,
    lane_positions,
    lane_rows,
    starts_of,
)
from .segments import Member, Segment, cut_segments, epoch_segments
from .shards import (
    FOUND_COLUMNS,
    Columns,
    Label,
    Sample,
    Shard,
    ShardMemory,
    ShardSet,
    Survey,
    sorted_classes,
)


class StreamOptions(NamedTuple):
    """How a stream is read: at `num_readers` places side by side, shuffled within `block`."""

    num_readers: int = 8
    block: int = 1000


DEFAULT_OPTIONS = StreamOptions()


class CountedShard(NamedTuple):
    """A shard, how many samples it holds, and what rows without a name of their own are called."""

    shard: Shard
    num_samples: int
    source_name: str
    first_row: int  # of the shard, in that source


class Numbered(NamedTuple):
    """A sample and its number among all samples of the shards."""

    index: int
    record: Record


@dataclass(frozen=True)
class StreamSource:
    """Encoded images in shards, with labels when they have any.

    Args:
        name: what people know it by.
        members: which rows of the shards it consists of; several in a mixture.
        class_names: a name for each class id; None without labels.
        present: the classes that occur.
        memory: where the surveys of the shards are kept.
    """

    name: str
    shards: tuple[CountedShard, ...]
    members: tuple[Member, ...]
    class_names: tuple[str, ...] | None = None
    present: frozenset[str] = frozenset()
    options: StreamOptions = DEFAULT_OPTIONS
    memory: ShardMemory | None = None
    map_class_names = None  # label maps are not read from streams

    def __len__(self) -> int:
        return sum(member.num_rows for member in self.members)

    @property
    def epoch_size(self) -> int:
        """Samples of one epoch: the images, each as often as its weight says."""
        return sum(member.per_epoch for member in self.members)

    def train_requests(
        self, seed: int, share: Share, start_step: int
    ) -> Generator[Request, None, None]:
        """The endless requests of one process from a step on.

        A process takes every `world_size`-th position, so that it reads whole lanes of its own.

        Raises:
            ValueError: if the lanes cannot be shared out, or a shard cannot be read.
        """
        self.check_processes(share.world_size)
        return self._train_requests(seed, share, start_step)

    def eval_requests(self, share: Share) -> Generator[Request, None, None]:
        """The requests of one process in one pass, each image once over all processes.

        Each process reads consecutive images. All take as many; one that has fewer repeats its
        last.
        """
        size = math.ceil(len(self) / share.world_size)
        start = len(self) * share.rank // share.world_size
        stop = len(self) * (share.rank + 1) // share.world_size
        rows = range(start, stop) or range(len(self) - 1, len(self))
        images = zip(rows, self._read(self._segments, rows), strict=True)
        drawn, last = 0, None
        while drawn < size:
            batch = list(islice(images, share.batch_size))
            wanted = min(share.batch_size, size - drawn)
            last = batch[-1] if batch else last
            assert last is not None
            batch += [last] * (wanted - len(batch))
            valid = [drawn + i < stop - start for i in range(wanted)]
            drawn += wanted
            places = [Place(0, row, row) for row, _ in batch]
            yield Request(places, valid, [image.record for _, image in batch])

    def records(self) -> Iterator[Record]:
        """Every image once, in order."""
        return (image.record for image in self._read(self._segments, range(len(self))))

    def examples(self, most: int) -> list[Record]:
        """The first images of some shards, which takes no pass over all."""
        starts = starts_of([len(segment.rows) for segment in self._segments])
        filled = [s for s, stop in zip(starts, starts[1:], strict=False) if stop > s]
        rows = {filled[i * len(filled) // most] for i in range(most)}
        more = (row for row in range(len(self)) if row not in rows)  # there may be few shards
        rows |= set(islice(more, most - len(rows)))
        return list(self.select(np.array(sorted(rows))).records())

    def select(self, indices: np.ndarray) -> "StreamSource":
        """The source that holds these images, each once an epoch; the indices must ascend."""
        assert (np.diff(indices) > 0).all()
        wanted, start, kept = indices.tolist(), 0, []
        for segment in self._segments:
            stop = start + len(segment.rows)
            inside = wanted[bisect_left(wanted, start) : bisect_left(wanted, stop)]
            if inside:
                rows = tuple(segment.rows[index - start] for index in inside)
                kept.append(Segment(segment.shard, rows))
            start = stop
        return replace(self, members=(Member(tuple(kept), len(wanted)),))

    def check_processes(self, num_processes: int) -> None:
        """Refuse a number of processes of which each would have to read everything.

        Raises:
            ValueError: naming the number that the readers must be a multiple of.
        """
        if self.options.num_readers % num_processes:
            raise ValueError(
                f"{num_processes} processes do not divide {self.options.num_readers} stream "
                f"readers; set --data.stream-readers to a multiple of {num_processes}."
            )

    def require_classes(self) -> tuple[str, ...]:
        """The class names, for a task that cannot do without labels.

        Raises:
            ValueError: if the source has no labels.
        """
        if self.class_names is None:
            raise ValueError(no_labels(self.name))
        return self.class_names

    def require_label_maps(self) -> None:
        """For a task that cannot do without the class of every pixel, which a stream has not.

        Raises:
            ValueError: always.
        """
        raise ValueError(no_label_maps_in_streams(self.name))

    def with_classes(self, class_names: Sequence[str]) -> "StreamSource":
        """The same samples with the class ids of the training images, matched by name.

        Raises:
            ValueError: if there are no labels here, or a class that is not among `class_names`.
        """
        if self.class_names is None:
            raise ValueError(no_eval_labels(self.name))
        unknown = [n for n in self.class_names if n in self.present and n not in set(class_names)]
        if unknown:
            raise ValueError(other_classes(self.name, unknown))
        return replace(self, class_names=tuple(class_names))

    def without_labels(self) -> "StreamSource":
        """The same samples without labels."""
        return replace(self, class_names=None)

    @property
    def _segments(self) -> tuple[Segment, ...]:
        return tuple(segment for member in self.members for segment in member.segments)

    @cached_property
    def _starts(self) -> list[int]:
        return starts_of([counted.num_samples for counted in self.shards])

    @cached_property
    def _class_ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.class_names or ())}

    def _train_requests(
        self, seed: int, share: Share, start_step: int
    ) -> Generator[Request, None, None]:
        batch_size, rank, world_size = share
        num_lanes, lanes = self.options.num_readers, {}
        positions = count(start_step * batch_size * world_size + rank, world_size)
        while True:
            places, records = [], []
            for position in islice(positions, batch_size):
                lane = position % num_lanes
                if lane not in lanes:
                    lanes[lane] = self._lane(seed, lane, position)
                index, record = next(lanes[lane])
                places.append(Place(*divmod(position, self.epoch_size), index))
                records.append(record)
            yield Request(places, records=records)
            del record, records  # the consumer has them now, and the next batch takes a while

    def _lane(self, seed: int, lane: int, position: int) -> Iterator[Numbered]:
        """The samples of a lane from one of its positions on."""
        epoch = position // self.epoch_size
        positions = lane_positions(lane, self.options.num_readers, epoch, self.epoch_size)
        done = positions.index(position)
        blocks = block_ranges(len(positions), self._block_size)
        first = next(number for number, block in enumerate(blocks) if done in block)
        emitted = emit_blocks(self._blocks(seed, lane, epoch, first))
        return islice(emitted, done - blocks[first].start, None)

    @property
    def _block_size(self) -> int:
        return max(1, self.options.block // self.options.num_readers)

    def _blocks(
        self, seed: int, lane: int, first_epoch: int, first_block: int
    ) -> Generator[Block[Numbered], None, None]:
        """The endless blocks of a lane from one of them on."""
        for epoch in count(first_epoch):
            inside = lane_rows(lane, self.options.num_readers, epoch, self.epoch_size)
            blocks = block_ranges(len(inside), self._block_size)[first_block:]
            if not blocks:  # an epoch that has fewer samples than there are lanes
                continue
            segments = epoch_segments(self.members, seed, epoch)
            rows = self._read(segments, inside[blocks[0].start :])
            for block in blocks:
                order = block_order(seed, epoch, inside[block.start], len(block))
                yield Block(order, islice(rows, len(block)))
            first_block = 0

    def _read(self, segments: Sequence[Segment], rows: range) -> Generator[Numbered, None, None]:
        """The rows of some segments laid end to end."""
        for number, inside in cut_segments(segments, rows.start, rows.stop):
            yield from self._read_shard(number, inside)

    def _read_shard(self, number: int, rows: Sequence[int]) -> Generator[Numbered, None, None]:
        """The rows of one shard, which must hold exactly as many samples as were counted."""
        counted, samples = self.shards[number], None
        try:
            samples = counted.shard.read(_with_one_more(rows, counted.num_samples))
            for row in rows:
                sample = next(samples, None)
                if sample is None:
                    raise ValueError(_changed(counted, "fewer"))
                if row == counted.num_samples - 1 and next(samples, None) is not None:
                    raise ValueError(_changed(counted, "more"))
                yield Numbered(self._starts[number] + row, self._record(counted, row, sample))
                del sample  # it is large, and the next one takes a while
        finally:
            if samples is not None:
                samples.close()

    def _record(self, counted: CountedShard, row: int, sample: Sample) -> Record:
        name = sample.name or f"{counted.source_name}[{counted.first_row + row}]"
        encoded, name = read_picture(sample.picture, "image", name)
        if self.class_names is None:
            return Record(encoded, None, name)
        if sample.class_name not in self._class_ids:
            raise ValueError(f"{name}: {_changed(counted, 'other')}")
        return Record(encoded, self._class_ids[sample.class_name], name)


def open_stream(
    name: str,
    shard_set: ShardSet,
    columns: Columns = FOUND_COLUMNS,
    options: StreamOptions = DEFAULT_OPTIONS,
    memory: ShardMemory | None = None,
) -> StreamSource:
    """Open shards, having looked through those that `memory` does not know.

    Raises:
        ValueError: if a column is missing, a shard cannot be read, or some labels are missing.
    """
    shards, names = shard_set.open(name, columns)
    surveys = (memory or ShardMemory()).survey(name, shards)
    sizes = [survey.num_samples for survey in surveys]
    starts = starts_of(sizes)
    counted = [
        CountedShard(shard, size, name, start)
        for shard, size, start in zip(shards, sizes, starts, strict=False)
    ]
    segments = tuple(Segment(i, range(size)) for i, size in enumerate(sizes) if size)
    labels = _labels(name, surveys) if columns.use_labels else None
    if labels is None and columns.use_labels and columns.label and starts[-1]:
        raise ValueError(f"{name} has no label {columns.label!r}; name another label column.")
    if labels is None:
        names, present = None, frozenset[str]()
    elif names is None:
        names = sorted_classes(labels)
        present = frozenset(names)
    else:
        present = frozenset(names[int(label)] for label in labels)
    members = (Member(segments, starts[-1]),)
    return StreamSource(name, tuple(counted), members, names, present, options, memory)


def _labels(name: str, surveys: Sequence[Survey]) -> set[Label] | None:
    """The labels of all shards, which must be of all samples or of none: None."""
    num_samples = sum(survey.num_samples for survey in surveys)
    num_missing = sum(survey.num_unlabelled for survey in surveys)
    labels = {label for survey in surveys for label in survey.labels}
    if not labels:
        return None
    if num_missing:
        raise ValueError(missing_labels(name, num_missing, num_samples, "of a stream"))
    return labels


def no_label_maps_in_streams(name: str) -> str:
    """What an error says where the label maps of a stream are asked for."""
    return (
        f"{name} is read as a stream, and label maps are not; use a folder, or parquet or a Hub id "
        "without --data.streaming."
    )


def _with_one_more(rows: Sequence[int], num_samples: int) -> Sequence[int]:
    """The rows and, where they end the shard, the one after it, which should not be there."""
    if rows[-1] != num_samples - 1:
        return rows
    if isinstance(rows, range):
        return range(rows.start, num_samples + 1)
    return (*rows, num_samples)


def _changed(counted: CountedShard, what: str) -> str:
    """What an error says of a shard that is not what it was when its samples were counted."""
    found = f"{what} samples than the {counted.num_samples} counted"
    if what == "other":
        found = "other labels than were counted"
    return (
        f"{counted.shard.name} holds {found}; restore it, or delete shards.json in the run's "
        "folder and start a new run."
    )
