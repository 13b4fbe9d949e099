"""Features of every image of a source, as parquet files that `datasets` opens.

A folder of parts, each of so many images and written whole, so that a run that was killed goes on
after the last part. What was asked for lies beside them in a hidden file, which `datasets` passes
over.
"""

import json
import math
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from datasets import Features, List, Value
from torch import Tensor
from tqdm import tqdm

from hf_vitmae.data.augmentation.transforms import EvalTransform
from hf_vitmae.data.config import check_max_bad
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import eval_batches
from hf_vitmae.data.sources import Source, open_source
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeModel
from hf_vitmae.models.modes import evaluating
from hf_vitmae.tasks.checkpoints import load_config, load_model, load_processor, on_device
from hf_vitmae.tasks.encoders import model_digest
from hf_vitmae.tasks.images import normalized
from hf_vitmae.training.bad_images import BadImages, Split
from hf_vitmae.whole_or_absent import unfinished_path, whole_or_absent

Kind = Literal["cls", "mean", "patches"]
# Hidden: `datasets` would read any other file of the folder as parquet.
REQUEST = ".request.json"
BAD_IMAGES = ".bad_images.jsonl"


@dataclass(frozen=True, kw_only=True)
class EmbedData:
    """How the images are read."""

    image_column: str | None = None
    """Column that holds the images; found by type and name when left out."""
    label_column: str | None = None
    """Column that holds the labels; found by type and name when left out."""
    use_labels: bool = True
    """False leaves labels unread, whatever state they are in."""
    max_bad: float = 0.01
    """Share of the images that may be bad, such as damaged files; more of them stop the run."""
    num_workers: int = 2
    """Worker processes that decode images; changes speed, never a row."""

    def __post_init__(self) -> None:
        check_max_bad(self.max_bad)
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, not {self.num_workers}.")


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """Write features, name and label of every image, in order, to a folder of parquet files.

    Raises:
        ValueError: if a number is out of range.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or Hub id of a model; its encoder is used."""
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """`emoji`, `shapes`, a folder of images, parquet file or glob, Hub id (`user/name:config`)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("features")
    """Folder of the parquet files; the same command again goes on with what is in it."""
    features: Kind = "cls"
    """The CLS token, the mean of the patch tokens, or all patch tokens in raster order."""
    split: str = "train"
    """Split to read."""
    data: EmbedData = EmbedData()
    batch_size: int = 64
    """Images of one forward pass."""
    images_per_part: int = 1024
    """Images of one parquet file, rounded up to whole batches; no more are lost by a kill."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "images_per_part"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @property
    def batches_per_part(self) -> int:
        """Whole batches, so that a run that goes on computes the same ones."""
        return math.ceil(self.images_per_part / self.batch_size)


def run(request: EmbedRequest, source: Source | None = None) -> Path:
    """Write the features, or those that are still missing, and return their folder.

    A bad image gets no row and a line in the hidden file .bad_images.jsonl of the folder. Parts
    begin at the same images all the same, so that a run that goes on writes what one that was not
    stopped writes.

    Columns: `name`; `label`, the name of the image's class, null in a source without labels; and
    `features`, float32 lists of fixed size: (D,), or (N, D) for all patches.

    Args:
        source: a `datasets` object, opened in place of `request.source`, which is then its name.

    Raises:
        ValueError, FileNotFoundError: for a model, data or folder that cannot be used, in one line.
    """
    config = load_config(request.model)
    _refuse_blind_cls(request, config)
    images = _open_images(request, source)
    model = _open_encoder(request.model, config)
    processor = load_processor(request.model, config)
    first = _open_folder(request.output, _stamp(request, images, model, processor))
    bad_images = _watch(request, images, first)
    _write_parts(request, images, model, processor, first, bad_images)
    if num_bad := len(bad_images.found):
        print(f"{num_bad} bad images have no row; they are listed in {bad_images.path}.")
    shape = _shape(request.features, config)
    print(
        f"{len(images) - num_bad} images, features {shape}: open them with "
        f'datasets.load_dataset("parquet", data_dir="{request.output}").'
    )
    return request.output


def embed(model: VitMaeModel, pixel_values: Tensor, features: Kind) -> Tensor:
    """Features of normalised images: (B, C, H, W) -> float32 (B, D), or (B, N, D) for patches."""
    with evaluating(model):
        tokens = model(pixel_values).last_hidden_state.float()  # (B, 1 + N, D)
    if features == "cls":
        return tokens[:, 0]  # (B, D)
    patches = tokens[:, 1:]  # (B, N, D)
    return patches.mean(dim=1) if features == "mean" else patches


def _refuse_blind_cls(request: EmbedRequest, config: VitMaeConfig) -> None:
    if config.is_causal and request.features == "cls":
        raise ValueError(
            f"{request.model} has causal attention, where the CLS token, being first, sees no "
            "patch; take --features mean or patches."
        )


def _open_images(request: EmbedRequest, source: Source | None) -> ImageSource:
    images = open_source(
        request.source if source is None else source,
        request.split,
        image_column=request.data.image_column,
        label_column=request.data.label_column,
        use_labels=request.data.use_labels,
    )
    if not len(images):
        raise ValueError(f"{images.name} holds no images; choose another split or source.")
    return images


def _open_encoder(name: str, config: VitMaeConfig) -> VitMaeModel:
    """The encoder of any checkpoint of the family, on the device that there is."""
    loaded: Any = load_model(VitMaeModel, name, config)
    model, _, adaptations = loaded
    for line in adaptations:
        print(f"{name}: {line}.")
    return on_device(model)


