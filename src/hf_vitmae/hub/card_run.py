"""What the record of a run says for its card: data, recipe, machine, and limits.

Pure functions of what recipe.yaml, metrics.jsonl and the other files hold. Whatever is missing in
them is missing in the tables.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hf_vitmae.hub.card import Value
from hf_vitmae.hub.card_names import EMBEDDED, LICENSES, hub_id, model_name, public_name

Json = Mapping[str, Any]
Rows = Iterator[tuple[str, Value | None]]

TASKS = {
    "PretrainRecipe": "pretraining",
    "FinetuneRecipe": "fine-tuning for classification",
    "SegmentRecipe": "fine-tuning for semantic segmentation",
    "LinearProbeRecipe": "linear probe: a classifier on features of a model that stays as it is",
}
OBJECTIVES = {
    "mae": "masked autoencoder",
    "masked-patch": "masked patch prediction",
    "next-patch": "next patch prediction",
}
STATISTICS = {
    "none": "the model's own",
    "auto": "measured on training images",
    "imagenet": "ImageNet's",
}
OPTIMIZER = {
    "base_lr": "base learning rate",
    "weight_decay": "weight decay",
    "betas": "betas",
    "layer_decay": "learning rate's decay by layer",
    "warmup_share": "warm-up (share of the steps)",
    "warmup_steps": "warm-up (steps)",
    "schedule": "schedule",
    "min_lr": "last learning rate",
    "clip_grad_norm": "largest gradient norm",
}
AUGMENTATIONS = {
    "crop_scale": "crops (share of the area)",
    "crop_ratio": "crops (width / height)",
    "horizontal_flip": "horizontal flips",
    "vertical_flip": "vertical flips",
    "rotate_quarters": "quarter turns",
    "rand_augment": "RandAugment (magnitude)",
    "three_augment": "three-augment",
    "color_jitter": "colour jitter",
    "gaussian_blur": "blur",
    "erasing": "random erasing",
    "mixup": "mixup (alpha)",
    "cutmix": "cutmix (alpha)",
}
OPTIONS = {
    "mask_pattern": "mask pattern",
    "prefix_share": "prefix (largest share)",
    "drop_path_rate": "drop path",
    "label_smoothing": "label smoothing",
    "lora_rank": "LoRA rank",
    "ema_decay": "decay of averaged weights",
    "solver": "solver",
    "pooling": "pooling",
    "seed": "seed",
}
SWEEP = {  # of a linear probe that is trained step by step
    "batch_size": "images of a step (at most)",
    "epochs": "epochs",
    "warmup_epochs": "warm-up (epochs)",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "views": "views of each image",
}
OFF = (None, False, 0, 0.0, "none")  # what is so in a recipe did not happen
OFF_BY_NAME: dict[str, tuple[Any, ...]] = {
    "layer_decay": (None, 1.0),
    "min_lr": (None,),
    "weight_decay": (None,),
    "warmup_share": (None,),
    "seed": (None,),
    "crop_scale": (None, [1.0, 1.0]),
    "crop_ratio": (None, [1.0, 1.0]),
    "color_jitter": (None, [0.0, 0.0, 0.0, 0.0]),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run folder holds, read.

    Args:
        recipe: recipe.yaml.
        lines: of metrics.jsonl, in order.
        bad_images: the lines of bad_images.jsonl.
        config, processor: config.json and preprocessor_config.json of the model.
        results: results.json of a linear probe.
        environment: what the run noted of where it runs: `device_name`, `versions`, `recipe` (its
            name), `from_hub` (what it opened on the Hub), `data_license`.
    """

    recipe: Json
    lines: Sequence[Json] = ()
    bad_images: Sequence[Json] = ()
    config: Json = field(default_factory=dict)
    processor: Json = field(default_factory=dict)
    results: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)

    def part(self, name: str) -> Json:
        """A part of the recipe, such as `data`; empty if it is not there."""
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def task(self) -> str:
        return str(self.recipe.get("task", ""))

    @cached_property
    def steps(self) -> int | None:
        """Steps that were taken; None if the log does not say."""
        taken = [line["step"] for line in self.lines if "loss" in line and "step" in line]
        return max(taken, default=None)

    def newest(self, name: str) -> Any:
        """The newest value of something logged; None if there is none."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)

    @property
    def images_seen(self) -> int | None:
        batch = self.newest("effective_batch")
        return None if self.steps is None or batch is None else self.steps * batch

    @property
    def images_of_an_epoch(self) -> int | None:
        """What is logged is how many epochs so many images were."""
        epochs = self.newest("epoch")
        if self.results.get("images"):
            return self.results["images"]
        return round(self.images_seen / epochs) if self.images_seen and epochs else None

    @property
    def sources(self) -> list[str]:
        """The names of the training images, as the recipe has them."""
        source = self.part("data").get("source")
        return [source] if isinstance(source, str) else [str(name) for name in source or ()]

    def hub_id(self, name: str) -> str | None:
        """As `card_names.hub_id`, with what this run knows."""
        beside = str(self.recipe.get("output_dir", ""))
        return hub_id(name, beside, self.environment.get("from_hub"))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Those of the sources that are on the Hub."""
        found = map(self.hub_id, self.sources)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    @property
    def data_id(self) -> str | None:
        """The images as metadata name them, where they can be found under that name."""
        known = [name for name in self.sources if name in EMBEDDED]
        return next(iter((*self.datasets, *known)), None)

    @property
    def source_name(self) -> str:
        """All sources, as a card calls them."""
        return ", ".join(public_name(name, self.hub_id(name)) for name in self.sources)

    @property
    def start(self) -> str | None:
        """The checkpoint that the run began with; None for one that began with fresh weights."""
        model = self.recipe.get("model")
        return model if isinstance(model, str) and not self.recipe.get("from_scratch") else None

    @property
    def base_model(self) -> str | None:
        return None if self.start is None else self.hub_id(self.start)


