"""Parquet files as shards, read by pyarrow a few rows at a time.

`datasets` streams parquet too, but skips by reading all that lies before and holds whole row
groups; here reading starts at the row group that holds a row, and goes by pages.
"""

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from hf_vitmae.data.columns import find_image_column, find_label_column

from .shards import (
    READ_ERRORS,
    Columns,
    Sample,
    Shard,
    Survey,
    file_stamp,
    open_bytes,
    survey_labels,
    unreadable,
)

ROWS_AT_ONCE = 16  # decoded together: enough to make the cost of a call small
PAGE_BUFFER = 1 << 20  # bytes; without it a whole column of a row group is held


@dataclass(frozen=True)
class ParquetShard:
    """One parquet file.

    Args:
        class_names: of a column that numbers the classes; other labels are their own names.
    """

    path: str
    image_column: str
    label_column: str | None = None
    class_names: tuple[str, ...] | None = None
    is_slow = False

    @property
    def name(self) -> str:
        return self.path

    @property
    def key(self) -> str:
        return f"{self.path} {file_stamp(self.path)} labels:{self.label_column}"

    def survey(self, tick: Callable[[], object]) -> Survey:
        """Rows by the file's footer, labels by their column alone."""
        with _open(self.path) as file:
            num_rows = file.metadata.num_rows
            if self.label_column is None:
                return Survey(num_rows)
            self._check_columns(file)
            labels = file.read(columns=[self.label_column])[self.label_column]
        values = labels.to_pylist()
        if self.class_names is not None:
            values = [None if value is None or value < 0 else value for value in values]
        return survey_labels(values, lambda: None)

    def read(self, rows: Sequence[int]) -> Generator[Sample, None, None]:
        """The samples of ascending rows, from the row groups that hold them."""
        with _open(self.path) as file:
            self._check_columns(file)
            start = 0
            for group in range(file.metadata.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                inside = rows[bisect_left(rows, start) : bisect_left(rows, stop)]
                if len(inside):
                    yield from self._read_group(file, group, [row - start for row in inside])
                start = stop

    def _read_group(
        self, file: pq.ParquetFile, group: int, rows: list[int]
    ) -> Generator[Sample, None, None]:
        columns = [self.image_column] + ([self.label_column] if self.label_column else [])
        start = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, [group], columns, use_threads=False):
            stop = start + batch.num_rows
            inside = rows[bisect_left(rows, start) : bisect_left(rows, stop)]
            for row in inside:
                yield self._sample(batch, row - start)
            start = stop
            if stop > rows[-1]:
                return

    def _sample(self, batch: pa.RecordBatch, row: int) -> Sample:
        picture = as_picture(batch.column(self.image_column)[row].as_py())
        if self.label_column is None:
            return Sample(picture)
        label = batch.column(self.label_column)[row].as_py()
        return Sample(picture, class_name(label, self.class_names))

    def _check_columns(self, file: pq.ParquetFile) -> None:
        for column in (self.image_column, self.label_column):
            if column is not None and column not in file.schema_arrow.names:
                raise ValueError(
                    f"{self.path} has no column {column!r}; its columns are: "
                    f"{', '.join(file.schema_arrow.names)}."
                )


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files of one split, in order; the first one says what the columns are."""

    paths: tuple[str, ...]

    def open(self, name: str, columns: Columns) -> tuple[list[Shard], tuple[str, ...] | None]:
        """A shard for each file."""
        with _open(self.paths[0]) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
        image = find_image_column(features, columns.image, name)
        label = find_label_column(features, columns.label, name) if columns.use_labels else None
        names = feature_class_names(features, label)
        return [ParquetShard(path, image, label, names) for path in self.paths], names


def feature_class_names(features: Features, column: str | None) -> tuple[str, ...] | None:
    """The names of the classes that a column of type ClassLabel numbers."""
    feature = None if column is None else features[column]
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def class_name(label: Any, class_names: tuple[str, ...] | None) -> str | None:
    """The name of a label's class; None where there is no label."""
    if label is None or (class_names is not None and label < 0):
        return None
    return str(label) if class_names is None else class_names[label]


def as_picture(value: Any) -> dict[str, Any] | None:
    """A value of an image column, as `Image(decode=False)` gives it."""
    if value is None or isinstance(value, dict):
        return value
    is_path = isinstance(value, str)
    return {"bytes": None if is_path else value, "path": value if is_path else None}


@contextmanager
def _open(path: str) -> Iterator[pq.ParquetFile]:
    """Open a file; whatever then goes wrong in reading it names it."""
    try:
        with open_bytes(path) as stream:
            with pq.ParquetFile(stream, buffer_size=PAGE_BUFFER, pre_buffer=False) as file:
                yield file
    except READ_ERRORS as error:
        if path in str(error):  # it says already what is wrong
            raise
        raise unreadable(path, "parquet", error) from error
