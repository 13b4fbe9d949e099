"""A column read straight from Arrow holds what `datasets` says, whatever became of the data set."""

import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, Image, concatenate_datasets, load_from_disk

from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.picture_column import PictureColumn

PICTURES = [
    {"bytes": b"one", "path": None},
    {"bytes": b"two", "path": "two.png"},
    None,
    {"bytes": None, "path": "four.png"},
    {"bytes": b"", "path": None},
]


def make() -> Dataset:
    features = Features(image=Image(decode=False))
    return Dataset.from_dict({"image": PICTURES}, features=features)


def saved(folder) -> Dataset:
    make().select([0, 1, 2, 4]).save_to_disk(folder, num_shards=2)  # it would open the fourth
    return load_from_disk(folder)  # type: ignore[return-value]


KINDS = {
    "as it is": lambda folder: make(),
    "joined": lambda folder: concatenate_datasets([make(), make().select([3, 0]), make()]),
    "shuffled": lambda folder: make().shuffle(seed=1),
    "selected": lambda folder: make().select([4, 2, 2, 0]),
    "sliced": lambda folder: make().select(range(1, 4)),
    "shuffled and joined": lambda folder: concatenate_datasets([make().shuffle(seed=2), make()]),
    "from a disk": saved,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_datasets(kind: str, tmp_path):
    dataset = KINDS[kind](tmp_path / "data")
    column = PictureColumn(dataset, "image")
    for row in range(len(dataset)):
        expected = dataset[row]["image"] or {"bytes": None, "path": None}
        assert column[row] == expected
        in_file = expected["bytes"] is None
        assert column.path(row) == (expected["path"] if in_file else None)


def test_a_source_is_sent_without_its_columns():
    source = ImageSource("it", make(), "image", np.arange(5))
    assert source.record(0).encoded == b"one"
    size = len(pickle.dumps(ImageSource("it", make(), "image", np.arange(5))))
    sent = pickle.dumps(source)
    assert len(sent) <= size + 100
    assert pickle.loads(sent).record(1).encoded == b"two"
