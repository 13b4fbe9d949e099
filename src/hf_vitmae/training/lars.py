"""LARS (arXiv:1708.03888): SGD whose step is scaled, layer by layer, to the size of the weights.

Linear probes of masked autoencoders are trained with it at very large batches (arXiv:2111.06377,
appendix A). Torch has no such optimiser.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lars(Optimizer):
    """Momentum SGD with a learning rate of its own for every matrix.

    For a parameter w of two or more dimensions, with gradient g and weight decay d:

        update = g + d * w,    ratio = trust * |w| / |update|
        velocity = momentum * velocity + ratio * update
        w = w - lr * velocity

    Biases, norms and other vectors take neither the ratio (it is 1) nor weight decay. The ratio is
    also 1 where |w| or |update| is zero.

    Args:
        trust: the paper's eta, the share of |w| by which a step of learning rate 1 moves w.

    Raises:
        ValueError: naming the number that is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must be 0 or more, got {value}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and below 1, got {momentum}.")
        if not trust > 0:
            raise ValueError(f"`trust` must be above 0, got {trust}.")
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        update = cast(Tensor, parameter.grad)
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            update = update * _ratio(parameter.norm(), update.norm(), group["trust"])
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity = state["velocity"].mul_(group["momentum"]).add_(update)
        parameter.add_(velocity, alpha=-group["lr"])


def _ratio(weight_norm: Tensor, update_norm: Tensor, trust: float) -> Tensor:
    """The layer's own learning rate, without waiting for the device: () -> ()."""
    one = torch.ones_like(weight_norm)
    ratio = torch.where(update_norm > 0, trust * weight_norm / update_norm, one)
    return torch.where(weight_norm > 0, ratio, one)