def _stamp(
    request: EmbedRequest, images: ImageSource, model: VitMaeModel, processor: VitMaeImageProcessor
) -> dict[str, Any]:
    """All that the rows depend on, by name; a model and its processor by a digest too."""
    asked = asdict(request)
    asked |= asked.pop("data")
    free = ("output", "num_workers", "max_bad")
    stamp = {name: value for name, value in asked.items() if name not in free}
    return stamp | {"num_images": len(images), "model_digest": model_digest(model, processor)}


def _open_folder(folder: Path, stamp: dict[str, Any]) -> int:
    """Make the folder, or reopen it for the same request: the number of parts that it holds.

    Raises:
        ValueError: if the folder holds something else, or parts of another request.
    """
    if _is_in_use(folder):
        before = _read_stamp(folder)
        # Without a part there is nothing that another request could be mixed with.
        if _part(folder, 0).exists() and before != stamp:
            _refuse_changes(folder, before, stamp)
    with whole_or_absent(folder / REQUEST) as unfinished:
        unfinished.write_text(json.dumps(stamp, indent=2), encoding="utf-8")
    return next(i for i in count() if not _part(folder, i).exists())


def _is_in_use(folder: Path) -> bool:
    """Whether it is a file or holds anything but a stamp whose writing was interrupted."""
    if not folder.is_dir():
        return folder.exists()
    return any(entry != unfinished_path(folder / REQUEST) for entry in folder.iterdir())


def _read_stamp(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / REQUEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ValueError(
            f"{folder} exists and holds something else than features; choose another --output."
        ) from None


def _refuse_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changes = [
        f"{name} was {before.get(name, 'not set')} and is now {now.get(name, 'not set')}"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    ]
    raise ValueError(
        f"{folder} holds features of another request: {', '.join(changes)}; give the old values to "
        "go on, or choose another --output."
    )


def _watch(request: EmbedRequest, images: ImageSource, first: int) -> BadImages:
    """The list of bad images, as the parts before the first that is to be written left it."""
    splits = {request.split: Split(images.name, len(images))}
    bad_images = BadImages(request.output / BAD_IMAGES, request.data.max_bad, splits)
    bad_images.resume(first - 1, unit="part")
    return bad_images


def _write_parts(
    request: EmbedRequest,
    images: ImageSource,
    model: VitMaeModel,
    processor: VitMaeImageProcessor,
    first: int,
    bad_images: BadImages,
) -> None:
    """Write the parts from `first` on, a batch at a time, and say how far it is."""
    per_part = request.batches_per_part * request.batch_size
    done, total = min(first * per_part, len(images)), len(images)
    if done == total:
        return
    schema = _schema(_shape(request.features, model.config))
    has_bar = sys.stderr.isatty()
    tables = _tables(request, images, model, processor, done, schema, bad_images)
    with (
        closing(tables),
        tqdm(total=total, initial=done, unit="image", disable=not has_bar) as bar,
    ):
        for number in range(first, math.ceil(total / per_part)):
            bad_images.begin(part=number)
            _write_part(
                _part(request.output, number), schema, islice(tables, request.batches_per_part)
            )
            before, done = done, min(done + per_part, total)
            bar.update(done - before)
            if not has_bar:
                print(f"{done} of {total} images", file=sys.stderr, flush=True)


def _tables(
    request: EmbedRequest,
    images: ImageSource,
    model: VitMaeModel,
    processor: VitMaeImageProcessor,
    start: int,
    schema: pa.Schema,
    bad_images: BadImages,
) -> Generator[pa.Table, None, None]:
    """The rows of the good images from `start` on, a table for each batch."""
    batches = eval_batches(
        images.select(np.arange(start, len(images))),
        EvalTransform(processor),
        seed=0,  # evaluation draws nothing
        batch_size=request.batch_size,
        num_workers=request.data.num_workers,
        pin_memory=model.device.type == "cuda",
        skip=partial(bad_images.note, request.split),
    )
    with closing(batches):
        for batch in batches:
            bad_images.share()
            valid = batch["valid"]
            pixel_values = normalized(batch, processor, model.device)  # (B, C, H, W)
            features = embed(model, pixel_values, request.features).cpu()[valid]
            rows = [start + row for row in valid.nonzero().flatten().tolist()]
            columns = {
                "name": pa.array(images.names(rows), pa.string()),
                "label": pa.array([_label(images, row) for row in rows], pa.string()),
                "features": _fixed_size_lists(features.numpy()),
            }
            yield pa.table(columns, schema=schema)
            start += len(valid)


def _label(images: ImageSource, row: int) -> str | None:
    if images.labels is None or images.class_names is None:
        return None
    return images.class_names[images.labels[row]]


def _shape(features: Kind, config: VitMaeConfig) -> tuple[int, ...]:
    """Of one image's features."""
    width = (config.hidden_size,)
    return (config.num_patches, *width) if features == "patches" else width


def _schema(shape: tuple[int, ...]) -> pa.Schema:
    """The columns, with what `datasets` needs to know of them."""
    feature: Any = Value("float32")
    for length in reversed(shape):
        feature = List(feature, length=length)
    columns = {"name": Value("string"), "label": Value("string"), "features": feature}
    return Features(columns).arrow_schema


def _fixed_size_lists(values: np.ndarray) -> pa.Array:
    """An array (n, ...) as n lists, of lists where it has more than two axes."""
    lists: pa.Array = pa.array(values.reshape(-1))
    for length in reversed(values.shape[1:]):
        lists = pa.FixedSizeListArray.from_arrays(lists, length)
    return lists


def _write_part(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write a file, whole or not at all, with a row group for each table."""
    with whole_or_absent(path) as unfinished, unfinished.open("wb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"
