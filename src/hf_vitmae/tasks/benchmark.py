"""How fast images come, the data pipeline stage by stage, and how fast models are.

The stages up to a batch run in this process on one core, as each worker does them, all of them on
one image after another, so that what else the computer does slows them alike.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor

from hf_vitmae.benchmarks.models import DTYPES, ModelBenchmark
from hf_vitmae.benchmarks.models import run as run_models
from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.decoding.decode import decode
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.request import Images, Record
from hf_vitmae.data.sources import open_images
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor

READ, DECODE, TRANSFORM = "read bytes", "decode", "crop, resize, flip"
DECODE_CROP, BATCH = "decode to flip in one, as training", "make a batch"
Result = TypeVar("Result")
Rates = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """Measure images per second, of data by stage or of models: medians and ranges over rounds."""

    what: Annotated[Literal["data", "models"], tyro.conf.Positional]
    """`data`: from stored bytes to normalised batches. `models`: training steps and inference
    against transformers' models of the same weights."""
    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = None
    """What `--data.source` of a training run takes; for `data`."""
    split: str = "train"
    """Split to read."""
    image_column: str | None = None
    """Column that holds the images; found by type and name when left out."""
    streaming: bool = False
    """Read from front to back, as `--data.streaming` does."""
    image_size: int | None = None
    """Pixels, height and width, of crops and of what models see; 224 when left out."""
    num_images: int = 256
    """Images of one round, one after another as they are stored."""
    batch_size: int | None = None
    """Images of one batch; 64 for `data`, by size for `models`."""
    num_workers: int = 2
    """Worker processes of the whole loader."""
    rounds: int = 7
    """Times that each stage or step is measured."""
    tasks: tuple[str, ...] = tuple(ModelBenchmark.tasks)
    """Of models: mae, finetune, inference, features."""
    sizes: tuple[str, ...] = ("ti", "b")
    """Of models: ti, s, b, l."""
    dtypes: tuple[str, ...] = DTYPES
    """Of models: fp32, bf16."""
    peers: tuple[str, ...] = ("recomputed",)
    """Besides transformers as it is: compiled (theirs and ours), recomputed (ours), timm."""
    device: str = "cpu"
    """Of models: cpu or cuda."""
    threads: int | None = None
    """Threads of torch, for `models`; its own choice when left out."""
    profile: bool = False
    """Write a profile of one step of each of our models into `output`."""
    output: Path | None = None
    """Folder for benchmark.json and the table; for `models`."""

    def __post_init__(self) -> None:
        for name in ("image_size", "num_images", "batch_size", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if (self.what == "data") != (self.source is not None):
            wanted = "needs a source" if self.source is None else "takes no source"
            raise ValueError(f"`benchmark {self.what}` {wanted}, got {self.source!r}.")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0, got {self.num_workers}.")

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of the crops."""
        return (self.image_size or 224, self.image_size or 224)

    @property
    def data_batch_size(self) -> int:
        """Images of one batch of the loader."""
        return self.batch_size or 64


def run(request: BenchmarkRequest) -> Rates:
    """Print the table; returns the images per second of each round by stage, or by model.

    Raises:
        ValueError, FileNotFoundError: for a source without images, an image that cannot be read, or
        a size, task or precision that there is none of.
    """
    return _run_models(request) if request.what == "models" else _run_data(request)


def _run_models(request: BenchmarkRequest) -> Rates:
    names = (field.name for field in fields(ModelBenchmark))
    report = run_models(ModelBenchmark(**{name: getattr(request, name) for name in names}))
    return {
        f"{case.task} {case.size} {case.dtype} {case.batch_size} {name}": [
            case.batch_size / seconds for seconds in side.seconds["step"]
        ]
        for case in report.cases
        for name, side in case.sides.items()
    }


def _run_data(request: BenchmarkRequest) -> Rates:
    assert request.source is not None
    source = open_images(
        request.source,
        request.split,
        image_column=request.image_column,
        use_labels=False,
        streaming=request.streaming,
    )
    if len(source) == 0:
        raise ValueError(f"{source.name} holds no images; choose another split or source.")
    transform = TrainTransform(request.crop_size)
    rates = _measure_stages(request, source, transform)
    rates |= _measure_normalize(request)
    rates |= _measure_loader(request, source, transform)
    print(_table(request, rates))
    return rates


def _measure_stages(request: BenchmarkRequest, source: Images, transform: TrainTransform) -> Rates:
    """From bytes to a batch; a stage's rate in a round is that over all of its images."""
    rates: Rates = {name: [] for name in (READ, DECODE, TRANSFORM, DECODE_CROP, BATCH)}
    records = _endless(source)
    with _one_thread():
        _time_images(records, transform, num_images=8)  # warm-up
        for _ in range(request.rounds):
            seconds = _time_images(records, transform, request.num_images)
            for name in rates:
                rates[name].append(request.num_images / seconds[name])
    return rates


def _endless(source: Images) -> Iterator[Record]:
    while True:
        yield from source.records()


def _time_images(
    records: Iterator[Record], transform: TrainTransform, num_images: int
) -> dict[str, float]:
    """Seconds of each stage, summed over images."""
    clock, crops = _Clock(), []
    for seed in range(num_images):
        encoded, _, name, _ = clock.time(READ, records.__next__)
        image = clock.time(DECODE, decode, encoded, transform.num_channels, name)
        clock.time(TRANSFORM, transform, image, np.random.default_rng(seed))
        crop = clock.time(DECODE_CROP, transform.read, encoded, np.random.default_rng(seed), name)
        crops.append(crop)
    clock.time(BATCH, torch.stack, crops)  # (B, C, H, W)
    return clock.seconds


class _Clock:
    """Seconds by the name of what took them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do the work and add the time that it takes."""
        start = time.perf_counter()
        result = work(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def _measure_normalize(request: BenchmarkRequest) -> Rates:
    """A batch of bytes moved to the device and normalised there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = accelerator or torch.device("cpu")
    processor = VitMaeImageProcessor(size=request.crop_size[0], patch_size=1)
    batch = torch.zeros(request.data_batch_size, 3, *request.crop_size, dtype=torch.uint8)

    def normalize() -> Tensor:
        values = processor.normalize(batch.to(device))
        if accelerator is not None:
            torch.accelerator.synchronize(accelerator)
        return values

    normalize()  # warm-up
    rates = []
    for _ in range(request.rounds):
        start = time.perf_counter()
        normalize()
        rates.append(len(batch) / (time.perf_counter() - start))
    return {f"normalise on {device.type}": rates}


def _measure_loader(request: BenchmarkRequest, source: Images, transform: TrainTransform) -> Rates:
    """The whole loader, once every worker has begun."""
    per_round = -(-request.num_images // request.data_batch_size)
    rates = []
    batches = train_batches(
        source,
        transform,
        seed=0,
        batch_size=request.data_batch_size,
        num_workers=request.num_workers,
    )
    with closing(batches):
        for _ in islice(batches, max(1, request.num_workers)):
            pass
        for _ in range(request.rounds):
            start = time.perf_counter()
            for _ in islice(batches, per_round):
                pass
            seconds = time.perf_counter() - start
            rates.append(per_round * request.data_batch_size / seconds)
    return {f"whole loader, {request.num_workers} workers": rates}


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch, which is what a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _table(request: BenchmarkRequest, rates: Rates) -> str:
    width = max(map(len, rates))
    lines = [
        f"{request.source}, split {request.split}: images per second, median of {request.rounds} "
        f"rounds of {request.num_images} images (range)"
    ]
    for name, values in rates.items():
        low, median, high = min(values), statistics.median(values), max(values)
        lines.append(f"  {name:{width}}  {median:9,.0f}  ({low:,.0f}..{high:,.0f})")
    return "\n".join(lines)
