"""What a run normalises its images with: the recipe's `data.stats`.

It goes into the model's configuration and into its image processor, which training, evaluation and
inference share. A run that starts from a checkpoint's weights keeps what they were trained with.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_vitmae.data.measure import Tally, measure_all, spread_sample
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.statistics import PixelStatistics, read_statistics
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.tasks.start import CheckpointRecipe
from hf_vitmae.training.processes import on_main

NONE, AUTO, IMAGENET = "none", "auto", "imagenet"
SAMPLE = 1000  # images that `auto` measures at most: seconds, and mean and std are within a percent
IMAGENET_STATISTICS = PixelStatistics(
    mean=tuple(IMAGENET_DEFAULT_MEAN), std=tuple(IMAGENET_DEFAULT_STD), range=(0.0, 255.0)
)


def pixel_statistics(
    recipe: TaskRecipe, accelerator: Accelerator, source: AnySource, num_channels: int
) -> PixelStatistics | None:
    """What `recipe.data.stats` asks for, for a model of so many channels; None for the model's own.

    Measured by the main process alone. A run that goes on measures the same images again.

    Args:
        source: the images to train on.

    Raises:
        ValueError, FileNotFoundError: if they do not fit the model, the weights were trained with
        others, or no image can be measured; on every process.
    """
    stats = recipe.data.stats
    if stats == NONE:
        return None
    if isinstance(recipe, CheckpointRecipe) and not recipe.from_scratch:
        raise ValueError(
            f"data.stats={stats} is for fresh weights, and those of {recipe.model} know the "
            "normalisation that they were trained with; leave it out, or add --from-scratch."
        )
    if stats == AUTO:
        num_workers = recipe.data.num_workers
        statistics = on_main(accelerator, lambda: _measure(source, num_channels, num_workers))
    else:
        statistics = IMAGENET_STATISTICS if stats == IMAGENET else read_statistics(Path(stats))
    fitting = statistics.for_channels(num_channels)
    if fitting is None:
        raise ValueError(
            f"data.stats={stats} has {statistics.num_channels} channels and the model takes "
            f"{num_channels}; measure the images for it: hf-vitmae stats SOURCE --num-channels "
            f"{num_channels}."
        )
    accelerator.print(_described(stats, fitting))
    return fitting


def with_statistics(config: VitMaeConfig, statistics: PixelStatistics | None) -> VitMaeConfig:
    """The model's configuration for images that are normalised so; itself for None."""
    if statistics is None:
        return config
    mean, std = list(statistics.mean), list(statistics.std)
    return config.with_fields(image_mean=mean, image_std=std)


def processor_options(statistics: PixelStatistics | None) -> dict[str, Any]:
    """Options of the image processor that normalises so; none for None."""
    if statistics is None:
        return {}
    options: dict[str, Any] = {"image_mean": statistics.mean, "image_std": statistics.std}
    if statistics.value_range is not None:
        options["value_range"] = statistics.value_range
    return options


def new_processor(config: VitMaeConfig, statistics: PixelStatistics | None) -> VitMaeImageProcessor:
    """The image processor of a model that `with_statistics` configured."""
    settings = VitMaeImageProcessor.for_model(config).to_dict()
    return VitMaeImageProcessor(**settings | processor_options(statistics))


def _measure(source: AnySource, num_channels: int, num_workers: int) -> PixelStatistics:
    """Those of a sample of the images; that bad ones are named is the training's own affair."""
    tally = Tally()
    for found in measure_all(spread_sample(source, SAMPLE), num_channels, num_workers):
        tally.add(found)
    return tally.statistics(source.name)


def _described(stats: str, statistics: PixelStatistics) -> str:
    """What is said at the start of a run."""
    images = f" ({statistics.num_images:,} images)" if statistics.num_images else ""
    words = f"data.stats={stats}{images}: mean {_listed(statistics.mean)}, "
    words += f"std {_listed(statistics.std)}"
    if statistics.value_range is not None:
        low, high = statistics.value_range
        words += f", values from {low:g} to {high:g}"
    for channel in statistics.constant_channels:
        words += f"; channel {channel} is the same in all pixels, its std is taken as 1"
    return f"{words}."


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
