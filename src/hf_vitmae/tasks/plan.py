"""`--dry-run`: what a run would be, found out in seconds, with nothing left behind."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.loop_config import LoopConfig
from hf_vitmae.training.memory import OPTIMIZER_COPIES, training_trial
from hf_vitmae.training.optim import effective_lr
from hf_vitmae.training.run_folder import as_plain

Batch = dict[str, Tensor]
MOST_TRIED = 4  # images of the step that is measured
TRIALS = 5  # of which the fastest counts
BYTES_OF_A_WEIGHT = 4
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class DryRun(Exception):
    """The plan has been told, and nothing is trained. Carries it as text."""


def plan_run(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: nn.Module,
    num_images: int,
    prepare: Callable[[Batch], Mapping[str, Any]],
    example: Callable[[], Batch],
    loop: LoopConfig,
) -> str:
    """The resolved recipe, and what the run takes, from one small step of training here.

    Args:
        model: not wrapped; its weights stay as they were.
        num_images: of an epoch.
        example: gives a batch of the loader.
    """
    size = max(1, min(loop.batch_size, MOST_TRIED))
    seconds, kept = _measure(accelerator, model, prepare, example(), size)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    copies = 1 + OPTIMIZER_COPIES + (loop.ema_decay > 0)
    fixed = BYTES_OF_A_WEIGHT * (total + copies * trained)
    batch = loop.effective_batch(accelerator.num_processes)
    images = loop.steps * batch
    lr = effective_lr(recipe.optim.base_lr, batch)
    duration = seconds * images / accelerator.num_processes
    return "\n".join(
        [
            yaml.safe_dump(as_plain(recipe), sort_keys=False, allow_unicode=True).rstrip(),
            "",
            f"model       {type(model).__name__}, {total:,} parameters, {trained:,} trained",
            f"data        {num_images:,} images an epoch",
            f"length      {loop.steps:,} steps of {batch:,} images, "
            f"{images / num_images:.1f} epochs",
            f"lr          {lr:.3g} (base {recipe.optim.base_lr:.3g} for 256 images a step)",
            f"memory      about {_size(fixed + kept * loop.batch_size)} a process: "
            f"{_size(fixed)} for weights, gradients and optimiser, {_size(kept)} an image",
            f"time        about {_duration(duration)} on {accelerator.device}, at "
            f"{1 / seconds:.3g} images a second a process, if they come as fast "
            "(hf-vitmae benchmark data)",
            "Nothing was trained or written (--dry-run).",
        ]
    )


def _measure(
    accelerator: Accelerator,
    model: nn.Module,
    prepare: Callable[[Batch], Mapping[str, Any]],
    example: Batch,
    size: int,
) -> tuple[float, int]:
    """Seconds and bytes that forward and backward pass take of an image."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.random.fork_rng():
        try_step = training_trial(model, accelerator, prepare, example, num_copies=0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            try_step(size)
        num_bytes = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        seconds = min(_time(accelerator, try_step, size) for _ in range(TRIALS))
    return seconds / (2 * size), num_bytes // (2 * size)  # a trial takes two passes


def _time(accelerator: Accelerator, try_step: Callable[[int], None], size: int) -> float:
    started = time.perf_counter()
    try_step(size)
    if accelerator.device.type != "cpu":
        torch.accelerator.synchronize(accelerator.device)
    return time.perf_counter() - started


def _size(num_bytes: float) -> str:
    unit = 0
    while num_bytes >= 1024 and unit < len(UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.3g} {UNITS[unit]}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
