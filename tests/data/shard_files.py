"""Small images in shards of every kind: parquet files, WebDataset tars, folders and objects.

Image i is gray and filled with the number i, so that a test can say which images it has seen.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage

from hf_vitmae.data.decoding.decode import decode
from hf_vitmae.data.request import Record

NUM_CLASSES = 3
CLASS_NAMES = ("a", "b", "c")


def encoded(value: int) -> bytes:
    """A PNG filled with a number; those from 256 on are told by the width."""
    buffer = io.BytesIO()
    PillowImage.new("L", (2 + value // 256, 3), value % 256).save(buffer, "PNG")
    return buffer.getvalue()


def value_of(record: Record) -> int:
    """The number that an image is filled with."""
    pixels = decode(record.encoded, 1)
    return int(pixels[0, 0, 0]) + (pixels.shape[2] - 2) * 256


def values_of(records: Iterable[Record]) -> list[int]:
    """The numbers of some images."""
    return [value_of(record) for record in records]


def split_numbers(sizes: Sequence[int]) -> list[range]:
    """0, 1, 2, ... in parts of these sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def features() -> Features:
    """Of images with a class."""
    return Features(image=Image(), label=ClassLabel(names=list(CLASS_NAMES)))


def rows(numbers: Iterable[int]) -> dict[str, list]:
    """The columns of some images."""
    numbers = list(numbers)
    images = [{"bytes": encoded(number), "path": None} for number in numbers]
    return {"image": images, "label": [number % NUM_CLASSES for number in numbers]}


def make_dataset(numbers: Iterable[int]) -> Dataset:
    """An object in memory."""
    return Dataset.from_dict(rows(numbers), features=features())


def write_parquet(folder: Path, sizes: Sequence[int], row_group: int = 4) -> Path:
    """A parquet file for each size, some of several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, inside in enumerate(split_numbers(sizes)):
        table = pa.table(rows(inside), schema=features().arrow_schema)
        pq.write_table(table, folder / f"{number:04d}.parquet", row_group_size=row_group)
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample_files(number: int, label: str = "cls") -> dict[str, bytes]:
    """The files of one sample: its class before its image, as sorting puts them."""
    class_id = number % NUM_CLASSES
    content = str(class_id) if label == "cls" else json.dumps({"label": CLASS_NAMES[class_id]})
    return {f"{number:05d}.{label}": content.encode(), f"{number:05d}.png": encoded(number)}


def write_tars(folder: Path, sizes: Sequence[int], label: str = "cls", suffix: str = "tar") -> Path:
    """A tar for each size."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, inside in enumerate(split_numbers(sizes)):
        samples = [sample_files(i, label) for i in inside]
        files = {name: content for sample in samples for name, content in sample.items()}
        write_tar(folder / f"{number:04d}.{suffix}", files)
    return folder


def write_folder(folder: Path, numbers: Iterable[int]) -> Path:
    """A folder per class."""
    for number in numbers:
        path = folder / CLASS_NAMES[number % NUM_CLASSES] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return folder
