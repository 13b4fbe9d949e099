"""Arithmetic of a stream that is read at several places side by side, one for each lane.

Global position p, as in `order`, lies in lane p % L. Every epoch lays its shards end to end in an
order of its own and gives each lane consecutive rows of it, as many as the lane has positions in
the epoch; only shards that lie across two lanes are opened twice. A lane cuts its rows into blocks
and permutes each, so that where a position's sample lies is known without having read what was
before it: the state of a stream is the position alone.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Generic, TypeVar

import numpy as np

from hf_vitmae.data.order import Stream, random_stream

T = TypeVar("T")


def lane_positions(lane: int, num_lanes: int, epoch: int, epoch_size: int) -> range:
    """The positions of an epoch that lie in a lane."""
    start = epoch * epoch_size
    return range(start + (lane - start) % num_lanes, start + epoch_size, num_lanes)


def lane_rows(lane: int, num_lanes: int, epoch: int, epoch_size: int) -> range:
    """The rows of a lane, of the epoch's shards laid end to end."""
    counts = [len(lane_positions(other, num_lanes, epoch, epoch_size)) for other in range(lane + 1)]
    stop = sum(counts)
    return range(stop - counts[-1], stop)


def block_ranges(num_rows: int, most: int) -> list[range]:
    """Cut rows 0, 1, ... into as few blocks of at most `most` rows as there can be, all alike."""
    num_blocks = -(-num_rows // most)
    cuts = [num_rows * i // num_blocks for i in range(num_blocks)] + [num_rows]
    return [range(start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]


def block_order(seed: int, epoch: int, first_row: int, size: int) -> np.ndarray:
    """The order of a block that begins at a row of the epoch: int64 (size,)."""
    return random_stream(Stream.BLOCK, seed, epoch, first_row).permutation(size)


@dataclass(frozen=True)
class Block(Generic[T]):
    """Rows that are shown in the order `order`, and an iterator that reads them."""

    order: np.ndarray
    rows: Iterator[T]


def emit_blocks(blocks: Iterator[Block[T]]) -> Generator[T, None, None]:
    """The rows of endless blocks, each permuted.

    The next block is read at the pace at which this one is emitted, so that one block is held at
    any time and no caller waits for a whole one but the first.
    """
    block = next(blocks)
    held: list[T | None] = list(block.rows)
    for coming in blocks:
        size, coming_size = len(block.order), len(coming.order)
        ahead: list[T | None] = []
        for emitted, row in enumerate(block.order, start=1):
            yield _take(held, row)
            ahead.extend(islice(coming.rows, emitted * coming_size // size - len(ahead)))
        block, held = coming, ahead


def starts_of(sizes: list[int]) -> list[int]:
    """Where each of some parts laid end to end begins, and where the last one ends."""
    return list(accumulate(sizes, initial=0))


def _take(held: list[T | None], row: int) -> T:
    """Let go of a row: no reference to it stays here."""
    taken, held[row] = held[row], None
    assert taken is not None
    return taken
