"""Which columns of a data set hold the images, the class labels and the label maps.

A column is taken as told, or found by its type and a usual name. Where it cannot be told, the error
lists the columns.
"""

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, Value

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "category", "target")
LABEL_MAP_NAMES = ("annotation", "label_map", "segmentation_map", "segmentation", "mask", "masks")
TYPED_LABEL_MAP_NAMES = (*LABEL_MAP_NAMES, "label")  # in a column of type Image, so no class label


def find_image_column(
    features: Features, asked: str | None, name: str, label_map_column: str | None = None
) -> str:
    """The column asked for, else the one of type Image, else one with a usual name.

    Args:
        name: what an error calls the data set.
        label_map_column: asked for as label maps, so not the images. Columns with a usual name of
            label maps are taken only where there is no other.

    Raises:
        ValueError: if the column asked for does not fit, or no single one can be told.
    """
    if asked is not None:
        return _check_asked(features, asked, name, _can_hold_images)
    others = {c: feature for c, feature in features.items() if c != label_map_column}
    typed = [column for column, feature in others.items() if isinstance(feature, Image)]
    no_maps = [column for column in typed if column not in TYPED_LABEL_MAP_NAMES]
    found = _usual_column(others, no_maps, IMAGE_NAMES, _can_hold_images)
    if found is None and len(typed) == 1:
        found = typed[0]
    if found is None:
        raise ValueError(
            f"{name} has {'several image columns' if typed else 'no image column'} (columns: "
            f"{', '.join(features)}); name the one to use (image_column)."
        )
    return found


def find_label_column(features: Features, asked: str | None, name: str) -> str | None:
    """The column asked for, else the one of type ClassLabel, else one with a usual name.

    Raises:
        ValueError: if the column asked for does not fit.
    """
    if asked is not None:
        return _check_asked(features, asked, name, _can_hold_labels)
    typed = [c for c, feature in features.items() if isinstance(feature, ClassLabel)]
    return _usual_column(features, typed, LABEL_NAMES, _can_hold_labels)


def find_label_map_column(
    features: Features, asked: str | None, name: str, image_column: str
) -> str:
    """The column asked for, else one with a usual name, of type Image if there is one.

    Raises:
        ValueError: if the column asked for does not fit or holds the images, or there is none.
    """
    if asked is not None and asked == image_column:
        raise ValueError(
            f"Column {asked!r} of {name} cannot hold both the images and the label maps; name "
            "another one as image_column or label_map_column."
        )
    if asked is not None:
        return _check_asked(features, asked, name, _can_hold_images)
    others = {c: feature for c, feature in features.items() if c != image_column}
    typed = [c for c in TYPED_LABEL_MAP_NAMES if isinstance(others.get(c), Image)]
    fitting = [c for c in LABEL_MAP_NAMES if c in others and _can_hold_images(others[c])]
    if not typed + fitting:
        raise ValueError(no_label_maps(f"{name} (columns: {', '.join(features)})"))
    return (typed + fitting)[0]


def no_label_maps(name: str) -> str:
    """What an error says about a source that lacks label maps."""
    return (
        f"{name} has no label maps; put them into a folder annotations beside a folder images, or "
        "name the column that holds them (label_map_column)."
    )


def read_labels(dataset: Dataset, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
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


def _usual_column(
    features: Mapping[str, object],
    typed: list[str],
    usual: tuple[str, ...],
    fits: Callable[[object], bool],
) -> str | None:
    """The only typed column, else the first of a usual name, among the typed if there are any."""
    if len(typed) == 1:
        return typed[0]
    candidates = [column for column in usual if column in (typed or features)]
    return next((column for column in candidates if fits(features[column])), None)


def _check_asked(features: Features, column: str, name: str, fits: Callable[[object], bool]) -> str:
    if column not in features:
        raise ValueError(
            f"{name} has no column {column!r}; its columns are: {', '.join(features)}."
        )
    if not fits(features[column]):
        raise ValueError(
            f"Column {column!r} of {name} is of type {features[column]}, which does not fit; its "
            f"columns are: {', '.join(features)}."
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
