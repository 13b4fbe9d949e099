"""The order of samples is a pure function of seed, epoch and position."""

import numpy as np
import pytest

from hf_vitmae.data.order import (
    Stream,
    batch_positions,
    eval_positions,
    num_steps,
    permutation,
    place_of,
    random_stream,
)


def test_every_epoch_shows_every_sample_once_in_an_order_of_its_own():
    places = [place_of(position, seed=3, num_samples=10) for position in range(30)]
    epochs = [[place.index for place in places if place.epoch == epoch] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [place.slot for place in places] == list(range(10)) * 3


def test_order_depends_on_the_seed_and_on_nothing_that_went_before():
    late_first = place_of(12_345, seed=1, num_samples=100)
    permutation.cache_clear()
    assert place_of(12_345, seed=1, num_samples=100) == late_first
    assert list(permutation(1, 0, 100)) != list(permutation(2, 0, 100))


def test_a_cached_order_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 0, 5)[0] = 1


def test_ranks_share_out_the_stream_without_gap_or_overlap():
    joined = [
        position
        for step in range(4)
        for rank in range(3)
        for position in batch_positions(step, batch_size=5, rank=rank, world_size=3)
    ]
    assert joined == list(range(60))


def test_order_of_the_global_batch_does_not_depend_on_the_number_of_ranks():
    two = [*batch_positions(7, 4, rank=0, world_size=2), *batch_positions(7, 4, 1, world_size=2)]
    assert two == list(batch_positions(7, 8))


@pytest.mark.parametrize(
    ("epochs", "samples", "batch", "steps"),
    [(1, 10, 5, 2), (1, 11, 5, 3), (3, 10, 4, 8), (0.5, 10, 5, 1)],
)
def test_num_steps(epochs, samples, batch, steps):
    assert num_steps(epochs, samples, batch) == steps


@pytest.mark.parametrize("num_samples", [1, 2, 7, 12, 13, 24])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_gathers_to_every_sample_once_in_order(num_samples, world_size):
    batch_size, gathered = 4, []
    for step in range(-(-num_samples // (batch_size * world_size))):
        ranks = [
            eval_positions(step, batch_size, num_samples, rank, world_size)
            for rank in range(world_size)
        ]
        assert len({len(positions) for positions, _ in ranks}) == 1  # what gathering needs
        assert all(0 < len(positions) <= batch_size for positions, _ in ranks)
        for positions, valid in ranks:
            gathered += [p for p, counts in zip(positions, valid, strict=True) if counts]
    assert gathered == list(range(num_samples))


def test_random_streams_are_all_different():
    keys = [
        (s, seed, e, slot)
        for s in Stream
        for seed in range(2)
        for e in range(2)
        for slot in range(2)
    ]
    draws = {random_stream(*key).random() for key in keys}
    assert len(draws) == len(keys)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="must be at least 0, not -1"):
        random_stream(Stream.ORDER, -1)


def test_streams_stay_what_they_were():
    """A change here changes every run that was made before: resuming one would not be exact."""
    assert permutation(0, 0, 8).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
    assert random_stream(Stream.TRAIN, 0, 1, 2).integers(1000, size=4).tolist() == [
        263,
        667,
        491,
        436,
    ]


def test_permutation_is_of_all_samples():
    assert np.array_equal(np.sort(permutation(5, 2, 1000)), np.arange(1000))
