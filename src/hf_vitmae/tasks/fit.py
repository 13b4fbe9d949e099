"""What all training tasks do alike: recipe, model and data to a trained model in a run folder."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hf_vitmae.data.augment import EvalTransform, TrainTransform
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import eval_batches, train_batches
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.tasks.checkpoints import save_model
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.guard import check_positions
from hf_vitmae.training.loop import Evaluator, train
from hf_vitmae.training.optim import build_optimizer, effective_lr
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.schedule import cosine_schedule

Batch = dict[str, Tensor]


def fit(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: VitMaePreTrainedModel,
    processor: VitMaeImageProcessor,
    source: ImageSource,
    prepare: Callable[[Batch], Batch],
    evaluators: Sequence[Evaluator],
    num_noise: int | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train the model as the recipe says, or go on where an earlier start of the same command
    stopped.

    Args:
        prepare: a batch of the loader -> keyword arguments of the model, on its device.
        num_noise: draw so much mask noise for every image.

    Returns:
        The run's folder, with the model and its image processor in `model/`, and the newest logged
        values.

    Raises:
        ValueError: if the model cannot tell positions apart, or the folder belongs to another run.
    """
    check_positions(model, model.config.image_pair, model.config.num_channels)
    loop = recipe.loop_config(len(source), accelerator.num_processes)
    batch = loop.effective_batch(accelerator.num_processes)
    optimizer = build_optimizer(model, recipe.optim, batch)
    peak_lr = effective_lr(recipe.optim.base_lr, batch)
    schedule = cosine_schedule(
        loop.steps, recipe.optim.num_warmup_steps(loop.steps), recipe.optim.min_lr / peak_lr
    )
    batches = partial(
        _micro_batches, recipe, accelerator, _train_transform(recipe, model), source, num_noise
    )
    run = _open_run(recipe, accelerator)
    metrics = train(
        model,
        optimizer,
        schedule,
        accelerator=accelerator,
        batches=batches,
        prepare=prepare,
        config=loop,
        run=run,
        evaluators=evaluators,
        num_samples=len(source),
        clip_grad_norm=recipe.optim.clip_grad_norm,
    )
    if accelerator.is_main_process:
        save_model(run.model, model, processor)
    accelerator.wait_for_everyone()
    return run, metrics


def spread(source: ImageSource, most: int | None) -> ImageSource:
    """At most so many images, spread evenly over the source."""
    if most is None or len(source) <= most:
        return source
    return source.select(np.arange(most) * len(source) // most)


def held_out_batches(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    processor: VitMaeImageProcessor,
    source: ImageSource,
    num_noise: int | None = None,
) -> Iterator[Batch]:
    """This process's batches of one pass over held-out images, as inference sees them."""
    return eval_batches(
        source,
        EvalTransform(processor),
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.data.num_workers,
        num_noise=num_noise,
        pin_memory=accelerator.device.type == "cuda",
    )


def normalized(batch: Batch, processor: VitMaeImageProcessor, device: torch.device) -> Tensor:
    """The batch's uint8 images, normalised on the device: -> float (B, C, H, W)."""
    return processor.normalize(batch["pixel_values"].to(device, non_blocking=True))


def _open_run(recipe: TaskRecipe, accelerator: Accelerator) -> RunFolder:
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            return RunFolder.open(recipe.output_dir, recipe)
        return RunFolder(recipe.output_dir)


def _train_transform(recipe: TaskRecipe, model: VitMaePreTrainedModel) -> TrainTransform:
    return TrainTransform(
        image_size=model.config.image_pair,
        num_channels=model.config.num_channels,
        crop_scale=recipe.augment.crop_scale,
        crop_ratio=recipe.augment.crop_ratio,
        horizontal_flip=recipe.augment.horizontal_flip,
    )


def _micro_batches(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    transform: TrainTransform,
    source: ImageSource,
    num_noise: int | None,
    start: int,
) -> Iterator[Batch]:
    return train_batches(
        source,
        transform,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        start_step=start,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.data.num_workers,
        num_noise=num_noise,
        pin_memory=accelerator.device.type == "cuda",
    )