def data_table(record: Record) -> dict[str, Value]:
    """The images, and what they were normalised with."""
    return _known(_data_rows(record))


def recipe_table(record: Record) -> dict[str, Value]:
    """How the model was trained."""
    return _known(_recipe_rows(record))


def machine_table(record: Record) -> dict[str, Value]:
    """On what and with what, and how long it took."""
    return _known(_machine_rows(record))


def limits(record: Record, has_results: bool, has_license: bool) -> tuple[str, ...]:
    """What the record shows of what the model is not, a sentence each."""
    return tuple(_limits(record, has_results, has_license))


def statistics_table(processor: Json) -> dict[str, Value]:
    """What images are normalised with, as the image processor has it."""
    ends = processor.get("value_range")
    return _known(
        iter(
            [
                ("mean", _numbers(processor.get("image_mean"))),
                ("standard deviation", _numbers(processor.get("image_std"))),
                ("values that become 0 and 1", _numbers(ends)),
            ]
        )
    )


def _data_rows(record: Record) -> Rows:
    data = record.part("data")
    yield "images", record.source_name or None
    yield "weights of the sources", _numbers(data.get("weights"))
    yield "split", data.get("split")
    yield "images of an epoch", record.images_of_an_epoch
    yield "labelled images a class", data.get("samples_per_class")
    yield "split that is evaluated on", data.get("eval_split")
    yield "share held out", data.get("eval_share") or None
    stats = data.get("stats")
    yield "mean and deviation", stats and STATISTICS.get(stats, "from a file of statistics")
    yield from statistics_table(record.processor).items()
    for split, words in (("train", "training"), ("eval", "evaluation")):
        bad = [line for line in record.bad_images if line.get("split") == split]
        yield f"bad {words} images left out", len(bad) or None
    known = [LICENSES[name] for name in record.sources if name in LICENSES]
    yield "licence of the images", record.environment.get("data_license") or "; ".join(known)


