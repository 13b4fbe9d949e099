"""What a comparison consists of: its models, the images that all of them share, and its jobs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset, DatasetDict

from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import Sources, open_train_and_eval
from hf_vitmae.data.splits import Reading, Source, find_splits, same_split
from hf_vitmae.data.subsets import hold_out
from hf_vitmae.tasks.images import spread

RANDOM, PIXELS = "random", "pixels"
HOLD_OUT_SEED, TUNING_SEED = 1_000_000, 1_000_001  # beside those of the draws, which count from 0


@dataclass(frozen=True)
class Arm:
    """One model of the comparison.

    Args:
        number: its place; folders of runs begin with it.
        name: what tables call it.
        checkpoint: the checkpoint it is, or whose architecture it takes.
        is_random: it starts from fresh weights.
        is_pixels: it is no network at all.
        extra_steps: of fine-tuning, beyond those that every model gets.
        compute_of: names of the checkpoints whose pretraining the extra steps stand for.
    """

    number: int
    name: str
    checkpoint: str
    is_random: bool = False
    is_pixels: bool = False
    extra_steps: int = 0
    compute_of: tuple[str, ...] = ()

    @property
    def is_checkpoint(self) -> bool:
        return not (self.is_random or self.is_pixels)

    def takes(self, method: str) -> bool:
        """Pixels cannot be fine-tuned; what only has more steps has no features of its own."""
        if method == "finetune":
            return not self.is_pixels
        return not self.extra_steps


@dataclass(frozen=True)
class Job:
    """One number to find. Tuning has the method `tuning` and a base learning rate."""

    method: str
    arm: Arm
    seed: int
    base_lr: float | None = None

    @property
    def is_training(self) -> bool:
        """Whether it leaves the folder of a run."""
        return self.method in ("tuning", "finetune")

    @property
    def key(self) -> dict[str, Any]:
        """The first fields of its line of results.jsonl."""
        key: dict[str, Any] = {"method": self.method, "model": self.arm.name, "seed": self.seed}
        return key if self.base_lr is None else key | {"base_lr": self.base_lr}


def make_arms(models: Sequence[str]) -> list[Arm]:
    """The models that were asked for; `random` and `pixels` take after the first checkpoint.

    Raises:
        ValueError: if there is no checkpoint among them.
    """
    checkpoints = [model for model in models if model not in (RANDOM, PIXELS)]
    if not checkpoints:
        raise ValueError(
            f"`models` {' '.join(models)} has no checkpoint, whose architecture the others take; "
            "name one, such as runs/pretrain/model."
        )
    names = _short_names(checkpoints)
    arms = []
    for number, model in enumerate(models):
        if model in names:
            arms.append(Arm(number, names[model], model))
        else:
            arms.append(Arm(number, model, checkpoints[0], model == RANDOM, model == PIXELS))
    return arms


def with_same_compute(arms: Sequence[Arm], costs: Mapping[str, tuple[float, int]]) -> list[Arm]:
    """The models, and behind `random` the same with the compute of pretraining as more steps.

    Args:
        costs: name of a checkpoint -> what a fine-tuning step of it costs, and how many of them its
            pretraining is worth. Checkpoints with equal costs share one such model.
    """
    groups: dict[tuple[float, int], list[Arm]] = {}
    for arm in arms:
        if costs.get(arm.name, (0.0, 0))[1]:
            groups.setdefault(costs[arm.name], []).append(arm)
    longer = []
    for (_, steps), group in groups.items():
        what = f"compute of {group[0].name}" if len(groups) > 1 else "same total compute"
        names = tuple(arm.name for arm in group)
        number = len(arms) + len(longer)
        arm = Arm(number, f"{RANDOM}, {what}", group[0].checkpoint, True, False, steps, names)
        longer.append(arm)
    place = 1 + next(arm.number for arm in arms if arm.is_random)
    return [*arms[:place], *longer, *arms[place:]]


def make_jobs(
    arms: Sequence[Arm], methods: Sequence[str], num_seeds: int, base_lrs: Sequence[float]
) -> list[Job]:
    """All of them in their order: what is cheap comes first, tuning before what it is for."""
    by_features = [method for method in methods if method != "finetune"]
    jobs = [
        Job(method, arm, seed)
        for arm in arms
        for seed in range(num_seeds)
        for method in by_features
        if arm.takes(method)
    ]
    if "finetune" in methods:
        tuned = [arm for arm in arms if arm.takes("finetune")]
        if len(base_lrs) > 1:
            jobs += [Job("tuning", arm, TUNING_SEED, lr) for arm in tuned for lr in base_lrs]
        jobs += [Job("finetune", arm, seed) for seed in range(num_seeds) for arm in tuned]
    return jobs


@dataclass(frozen=True)
class SharedImages:
    """The images that every model of a comparison sees.

    Args:
        data: where they are; with `eval_share`, `source` holds the two parts.
        source: opened in place of `data.source`, if it is not None.
        labels_per_class: of each draw.
        validation_share: of the training images, to choose learning rates on.
        eval_images: evaluate on so many at most.
    """

    data: DataConfig
    source: Sources | None
    labels_per_class: int
    validation_share: float
    eval_images: int | None

    @classmethod
    def open(
        cls,
        data: DataConfig,
        source: Sources | None,
        labels_per_class: int,
        validation_share: float,
        eval_images: int | None,
    ) -> "SharedImages":
        """Find them, and refuse what cannot be compared on.

        Raises:
            ValueError, FileNotFoundError: for images that cannot be used, such as ones without
            labels or without others to evaluate on.
        """
        if data.eval_share:
            source = _held_out_once(data, source)
            data = replace(data, split="train", eval_split="test", eval_share=0.0)
        images = cls(data, source, labels_per_class, validation_share, eval_images)
        images._check()
        return images

    def draw_config(self) -> DataConfig:
        """Of a fine-tuning run on a draw: its seed decides which images have labels."""
        return replace(self.data, samples_per_class=self.labels_per_class)

    def tuning_config(self) -> DataConfig:
        """The same, evaluated on a part of the training images and never on the others."""
        return replace(self.draw_config(), eval_split=None, eval_share=self.validation_share)

    def draw(self, seed: int) -> ImageSource:
        """The labelled images of a seed: those that a fine-tuning run of this seed sees."""
        train, _ = open_train_and_eval(self.draw_config(), seed, source=self.source)
        return cast(ImageSource, train)  # drawing by class needs random access

    @cached_property
    def training(self) -> ImageSource:
        """All training images."""
        return cast(ImageSource, self._opened[0])

    @cached_property
    def evaluation(self) -> ImageSource:
        """What every number of the comparison is measured on."""
        assert self._opened[1] is not None
        return cast(ImageSource, spread(self._opened[1], self.eval_images))

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.training.require_classes()

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        return open_train_and_eval(self.data, seed=0, source=self.source)

    def _check(self) -> None:
        train, evaluation = self._opened
        train.require_classes()
        if evaluation is None:
            raise ValueError(
                f"{train.name} has no split to evaluate on; name it (--data.eval-split) or hold "
                "some of the training images out (--data.eval-share 0.2)."
            )
        num_drawn = len(self.draw(0))
        num_held = round(len(train) * self.validation_share)
        if not 0 < num_held < len(train):
            raise ValueError(
                f"`validation_share` {self.validation_share} of the {len(train)} images of "
                f"{train.name} is {num_held}, and {num_drawn} have labels; choose another share."
            )

    def digest(self) -> str:
        """Changes with the images that are there and with their classes."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for part in (self.training, self.evaluation):
            assert part.labels is not None
            digest.update(np.stack([part.rows, part.labels]).astype("<i8").tobytes())
        return digest.hexdigest()


