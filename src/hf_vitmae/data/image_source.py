"""A list of encoded images with their labels, whatever it was read from.

Bytes stay encoded until a worker needs them: reading them costs some 50 microseconds, decoding a
millisecond. Labels are read once, as one array of class ids, so that hold-outs and draws by class
need no pass over images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Image, Value

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "category", "target")


class Record(NamedTuple):
    """One encoded image, its class id (None in a source without labels), and a name to show."""

    encoded: bytes
    label: int | None
    name: str


@dataclass(frozen=True)
class ImageSource:
    """Encoded images by index, with labels when they have any.

    Args:
        name: what people know it by, such as `emoji/train`.
        dataset: holds the images in `image_column`, of type `Image(decode=False)`.
        rows: int64 (n,), the rows of `dataset` that this source consists of.
        labels: int64 (n,), class ids; None without labels.
        class_names: a name for each class id; None without labels.
    """

    name: str
    dataset: Dataset
    image_column: str
    rows: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        name: str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        use_labels: bool = True,
    ) -> "ImageSource":
        """Find the columns of a data set and read its labels; a transform set on it is left out.

        Raises:
            ValueError: if a named column is missing, no image column can be told, or some labels
                are missing.
        """
        dataset = dataset.with_format(None)
        image_column = _image_column(dataset, image_column, name)
        images = dataset.select_columns([image_column]).cast_column(
            image_column, Image(decode=False)
        )
        source = cls(name, images, image_column, np.arange(len(images)))
        label_column = _label_column(dataset, label_column, name) if use_labels else None
        if label_column is None:
            return source
        labels, class_names = _read_labels(dataset, label_column)
        num_missing = int((labels < 0).sum())
        if num_missing == len(labels):  # how test splits without labels are published
            return source
        if num_missing:
            raise ValueError(
                f"{name} has no label for {num_missing} of its {len(labels)} images (column "
                f"{label_column!r}); leave these out, or name another label column."
            )
        return replace(source, labels=labels, class_names=class_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = int(self.rows[index])
        image = self.dataset[row][self.image_column]
        label = None if self.labels is None else int(self.labels[index])
        if image is None:
            raise ValueError(f"{self.name}[{row}] holds no image; leave the row out.")
        if image["bytes"] is not None:
            return Record(image["bytes"], label, f"{self.name}[{row}]")
        return Record(_read_file(image["path"]), label, image["path"])

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
        """The same samples without their labels."""
        return replace(self, labels=None, class_names=None)


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The image {path!r} is not there; put it back, or open the source anew."
        ) from None


def _image_column(dataset: Dataset, asked: str | None, name: str) -> str:
    """The column asked for, else the one of type Image, else one with a usual name."""
    if asked is not None:
        return _check_asked(dataset, asked, name, _can_hold_images)
    typed = [c for c, feature in dataset.features.items() if isinstance(feature, Image)]
    found = _usual_column(dataset, typed, IMAGE_NAMES, _can_hold_images)
    if found is None:
        raise ValueError(
            f"{name} has {'several image columns' if typed else 'no image column'} (columns: "
            f"{', '.join(dataset.features)}); name the one to use (image_column)."
        )
    return found


def _label_column(dataset: Dataset, asked: str | None, name: str) -> str | None:
    """The column asked for, else the one of type ClassLabel, else one with a usual name."""
    if asked is not None:
        return _check_asked(dataset, asked, name, _can_hold_labels)
    typed = [c for c, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    return _usual_column(dataset, typed, LABEL_NAMES, _can_hold_labels)


def _usual_column(
    dataset: Dataset, typed: list[str], usual: tuple[str, ...], fits: Callable[[object], bool]
) -> str | None:
    """The only typed column, else the first of a usual name, among the typed if there are any."""
    if len(typed) == 1:
        return typed[0]
    candidates = [column for column in usual if column in (typed or dataset.features)]
    return next((column for column in candidates if fits(dataset.features[column])), None)


def _check_asked(dataset: Dataset, column: str, name: str, fits: Callable[[object], bool]) -> str:
    if column not in dataset.features:
        raise ValueError(
            f"{name} has no column {column!r}; its columns are: {', '.join(dataset.features)}."
        )
    if not fits(dataset.features[column]):
        raise ValueError(
            f"Column {column!r} of {name} is of type {dataset.features[column]}, which does not "
            f"fit; its columns are: {', '.join(dataset.features)}."
        )
    return column


def _can_hold_images(feature: object) -> bool:
    """Whether a column can be cast to Image: encoded bytes, paths, or a struct of both."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, Image) or (
        isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string")
    )


def _can_hold_labels(feature: object) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and feature.dtype.startswith(
        ("int", "uint", "bool", "string")
    )


def _read_labels(dataset: Dataset, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids of all rows, int64 (n,), -1 where there is no label; and the classes' names."""
    table = cast(pa.Table, dataset.select_columns([column]).with_format("arrow")[:])
    values, feature = table[column], dataset.features[column]
    if isinstance(feature, ClassLabel):
        return values.cast(pa.int64()).fill_null(-1).to_numpy(), tuple(feature.names)
    values = values.to_pylist()
    classes = sorted({value for value in values if value is not None})
    ids = {value: i for i, value in enumerate(classes)}
    labels = np.array([ids.get(value, -1) for value in values], dtype=np.int64)
    return labels, tuple(map(str, classes))
