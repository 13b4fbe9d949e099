"""`--batch-size auto`: as many images at once as fit into memory."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_vitmae.tasks.recipe import BatchPlan, TaskRecipe
from hf_vitmae.training.memory import (
    OPTIMIZER_COPIES,
    agree_on_batch_size,
    find_batch_size,
    settings_to_lower,
    training_trial,
)
from hf_vitmae.training.resources import within_free_memory

Batch = dict[str, Tensor]


def find_batch_plan(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: nn.Module,
    prepare: Callable[[Batch], Mapping[str, Any]],
    example: Callable[[], Batch],
    num_copies: int = OPTIMIZER_COPIES,
) -> BatchPlan:
    """The recipe's batch size and accumulation; where it says auto, they are tried out first.

    Weights and random state stay as they were. Every process must call this.

    Args:
        model: not wrapped; a trial moves it to the accelerator's device.
        prepare: a batch of the loader -> keyword arguments of the model, on its device.
        example: gives a batch of the loader of which a trial repeats the first image.
        num_copies: of the trainable weights, that the optimiser and an average keep.

    Raises:
        OutOfMemory: if not even the smallest batch fits.
        ValueError: if the effective batch cannot be shared among the processes.
    """
    processes = accelerator.num_processes
    if recipe.batch_size != "auto":
        return recipe.plan_batches(processes)
    most = recipe.most_at_once(processes)
    device, share = accelerator.device, 1 / processes
    limit = within_free_memory(share) if device.type == "cpu" else nullcontext()
    with limit, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        trial = training_trial(model, accelerator, prepare, example(), num_copies)
        find = partial(find_batch_size, trial, most, recipe.data.repeats)
        plan = recipe.plan_batches(processes, agree_on_batch_size(find))
    accelerator.print(
        f"batch size auto: {plan.batch_size} images at once, {plan.accumulation} times a step"
    )
    return plan


def memory_advice(
    recipe: TaskRecipe, plan: BatchPlan, image_size: tuple[int, int], accelerator: Accelerator
) -> str:
    """The line that says what to change when memory runs out in spite of the plan.

    Args:
        image_size: height and width.
    """
    return settings_to_lower(
        plan.batch_size,
        plan.accumulation if recipe.effective_batch is None else None,
        image_size,
        accelerator.mixed_precision,
        recipe.data.repeats,
    )
