"""Features of a whole source, computed once and kept in a folder.

A file for each encoder, source and set of options, found again by a digest of all three. While it
is being made, parts of it lie beside it, each written whole, so that a run that was killed goes on
after the last one.
"""

import math
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from hf_vitmae.data.augmentation.transforms import EvalTransform, TrainTransform, Transform
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import eval_batches
from hf_vitmae.tasks.encoders import (
    Encoder,
    NetworkEncoder,
    PixelEncoder,
    Pooling,
    digest_of,
    pixel_encoder,
    random_encoder,
    trained_encoder,
)
from hf_vitmae.tasks.images import normalized
from hf_vitmae.training.bad_images import BadImages, Split
from hf_vitmae.training.features import Features
from hf_vitmae.whole_or_absent import whole_or_absent

__all__ = [
    "Encoder",
    "NetworkEncoder",
    "PixelEncoder",
    "Pooling",
    "View",
    "cached_features",
    "cached_views",
    "pixel_encoder",
    "random_encoder",
    "trained_encoder",
    "write_tensors",
]

IMAGES_PER_PART = 4096
NUM_EXAMPLES = 256  # images whose bytes tell a source from another one with the same names


@dataclass(frozen=True)
class View:
    """Training images as chance shows them: random resized crop and flip.

    Args:
        number: which view of an image it is, from 0 on.
        seed: with the number, decides the crops.
        crop_scale: least and largest share of an image's area that a crop covers.
    """

    number: int
    seed: int
    crop_scale: tuple[float, float]


@dataclass(frozen=True)
class _Job:
    """What is to be computed, and how; `view` None is what inference sees."""

    encoder: Encoder
    source: ImageSource
    batch_size: int
    images_per_part: int
    num_workers: int
    view: View | None = None

    @property
    def num_parts(self) -> int:
        return math.ceil(len(self.source) / self.images_per_part)

    def num_images(self, num_parts: int) -> int:
        """Of the first parts."""
        return min(num_parts * self.images_per_part, len(self.source))

    def key(self) -> str:
        """The same for the same features, bit for bit."""
        view = None if self.view is None else asdict(self.view)
        options = [self.batch_size, self.images_per_part, view]
        return digest_of([self.encoder.digest, _source_digest(self.source), *options])

    def transform(self) -> Transform:
        processor = self.encoder.processor
        if self.view is None:
            return EvalTransform(processor)
        return TrainTransform(
            self.encoder.config.image_pair,
            processor.num_channels,
            crop_scale=self.view.crop_scale,
            value_range=processor.value_range,
        )

    def seed(self, part: int) -> int:
        """Of the crops of a part: no two parts and views share theirs."""
        if self.view is None:
            return 0  # inference draws nothing
        words = (self.view.seed, self.view.number, part)
        return int(np.random.SeedSequence(words).generate_state(1)[0])


def cached_features(
    folder: Path,
    encoder: Encoder,
    source: ImageSource,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    max_bad: float = 0.01,
    images_per_part: int = IMAGES_PER_PART,
) -> Features:
    """The features of all good images as inference sees them, in order, read or computed.

    Bad images are left out, and listed in a file beside that of the features.

    Args:
        max_bad: share of the images that may be bad.
        images_per_part: no more are lost by a kill; rounded up to whole batches.

    Raises:
        ValueError: if the source is empty or has no labels, too many of its images are bad, or
            some features are not finite.
    """
    return cached_views(
        folder,
        encoder,
        source,
        (),
        batch_size=batch_size,
        num_workers=num_workers,
        max_bad=max_bad,
        images_per_part=images_per_part,
    )[0]


def cached_views(
    folder: Path,
    encoder: Encoder,
    source: ImageSource,
    views: Sequence[View],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    max_bad: float = 0.01,
    images_per_part: int = IMAGES_PER_PART,
) -> tuple[Features, list[Features]]:
    """`cached_features`, and besides those of each view: the same images, row by row.

    Raises:
        ValueError: as `cached_features`.
    """
    source.require_classes()
    if not len(source):
        raise ValueError(f"{source.name} holds no images; choose another split or source.")
    per_part = math.ceil(images_per_part / batch_size) * batch_size
    job = _Job(encoder, source, batch_size, per_part, num_workers)
    plain, rows = _cached(folder, job, max_bad)
    job = replace(job, source=source.select(rows))
    return plain, [_cached(folder, replace(job, view=view), max_bad=0.0)[0] for view in views]


