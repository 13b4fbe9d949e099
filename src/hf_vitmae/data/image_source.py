"""A list of encoded images with their labels or label maps, whatever it was read from.

A label map is a picture of its image's size that holds the class of every pixel. Bytes stay encoded
until a worker needs them: reading them costs some 50 microseconds, decoding a millisecond. Labels
are read once, as one array of class ids, so that hold-outs and draws by class need no pass over
images.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Image

from .columns import (
    find_image_column,
    find_label_column,
    find_label_map_column,
    no_label_maps,
    read_labels,
)
from .order import Place, batch_positions, eval_positions, place_of
from .picture_column import PictureColumn
from .request import (
    Missing,
    Record,
    Request,
    Share,
    missing_labels,
    no_eval_labels,
    no_labels,
    other_classes,
)


class Part(NamedTuple):
    """Rows of a joined data set from `first_row` on that came from one source, and its name."""

    first_row: int
    name: str


class Quota(NamedTuple):
    """Consecutive images of a mixture of which each epoch shows `per_epoch`, one after another."""

    num_images: int
    per_epoch: int


@dataclass(frozen=True)
class ImageSource:
    """Encoded images by index, with labels when they have any.

    Args:
        name: what people know it by, such as `emoji/train`.
        dataset: holds the images in `image_column`, of type `Image(decode=False)`.
        rows: int64 (n,), the rows of `dataset` that this source consists of.
        labels: int64 (n,), class ids; None without labels.
        class_names: a name for each class id; None without labels.
        label_map_column: holds the label maps, of type `Image(decode=False)`; None without them.
        map_class_names: a name for each class id of the label maps, where they are known.
        parts: where the rows came from, if `dataset` was joined of several.
        quotas: how often an epoch shows the images of a mixture; without them, each once.
    """

    name: str
    dataset: Dataset
    image_column: str
    rows: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    label_map_column: str | None = None
    map_class_names: tuple[str, ...] | None = None
    parts: tuple[Part, ...] = ()
    quotas: tuple[Quota, ...] = ()

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        name: str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        label_map_column: str | None = None,
        use_labels: bool = True,
        use_label_maps: bool = False,
    ) -> "ImageSource":
        """Find the columns of a data set and read its labels; a transform set on it is left out.

        Args:
            use_label_maps: open the label maps too, which must then be there.

        Raises:
            ValueError: if a named column is missing, no column of images or of label maps can be
                told, or some labels are missing.
        """
        dataset = dataset.with_format(None)
        image_column = find_image_column(dataset.features, image_column, name, label_map_column)
        columns, found = [image_column], None
        if use_label_maps:
            found = find_label_map_column(dataset.features, label_map_column, name, image_column)
            columns.append(found)
        pictures = dataset.select_columns(columns)
        for column in columns:
            pictures = pictures.cast_column(column, Image(decode=False))
        rows = np.arange(len(pictures))
        source = cls(name, pictures, image_column, rows, label_map_column=found)
        if use_labels:
            label_column = find_label_column(dataset.features, label_column, name)
            return source if label_column is None else source._with_labels(dataset, label_column)
        return source

    def _with_labels(self, dataset: Dataset, label_column: str) -> "ImageSource":
        labels, class_names = read_labels(dataset, label_column)
        num_missing = int((labels < 0).sum())
        if num_missing == len(labels):  # how test splits without labels are published
            return self
        if num_missing:
            column = f"column {label_column!r}"
            raise ValueError(missing_labels(self.name, num_missing, len(labels), column))
        return replace(self, labels=labels, class_names=class_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        """One image.

        Raises:
            ValueError: if its row holds none.
            OSError: if its file cannot be read, or is gone (`FileNotFoundError`).
        """
        record = self.record(index)
        for encoded in (record.label_map, record.encoded):
            if isinstance(encoded, Missing):
                raise encoded.error
        return record

    def record(self, index: int) -> Record:
        """One image; where there is none its bytes are `Missing`, and nothing is raised."""
        row = int(self.rows[index])
        name, label_map = self._name_of(row), None
        label = None if self.labels is None else int(self.labels[index])
        if self._label_maps is not None:
            label_map, _ = read_picture(self._label_maps[row], "label map", name)
        encoded, name = read_picture(self._pictures[row], "image", name)
        return Record(encoded, label, name, label_map)

    def names(self, indices: Sequence[int]) -> list[str]:
        """What some images are known by, without reading them."""
        rows = [int(self.rows[index]) for index in indices]
        return [self._pictures.path(row) or self._name_of(row) for row in rows]

    @property
    def epoch_size(self) -> int:
        """Samples of one epoch: the images, each as often as its weight says."""
        return sum(quota.per_epoch for quota in self.quotas) if self.quotas else len(self)

    def train_requests(
        self, seed: int, share: Share, start_step: int
    ) -> Generator[Request, None, None]:
        """The endless requests of one process from a step on."""
        for step in count(start_step):
            places = (place_of(p, seed, self.epoch_size) for p in batch_positions(step, *share))
            yield Request([self._weighted(place) for place in places])

    def eval_requests(self, share: Share) -> Generator[Request, None, None]:
        """The requests of one process in one pass over the images, each once over all processes."""
        for step in range(math.ceil(len(self) / (share.batch_size * share.world_size))):
            indices, valid = eval_positions(
                step, share.batch_size, len(self), share.rank, share.world_size
            )
            yield Request([Place(0, i, i) for i in indices], valid)

    def records(self) -> Iterator[Record]:
        """Every image once, in order."""
        return (self.record(index) for index in range(len(self)))

    def examples(self, most: int) -> list[Record]:
        """Some images, spread evenly over the source."""
        most = min(most, len(self))
        return [self.record(i * len(self) // most) for i in range(most)]

    def select(self, indices: np.ndarray) -> "ImageSource":
        """The source that holds these images, in this order, each once an epoch."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels, quotas=())

    def require_classes(self) -> tuple[str, ...]:
        """The class names, for a task that cannot do without labels.

        Raises:
            ValueError: if the source has no labels.
        """
        if self.class_names is None:
            raise ValueError(no_labels(self.name))
        return self.class_names

    def require_label_maps(self) -> None:
        """For a task that cannot do without the class of every pixel.

        Raises:
            ValueError: if the source has no label maps.
        """
        if self.label_map_column is None:
            raise ValueError(no_label_maps(self.name))

    def with_classes(self, class_names: Sequence[str]) -> "ImageSource":
        """The same samples with the class ids of the training images, matched by name.

        Raises:
            ValueError: if there are no labels here, or a class that is not among `class_names`.
        """
        if self.labels is None or self.class_names is None:
            raise ValueError(no_eval_labels(self.name))
        ids = {name: i for i, name in enumerate(class_names)}
        new_ids = np.array([ids.get(name, -1) for name in self.class_names])
        labels = new_ids[self.labels]
        if (labels < 0).any():
            unknown = [self.class_names[i] for i in np.unique(self.labels[labels < 0])]
            raise ValueError(other_classes(self.name, unknown))
        return replace(self, labels=labels, class_names=tuple(class_names))

    def without_labels(self) -> "ImageSource":
        """The same samples without the labels of whole images; label maps stay."""
        return replace(self, labels=None, class_names=None)

    @cached_property
    def _pictures(self) -> PictureColumn:
        return PictureColumn(self.dataset, self.image_column)

    @cached_property
    def _label_maps(self) -> PictureColumn | None:
        column = self.label_map_column
        return None if column is None else PictureColumn(self.dataset, column)

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: where workers are spawned, columns would be sent with all bytes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _name_of(self, row: int) -> str:
        """What a row is known by: its number in the source that it came from."""
        came_from = [part for part in self.parts if part.first_row <= row]
        first_row, name = came_from[-1] if came_from else (0, self.name)
        return f"{name}[{row - first_row}]"

    def _weighted(self, place: Place) -> Place:
        """The place with the image that its epoch shows there."""
        index, first = place.index, 0
        for num_images, per_epoch in self.quotas:
            if index < per_epoch:
                turn = place.epoch * per_epoch + index
                return place._replace(index=first + turn % num_images)
            index, first = index - per_epoch, first + num_images
        return place


def read_picture(picture: dict | None, kind: str, name: str) -> tuple[bytes, str]:
    """The bytes of an image or a label map, and what to call it: its file, if it lies in one.

    Where there is none, the bytes are `Missing`.
    """
    if picture is None or (picture["bytes"] is None and picture["path"] is None):
        reason = f"holds no {kind}; leave the row out."
        return Missing(ValueError(f"{name} {reason}"), reason), name
    if picture["bytes"] is not None:
        return picture["bytes"], name
    path = picture["path"]
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall(), path
    except FileNotFoundError:
        return _missing_file(path, kind), path
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}."
        return Missing(error, reason if kind == "image" else f"has a {kind} that {reason}"), path


def _missing_file(path: str, kind: str) -> Missing:
    mend = "put it back, or open the source anew."
    error = FileNotFoundError(f"The {kind} {path!r} is not there; {mend}")
    if kind == "image":
        return Missing(error, f"is not there; {mend}")
    return Missing(error, f"has a {kind} that is not there ({path}); {mend}")
