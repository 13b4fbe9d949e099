"""Lanes share out every epoch without gap or overlap, and blocks are emitted whole, permuted."""

import numpy as np
import pytest

from hf_vitmae.data.streams.lanes import (
    Block,
    block_order,
    block_ranges,
    emit_blocks,
    lane_positions,
    lane_rows,
)
from hf_vitmae.data.streams.segments import Member, Segment, cut_segments, epoch_segments

GRID = [(1, 1), (1, 5), (7, 3), (8, 8), (10, 4), (100, 8)]


@pytest.mark.parametrize(("epoch_size", "num_lanes"), GRID)
def test_lanes_hold_every_position_and_every_row_of_an_epoch_once(epoch_size, num_lanes):
    for epoch in range(num_lanes + 1):
        lanes = [lane_positions(i, num_lanes, epoch, epoch_size) for i in range(num_lanes)]
        positions = [position for lane in lanes for position in lane]
        assert sorted(positions) == list(range(epoch * epoch_size, (epoch + 1) * epoch_size))
        assert all(p % num_lanes == i for i, lane in enumerate(lanes) for p in lane)
        rows = [lane_rows(i, num_lanes, epoch, epoch_size) for i in range(num_lanes)]
        assert [row for inside in rows for row in inside] == list(range(epoch_size))
        assert [len(lane) for lane in lanes] == [len(inside) for inside in rows]


@pytest.mark.parametrize(("num_rows", "sizes"), [(0, []), (5, [5]), (6, [6]), (7, [3, 4])])
def test_blocks_are_few_and_alike(num_rows, sizes):
    blocks = block_ranges(num_rows, 6)
    assert [len(block) for block in blocks] == sizes
    assert [row for block in blocks for row in block] == list(range(num_rows))


def test_the_next_block_is_read_as_this_one_is_emitted():
    """One block is held at any time, and no row but the first waits for more than two reads."""
    sizes, read = [6, 4, 6, 5], []

    def rows(start: int, size: int):
        for row in range(start, start + size):
            read.append(row)
            yield row

    starts = [0, 6, 10, 16]
    blocks = (
        Block(block_order(0, 0, start, size), rows(start, size))
        for start, size in zip(starts, sizes, strict=True)
    )
    emitted, ahead = [], []
    for row in emit_blocks(blocks):
        emitted.append(row)
        ahead.append(len(read) - len(emitted) + 1)
    assert max(ahead) <= 6 and max(np.diff(ahead)) <= 1
    shown = [emitted[:6], emitted[6:10], emitted[10:16]]
    assert [sorted(block) for block in shown] == [list(range(6)), [6, 7, 8, 9], list(range(10, 16))]
    assert shown[0] != sorted(shown[0])


def test_blocks_have_orders_of_their_own_that_stay_what_they_were():
    """A change here changes every run on a stream that was made before."""
    orders = {
        tuple(block_order(*place, 8)) for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 8)]
    }
    assert len(orders) == 4
    assert block_order(0, 0, 0, 8).tolist() == [0, 6, 7, 2, 4, 5, 1, 3]


def test_segments_are_cut_at_any_rows():
    segments = [Segment(0, range(3)), Segment(2, (1, 5, 6)), Segment(1, range(4))]
    laid = [(shard, row) for shard, rows in segments for row in rows]
    for start in range(11):
        for stop in range(start, 11):
            cut = [(s, row) for s, rows in cut_segments(segments, start, stop) for row in rows]
            assert cut == laid[start:stop]


def rows_of(members: list[Member], epoch: int) -> list[tuple[int, int]]:
    return sorted((s, row) for s, rows in epoch_segments(members, 0, epoch) for row in rows)


@pytest.mark.parametrize(
    ("per_epoch", "shown"),
    [
        (5, [[1] * 5] * 3),
        (10, [[2] * 5] * 3),
        (7, [[2, 2, 1, 1, 1], [1, 1, 2, 2, 1], [2, 1, 1, 1, 2]]),
    ],
)
def test_an_epoch_takes_a_member_as_often_as_it_says(per_epoch, shown):
    member = Member((Segment(0, range(2)), Segment(1, range(3))), per_epoch)
    everything = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for epoch, times in enumerate(shown):
        rows = rows_of([member], epoch)
        assert [rows.count(row) for row in everything] == times and len(rows) == per_epoch


def test_half_of_a_member_is_the_other_half_in_the_next_epoch():
    member = Member((Segment(0, range(4)), Segment(1, range(4))), 4)
    first, second = rows_of([member], 0), rows_of([member], 1)
    assert sorted(first + second) == [(s, row) for s in range(2) for row in range(4)]


def test_shards_come_in_another_order_in_every_epoch():
    members = [Member(tuple(Segment(i, range(2)) for i in range(9)), 18)]
    orders = [[s.shard for s in epoch_segments(members, 0, epoch)] for epoch in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(9))
    assert [s.shard for s in epoch_segments(members, 1, 0)] != orders[0]
