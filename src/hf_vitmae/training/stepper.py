"""Steps of an optimiser that leave out what is not finite, and what all processes agree on of each.

Asking a GPU for a number makes the host wait until all that it was given is computed, and the GPU
then waits for the host. So where the device itself can leave a step out, nothing is asked before it
is needed: the host gives out the next step meanwhile.
"""

import math
from collections import deque
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer


class Outcome(NamedTuple):
    """How a step went, the same on every process."""

    loss: float
    grad_norm: float
    share: float
    """Of the batches that have a loss."""
    has_bad_images: bool
    is_asked_to_stop: bool
    is_overflow: bool
    """Whether it is fp16's gradient that is not finite, whose scaler then lowers its scale."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Stepper:
    """Takes steps of `optimizer`, but none whose loss or gradient is not finite.

    Args:
        prepared: what `accelerator.prepare` made of the optimiser.
        may_run_ahead: whether nothing but the optimiser hangs on a step's outcome. Where the device
            can leave steps out by itself, `outcome` then need not follow each `step` at once.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Optimizer,
        prepared: Optimizer,
        *,
        may_run_ahead: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.prepared = prepared
        can = computes_apart(accelerator.device) and leaves_out_on_device(optimizer)
        self.runs_ahead = may_run_ahead and can and accelerator.scaler is None
        self._begun: deque[_Begun] = deque()

    @property
    def num_unsettled(self) -> int:
        """Steps taken whose outcome nobody has asked for."""
        return len(self._begun)

    def step(
        self,
        loss: Tensor,
        grad_norm: Tensor,
        share: float,
        *,
        num_bad: int,
        asked: bool,
        note: Any = None,
    ) -> None:
        """Change the weights by their gradients, if all is finite on all processes.

        Args:
            loss: () of this process.
            grad_norm: () of the gradients over all processes.
            share: of this process's batches that have a loss.
            num_bad: images that this process found bad.
            asked: whether this process is to stop.
            note: what `outcome` gives back beside the outcome.
        """
        own = torch.stack([loss, *(loss.new_full((), float(v)) for v in (share, num_bad, asked))])
        mean = cast(Tensor, self.accelerator.reduce(own, reduction="mean"))
        values = torch.cat([mean, grad_norm.reshape(1).to(mean)])  # (5,)
        begun = _Begun(values, note)
        if self.runs_ahead:
            self._step_if(values[[0, -1]].isfinite().all())
        elif self.accelerator.scaler is not None or begun.is_finite:  # fp16's skips by itself
            self.prepared.step()
        self.prepared.zero_grad()
        self._begun.append(begun)

    def outcome(self) -> tuple[Outcome, Any]:
        """The oldest step's outcome that nobody asked for, once it is computed, and its note."""
        begun = self._begun.popleft()
        loss, share, num_bad, asked, grad_norm = begun.read()
        scaler = self.accelerator.scaler
        is_overflow = scaler is not None and math.isfinite(loss) and scaler.get_scale() > 1
        return Outcome(loss, grad_norm, share, num_bad > 0, asked > 0, is_overflow), begun.note

    def _step_if(self, is_finite: Tensor) -> None:
        """The step, which does nothing where `is_finite`, bool () on the device, is False."""
        optimizer = cast(Any, self.optimizer)
        optimizer.found_inf = 1.0 - is_finite.float()
        try:
            self.prepared.step()
        finally:
            optimizer.found_inf = None


class _Begun:
    """What is known of a step, on its way from the device."""

    def __init__(self, values: Tensor, note: Any) -> None:
        self.note = note
        self._values = values.to("cpu", non_blocking=True)  # from a GPU, into pinned memory
        self._arrived = torch.cuda.Event() if values.device.type == "cuda" else None
        if self._arrived is not None:
            self._arrived.record()

    @property
    def is_finite(self) -> bool:
        values = self.read()
        return math.isfinite(values[0]) and math.isfinite(values[-1])

    def read(self) -> list[float]:
        """The values, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


def computes_apart(device: torch.device) -> bool:
    """Whether the host goes on while the device computes."""
    return device.type == "cuda"


def leaves_out_on_device(optimizer: Optimizer) -> bool:
    """Whether it takes torch's `found_inf`, as `torch.amp.GradScaler` gives it to fused ones."""
    takes = getattr(optimizer, "_step_supports_amp_scaling", False)
    return takes and all(group.get("fused") for group in optimizer.param_groups)
