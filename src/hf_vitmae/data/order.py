"""The order of samples: one endless stream of global positions, each with its own randomness.

Position p lies in epoch p // n at slot p % n, and holds sample permutation(seed, epoch)[slot]. All
of it is a pure function, so step s of any rank is known without having run the steps before it: the
state of the data pipeline is the step alone, every rank takes the same number of steps, and a batch
may span two epochs.
"""

import math
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Stream(IntEnum):
    """What a random stream is for: the first word of its seed, so that no two are the same."""

    ORDER = 0
    TRAIN = 1
    EVAL = 2
    HOLD_OUT = 3
    FEW_LABELS = 4
    SHAPES = 5
    SHARDS = 6
    BLOCK = 7
    MIXTURE = 8
    DEFECTS = 9
    BANDS = 10


def random_stream(stream: Stream, seed: int, epoch: int = 0, slot: int = 0) -> np.random.Generator:
    """The generator that belongs to one purpose, seed, epoch and slot.

    Always four words: numpy pads a shorter seed with zeros, so (seed, epoch) would equal (seed,
    epoch, 0).

    Raises:
        ValueError: if the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"The seed must be at least 0, not {seed}.")
    return np.random.default_rng((stream, seed, epoch, slot))


@lru_cache(
    maxsize=2
)  # a batch spans at most two epochs unless the data set is smaller than the batch
def permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The samples of one epoch in their order: int64 (n,), read-only."""
    order = random_stream(Stream.ORDER, seed, epoch).permutation(num_samples)
    order.flags.writeable = False  # it is shared by every caller
    return order


class Place(NamedTuple):
    """One sample of the stream: `index` in the source, at `slot` of `epoch`."""

    epoch: int
    slot: int
    index: int


def place_of(position: int, seed: int, num_samples: int) -> Place:
    """Which sample the stream holds at a global position."""
    epoch, slot = divmod(position, num_samples)
    return Place(epoch, slot, int(permutation(seed, epoch, num_samples)[slot]))


def batch_positions(step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """Global positions of one rank's batch at a step; the ranks' batches lie side by side.

    Args:
        batch_size: samples per rank.
    """
    start = (step * world_size + rank) * batch_size
    return range(start, start + batch_size)


def num_steps(epochs: float, num_samples: int, global_batch: int) -> int:
    """Steps that show every sample `epochs` times, the last step counted whole."""
    return math.ceil(epochs * num_samples / global_batch)


def eval_positions(
    step: int, batch_size: int, num_samples: int, rank: int = 0, world_size: int = 1
) -> tuple[list[int], list[bool]]:
    """Samples of one rank's evaluation batch, and which of them count: as many on every rank.

    Samples come in order, once each: the batches of a step, joined in rank order and freed of those
    that do not count, are the next samples of the source. Only the last step may be short, and it
    is equally short on every rank (what gathering needs); places past the end repeat the last
    sample and do not count.
    """
    start = step * batch_size * world_size
    share = min(batch_size, math.ceil((num_samples - start) / world_size))
    positions = range(start + rank * share, start + (rank + 1) * share)
    return [min(p, num_samples - 1) for p in positions], [p < num_samples for p in positions]
