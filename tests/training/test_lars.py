"""LARS by hand, and that it belongs to torch's optimisers."""

import math

import pytest
import torch
from torch import nn

from hf_vitmae.training.lars import Lars


def test_two_steps_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    optimizer = Lars([weight], lr=2.0, momentum=0.5, weight_decay=0.1, trust=0.01)
    weight.grad = torch.tensor([[0.3, 0.0]])
    optimizer.step()
    update = torch.tensor([[0.3 + 0.3, 0.4]])
    velocity = 0.01 * 5 / math.hypot(0.6, 0.4) * update
    expected = torch.tensor([[3.0, 4.0]]) - 2.0 * velocity
    torch.testing.assert_close(weight.detach(), expected)

    weight.grad = torch.tensor([[0.0, 1.0]])
    optimizer.step()
    update = torch.tensor([[0.0, 1.0]]) + 0.1 * expected
    velocity = 0.5 * velocity + 0.01 * expected.norm() / update.norm() * update
    torch.testing.assert_close(weight.detach(), expected - 2.0 * velocity)


def test_the_size_of_the_gradient_of_a_matrix_does_not_matter():
    moved = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(3, 4))
        weight.grad = scale * torch.randn(3, 4)
        Lars([weight], lr=0.1).step()
        moved.append(weight.detach())
    torch.testing.assert_close(moved[0], moved[1])


def test_vectors_take_plain_steps_without_decay():
    bias = nn.Parameter(torch.tensor([1.0, -2.0]))
    bias.grad = torch.tensor([0.5, 0.25])
    Lars([bias], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(bias.detach(), torch.tensor([0.95, -2.025]))


def test_weights_of_zero_begin_to_move():
    head = nn.Linear(4, 2)
    nn.init.zeros_(head.weight)
    head.weight.grad = torch.ones(2, 4)
    Lars([head.weight], lr=0.1).step()
    torch.testing.assert_close(head.weight.detach(), torch.full((2, 4), -0.1))
    head.weight.grad = torch.zeros(2, 4)
    Lars([head.weight], lr=0.1, momentum=0.0).step()
    assert head.weight.isfinite().all()


def test_its_state_goes_through_a_state_dict():
    def run(split: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = Lars(layer.parameters(), lr=1.0)
        for step in range(6):
            if split and step == 3:
                state = optimizer.state_dict()
                optimizer = Lars(layer.parameters(), lr=9.0)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            layer(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(run(split=False), run(split=True))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lr": -1.0}, "`lr` must be 0 or more, got -1.0"),
        ({"lr": math.nan}, "`lr`"),
        ({"momentum": 1.0}, "`momentum`"),
        ({"weight_decay": -0.1}, "`weight_decay`"),
        ({"trust": 0.0}, "`trust`"),
    ],
)
def test_a_number_out_of_range_is_named(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Lars([nn.Parameter(torch.ones(2))], **({"lr": 0.1} | options))
