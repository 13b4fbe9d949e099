"""What the recipes of all tasks share, and how a recipe becomes a loop.

Every field is a flag of the command line; its docstring is the flag's help.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from accelerate import Accelerator

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.order import num_steps
from hf_vitmae.data.repeated import images_per_batch
from hf_vitmae.training.loop_config import LoopConfig
from hf_vitmae.training.optim import OptimConfig
from hf_vitmae.training.restarts import join_after_restart
from hf_vitmae.training.trackers import TrackerChoice, find_trackers

EVAL_BATCH_SIZE = 64  # where the batch size is found for training: an evaluation takes much less


class BatchPlan(NamedTuple):
    """How one process takes its part of a step."""

    batch_size: int
    """Images of one forward pass."""
    accumulation: int
    """Forward passes whose gradients make one step."""

    @property
    def num_images(self) -> int:
        """Images of a step in one process."""
        return self.batch_size * self.accumulation


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
    batch_size: int | Literal["auto"] = 64
    """Images of one forward pass in one process; auto takes as many as fit into memory, found by
    halving, and needs `effective_batch`."""
    accumulation: int = 1
    """Forward passes whose gradients make one step."""
    effective_batch: int | None = None
    """Images of a step in all processes; takes the place of `accumulation`, which is then what is
    missing."""
    seed: int = 0
    """Decides the start weights, the order, the crops and the masks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 on a GPU that has it and fp32 elsewhere."""
    compile: bool = False
    """Run the training step through torch.compile."""
    cuda_graphs: bool = False
    """Record the compiled step as CUDA graphs, which spares small models on a GPU the time of
    launching each kernel; for `compile`, and for batches that are all of one size."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    tracker: tuple[TrackerChoice, ...] = ("auto",)
    """What shows the run beside metrics.jsonl: auto is TensorBoard, in the run's folder, if it is
    installed; else none, or one or several of tensorboard, trackio and wandb."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_images: int | None = None
    """Evaluate on at most so many images, spread evenly over the split."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0 saves at the end only."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on the disk, beside that of the best evaluation."""
    best_model: bool = False
    """End with the weights of the best evaluation rather than the last ones."""
    ema_decay: float = 0.0
    """Average the weights over the steps, and evaluate and save the average; 0.9999 spans some
    10,000 steps, 0 is off."""
    max_skipped: int = 5
    """A step whose loss or gradient is not finite is left out; so many in a row stop the run."""
    shard: bool = False
    """Share weights, gradients and optimiser state among the processes (FSDP2)."""
    allow_change: tuple[str, ...] = ()
    """Fields that may differ from those that the run began with, such as optim.base_lr."""
    dry_run: bool = False
    """Say what the run would be, its parameters, memory and time, and stop."""
    push_to_hub: str | None = None
    """Repository, user/name or a name under your own account, that the finished run is pushed to;
    if that fails, the same command again pushes what is there."""

    push_checkpoints: bool = False
    """Push each checkpoint to `push_to_hub` too while training goes on, with all that is needed to
    go on elsewhere; it sends the weights three times over at each."""
    resume_from: str | None = None
    """Repository, user/name or user/name@revision, of a run that pushed its checkpoints: a new
    output folder goes on from there."""

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            raise ValueError("The run has no length; give `steps` or `epochs`.")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")
        if self.epochs is not None and not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise ValueError(f"`epochs` must be above 0, got {self.epochs}.")
        _check_trackers(self.tracker)
        self._check_batches()
        if self.cuda_graphs and not self.compile:
            raise ValueError("`cuda_graphs` is for compiled steps; set `compile` too.")
        if self.push_checkpoints and not self.push_to_hub:
            raise ValueError("`push_checkpoints` needs to know where; give `push_to_hub` too.")
        parts = (self.push_to_hub or "name").split("/")
        if not all(parts) or len(parts) > 2:
            raise ValueError(f"`push_to_hub` must be name or user/name, got {self.push_to_hub!r}.")

    def _check_batches(self) -> None:
        """What can be said of them before the processes are known."""
        for name in ("batch_size", "accumulation", "effective_batch"):
            value = getattr(self, name)
            if value not in (None, "auto") and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.batch_size == "auto" and self.effective_batch is None:
            raise ValueError(
                "`batch_size` auto needs `effective_batch`, the images of a step in all processes."
            )
        if self.effective_batch is not None and self.accumulation != 1:
            raise ValueError(
                f"`accumulation` {self.accumulation} and `effective_batch` "
                f"{self.effective_batch} exclude each other; leave one of them out."
            )
        if self.batch_size == "auto":
            self.most_at_once(num_processes=1)
        else:
            self.plan_batches(num_processes=1)

    def refuse_mixing(self, why: str) -> None:
        """For a task whose images cannot be mixed with each other, and why that is.

        Raises:
            ValueError: if `augment` says so.
        """
        if self.augment.mixes:
            raise ValueError(f"augment.mixup and augment.cutmix must be 0 here: {why}.")

    def make_accelerator(self) -> Accelerator:
        """The processes and devices of this launch, at the recipe's precision.

        Raises:
            ValueError: for a precision that the machine has not.
            ImportError: for a tracker that is asked for and not installed.
        """
        find_trackers(self.tracker)
        precision = default_precision() if self.precision == "auto" else self.precision
        if precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("`precision` fp16 needs a GPU; use fp32 or bf16.")
        mode = "no" if precision == "fp32" else precision
        join_after_restart()
        # Without `cpu`, Accelerate takes each process of a launch without a GPU for the only one.
        return Accelerator(mixed_precision=mode, cpu=not torch.accelerator.is_available())

    def plan_batches(self, num_processes: int, found: int | None = None) -> BatchPlan:
        """How each process takes its part of a step.

        Args:
            found: the batch size that fits, where `batch_size` is auto.

        Raises:
            ValueError: if the effective batch or the repeats do not come out even.
        """
        size = found if self.batch_size == "auto" else self.batch_size
        if size is None:
            raise ValueError("`batch_size` is auto and must be found first; give a number here.")
        images_per_batch(size, self.data.repeats)
        if self.effective_batch is None:
            return BatchPlan(size, self.accumulation)
        at_once = size * num_processes
        _check_even(self.effective_batch, at_once, f"`batch_size` {size}", num_processes)
        return BatchPlan(size, self.effective_batch // at_once)

    @property
    def eval_batch_size(self) -> int:
        """Images of one forward pass of an evaluation in one process."""
        return EVAL_BATCH_SIZE if self.batch_size == "auto" else self.batch_size

    def most_at_once(self, num_processes: int) -> int:
        """Images of a step in one process, as `effective_batch` says.

        Raises:
            ValueError: if they or the repeats do not come out even.
        """
        assert self.effective_batch is not None
        _check_even(self.effective_batch, num_processes, "1 image", num_processes)
        most = self.effective_batch // num_processes
        images_per_batch(most, self.data.repeats)
        return most

    def loop_config(
        self, num_samples: int, num_processes: int, plan: BatchPlan | None = None
    ) -> LoopConfig:
        """The loop for a data set of so many images.

        Args:
            plan: as `plan_batches` makes it; needed where `batch_size` is auto.

        Raises:
            ValueError: if a step of several forward passes takes more images than there are.
        """
        plan = plan or self.plan_batches(num_processes)
        self._check_step(plan, num_samples, num_processes)
        in_epochs = num_steps(self.epochs or 0, num_samples, plan.num_images * num_processes)
        return LoopConfig(
            steps=self.steps or in_epochs,
            batch_size=plan.batch_size,
            seed=self.seed,
            accumulation=plan.accumulation,
            log_every=self.log_every,
            eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            compile=self.compile,
            cuda_graphs=self.cuda_graphs,
            ema_decay=self.ema_decay,
            max_skipped=self.max_skipped,
            hand_back_best=self.best_model,
        )

    def _check_step(self, plan: BatchPlan, num_samples: int, num_processes: int) -> None:
        """Refuse accumulation over more images than there are.

        A single batch may hold an image more than once, each with a crop of its own: few labels are
        no mistake. Gathering more of the same over several batches only makes the steps longer.
        """
        at_once = plan.batch_size * num_processes // self.data.repeats
        if plan.accumulation == 1 or at_once * plan.accumulation <= num_samples:
            return
        most = max(1, num_samples // at_once)
        field = f"`accumulation` {plan.accumulation}"
        if self.effective_batch is not None:
            most *= plan.batch_size * num_processes
            field = f"`effective_batch` {self.effective_batch}"
        raise ValueError(
            f"{field} takes {at_once * plan.accumulation} images a step and there are only "
            f"{num_samples} to train on; give {most}."
        )


def _check_trackers(names: tuple[str, ...]) -> None:
    known = get_args(TrackerChoice)
    if isinstance(names, str) or not names or not set(names) <= set(known):
        raise ValueError(f"`tracker` must be a tuple of {', '.join(known)}, got {names!r}.")
    if len(set(names)) > 1 and set(names) & {"auto", "none"}:
        raise ValueError(f"`tracker` auto and none stand alone, got {' '.join(names)}.")


def default_precision() -> Literal["bf16", "fp32"]:
    """What `precision` auto is here."""
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if has_bf16 else "fp32"


def _check_even(effective_batch: int, at_once: int, words: str, num_processes: int) -> None:
    """Refuse an effective batch that `at_once` images, in words, do not divide."""
    if effective_batch % at_once:
        words += f" x {num_processes} processes" if num_processes > 1 else ""
        least = max(1, effective_batch // at_once) * at_once
        raise ValueError(
            f"`effective_batch` {effective_batch} is no multiple of {words}; give {least} or "
            f"{least + at_once}."
        )
