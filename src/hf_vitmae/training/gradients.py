"""Forward and backward passes of a step."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_vitmae.training.loop_config import LoopConfig
from hf_vitmae.training.sharding import gradient_sync

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Gradients:
    """Forward and backward passes of a step.

    Batches weigh the same: an image in one that lacks some bad ones weighs a little more than
    others. One of which nothing is left, without a `valid` image, adds nothing.

    Args:
        model: as Accelerate wraps it.
        stream: this process's batches.
    """

    accelerator: Accelerator
    model: nn.Module
    stream: Iterator[Batch]
    prepare: Callable[[Batch], Mapping[str, Any]]
    config: LoopConfig

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """The model, compiled if it shall be."""
        if not self.config.compile:
            return self.model
        mode = "reduce-overhead" if self.config.cuda_graphs else None
        return torch.compile(self.model, mode=mode)

    @cached_property
    def beside(self) -> "SideStream":
        """Where the inputs are made."""
        return SideStream(self.accelerator.device)

    def __call__(self) -> tuple[Tensor, float, float]:
        """-> the loss, the share of the batches that have one, seconds of waiting for them."""
        num_batches = self.config.accumulation
        loss, waited, counting = torch.zeros((), device=self.accelerator.device), 0.0, 0
        for micro_step in range(num_batches):
            started = time.perf_counter()
            batch = next(self.stream)
            waited += time.perf_counter() - started
            counts = _counts(batch)
            counting += counts
            inputs = self.beside(self.prepare, batch)
            is_last = micro_step == num_batches - 1
            with gradient_sync(self.model, self.accelerator, is_last):
                if self.config.cuda_graphs:
                    torch.compiler.cudagraph_mark_step_begin()  # the last one's outputs may go
                with self.accelerator.autocast():
                    micro_loss = _loss(self.forward(**inputs), inputs) / num_batches
                self.accelerator.backward(micro_loss if counts else micro_loss * 0.0)
            loss += micro_loss.detach() if counts else 0.0
        self.accelerator.unscale_gradients()
        return loss, counting / num_batches, waited


class SideStream:
    """Makes a model's inputs beside what a GPU computes: their copy does not wait for the step
    before, nor does a step wait for the host to hand them over. Elsewhere it does nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, prepare: Any, batch: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """`prepare(batch)`, to be used on the device's current stream."""
        if self.stream is None:
            return prepare(batch)
        with torch.cuda.stream(self.stream):
            inputs = prepare(batch)
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_stream(self.stream)
        for value in inputs.values():
            if isinstance(value, Tensor):
                value.record_stream(current)  # else its memory may be given away before it is used
        return inputs


def _counts(batch: Batch) -> bool:
    """Whether any image of the batch is good."""
    return "valid" not in batch or bool(batch["valid"].any())


def _loss(output: Any, inputs: Mapping[str, Any]) -> Tensor:
    if output.loss is None:
        raise ValueError(
            f"The model gave no loss for inputs {sorted(inputs)}; does the data have labels?"
        )
    return output.loss
