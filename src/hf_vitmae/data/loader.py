"""Batches of images from a source, by torch's DataLoader with workers that keep no state.

The main process decides which samples make a batch and at which place of the stream; a worker turns
them into tensors, with randomness drawn from the place alone. So a batch is the same for any number
of workers and from whichever step the stream is opened.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augment import Transform
from .decode import BadImage, decode, decode_label_map
from .image_source import ImageSource
from .order import Place, Stream, random_stream
from .read_ahead import ReadAhead
from .request import Images, Record, Request, Share

Batch = dict[str, Tensor]
BATCHES_AHEAD = 2  # of a stream, read beside those that the workers have


def train_batches(
    source: Images,
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
    share = Share(batch_size, rank, world_size)
    requests = source.train_requests(seed, share, start_step)
    reader = _Reader(_by_index(source), transform, Stream.TRAIN, seed, num_noise)
    return _load(reader, requests, num_workers, pin_memory)


def eval_batches(
    source: Images,
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
    is valid: the next images of the source (of a stream, those of each rank's own part of it).
    """
    _check(source, seed, batch_size, num_workers)
    requests = source.eval_requests(Share(batch_size, rank, world_size))
    reader = _Reader(_by_index(source), transform, Stream.EVAL, seed, num_noise)
    return _load(reader, requests, num_workers, pin_memory)


class _Sample(NamedTuple):
    """What belongs to one place: uint8 (C, H, W), int64 (H, W) or int or None, float32 (N,)."""

    pixel_values: Tensor
    label: Tensor | int | None
    noise: np.ndarray


@dataclass(frozen=True)
class _Reader(Dataset[Batch | Exception | None]):
    """Turns a request into a batch; stateless, so that any worker may serve any request."""

    source: ImageSource | None  # the samples of a stream come with the request
    transform: Transform
    stream: Stream
    seed: int
    num_noise: int | None

    def __getitem__(self, request: Request | None) -> Batch | Exception | None:
        try:
            return None if request is None else self.read(request)
        except (
            ValueError,
            OSError,
        ) as error:  # raised here, DataLoader would bury it in a traceback
            return error

    def read(self, request: Request) -> Batch:
        records = request.records or self.look_up(request.places)
        samples = [self.read_one(*pair) for pair in zip(request.places, records, strict=True)]
        batch = {"pixel_values": torch.stack([s.pixel_values for s in samples])}  # (B, C, H, W)
        labels = [torch.as_tensor(s.label) for s in samples if s.label is not None]
        if labels:
            batch["labels"] = torch.stack(labels)  # (B,) or (B, H, W)
        if self.num_noise is not None:
            batch["noise"] = torch.from_numpy(np.stack([s.noise for s in samples]))  # (B, N)
        if request.valid is not None:
            batch["valid"] = torch.tensor(request.valid)
        return batch

    def look_up(self, places: list[Place]) -> Iterator[Record]:
        """The images of some places, each read when it is asked for."""
        assert self.source is not None
        return (self.source[place.index] for place in places)

    def read_one(self, place: Place, record: Record) -> _Sample:
        """One image with what belongs to it."""
        generator = random_stream(self.stream, self.seed, place.epoch, place.slot)
        noise = generator.random(self.num_noise or 0, dtype=np.float32)
        if record.label_map is None:
            image = self.transform.read(record.encoded, generator, record.name)
            return _Sample(image, record.label, noise)
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
    reader: _Reader,
    requests: Generator[Request, None, None],
    num_workers: int,
    pin_memory: bool,
) -> Generator[Batch, None, None]:
    ahead = ReadAhead(requests, BATCHES_AHEAD) if reader.source is None else None
    loader = DataLoader(
        reader,
        batch_size=None,  # a request is a whole batch
        sampler=requests if ahead is None else ahead,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else opening a loader would draw from the global one
    )
    batches = iter(loader)  # forks the workers, before the thread of `ahead` is there
    try:
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            if batch is None:
                assert ahead is not None and ahead.error is not None
                raise ahead.error
            yield batch
    finally:
        del batches  # ends the workers now rather than at the next garbage collection
        if ahead is not None:
            ahead.close()


def _by_index(source: Images) -> ImageSource | None:
    return source if isinstance(source, ImageSource) else None


def _check(source: Images, seed: int, batch_size: int, num_workers: int) -> None:
    if len(source) == 0:
        raise ValueError(f"{source.name} holds no images; choose another split or source.")
    if seed < 0:
        raise ValueError(f"The seed must be at least 0, not {seed}.")
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    if num_workers < 0:
        raise ValueError(f"The number of workers must be at least 0, not {num_workers}.")
