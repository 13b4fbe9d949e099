"""What all training tasks do alike: recipe, model and data to a trained model in a run folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from hf_vitmae.data.augmentation.augmented import train_transform
from hf_vitmae.data.augmentation.transforms import EvalTransform, Transform
from hf_vitmae.data.decoding.decode import BadImage, decode, decode_stored
from hf_vitmae.data.loader import eval_batches, train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.sources import Sources, open_train_and_eval
from hf_vitmae.data.streams.shards import ShardMemory
from hf_vitmae.data.streams.stream import StreamSource
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.tasks.checkpoints import save_model
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.bad_images import BadImages, Split
from hf_vitmae.training.guard import check_positions
from hf_vitmae.training.loop import Evaluator, train
from hf_vitmae.training.optim import build_optimizer, effective_lr
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.schedule import cosine_schedule

Batch = dict[str, Tensor]
SHARDS = "shards.json"  # in the run's folder: what the shards of a stream hold


def open_sources(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    source: Sources | None = None,
    *,
    use_labels: bool = True,
    use_label_maps: bool = False,
) -> tuple[AnySource, AnySource | None]:
    """The images to train on and those to evaluate on; only the main process counts a stream.

    Args:
        source: `datasets` objects, opened in place of `recipe.data.source`.
        use_labels: False leaves labels unread, whatever state they are in.
        use_label_maps: open each image's label map, the class of every pixel, not its label.

    Raises:
        ValueError, FileNotFoundError: for data that cannot be used, on every process.
    """
    memory = ShardMemory.read(recipe.output_dir / SHARDS)
    open_them = partial(
        open_train_and_eval,
        recipe.data,
        recipe.seed,
        source=source,
        use_labels=use_labels,
        use_label_maps=use_label_maps,
        memory=memory,
    )
    if accelerator.num_processes == 1:
        return open_them()
    opened, error = None, None
    if accelerator.is_main_process:
        try:
            opened = open_them()
            if isinstance(opened[0], StreamSource):
                opened[0].check_processes(accelerator.num_processes)
        except (ValueError, OSError) as raised:  # the others wait to hear of it
            error = raised
    surveys, error = broadcast_object_list([memory.surveys, error])
    if error is not None:
        raise error
    memory.surveys.update(surveys)
    return opened or open_them()


def watch_images(recipe: TaskRecipe, train: AnySource, evaluation: AnySource | None) -> BadImages:
    """The list of what cannot be used of the images to train on and to evaluate on."""
    splits = {"train": train} | ({} if evaluation is None else {"eval": evaluation})
    return BadImages(
        RunFolder(recipe.output_dir).bad_images,
        recipe.data.max_bad,
        {split: Split(source.name, len(source)) for split, source in splits.items()},
    )


def fit(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: VitMaePreTrainedModel,
    processor: VitMaeImageProcessor,
    source: AnySource,
    prepare: Callable[[Batch], Batch],
    evaluators: Sequence[Evaluator],
    bad_images: BadImages,
    num_noise: int | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train the model as the recipe says, or go on where an earlier start of the same command
    stopped.

    Args:
        prepare: a batch of the loader -> keyword arguments of the model, on its device.
        bad_images: as `watch_images` makes it.
        num_noise: draw so much mask noise for every image.

    Returns:
        The run's folder, with the model and its image processor in `model/`, and the newest logged
        values.

    Raises:
        ValueError: if the model cannot tell positions apart, the folder belongs to another run, or
            too many images are bad.
    """
    check_positions(model, model.config.image_pair, model.config.num_channels)
    loop = recipe.loop_config(source.epoch_size, accelerator.num_processes)
    batch = loop.effective_batch(accelerator.num_processes)
    optimizer = build_optimizer(model, recipe.optim, batch)
    peak_lr = effective_lr(recipe.optim.base_lr, batch)
    schedule = cosine_schedule(
        loop.steps, recipe.optim.num_warmup_steps(loop.steps), recipe.optim.min_lr / peak_lr
    )
    transform = _train_transform(recipe, model.config.image_pair, processor)
    batches = partial(_micro_batches, recipe, accelerator, transform, source, bad_images, num_noise)
    run = _open_run(recipe, accelerator)
    if isinstance(source, StreamSource) and source.memory and accelerator.is_main_process:
        source.memory.write()
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
        num_samples=source.epoch_size,
        clip_grad_norm=recipe.optim.clip_grad_norm,
        bad_images=bad_images,
    )
    if accelerator.is_main_process:
        save_model(run.model, model, processor)
    accelerator.wait_for_everyone()
    return run, metrics


def spread(source: AnySource, most: int | None) -> AnySource:
    """At most so many images, spread evenly over the source."""
    if most is None or len(source) <= most:
        return source
    return source.select(np.arange(most) * len(source) // most)


def held_out_batches(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    processor: VitMaeImageProcessor,
    source: AnySource,
    bad_images: BadImages,
    num_noise: int | None = None,
) -> Iterator[Batch]:
    """This process's batches of one pass over held-out images, as inference sees them.

    Raises:
        ValueError: at the end and on every process, if too many of them are bad.
    """
    yield from eval_batches(
        source,
        EvalTransform(processor),
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.data.num_workers,
        num_noise=num_noise,
        pin_memory=accelerator.device.type == "cuda",
        skip=partial(bad_images.note, "eval"),
    )
    bad_images.share()


def example_images(source: AnySource, most: int, processor: VitMaeImageProcessor) -> list[Tensor]:
    """Some images that can be decoded, spread over the source: (C, H, W) each, to be processed."""
    images = []
    for record in source.examples(most):
        with suppress(BadImage):
            images.append(decode_for(processor, record.encoded, record.name))
    return images


def decode_for(processor: VitMaeImageProcessor, encoded: bytes, name: str) -> Tensor:
    """An image as the processor takes it: uint8 (C, H, W), or with a value range as it is stored.

    Raises:
        BadImage: as `decode`.
    """
    if processor.value_range is None:
        return decode(encoded, processor.num_channels, name)
    return torch.from_numpy(decode_stored(encoded, processor.num_channels, name))


def normalized(batch: Batch, processor: VitMaeImageProcessor, device: torch.device) -> Tensor:
    """The batch's uint8 images, normalised on the device: -> float (B, C, H, W)."""
    return processor.normalize(batch["pixel_values"].to(device, non_blocking=True))


def _open_run(recipe: TaskRecipe, accelerator: Accelerator) -> RunFolder:
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            return RunFolder.open(recipe.output_dir, recipe)
        return RunFolder(recipe.output_dir)


def _train_transform(
    recipe: TaskRecipe, image_size: tuple[int, int], processor: VitMaeImageProcessor
) -> Transform:
    return train_transform(
        recipe.augment,
        image_size,
        processor.num_channels,
        processor.image_mean,
        processor.image_std,
        processor.value_range,
    )


def _micro_batches(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    transform: Transform,
    source: AnySource,
    bad_images: BadImages,
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
        repeats=recipe.data.repeats,
        pin_memory=accelerator.device.type == "cuda",
        skip=partial(bad_images.note, "train"),
    )