def _recipe_rows(record: Record) -> Rows:
    recipe, newest = record.recipe, record.newest
    yield "task", TASKS.get(record.task)
    yield "objective", OBJECTIVES.get(str(recipe.get("objective")))
    yield "recipe", record.environment.get("recipe")
    yield "start", _start(record)
    if recipe.get("objective") == "mae":
        yield "share of hidden patches", record.config.get("mask_ratio")
        yield "targets normalised by patch", record.config.get("norm_pix_loss")
    yield "images of a step", newest("effective_batch")
    yield "learning rate", newest("effective_lr")
    yield from _options(record.part("optim"), OPTIMIZER)
    yield "steps", record.steps
    yield "epochs", newest("epoch") if record.steps else None
    yield "images seen", record.images_seen
    yield from _options(record.part("augment"), AUGMENTATIONS)
    yield from _options(recipe, OPTIONS)
    if record.results:
        yield from _probe_rows(recipe, record.results)


def _probe_rows(recipe: Json, results: Json) -> Rows:
    """Of a linear probe, whose log has no steps of its own."""
    is_exact = recipe.get("solver") == "exact"
    if not is_exact:
        yield from _options(recipe, SWEEP)
    searched = "strength of the penalty" if is_exact else "base learning rate"
    yield f"{searched} (tried)", _numbers([c.get("value") for c in results.get("candidates", ())])
    yield f"{searched} (chosen)", results.get("best")


def _start(record: Record) -> str | None:
    model = record.recipe.get("model")
    if isinstance(model, Mapping):
        return "fresh weights"
    if not isinstance(model, str):
        return None
    name = model_name(model, record.hub_id(model))
    if record.recipe.get("from_scratch"):
        return f"fresh weights, with the architecture of {name}"
    return f"the encoder of {name}"


def _options(values: Json, words: Mapping[str, str]) -> Rows:
    """What a part of the recipe says, but for what is off."""
    for name, label in words.items():
        value = values.get(name)
        if name == "warmup_share" and values.get("warmup_steps") is not None:
            continue
        if not any(value is off or value == off for off in OFF_BY_NAME.get(name, OFF)):
            yield label, _numbers(value) if isinstance(value, list) else value


def _machine_rows(record: Record) -> Rows:
    environment, newest = record.environment, record.newest
    yield "device", environment.get("device_name") or newest("device")
    yield "processes", newest("num_processes")
    yield "precision", newest("precision")
    yield "sharded", newest("sharded")
    seconds = newest("seconds")
    if seconds:
        yield "time in steps", duration(seconds)
        if record.images_seen:
            yield "images per second", record.images_seen / seconds
    written_by = record.config.get("transformers_version")
    versions = {"transformers": written_by, **environment.get("versions", {})}
    for library, version in versions.items():
        yield library, version and str(version)


def _limits(record: Record, has_results: bool, has_license: bool) -> Iterator[str]:
    planned = record.recipe.get("steps")
    if planned and record.steps is not None and record.steps < planned:
        yield f"The run is not finished: {record.steps:,} of {planned:,} steps were taken."
    images, source = record.images_of_an_epoch, record.source_name
    if source:
        so_many = f"{images:,} images of " if images else ""
        yield f"It was trained on {so_many}{source}; on other images it was not tried."
    if not has_results:
        yield "Nothing was evaluated on held-out images."
    if record.config.get("norm_pix_loss") and record.recipe.get("objective") == "mae":
        yield (
            "It predicts patches normalised by their own mean and deviation. A picture that takes "
            "these from hidden patches shows more than the model predicted."
        )
    if record.recipe.get("best_model"):
        yield (
            "Its weights are those of the best of several evaluations, on the very images that "
            "the results are of, which flatters them a little."
        )
    if skipped := record.newest("skipped_steps"):
        yield f"{skipped:,} steps were left out because loss or gradient were not finite."
    if record.bad_images:
        yield f"{len(record.bad_images):,} images could not be used and were left out."
    if record.steps is not None:
        yield "It is one run with one seed: other seeds would give other figures."
    if not has_license:
        yield "The record names no licence of the weights."


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.4g} {unit}"
    return f"{seconds:.4g} s"


def _numbers(values: Any) -> tuple[float, ...] | None:
    """A list of a file as a tuple; None of an empty one."""
    return tuple(values) if isinstance(values, list | tuple) and values else None


def _known(rows: Rows) -> dict[str, Value]:
    """The rows that have a value; a number that is not finite is none."""
    return {
        name: value
        for name, value in rows
        if value not in (None, "") and not (isinstance(value, float) and not math.isfinite(value))
    }
