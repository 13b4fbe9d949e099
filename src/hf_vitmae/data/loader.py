"""Batches of images from a source, by torch's DataLoader with workers that keep no state.

The main process decides which samples make a batch and at which place of the stream; a worker turns
them into tensors, with randomness drawn from the place alone. So a batch is the same for any number
of workers and from whichever step the stream is opened.
"""

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augment import Transform
from .decode import BadImage, decode, decode_label_map
from .image_source import ImageSource, Record
from .order import (
    Place,
    Stream,
    batch_positions,
    eval_positions,
    place_of,
    random_stream,
)

Batch = dict[str, Tensor]


def train_batches(
    source: ImageSource,
    transform: Transform,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    num_noise: int | None = None,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The endless batches of one rank from `start_step` on.

    A batch holds `pixel_values` uint8 (B, C, H, W), `labels` int64 (B,) if the source has labels or
    (B, H, W) if it has label maps, and `noise` float32 (B, num_noise) in 0..1 if asked for. Closing
    the iterator ends its workers.

    Args:
        batch_size: samples per rank and step.
        start_step: steps of `batch_size * world_size` samples that lie before.

    Raises:
        ValueError: if the source is empty, a number is out of range, an image cannot be decoded, or
            its label map is of another size.
        FileNotFoundError: if the file of an image is gone.
    """
    _check(source, seed, batch_size, num_workers)
    requests = (
        _Request([place_of(position, seed, len(source)) for position in positions])
        for positions in (
            batch_positions(s, batch_size, rank, world_size) for s in count(start_step)
        )
    )
    reader = _Reader(source, transform, Stream.TRAIN, seed, num_noise)
    return _load(reader, requests, num_workers, pin_memory)


def eval_batches(
    source: ImageSource,
    transform: Transform,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    num_noise: int | None = None,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of one rank in one pass over a source, every image once over all ranks, in order.

    As `train_batches`, with `noise` fixed for each image by (seed, index), and besides `valid`,
    bool (B,): all ranks take the same number of batches of the same size, and where the images do
    not suffice, the last one is repeated and not valid. Gather a step over the ranks and keep what
    is valid: the next images of the source.
    """
    _check(source, seed, batch_size, num_workers)
    num_batches = math.ceil(len(source) / (batch_size * world_size))
    requests = (
        _Request([Place(0, i, i) for i in indices], valid)
        for indices, valid in (
            eval_positions(step, batch_size, len(source), rank, world_size)
            for step in range(num_batches)
        )
    )
    reader = _Reader(source, transform, Stream.EVAL, seed, num_noise)
    return _load(reader, requests, num_workers, pin_memory)


class _Request(NamedTuple):
    """What a worker is asked for: the places of a batch and, in evaluation, which of them count."""

    places: list[Place]
    valid: list[bool] | None = None


class _Sample(NamedTuple):
    """What belongs to one place: uint8 (C, H, W), int64 (H, W) or None, float32 (N,)."""

    pixel_values: Tensor
    label_map: Tensor | None
    noise: np.ndarray


@dataclass(frozen=True)
class _Reader(Dataset[Batch | Exception]):
    """Turns a request into a batch; stateless, so that any worker may serve any request."""

    source: ImageSource
    transform: Transform
    stream: Stream
    seed: int
    num_noise: int | None

    def __getitem__(self, request: _Request) -> Batch | Exception:
        try:
            return self.read(request)
        except (
            ValueError,
            OSError,
        ) as error:  # raised here, DataLoader would bury it in a traceback
            return error

    def read(self, request: _Request) -> Batch:
        samples = [self.read_one(place) for place in request.places]
        batch = {"pixel_values": torch.stack([s.pixel_values for s in samples])}  # (B, C, H, W)
        maps = [s.label_map for s in samples if s.label_map is not None]
        if maps:
            batch["labels"] = torch.stack(maps)  # (B, H, W)
        elif self.source.labels is not None:
            indices = [place.index for place in request.places]
            batch["labels"] = torch.from_numpy(self.source.labels[indices])
        if self.num_noise is not None:
            batch["noise"] = torch.from_numpy(np.stack([s.noise for s in samples]))  # (B, N)
        if request.valid is not None:
            batch["valid"] = torch.tensor(request.valid)
        return batch

    def read_one(self, place: Place) -> _Sample:
        """One image with what belongs to it."""
        generator = random_stream(self.stream, self.seed, place.epoch, place.slot)
        noise = generator.random(self.num_noise or 0, dtype=np.float32)
        record = self.source[place.index]
        if record.label_map is None:
            image = self.transform.read(record.encoded, generator, record.name)
            return _Sample(image, None, noise)
        image = decode(record.encoded, self.transform.num_channels, record.name)
        label_map = _decode_label_map(record, image)
        return _Sample(*self.transform.with_label_map(image, label_map, generator), noise)


def _decode_label_map(record: Record, image: Tensor) -> Tensor:
    """The label map of an image (C, H, W), which must have its size: -> int64 (H, W)."""
    assert record.label_map is not None
    label_map = decode_label_map(record.label_map, f"The label map of {record.name}")
    if label_map.shape != image.shape[1:]:
        (height, width), (map_height, map_width) = image.shape[1:], label_map.shape
        raise BadImage(
            record.name,
            f"has {height}x{width} pixels (height x width) and its label map "
            f"{map_height}x{map_width}; save the map in the size of its image, upright like it.",
        )
    return label_map


def _load(
    reader: _Reader, requests: Iterable[_Request], num_workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    loader = DataLoader(
        reader,
        batch_size=None,  # a request is a whole batch
        sampler=requests,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else opening a loader would draw from the global one
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers now rather than at the next garbage collection


def _check(source: ImageSource, seed: int, batch_size: int, num_workers: int) -> None:
    if len(source) == 0:
        raise ValueError(f"{source.name} holds no images; choose another split or source.")
    if seed < 0:
        raise ValueError(f"The seed must be at least 0, not {seed}.")
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    if num_workers < 0:
        raise ValueError(f"The number of workers must be at least 0, not {num_workers}.")
