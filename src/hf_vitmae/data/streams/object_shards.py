"""`datasets` objects as shards: rows of a source with random access, and parts of a stream."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset

from hf_vitmae.data.columns import find_image_column, find_label_column
from hf_vitmae.data.image_source import ImageSource

from .parquet_shards import as_picture, class_name, feature_class_names
from .shards import Columns, Sample, Shard, Survey, survey_labels

ROWS_OF_A_SHARD = 1000  # of a source with random access: small, so that many lie side by side


@dataclass(frozen=True)
class SourceShard:
    """Consecutive images of a source with random access."""

    source: ImageSource
    rows: range
    is_slow = False
    key = None

    @property
    def name(self) -> str:
        return f"{self.source.name}[{self.rows.start}:{self.rows.stop}]"

    def survey(self, tick: Callable[[], object]) -> Survey:
        """What the source knows without reading an image."""
        if self.source.labels is None:
            return Survey(len(self.rows), len(self.rows))
        labels = self.source.labels[self.rows.start : self.rows.stop]
        return Survey(len(self.rows), 0, tuple(np.unique(labels).tolist()))

    def read(self, rows: Sequence[int]) -> Generator[Sample, None, None]:
        """The samples of ascending rows; what cannot be read of them is `Missing`."""
        for row in rows:
            if row < len(self.rows):
                encoded, label, name, _ = self.source.record(self.rows[row])
                picture = {"bytes": encoded, "path": None}
                yield Sample(picture, class_name(label, self.source.class_names), name)


@dataclass(frozen=True)
class SourceRows:
    """A source with random access, cut into shards; its columns are chosen already."""

    source: ImageSource

    def open(self, name: str, columns: Columns) -> tuple[list[Shard], tuple[str, ...] | None]:
        """A shard for every so many rows."""
        size = len(self.source)
        starts = range(0, size, ROWS_OF_A_SHARD)
        rows = [range(start, min(start + ROWS_OF_A_SHARD, size)) for start in starts]
        return [SourceShard(self.source, inside) for inside in rows], self.source.class_names


@dataclass(frozen=True)
class DatasetRows:
    """A `Dataset`, cut into shards."""

    dataset: Dataset

    def open(self, name: str, columns: Columns) -> tuple[list[Shard], tuple[str, ...] | None]:
        """A shard for every so many rows."""
        image, label, use_labels = columns
        source = ImageSource.from_dataset(
            self.dataset, name, image_column=image, label_column=label, use_labels=use_labels
        )
        return SourceRows(source).open(name, columns)


@dataclass(frozen=True)
class IterableShard:
    """One shard of an `IterableDataset`; what is skipped is read too."""

    name: str
    dataset: IterableDataset
    image_column: str
    label_column: str | None = None
    class_names: tuple[str, ...] | None = None
    is_slow = True

    @property
    def key(self) -> str:
        return f"{self.name} columns:{self.image_column},{self.label_column}"

    def survey(self, tick: Callable[[], object]) -> Survey:
        """Count the rows and note their labels."""
        labels = (example.get(self.label_column) for example in self.dataset)
        if self.class_names is not None:
            labels = (None if label is None or label < 0 else label for label in labels)
        return survey_labels(labels, tick)

    def read(self, rows: Sequence[int]) -> Generator[Sample, None, None]:
        """The samples of ascending rows."""
        wanted = rows if isinstance(rows, range) else frozenset(rows)
        first = rows[0]
        # A new object: two that read the same one would share its position.
        dataset = self.dataset.shard(num_shards=1, index=0).skip(first)
        for row, example in enumerate(dataset, start=first):
            if row in wanted:
                yield self._sample(example)
            if row >= rows[-1]:
                return

    def _sample(self, example: dict[str, Any]) -> Sample:
        picture = example.get(self.image_column)
        if picture is not None and not isinstance(picture, bytes | str | dict):
            picture = Image(decode=False).encode_example(picture)  # a PIL image or an array
        label = example.get(self.label_column) if self.label_column else None
        return Sample(as_picture(picture), class_name(label, self.class_names))


@dataclass(frozen=True)
class IterableShards:
    """The shards of an `IterableDataset`."""

    dataset: IterableDataset

    def open(self, name: str, columns: Columns) -> tuple[list[Shard], tuple[str, ...] | None]:
        """The data set's own shards; if its columns have no types, its first row tells them."""
        dataset = self.dataset.with_format(None)
        features = dataset.features or _first_features(dataset)
        image = find_image_column(features, columns.image, name)
        label = find_label_column(features, columns.label, name) if columns.use_labels else None
        names = feature_class_names(features, label)
        if dataset.features is not None:
            dataset = dataset.select_columns([image] + ([label] if label else []))
            dataset = dataset.cast_column(image, Image(decode=False))
        count = dataset.num_shards
        shards = [dataset.shard(num_shards=count, index=index) for index in range(count)]
        return [
            IterableShard(f"{name}, shard {index},", shard, image, label, names)
            for index, shard in enumerate(shards)
        ], names


def _first_features(dataset: IterableDataset) -> Features:
    """The columns' types by the first row; none of an empty stream."""
    first: Iterator[dict[str, Any]] = iter(dataset.take(1))
    return Dataset.from_list(list(first)).features
