"""An exponential moving average of the weights: what is evaluated and given away at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """The average of each trainable parameter over the steps.

    The average begins short, with a decay of (1 + step) / (10 + step), so that a run's random start
    is soon forgotten, and grows to `decay`.

    Args:
        decay: share of the old average that stays at each step; 0.9999 spans some 10,000 steps.

    Raises:
        ValueError: if `decay` is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"`ema_decay` must be above 0 and below 1, got {decay}.")
        self.decay = decay
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    def update(self, step: int) -> None:
        """Take in the weights after a step (1 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [parameter.detach() for parameter in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self.tensors.values()), parameters, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile, and then, bit for bit, its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def hand_over(self) -> None:
        """Give the model the averaged weights for good."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.tensors[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            own = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(own)
