"""What the recipes of all tasks share, and how a recipe becomes a loop.

Every field is a flag of the command line; its docstring is the flag's help.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.order import num_steps
from hf_vitmae.data.repeated import images_per_batch
from hf_vitmae.training.loop import LoopConfig
from hf_vitmae.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class TaskRecipe:
    """Data, optimiser, duration and output of a training run.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    output_dir: Path = Path("runs/latest")
    """Folder of the run; the same command again resumes what is in it."""
    steps: int | None = None
    """Optimiser steps of the whole run; takes the place of `epochs`."""
    epochs: float | None = None
    """Times that the run sees every image."""
    batch_size: int = 64
    """Images of one forward pass in one process."""
    accumulation: int = 1
    """Forward passes whose gradients make one step."""
    seed: int = 0
    """Decides the start weights, the order, the crops and the masks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 on a GPU that has it and fp32 elsewhere."""
    compile: bool = False
    """Run the training step through torch.compile."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_images: int | None = None
    """Evaluate on at most so many images, spread evenly over the split."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0 saves at the end only."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on the disk."""

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            raise ValueError("The run has no length; give `steps` or `epochs`.")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")
        if self.epochs is not None and not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise ValueError(f"`epochs` must be above 0, got {self.epochs}.")
        if self.batch_size < 1 or self.accumulation < 1:
            name = "batch_size" if self.batch_size < 1 else "accumulation"
            raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        images_per_batch(self.batch_size, self.data.repeats)

    def refuse_mixing(self, why: str) -> None:
        """For a task whose images cannot be mixed with each other, and why that is.

        Raises:
            ValueError: if `augment` says so.
        """
        if self.augment.mixes:
            raise ValueError(f"augment.mixup and augment.cutmix must be 0 here: {why}.")

    def make_accelerator(self) -> Accelerator:
        """The processes and devices of this launch, at the recipe's precision."""
        precision = self.precision
        if precision == "auto":
            has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            precision = "bf16" if has_bf16 else "fp32"
        if precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("`precision` fp16 needs a GPU; use fp32 or bf16.")
        mode = "no" if precision == "fp32" else precision
        # Without `cpu`, Accelerate takes each process of a launch without a GPU for the only one.
        return Accelerator(mixed_precision=mode, cpu=not torch.accelerator.is_available())

    def loop_config(self, num_samples: int, num_processes: int) -> LoopConfig:
        """The loop for a data set of so many images."""
        global_batch = self.batch_size * self.accumulation * num_processes
        steps = self.steps
        if steps is None:
            steps = num_steps(self.epochs or 0, num_samples, global_batch)
        return LoopConfig(
            steps=steps,
            batch_size=self.batch_size,
            seed=self.seed,
            accumulation=self.accumulation,
            log_every=self.log_every,
            eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            compile=self.compile,
        )
