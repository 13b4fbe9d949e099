"""Columns that files called metadata.csv or metadata.jsonl give to the images of a folder.

Each row names an image in `file_name`, from the folder in which the metadata lies; its other values
are what is known of that image, labels above all.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Value

from .files import list_files

NAME_COLUMN = "file_name"
SUFFIXES = frozenset({".csv", ".jsonl"})

Row = dict[str, Any]


def read_metadata(folder: Path, images: list[str]) -> dict[str, Row]:
    """The rows of all metadata files below a folder: {path of the image: its values}.

    Raises:
        ValueError: if a file cannot be read, or names an image that is not in the folder.
    """
    known, rows = set(images), {}
    for file in list_files(folder, SUFFIXES):
        path = Path(file)
        if path.stem.lower() != "metadata":
            continue
        for number, row in enumerate(_rows(folder / path), start=1):
            if not isinstance(row, dict) or not isinstance(row.get(NAME_COLUMN), str):
                raise ValueError(
                    f"Row {number} of {folder / path} has no {NAME_COLUMN}; give each row the path "
                    "of its image."
                )
            image = (path.parent / row.pop(NAME_COLUMN)).as_posix()
            if image not in known:
                raise ValueError(
                    f"Row {number} of {folder / path} names {image!r}, which is not an image of "
                    f"{folder}; put it there, or take the row out."
                )
            rows[image] = row
    return rows


def metadata_columns(rows: list[Row]) -> dict[str, tuple[list, Value]]:
    """The columns of a list of images that are whole numbers, truth values or text, with types."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [None if row.get(name) == "" else row.get(name) for row in rows]
        if all(value is None or _is_whole(value) for value in values):  # what CSV has as text
            values = [None if value is None else int(value) for value in values]
        kinds = {type(value) for value in values if value is not None}
        kind = {str: "string", int: "int64", bool: "bool"}.get(kinds.pop()) if kinds else None
        if kind is not None and not kinds:
            columns[name] = values, Value(kind)
    return columns


def _rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield from csv.DictReader(file)
            else:
                yield from (json.loads(line) for line in file if line.strip())
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}; mend it or remove it.") from error


def _is_whole(value: Any) -> bool:
    return isinstance(value, str) and value.strip().removeprefix("-").isdecimal()
