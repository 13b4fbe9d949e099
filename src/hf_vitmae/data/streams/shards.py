"""Shards: parts of a stream that are read from front to back, and what is known of them beforehand.

The order of a stream needs the number of samples of every shard, and its classes the labels, so
each shard is surveyed once. Of a parquet file that is its footer and its column of labels, of a
local tar a walk over headers; anything else takes a pass over the whole of it. Surveys are kept in
a file, so that no start but the first waits for them.
"""

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from tqdm import tqdm

from hf_vitmae.data.remote import is_remote, open_remote, remote_stamp
from hf_vitmae.whole_or_absent import write_whole

Label = str | int | bool
READ_ERRORS = (OSError, ValueError, RuntimeError, EOFError)  # ArrowInvalid is a ValueError


class Columns(NamedTuple):
    """Which columns were asked for by name; None leaves it to their types and names."""

    image: str | None = None
    label: str | None = None
    use_labels: bool = True


FOUND_COLUMNS = Columns()


class Sample(NamedTuple):
    """One image as a shard holds it, like a row of type `Image(decode=False)`."""

    picture: dict[str, Any] | None
    class_name: str | None = None
    name: str | None = None  # None: it is known by its row


class Survey(NamedTuple):
    """What a shard holds; `labels` are the distinct values."""

    num_samples: int
    num_unlabelled: int = 0
    labels: tuple[Label, ...] = ()


class Shard(Protocol):
    """Samples in a fixed order."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str | None:
        """Another one for other content, as far as that shows without reading; None if a survey
        costs nothing, so that none is kept.
        """
        ...

    @property
    def is_slow(self) -> bool:
        """Whether a survey reads everything."""
        ...

    def survey(self, tick: Callable[[], object]) -> Survey:
        """Look through the shard; `tick` is called for each sample that takes time."""
        ...

    def read(self, rows: Sequence[int]) -> Generator[Sample, None, None]:
        """The samples of ascending rows; those past the end are left out."""
        ...


class ShardSet(Protocol):
    """The shards of one split of a source, whose columns are not chosen yet."""

    def open(self, name: str, columns: Columns) -> tuple[list[Shard], tuple[str, ...] | None]:
        """The shards and, where the columns have them, the classes' names.

        Raises:
            ValueError: if a column asked for does not fit, or no column of images can be told.
        """
        ...


@dataclass
class ShardMemory:
    """Surveys by the key of their shard, in a JSON file if it has a path."""

    path: Path | None = None
    surveys: dict[str, list] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "ShardMemory":
        """What the file holds; nothing, if there is none or a damaged one."""
        try:
            return cls(path, dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            return cls(path)

    def write(self) -> None:
        """Write the file, whole or not at all, if there is something to remember."""
        if self.path is not None and self.surveys:
            write_whole(self.path, json.dumps(self.surveys, indent=0))

    def survey(self, name: str, shards: Sequence[Shard]) -> list[Survey]:
        """The surveys of all shards; those that are not known yet are made now.

        Raises:
            ValueError: if a shard cannot be read.
        """
        keys = [shard.key for shard in shards]
        pairs = list(zip(keys, shards, strict=True))
        slow = sum(shard.is_slow for key, shard in pairs if key not in self.surveys)
        if slow:
            print(
                f"{name}: counting the images of {slow} shards that do not say how many they hold; "
                "this reads them once.",
                file=sys.stderr,
            )
        hide = not slow or not sys.stderr.isatty()
        with tqdm(desc="counting", unit="image", disable=hide) as bar:
            return [self._survey(key, shard, bar.update) for key, shard in pairs]

    def _survey(self, key: str | None, shard: Shard, tick: Callable[[], object]) -> Survey:
        if key is None:
            return shard.survey(tick)
        if key not in self.surveys:
            self.surveys[key] = list(shard.survey(tick))
        num_samples, num_unlabelled, labels = self.surveys[key]
        return Survey(num_samples, num_unlabelled, tuple(labels))


def survey_labels(labels: Iterable[Label | None], tick: Callable[[], object]) -> Survey:
    """Count samples by their labels, one each."""
    num_samples, num_unlabelled, found = 0, 0, set()
    for label in labels:
        num_samples += 1
        num_unlabelled += label is None
        found.add(label)
        tick()
    return Survey(num_samples, num_unlabelled, tuple(found - {None}))


def sorted_classes(labels: Iterable[Label]) -> tuple[str, ...]:
    """Names of classes in the order of the labels themselves: 9 comes before 10."""
    distinct = set(labels)
    if not all(isinstance(label, int) for label in distinct):
        return tuple(sorted({str(label) for label in distinct}))
    return tuple(str(label) for label in sorted(cast(set[int], distinct)))


def open_bytes(path: str) -> BinaryIO:
    """Open a file or a URL.

    Raises:
        FileNotFoundError, OSError, ValueError: naming it, if it is not there or cannot be read.
    """
    if is_remote(path):
        return open_remote(path)
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The shard '{path}' is not there; put it back, or open the source anew."
        ) from None


def file_stamp(path: str) -> str:
    """The size of a file and when it was changed, as far as its place tells."""
    if is_remote(path):
        return remote_stamp(path)
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def unreadable(name: str, kind: str, error: BaseException) -> ValueError:
    """What is raised for a shard that is damaged."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{name} cannot be read as {kind}: {reason}; mend it or leave it out.")