def _held_out_once(data: DataConfig, source: Sources | None) -> DatasetDict:
    """The training images in two parts that no seed of the comparison changes: train and test."""
    opened = find_splits(cast(Source, data.source if source is None else source), Reading())
    found = same_split(opened.splits, data.split)
    if found is None:
        raise ValueError(
            f"{opened.name} has no split {data.split!r}; its splits are: "
            f"{', '.join(opened.splits)}."
        )
    images = opened.splits[found]()
    if not isinstance(images, Dataset):
        raise ValueError(
            f"{opened.name} is read from front to back, and few labels are drawn from anywhere; "
            "take a folder of images, parquet or a Dataset."
        )
    indexed = ImageSource.from_dataset(
        images,
        f"{opened.name}/{found}",
        image_column=data.image_column,
        label_column=data.label_column,
    )
    indexed.require_classes()
    train, held = hold_out(indexed, data.eval_share, HOLD_OUT_SEED)
    return DatasetDict({"train": images.select(train.rows), "test": images.select(held.rows)})


def _short_names(checkpoints: Sequence[str]) -> dict[str, str]:
    """Checkpoint -> what people call it: RUN for RUN/model, else the last part of its name."""
    short = {name: Path(name).name for name in checkpoints}
    short |= {n: Path(n).parent.name for n, last in short.items() if last == "model"}
    taken = [*short.values(), RANDOM, PIXELS, ""]
    return {name: s if taken.count(s) == 1 else name for name, s in short.items()}