def _source_digest(source: ImageSource) -> str:
    """Names, labels and classes of all images, and the bytes of some."""
    pictures = [record.encoded for record in source.examples(NUM_EXAMPLES)]
    some = [picture for picture in pictures if isinstance(picture, bytes)]
    names = source.names(range(len(source)))
    said = [source.name, names, source.class_names, [len(picture) for picture in some]]
    return digest_of(said, source.labels, *some)


def _cached(folder: Path, job: _Job, max_bad: float) -> tuple[Features, np.ndarray]:
    """The features, and the numbers of the images that they are of."""
    key, name = job.key(), job.source.name
    path, parts = folder / f"{key}.safetensors", folder / f"{key}.parts"
    splits = {name: Split(name, len(job.source))}
    bad_images = BadImages(folder / f"{key}.bad_images.jsonl", max_bad, splits)
    if path.exists():
        bad_images.resume(job.num_parts, unit="part")
    else:
        parts.mkdir(parents=True, exist_ok=True)
        _write_parts(parts, job, bad_images)
        _join(path, parts, job)
    shutil.rmtree(parts, ignore_errors=True)
    bad_images.share()  # refuses too many, which may have been allowed when they were found
    if found := len(bad_images.found):
        print(f"{found} bad images of {name} are left out; they are listed in {bad_images.path}.")
    tensors = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    class_names = job.source.require_classes()
    return Features(tensors["values"], tensors["labels"], class_names), tensors["rows"]


def _write_parts(folder: Path, job: _Job, bad_images: BadImages) -> None:
    """Write the parts that are missing, and say how far it is."""
    first = next(i for i in count() if not _part(folder, i).exists())
    bad_images.resume(first - 1, unit="part")
    has_bar, name = sys.stderr.isatty(), f"{job.encoder.name} of {job.source.name}"
    total, done = len(job.source), job.num_images(first)
    with tqdm(total=total, initial=done, unit="image", desc=name, disable=not has_bar) as bar:
        for number in range(first, job.num_parts):
            bad_images.begin(part=number)
            write_tensors(_part(folder, number), _compute(job, number, bad_images))
            before, done = done, job.num_images(number + 1)
            bar.update(done - before)
            if not has_bar and job.num_parts > 1:
                print(f"{name}: {done} of {total} images", file=sys.stderr, flush=True)


def _compute(job: _Job, number: int, bad_images: BadImages) -> dict[str, Tensor]:
    """One part: values (n, D), labels (n,), and rows (n,), the numbers of the good images."""
    encoder, first = job.encoder, job.num_images(number)
    batches = eval_batches(
        job.source.select(np.arange(first, job.num_images(number + 1))),
        job.transform(),
        seed=job.seed(number),
        batch_size=job.batch_size,
        num_workers=job.num_workers,
        pin_memory=encoder.device.type == "cuda",
        skip=partial(bad_images.note, job.source.name),
    )
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with closing(batches):
        for batch in batches:
            valid = batch["valid"]
            values = encoder.embed(normalized(batch, encoder.processor, encoder.device)).cpu()
            rows = torch.arange(first, first + len(valid))[valid]
            found.append((values[valid], batch["labels"][valid], rows))
            first += len(valid)
    bad_images.share()
    values, labels, rows = (torch.cat(column) for column in zip(*found, strict=True))
    if not values.isfinite().all():
        raise ValueError(
            f"Some features by {encoder.name} are not finite; its weights are damaged, or the "
            f"images of {job.source.name} hold values that are not."
        )
    return {"values": values, "labels": labels, "rows": rows}


def _join(path: Path, folder: Path, job: _Job) -> None:
    """All parts as one file."""
    parts = [load_file(_part(folder, number)) for number in range(job.num_parts)]
    write_tensors(path, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    with whole_or_absent(path) as unfinished:
        save_file(tensors, unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.safetensors"
