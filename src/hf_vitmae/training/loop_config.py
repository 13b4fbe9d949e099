"""How long a run is, and how often it logs, evaluates and saves."""

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Best(NamedTuple):
    """What makes an evaluation the best one, such as `Best("eval_loss", "lowest")`."""

    name: str
    which: Literal["lowest", "highest"]

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value is the best so far; NaN never is."""
        if than is None:
            return value == value  # noqa: PLR0124 (not NaN)
        return value < than if self.which == "lowest" else value > than


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how much at once, and how often to log, evaluate and save.

    Args:
        steps: optimiser steps of the whole run.
        batch_size: images of one forward pass in one process.
        accumulation: forward passes whose gradients make one step.
        log_every: steps between lines of the log.
        eval_every: steps between evaluations; 0 evaluates at the end only.
        checkpoint_every: steps between checkpoints; 0 saves at the end only.
        keep_checkpoints: how many stay on the disk.
        compile: run forward and backward through `torch.compile`.
        cuda_graphs: and record them as CUDA graphs, which spares small models the launches.
        ema_decay: of the averaged weights, which are evaluated and handed back; 0 has none.
        max_skipped: so many steps in a row that are not finite stop the run.
        best: the checkpoint of the best evaluation stays on the disk too.
        hand_back_best: end with the weights of that checkpoint rather than the last ones.

    Raises:
        ValueError: naming the field that is out of range.
    """

    steps: int
    batch_size: int
    seed: int = 0
    accumulation: int = 1
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    compile: bool = False
    cuda_graphs: bool = False
    ema_decay: float = 0.0
    max_skipped: int = 5
    best: Best | None = None
    hand_back_best: bool = False

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "accumulation": 1, "log_every": 1, "max_skipped": 1}
        least |= {"eval_every": 0, "checkpoint_every": 0, "keep_checkpoints": 1}
        for field, smallest in least.items():
            if getattr(self, field) < smallest:
                raise ValueError(
                    f"{field} is {getattr(self, field)}; it must be {smallest} or more."
                )
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs is for compiled steps; set `compile` too.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1.")

    def effective_batch(self, num_processes: int = 1) -> int:
        """Images of one optimiser step, over all processes."""
        return self.batch_size * self.accumulation * num_processes
