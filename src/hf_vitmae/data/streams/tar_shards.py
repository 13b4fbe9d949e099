"""WebDataset tars as shards: files that are alike up to the first dot of their name are a sample.

Read from front to back by Python's `tarfile`; in a local file that is not compressed, what is
skipped is not read.
"""

import json
import re
import tarfile
from collections.abc import Callable, Collection, Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from hf_vitmae.data.columns import IMAGE_NAMES, LABEL_NAMES
from hf_vitmae.data.files import IMAGE_SUFFIXES, is_array
from hf_vitmae.data.remote import is_remote

from .shards import (
    READ_ERRORS,
    Columns,
    Label,
    Sample,
    Shard,
    Survey,
    file_stamp,
    open_bytes,
    survey_labels,
    unreadable,
)

_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^/.][^/.]*)\.(?P<extension>[^/]+)")  # no hidden file
LABEL_EXTENSIONS = ("cls", "json")  # in order of preference


class _Group(NamedTuple):
    """The files of one sample: content by extension, None of those that were not read."""

    row: int
    key: str
    contents: dict[str, bytes | None]


@dataclass(frozen=True)
class TarShard:
    """One tar.

    Args:
        image: the extension of the images; found where a sample has a single image. An array of
            numpy is one where there is no other: beside it, it holds features.
        label: the extension of the labels' file, or a name inside the json file; `cls` or a usual
            name in the json file when left out.
    """

    path: str
    image: str | None = None
    label: str | None = None
    use_labels: bool = True

    @property
    def name(self) -> str:
        return self.path

    @property
    def key(self) -> str:
        labels = f"{self.use_labels} {self.label}"
        return f"{self.path} {file_stamp(self.path)} image:{self.image} labels:{labels}"

    @property
    def is_slow(self) -> bool:
        return is_remote(self.path) or not self.path.lower().endswith(".tar")

    def survey(self, tick: Callable[[], object]) -> Survey:
        """Count the samples by their headers; of the contents only labels are read."""
        with _open(self.path) as tar:
            return survey_labels((self._label(group) for group in self._groups(tar, ())), tick)

    def read(self, rows: Sequence[int]) -> Generator[Sample, None, None]:
        """The samples of ascending rows."""
        wanted = rows if isinstance(rows, range) else frozenset(rows)
        with _open(self.path) as tar:
            for group in self._groups(tar, wanted):
                if group.row in wanted:
                    yield self._sample(group)
                if group.row >= rows[-1]:
                    return

    def _groups(self, tar: tarfile.TarFile, wanted: Container[int]) -> Iterator[_Group]:
        """The samples that have an image, which is read of the wanted rows only."""
        row, key, contents = 0, None, {}
        for member in _files(tar):
            match = _MEMBER.fullmatch(member.name)
            if match is None:
                continue
            if match["key"] != key:
                if key is not None and self._images(contents):
                    yield _Group(row, key, contents)
                    row += 1
                key, contents = match["key"], {}
            extension = match["extension"].lower()
            is_read = bool(self._images([extension])) and row in wanted
            is_read |= self.use_labels and extension in (*LABEL_EXTENSIONS, self.label)
            contents[extension] = _content(tar, member) if is_read else None
        if key is not None and self._images(contents):
            yield _Group(row, key, contents)

    def _images(self, extensions: Collection[str]) -> list[str]:
        """Which of the files of a sample may be its image."""
        if self.image is not None:
            return [extension for extension in extensions if extension == self.image.lower()]
        pictures = [e for e in extensions if f".{e.rpartition('.')[2]}" in IMAGE_SUFFIXES]
        return pictures or [e for e in extensions if is_array(f".{e}")]

    def _sample(self, group: _Group) -> Sample:
        images = self._images(group.contents)
        usual = [extension for extension in IMAGE_NAMES if extension in images]
        if len(images) > 1 and not usual:
            raise ValueError(
                f"{self.path} has several images in the sample {group.key!r} "
                f"({', '.join(images)}); name the extension to use (image_column)."
            )
        extension = (usual or images)[0]
        picture = {"bytes": group.contents[extension], "path": None}
        label = self._label(group)
        class_name = None if label is None else str(label)
        return Sample(picture, class_name, f"{self.path}/{group.key}.{extension}")

    def _label(self, group: _Group) -> Label | None:
        contents = group.contents
        if not self.use_labels:
            return None
        if self.label in contents or (self.label is None and "cls" in contents):
            return _number_or_text(contents[self.label or "cls"] or b"")
        if contents.get("json") is None:
            return None
        return self._json_label(group)

    def _json_label(self, group: _Group) -> Label | None:
        try:
            values = json.loads(group.contents["json"] or b"")
        except ValueError as error:
            raise unreadable(f"{self.path}/{group.key}.json", "JSON", error) from error
        names = LABEL_NAMES if self.label is None else (self.label,)
        found = [values.get(name) for name in names] if isinstance(values, dict) else []
        return next((label for label in found if isinstance(label, Label)), None)


@dataclass(frozen=True)
class TarFiles:
    """Tars of one split, in order."""

    paths: tuple[str, ...]

    def open(self, name: str, columns: Columns) -> tuple[list[Shard], tuple[str, ...] | None]:
        """A shard for each file."""
        return [TarShard(path, *columns) for path in self.paths], None


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else it keeps them all
        if member.isfile():
            yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    content = file.read()
    if len(content) != member.size:
        raise EOFError(f"{member.name} is cut off")
    return content


def _number_or_text(content: bytes) -> Label | None:
    text = content.decode("utf-8", "replace").strip()
    try:
        return int(text)
    except ValueError:
        return text or None


@contextmanager
def _open(path: str) -> Iterator[tarfile.TarFile]:
    """Open a tar; whatever then goes wrong in reading it names it."""
    try:
        with open_bytes(path) as stream:
            stream.read(1)  # here, since tarfile takes an error of reading for another compression
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:*") as tar:
                yield tar
    except (*READ_ERRORS, tarfile.TarError) as error:
        if path in str(error):  # it says already what is wrong
            raise
        raise unreadable(path, "tar", error) from error
