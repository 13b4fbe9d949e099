"""What passes between a source and the loader: which samples make a batch, and who takes which."""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from .order import Place

Self = TypeVar("Self", bound="Images")


class Missing(bytes):
    """Stands where the bytes of an image or of its label map cannot be had: empty, and why.

    So a row without an image takes its turn like any other, and whoever decodes it finds it bad.

    Args:
        error: what to raise where nothing may be missing.
        reason: the same of the image, from the verb on.
    """

    error: Exception
    reason: str

    def __new__(cls, error: Exception, reason: str) -> "Missing":
        missing = super().__new__(cls)
        missing.error, missing.reason = error, reason
        return missing

    def __reduce__(self) -> tuple[type, tuple[Exception, str]]:  # workers are sent it
        return type(self), (self.error, self.reason)


class Record(NamedTuple):
    """One encoded image, its class id and encoded label map (None in a source without them)."""

    encoded: bytes
    label: int | None
    name: str  # to show to people
    label_map: bytes | None = None


class Request(NamedTuple):
    """The places of one batch and, in evaluation, which of them count.

    The samples of a stream come with it; otherwise whoever serves it reads them by their index.
    """

    places: list[Place]
    valid: list[bool] | None = None
    records: list[Record] | None = None


class Share(NamedTuple):
    """The part of every step that one of several processes takes: `batch_size` samples."""

    batch_size: int
    rank: int = 0
    world_size: int = 1


class Images(Protocol):
    """What every source of images offers, whether it is read by index or as a stream."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def epoch_size(self) -> int:
        """Samples of one epoch: the images, each as often as its weight says."""
        ...

    def __len__(self) -> int:
        """Images, each counted once."""
        ...

    def train_requests(
        self, seed: int, share: Share, start_step: int
    ) -> Generator[Request, None, None]:
        """The endless requests of one process from a step on."""
        ...

    def eval_requests(self, share: Share) -> Generator[Request, None, None]:
        """The requests of one process in one pass over the images, each once over all processes."""
        ...

    def records(self) -> Iterator[Record]:
        """Every image once, in order."""
        ...

    def select(self: Self, indices: np.ndarray) -> Self:
        """The source that holds these images, each once an epoch."""
        ...

    def examples(self, most: int) -> Sequence[Record]:
        """Some images, spread over the source as far as that is cheap."""
        ...

    def require_classes(self) -> tuple[str, ...]:
        """The class names; `ValueError` if there are none."""
        ...

    def require_label_maps(self) -> None:
        """Raise `ValueError` if there are no label maps."""
        ...

    def with_classes(self: Self, class_names: Sequence[str]) -> Self:
        """The same samples with these class ids, matched by name."""
        ...

    def without_labels(self: Self) -> Self:
        """The same samples without the labels of whole images."""
        ...


def no_labels(name: str) -> str:
    """What an error says about a source that lacks labels."""
    return (
        f"{name} has no labels; put the images into one folder per class, or name the column of "
        "labels (label_column)."
    )


def no_eval_labels(name: str) -> str:
    """What an error says about images to evaluate on that lack the training images' labels."""
    return (
        f"{name} has no labels and the training images have; evaluate on another split "
        "(eval_split) or on a share of the training images (eval_share)."
    )


def other_classes(name: str, unknown: Sequence[str]) -> str:
    """What an error says about images to evaluate on that have classes of their own."""
    return (
        f"{name} has {len(unknown)} classes that the training images lack "
        f"({', '.join(unknown[:5])}); leave them out, or evaluate on another split."
    )


def missing_labels(name: str, num_missing: int, num_images: int, column: str) -> str:
    """What an error says about a source with labels of some images only."""
    return (
        f"{name} has no label for {num_missing} of its {num_images} images ({column}); leave these "
        "out, or name another label column."
    )
