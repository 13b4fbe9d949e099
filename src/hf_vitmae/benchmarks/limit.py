"""What the hardware could do: the matrix products of a model alone, and one large square one."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_vitmae.benchmarks.clock import Clock
from hf_vitmae.models import onednn_linear

REPEATS = 3  # of each product in a turn on a GPU, which works while the next is prepared
Turn = Callable[[], dict[str, float]]


class Products:
    """Every product of a step's linear layers, by itself: with an optimiser those of the backward
    pass too, which are as large.

    Args:
        layers: (M, K, N) of each product of the forward pass, and how often.
    """

    def __init__(
        self,
        layers: Mapping[tuple[int, int, int], int],
        *,
        is_training: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers = layers
        self.is_training = is_training
        largest = max(max(m * k, k * n, m * n) for m, k, n in layers)
        # All operands are views of one random tensor: zeros would be multiplied at less power.
        self.numbers = torch.randn(largest, dtype=dtype, device=device)
        self.use_onednn = _is_onednn_faster(dtype, device)

    @property
    def flops(self) -> float:
        """Of all of them."""
        passes = 3 if self.is_training else 1
        return passes * sum(count * 2.0 * m * k * n for (m, k, n), count in self.layers.items())

    def turn(self, clock: Clock) -> dict[str, float]:
        """Seconds of all of them, each timed a few times and by the faster library."""
        repeats = REPEATS if clock.is_cuda else 1
        seconds = 0.0
        for shape, count in self.layers.items():
            for choices in self._products(*shape):
                seconds += count * min(_seconds(choice, clock, repeats) for choice in choices)
        return {"step": seconds}

    def _products(self, m: int, k: int, n: int) -> list[list[Callable[[], Tensor]]]:
        """Forward, and the gradients of inputs and weight; each in every way that there is."""
        tokens, weight, gradient = (
            self.numbers[: rows * columns].view(rows, columns)
            for rows, columns in ((m, k), (n, k), (m, n))
        )
        forward = [lambda: tokens @ weight.t()]
        for_tokens, for_weight = [lambda: gradient @ weight], [lambda: gradient.t() @ tokens]
        if self.use_onednn:
            forward.append(lambda: onednn_linear.multiply(tokens, weight, None))
            for_tokens.append(lambda: onednn_linear.multiply(gradient, weight.t(), None))
        return [forward, for_tokens, for_weight] if self.is_training else [forward]


class Cube:
    """One large square product, a GPU's usual measure."""

    def __init__(self, length: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.flops = 2.0 * length**3
        self.factors = torch.randn(2, length, length, dtype=dtype, device=device)

    def turn(self, clock: Clock) -> dict[str, float]:
        """Seconds of the product."""
        one, other = self.factors
        return {"step": _seconds(lambda: one @ other, clock, repeats=10)}


def _seconds(compute: Callable[[], Tensor], clock: Clock, repeats: int) -> float:
    """Of one computation, after another that is not counted; the best of a few."""
    compute()
    marks = [clock.mark()]
    for _ in range(repeats):
        compute()
        marks.append(clock.mark())
    return min(clock.seconds(marks))


def _is_onednn_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our models would use it, so that the limit is that of what they can do."""
    is_its_kind = dtype == torch.float32 and device.type == "cpu"
    return is_its_kind and onednn_linear.is_faster(torch.get_num_threads())
