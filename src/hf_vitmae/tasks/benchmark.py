"""How fast images come: the data pipeline stage by stage, in images per second.

The stages up to a batch run in this process on one core, as each worker does them, all of them on
one image after another, so that what else the computer does slows them alike.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor

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
    """Measure images per second by stage: medians over rounds, with their ranges."""

    what: Annotated[Literal["data"], tyro.conf.Positional]
    """`data`: from stored bytes to normalised batches."""
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """What `--data.source` of a training run takes."""
    split: str = "train"
    """Split to read."""
    image_column: str | None = None
    """Column that holds the images; found by type and name when left out."""
    streaming: bool = False
    """Read from front to back, as `--data.streaming` does."""
    image_size: int = 224
    """Pixels, height and width, that the crops are resized to."""
    num_images: int = 256
    """Images of one round, one after another as they are stored."""
    batch_size: int = 64
    """Images of one batch."""
    num_workers: int = 2
    """Worker processes of the whole loader."""
    rounds: int = 5
    """Times that each stage is measured."""

    def __post_init__(self) -> None:
        for name in ("image_size", "num_images", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0, got {self.num_workers}.")


def run(request: BenchmarkRequest) -> Rates:
    """Print the table; returns the images per second of each round by stage.

    Raises:
        ValueError, FileNotFoundError: for a source without images, or an image that cannot be read.
    """
    source = open_images(
        request.source,
        request.split,
        image_column=request.image_column,
        use_labels=False,
        streaming=request.streaming,
    )
    if len(source) == 0:
        raise ValueError(f"{source.name} holds no images; choose another split or source.")
    transform = TrainTransform((request.image_size, request.image_size))
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
    size = request.image_size
    processor = VitMaeImageProcessor(size=size, patch_size=1)
    batch = torch.zeros(request.batch_size, 3, size, size, dtype=torch.uint8)

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
    per_round = -(-request.num_images // request.batch_size)
    rates = []
    batches = train_batches(
        source,
        transform,
        seed=0,
        batch_size=request.batch_size,
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
            rates.append(per_round * request.batch_size / seconds)
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
