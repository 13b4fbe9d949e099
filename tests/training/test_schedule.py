"""The learning rate is a function of the step alone."""

import pytest
import torch
from torch import nn

from hf_vitmae.training.schedule import (
    cosine_schedule,
    cosine_scheduler,
    cosine_with_warmup,
    set_learning_rate,
    stable_schedule,
)


def test_warmup_rises_by_equal_amounts_from_above_zero_to_the_peak():
    factors = [cosine_with_warmup(step, 100, 4) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_passes_the_middle_and_ends_at_the_minimum():
    factor = cosine_schedule(110, 10, 0.1)
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == pytest.approx(0.1)
    assert factor(500) == pytest.approx(0.1)


def test_it_never_rises_after_the_warmup():
    factors = [cosine_with_warmup(step, 50, 5) for step in range(5, 50)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0


def test_set_learning_rate_keeps_the_ratio_of_groups():
    layer = nn.Linear(2, 2)
    groups = [{"params": [layer.weight], "lr": 1.0}, {"params": [layer.bias], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups)
    assert set_learning_rate(optimizer, 0.5) == 0.5
    assert set_learning_rate(optimizer, 0.1) == pytest.approx(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05])


def test_the_torch_scheduler_gives_the_same_rates():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=3.0)
    scheduler = cosine_scheduler(optimizer, 10, 3, 0.2)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([3 * cosine_with_warmup(step, 10, 3, 0.2) for step in range(10)])


@pytest.mark.parametrize(
    "arguments, words", [((10, 11), "11 warm-up steps"), ((10, 1, 2.0), "2.0")]
)
def test_an_impossible_schedule_is_refused(arguments: tuple, words: str):
    with pytest.raises(ValueError, match=words):
        cosine_schedule(*arguments)


def test_warm_stable_decay_by_hand():
    factor = stable_schedule(100, 4, 20, 0.1)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert {factor(step) for step in range(4, 81)} == {1.0}
    assert [factor(step) for step in (90, 99, 100, 500)] == pytest.approx([0.55, 0.145, 0.1, 0.1])


def test_a_longer_run_begins_as_the_shorter_one():
    short, long = stable_schedule(100, 4, 20), stable_schedule(1000, 4, 200)
    assert [short(step) for step in range(81)] == [long(step) for step in range(81)]
    assert short(81) < long(81)


def test_a_run_without_decay_stays_level():
    assert stable_schedule(10)(9) == 1.0


@pytest.mark.parametrize(
    "arguments, words",
    [((10, 6, 5), "6 steps of warm-up and 5 of decay"), ((10, 1, 1, 2.0), "2.0")],
)
def test_an_impossible_stretch_is_refused(arguments: tuple, words: str):
    with pytest.raises(ValueError, match=words):
        stable_schedule(*arguments)
