"""What keeps the weights finite: a step whose loss or gradient is not is left out and counted."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def refuse_to_go_on(step: int, skipped: int, loss: float, grad_norm: float) -> FloatingPointError:
    """The error of a run that had so many steps in a row that were not finite."""
    return FloatingPointError(
        f"Step {step}: the loss is {loss} and the gradient's norm {grad_norm}, and "
        f"{skipped} steps in a row were not finite, which is `max_skipped`; stopped, and the "
        "weights are those before. Look for broken images, lower optim.base_lr, clip the gradient "
        "(optim.clip_grad_norm), or use bf16 in place of fp16; --allow-change lets a run go on "
        "from its last checkpoint with another value."
    )


class RunningStatistics:
    """Means and variances that the forward pass of a norm in training changes.

    A batch that is not finite spoils them before anything is known of it; they are put back then.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers: list[Tensor] = [
            buffer
            for module in model.modules()
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        self._before: list[Tensor] = []

    def __bool__(self) -> bool:
        """Whether the model has any."""
        return bool(self._buffers)

    def remember(self) -> None:
        """Take note of them before a step."""
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Make them what they were."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
