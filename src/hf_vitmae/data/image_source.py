"""A list of encoded images with their labels or label maps, whatever it was read from.

A label map is a picture of its image's size that holds the class of every pixel. Bytes stay encoded
until a worker needs them: reading them costs some 50 microseconds, decoding a millisecond. Labels
are read once, as one array of class ids, so that hold-outs and draws by class need no pass over
images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, Image

from .columns import (
    find_image_column,
    find_label_column,
    find_label_map_column,
    no_label_maps,
    read_labels,
)


class Record(NamedTuple):
    """One encoded image, its class id and encoded label map (None in a source without them)."""

    encoded: bytes
    label: int | None
    name: str  # to show to people
    label_map: bytes | None = None


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
    """

    name: str
    dataset: Dataset
    image_column: str
    rows: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    label_map_column: str | None = None
    map_class_names: tuple[str, ...] | None = None

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
        image_column = find_image_column(dataset, image_column, name, label_map_column)
        columns, found = [image_column], None
        if use_label_maps:
            found = find_label_map_column(dataset, label_map_column, name, image_column)
            columns.append(found)
        pictures = dataset.select_columns(columns)
        for column in columns:
            pictures = pictures.cast_column(column, Image(decode=False))
        rows = np.arange(len(pictures))
        source = cls(name, pictures, image_column, rows, label_map_column=found)
        label_column = find_label_column(dataset, label_column, name) if use_labels else None
        return source if label_column is None else source._with_labels(dataset, label_column)

    def _with_labels(self, dataset: Dataset, label_column: str) -> "ImageSource":
        labels, class_names = read_labels(dataset, label_column)
        num_missing = int((labels < 0).sum())
        if num_missing == len(labels):  # how test splits without labels are published
            return self
        if num_missing:
            raise ValueError(
                f"{self.name} has no label for {num_missing} of its {len(labels)} images (column "
                f"{label_column!r}); leave these out, or name another label column."
            )
        return replace(self, labels=labels, class_names=class_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = int(self.rows[index])
        pictures, name, label_map = self.dataset[row], f"{self.name}[{row}]", None
        label = None if self.labels is None else int(self.labels[index])
        if self.label_map_column is not None:
            label_map, _ = _read(pictures[self.label_map_column], "label map", name)
        encoded, name = _read(pictures[self.image_column], "image", name)
        return Record(encoded, label, name, label_map)

    def select(self, indices: np.ndarray) -> "ImageSource":
        """The source that holds these samples, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels)

    def require_classes(self) -> tuple[str, ...]:
        """The class names, for a task that cannot do without labels.

        Raises:
            ValueError: if the source has no labels.
        """
        if self.class_names is None:
            raise ValueError(
                f"{self.name} has no labels; put the images into one folder per class, or name the "
                "column of labels (label_column)."
            )
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
            raise ValueError(
                f"{self.name} has no labels and the training images have; evaluate on another "
                "split (eval_split) or on a share of the training images (eval_share)."
            )
        ids = {name: i for i, name in enumerate(class_names)}
        new_ids = np.array([ids.get(name, -1) for name in self.class_names])
        labels = new_ids[self.labels]
        if (labels < 0).any():
            unknown = [self.class_names[i] for i in np.unique(self.labels[labels < 0])]
            raise ValueError(
                f"{self.name} has {len(unknown)} classes that the training images lack "
                f"({', '.join(unknown[:5])}); leave them out, or evaluate on another split."
            )
        return replace(self, labels=labels, class_names=tuple(class_names))

    def without_labels(self) -> "ImageSource":
        """The same samples without the labels of whole images; label maps stay."""
        return replace(self, labels=None, class_names=None)


def _read(picture: dict | None, kind: str, name: str) -> tuple[bytes, str]:
    """The bytes of an image or a label map, and what to call it: its file, if it lies in one."""
    if picture is None:
        raise ValueError(f"{name} holds no {kind}; leave the row out.")
    if picture["bytes"] is not None:
        return picture["bytes"], name
    try:
        return Path(picture["path"]).read_bytes(), picture["path"]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The {kind} {picture['path']!r} is not there; put it back, or open the source anew."
        ) from None
