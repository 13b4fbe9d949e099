"""From a request to a batch: decode its images, transform them, and leave out those that are bad.

A reader keeps no state, so that any worker may serve any request, and serve it again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_vitmae.data.augmentation.transforms import Transform
from hf_vitmae.data.decoding.decode import BadImage, decode, decode_label_map

from .image_source import ImageSource
from .order import Place, Stream, random_stream
from .repeated import read_repeated, repeat_places
from .request import Missing, Record, Request

Batch = dict[str, Tensor]
BLACK_SIDE = 32  # pixels of what stands in for a bad image, before it is transformed


class Skipped(NamedTuple):
    """An image that cannot be used, and the epoch of the order in which it was met."""

    name: str
    reason: str
    epoch: int


class Served(NamedTuple):
    """A batch and the images that it lacks, or what went wrong."""

    batch: Batch
    skipped: list[Skipped]
    error: Exception | None = None


class Sample(NamedTuple):
    """What belongs to one place: uint8 (C, H, W), int64 (H, W) or int or None, float32 (N,)."""

    pixel_values: Tensor
    label: Tensor | int | None
    noise: np.ndarray


@dataclass(frozen=True)
class Reader(Dataset[Served]):
    """Turns a request into a batch.

    Args:
        source: where the images of a request are looked up; those of a stream come with it.
        num_noise: random numbers in 0..1 that each sample brings; None leaves them out.
        repeats: samples of each image, each with its own randomness.
    """

    source: ImageSource | None
    transform: Transform
    stream: Stream
    seed: int
    num_noise: int | None = None
    repeats: int = 1

    def __getitem__(self, request: Request | None) -> Served:
        try:
            return self.read(request) if request is not None else Served({}, [])
        except (ValueError, OSError) as error:  # DataLoader would bury it in a traceback
            return Served({}, [], error)

    def read(self, request: Request) -> Served:
        """In training a bad image is left out of the batch; what nothing is left of is one black
        image and not `valid`. In evaluation a black image takes its place and is not `valid`.
        """
        records = request.records or self._look_up(request.places)
        samples, skipped, good = [], [], []
        for place, record in zip(request.places, records, strict=True):
            try:
                samples += self._read_one(place, record)
                good.append(True)
            except BadImage as error:
                skipped.append(Skipped(error.name, error.reason, place.epoch))
                good.append(False)
                if request.valid is not None:
                    samples.append(self._black(place, record))
        if not samples:
            return Served(self._nothing(request.places[0], record), skipped)
        batch = self._stack(samples)
        if request.valid is not None:
            batch["valid"] = torch.tensor(request.valid) & torch.tensor(good)  # (B,)
        return Served(batch, skipped)

    def names(self, request: Request | None) -> list[str]:
        """What the images of a request are known by."""
        if request is None:
            return []
        if request.records is not None:
            return [record.name for record in request.records]
        assert self.source is not None
        return self.source.names([place.index for place in request.places])

    def _look_up(self, places: Sequence[Place]) -> Iterator[Record]:
        """The images of some places, each read when it is asked for."""
        assert self.source is not None
        return (self.source.record(place.index) for place in places)

    def _read_one(self, place: Place, record: Record) -> list[Sample]:
        """The samples of one image."""
        _refuse_missing(record)
        draws = [self._draw(place) for place in repeat_places([place], self.repeats)]
        generators = [generator for generator, _ in draws]
        if record.label_map is None:
            images = read_repeated(self.transform, record.encoded, generators, record.name)
            pairs = [(image, record.label) for image in images]
        else:
            channels, value_range = self.transform.num_channels, self.transform.value_range
            image = decode(record.encoded, channels, record.name, value_range)
            label_map = _decode_label_map(record, image)
            pairs = [self.transform.with_label_map(image, label_map, g) for g in generators]
        return [Sample(*pair, noise) for pair, (_, noise) in zip(pairs, draws, strict=True)]

    def _draw(self, place: Place) -> tuple[np.random.Generator, np.ndarray]:
        """The generator of a place and the first that it gives, the noise: float32 (N,)."""
        generator = random_stream(self.stream, self.seed, place.epoch, place.slot)
        return generator, generator.random(self.num_noise or 0, dtype=np.float32)

    def _black(self, place: Place, record: Record) -> Sample:
        """What stands where an image is bad."""
        generator, noise = self._draw(place)
        dtype = torch.uint8 if self.transform.value_range is None else torch.float32
        image = torch.zeros(self.transform.num_channels, BLACK_SIDE, BLACK_SIDE, dtype=dtype)
        if record.label_map is None:
            return Sample(self.transform(image, generator), record.label, noise)
        return Sample(*self.transform.with_label_map(image, image[0].long(), generator), noise)

    def _nothing(self, place: Place, record: Record) -> Batch:
        """A batch of which nothing is left: other processes wait for a step all the same."""
        return self._stack([self._black(place, record)]) | {"valid": torch.tensor([False])}

    def _stack(self, samples: Sequence[Sample]) -> Batch:
        batch = {"pixel_values": torch.stack([s.pixel_values for s in samples])}  # (B, C, H, W)
        labels = [torch.as_tensor(s.label) for s in samples if s.label is not None]
        if labels:
            batch["labels"] = torch.stack(labels)  # (B,) or (B, H, W)
        if self.num_noise is not None:
            batch["noise"] = torch.from_numpy(np.stack([s.noise for s in samples]))  # (B, N)
        return batch


def _refuse_missing(record: Record) -> None:
    for encoded in (record.encoded, record.label_map):
        if isinstance(encoded, Missing):
            raise BadImage(record.name, encoded.reason)


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
