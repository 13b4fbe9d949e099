"""Which rows of which shards an epoch of a stream shows, in which order.

A segment is some rows of one shard, in ascending order. A member of a mixture is a list of segments
and the number of rows that an epoch takes of it: consecutive rows of its segments repeated without
end. A weight of 2 so shows each row twice, one of 0.5 every row in every other epoch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hf_vitmae.data.order import Stream, random_stream

from .lanes import starts_of


class Segment(NamedTuple):
    """Ascending rows of a shard, which is given by its number."""

    shard: int
    rows: Sequence[int]


class Member(NamedTuple):
    """Segments of one source, of which each epoch shows `per_epoch` rows."""

    segments: tuple[Segment, ...]
    per_epoch: int

    @property
    def num_rows(self) -> int:
        return sum(len(segment.rows) for segment in self.segments)


def epoch_segments(members: Sequence[Member], seed: int, epoch: int) -> list[Segment]:
    """The segments of an epoch in the order in which they are laid end to end."""
    parts = [
        segment
        for member in members
        for segment in _endless(member, epoch * member.per_epoch, (epoch + 1) * member.per_epoch)
    ]
    order = random_stream(Stream.SHARDS, seed, epoch).permutation(len(parts))
    return [parts[i] for i in order]


def cut_segments(segments: Sequence[Segment], start: int, stop: int) -> Iterator[Segment]:
    """The rows start..stop of some segments laid end to end."""
    starts = starts_of([len(segment.rows) for segment in segments])
    first = max(bisect_right(starts, start) - 1, 0)
    for number in range(first, min(bisect_left(starts, stop), len(segments))):
        shard, rows = segments[number]
        inside = rows[max(start - starts[number], 0) : stop - starts[number]]
        if len(inside):
            yield Segment(shard, inside)


def _endless(member: Member, start: int, stop: int) -> Iterator[Segment]:
    """The rows start..stop of a member that begins anew at each end."""
    num_rows = member.num_rows
    for turn in range(start // num_rows, -(-stop // num_rows)):
        offset = turn * num_rows
        yield from cut_segments(
            member.segments, max(start - offset, 0), min(stop - offset, num_rows)
        )
