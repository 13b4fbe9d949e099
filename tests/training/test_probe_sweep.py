"""Heads side by side: each as if alone, resumed exactly, and at the optimum in the end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hf_vitmae.training import probe_sweep
from hf_vitmae.training.lars import Lars
from hf_vitmae.training.probe import fit_exact_probe
from hf_vitmae.training.probe_sweep import Sweep, SweepConfig
from hf_vitmae.training.schedule import cosine_with_warmup

from .clouds import clouds
from .test_probe import objective, standardised

CONFIG = SweepConfig(base_lrs=(0.3, 3.0, 30.0), batch_size=64, epochs=6, warmup_epochs=2)
ROWS = np.arange(0, 300, 2)


def run(sweep: Sweep) -> list[list[float]]:
    """Losses of all epochs to the end."""
    return [sweep.run_epoch() for _ in range(sweep.config.epochs - sweep.epoch)]


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_each_learning_rate_gives_what_it_gives_alone(optimizer):
    config = replace(CONFIG, optimizer=optimizer, weight_decay=0.01)
    together = Sweep(config, [clouds()], ROWS)
    losses = run(together)
    for number, base_lr in enumerate(config.base_lrs):
        alone = Sweep(replace(config, base_lrs=(base_lr,)), [clouds()], ROWS)
        expected = [loss for (loss,) in run(alone)]
        np.testing.assert_allclose([row[number] for row in losses], expected, rtol=1e-5)
        for one, other in ((together.heads()[number], alone.heads()[0]),):
            torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(one.bias, other.bias, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together.heads()[0].weight, together.heads()[1].weight)


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_a_head_is_trained_as_a_plain_layer_would_be(optimizer):
    """Batch norm with the exact statistics, then a linear layer, by hand."""
    features, config = clouds(), replace(CONFIG, base_lrs=(2.0,), optimizer=optimizer)
    sweep = Sweep(config, [features], ROWS)
    head = sweep.heads()[0]
    layer = nn.Linear(12, 4)
    layer.load_state_dict({"weight": head.weight, "bias": head.bias})
    kind = {"lars": Lars, "sgd": torch.optim.SGD}[optimizer]
    trained = kind(layer.parameters(), lr=0.0, momentum=0.9)
    inputs = torch.from_numpy(standardised(features, head)).float()
    labels = torch.from_numpy(features.labels)
    for epoch in range(6):
        order = np.random.default_rng((0, epoch)).permutation(ROWS)
        for number, rows in enumerate(np.array_split(order, 3)):
            assert len(rows) == 50
            factor = cosine_with_warmup(3 * epoch + number, 18, 6)
            trained.param_groups[0]["lr"] = factor * 2.0 * 64 / 256
            trained.zero_grad()
            functional.cross_entropy(layer(inputs[rows]), labels[rows]).backward()
            trained.step()
    run(sweep)
    torch.testing.assert_close(sweep.heads()[0].weight, layer.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sweep.heads()[0].bias, layer.bias.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "base_lrs"), [("lars", (10.0, 30.0)), ("sgd", (0.3, 1.0, 3.0))]
)
def test_enough_epochs_reach_the_optimum(optimizer, base_lrs):
    """Of the same objective: weight decay is its penalty, and a batch holds all images."""
    features, strength = clouds(), 1e-2
    config = SweepConfig(
        base_lrs=base_lrs, optimizer=optimizer, epochs=500, weight_decay=strength, batch_size=999
    )
    sweep = Sweep(config, [features], np.arange(300))
    run(sweep)
    best = fit_exact_probe(features, strength)
    inputs, labels = standardised(features, best), features.labels
    least = objective(best.weight, best.bias, inputs, labels, strength)
    for head in sweep.heads():
        reached = objective(head.weight, head.bias, inputs, labels, strength)
        assert 0 <= reached - least + 1e-9 < 1e-3


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_it_goes_on_bit_for_bit(optimizer, stop: int):
    config = replace(CONFIG, optimizer=optimizer)
    whole, first = (Sweep(config, [clouds()], ROWS) for _ in range(2))
    losses = run(whole)
    for _ in range(stop):
        first.run_epoch()
    second = Sweep(config, [clouds()], ROWS)
    second.load_state(first.state())
    assert second.epoch == stop
    assert run(second) == losses[stop:]
    ours, expected = second.state(), whole.state()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_epochs_take_turns_over_the_views():
    plain, other = clouds(), clouds()
    other.values[:] = np.random.default_rng(5).normal(size=other.values.shape)
    config = replace(CONFIG, base_lrs=(1.0,), epochs=3, warmup_epochs=0)
    both = Sweep(config, [plain, other], ROWS)
    order = []
    for _ in range(3):
        before, epoch = both.state(), both.epoch
        order.append(both.run_epoch()[0])
        # The same head over the first view alone, with the statistics of both.
        again = Sweep(config, [plain, other], ROWS)
        again.load_state(before)
        again._views = [plain, plain]
        assert (again.run_epoch()[0] == order[-1]) == (epoch != 1)


def test_only_the_rows_count():
    features, poisoned = clouds(), clouds()
    poisoned.values[1::2] = np.nan
    expected, got = (Sweep(CONFIG, [one], ROWS) for one in (features, poisoned))
    assert run(expected) == run(got)


def test_large_batches_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch):
    whole = Sweep(CONFIG, [clouds()], ROWS)
    losses = run(whole)
    monkeypatch.setattr(probe_sweep, "CHUNK", 7 * 3 * 4)
    pieces = Sweep(CONFIG, [clouds()], ROWS)
    np.testing.assert_allclose(run(pieces), losses, rtol=1e-5)
    torch.testing.assert_close(pieces.heads()[1].weight, whole.heads()[1].weight)


def test_a_head_that_diverges_leaves_the_others_alone():
    config = replace(CONFIG, base_lrs=(0.3, 1e39), optimizer="sgd")
    sweep = Sweep(config, [clouds()], ROWS)
    losses = run(sweep)
    alone = Sweep(replace(config, base_lrs=(0.3,)), [clouds()], ROWS)
    np.testing.assert_allclose([row[0] for row in losses], [row[0] for row in run(alone)])
    assert not np.isfinite(losses[-1][1])
    assert sweep.heads()[0].weight.isfinite().all()
