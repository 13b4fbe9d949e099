"""The images of a run: opened, watched for bad ones, batched for evaluation, and shown."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hf_vitmae.data.augmentation.transforms import EvalTransform
from hf_vitmae.data.decoding.decode import BadImage, decode, decode_stored
from hf_vitmae.data.loader import eval_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.sources import Sources, open_train_and_eval
from hf_vitmae.data.streams.shards import ShardMemory
from hf_vitmae.data.streams.stream import StreamSource
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training import interrupts
from hf_vitmae.training.bad_images import BadImages, Split
from hf_vitmae.training.processes import on_main, shared_errors
from hf_vitmae.training.run_folder import RunFolder

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
    opened = None
    with shared_errors(accelerator):
        if accelerator.is_main_process:
            opened = open_them()
            if isinstance(opened[0], StreamSource):
                opened[0].check_processes(accelerator.num_processes)
    memory.surveys.update(on_main(accelerator, lambda: memory.surveys))
    return opened or open_them()


def watch_images(recipe: TaskRecipe, train: AnySource, evaluation: AnySource | None) -> BadImages:
    """The list of what cannot be used of the images to train on and to evaluate on."""
    splits = {"train": train} | ({} if evaluation is None else {"eval": evaluation})
    return BadImages(
        RunFolder(recipe.output_dir).bad_images,
        recipe.data.max_bad,
        {split: Split(source.name, len(source)) for split, source in splits.items()},
    )


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
        Interrupted: on every process, after a batch, if one of them was asked to stop.
    """
    batches = eval_batches(
        source,
        EvalTransform(processor),
        seed=recipe.seed,
        batch_size=recipe.eval_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.data.num_workers,
        num_noise=num_noise,
        pin_memory=accelerator.device.type == "cuda",
        skip=partial(bad_images.note, "eval"),
    )
    for batch in batches:
        yield batch
        interrupts.check(accelerator)
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
