"""Every kind of source opens with the right labels, splits and errors, and no image is lost."""

import io
import os
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage

from hf_vitmae.data import splits
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.decoding.decode import decode
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import Sources, open_images, open_source
from hf_vitmae.data.sources import open_train_and_eval as open_any_train_and_eval
from hf_vitmae.data.streams.parquet_shards import ParquetFiles
from hf_vitmae.data.streams.shards import ShardSet
from hf_vitmae.data.streams.stream import StreamSource, open_stream

from .shard_files import write_tar


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (2, 2), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def open_train_and_eval(
    config: DataConfig, seed: int, *, source: Sources | None = None, use_labels: bool = True
) -> tuple[ImageSource, ImageSource | None]:
    """Of a source with random access."""
    train, evaluation = open_any_train_and_eval(config, seed, source=source, use_labels=use_labels)
    assert isinstance(train, ImageSource) and isinstance(evaluation, ImageSource | None)
    return train, evaluation


def write(root: Path, *files: str) -> Path:
    """A folder of images, each filled with its number in the list, and the usual hidden files."""
    for value, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(encoded(value))
    for junk in (".DS_Store", "._x.png", "__MACOSX/x.png", ".cache/x.png", "notes.txt"):
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).write_bytes(b"junk")
    return root


def values(source) -> list[int]:
    """The numbers that the images are filled with."""
    return [int(decode(source[i].encoded, 1)[0, 0, 0]) for i in range(len(source))]


def labelled(labels: list, **features) -> Dataset:
    """A data set whose image i is filled with i."""
    images = [{"bytes": encoded(i), "path": None} for i in range(len(labels))]
    columns = Features(image=Image(), **features) if features else None
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=columns)
    return dataset if columns else dataset.cast_column("image", Image())


# Folders


def test_a_flat_folder_with_any_suffix_case_and_any_names(tmp_path):
    source = open_source(write(tmp_path, "a.png", "B.PNG", "scan_test_1.jpg", "val.JPEG", "z.tif"))
    assert sorted(values(source)) == [0, 1, 2, 3, 4]
    assert source.class_names is None and source[0].label is None
    assert source[1].name == str(tmp_path / "a.png")  # what a person needs to find it


def test_one_folder_per_class_at_any_depth(tmp_path):
    files = ["dog/1.png", "cat/2.png", "cat/deep/er/3.png", "test_images/4.png"]
    source = open_source(write(tmp_path, *files))
    assert source.class_names == ("cat", "dog", "test_images")
    assert [(v, source[i].label) for i, v in enumerate(values(source))] == [
        (1, 0),
        (2, 0),
        (0, 1),
        (3, 2),
    ]


def test_a_ragged_folder_has_no_labels_and_loses_nothing(tmp_path):
    source = open_source(write(tmp_path, "top.png", "a/x.png", "a/b/y.png"))
    assert len(source) == 3 and source.class_names is None


def test_split_folders_share_their_class_ids(tmp_path):
    write(tmp_path, "train/a/0.png", "train/b/1.png", "train/c/2.png", "valid/c/3.png")
    train, evaluation = open_train_and_eval(DataConfig(source=str(tmp_path)), seed=0)
    assert evaluation is not None
    assert train.class_names == evaluation.class_names == ("a", "b", "c")
    assert values(evaluation) == [3] and evaluation[0].label == 2
    assert len(open_source(tmp_path, "val")) == len(open_source(tmp_path, "validation")) == 1


def test_beside_train_every_folder_is_a_split(tmp_path):
    write(tmp_path, "Train/0.png", "extra/1.png")
    assert values(open_source(tmp_path)) == [0] and values(open_source(tmp_path, "extra")) == [1]


def test_class_folders_named_like_splits_stay_classes(tmp_path):
    source = open_source(write(tmp_path, "valid/0.png", "defect/1.png"))
    assert source.class_names == ("defect", "valid")


def test_a_loose_image_beside_splits_is_refused_not_lost(tmp_path):
    write(tmp_path, "train/0.png", "test/1.png", "loose.png")
    with pytest.raises(ValueError, match=r"splits test, train and also 'loose.png'"):
        open_source(tmp_path)


def test_a_changed_folder_is_seen_as_changed(tmp_path):
    write(tmp_path, "a.png", "b.png")
    assert values(open_source(tmp_path)) == [0, 1]
    (tmp_path / "a.png").write_bytes(encoded(9))
    (tmp_path / "c.png").write_bytes(encoded(2))
    assert values(open_source(tmp_path)) == [9, 1, 2]


def array(value: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.full((2, 2, 3), value, np.uint8))
    return buffer.getvalue()


def write_arrays(root: Path, files: dict[str, int]) -> Path:
    """A folder of numpy files, each filled with a number."""
    for file, value in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(array(value))
    return root


def test_arrays_of_numpy_are_images_flat_and_by_class(tmp_path):
    flat = open_source(write_arrays(tmp_path / "flat", {"b.npy": 2, "a.NPY": 1}))
    assert values(flat) == [1, 2] and flat.class_names is None
    source = open_source(write_arrays(tmp_path / "classes", {"dog/1.npy": 3, "cat/1.npy": 4}))
    assert source.class_names == ("cat", "dog")
    assert [(v, source[i].label) for i, v in enumerate(values(source))] == [(4, 0), (3, 1)]


def test_arrays_of_numpy_have_metadata(tmp_path):
    write_arrays(tmp_path, {"a.npy": 5, "deep/b.npy": 6})
    (tmp_path / "metadata.csv").write_text("file_name,label\na.npy,owl\ndeep/b.npy,cat\n")
    source = open_source(tmp_path)
    assert source.class_names == ("cat", "owl")
    assert [(v, source[i].label) for i, v in enumerate(values(source))] == [(5, 1), (6, 0)]


def test_beside_pictures_arrays_are_features_and_no_images(tmp_path):
    write(tmp_path, "a/x.png", "b/y.png")
    expected = list(open_source(tmp_path).records())
    write_arrays(tmp_path, {"a/x.npy": 9, "mean.npy": 9, "features/x.npy": 9})
    source = open_source(tmp_path)
    assert list(source.records()) == expected and source.class_names == ("a", "b")
    (tmp_path / "metadata.csv").write_text("file_name,label\nmean.npy,owl\n")
    with pytest.raises(ValueError, match="names 'mean.npy', which is not an image of"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_beside_shards_arrays_are_no_images(tmp_path, kind):
    if kind == "parquet":
        write_parquet(tmp_path / "a.parquet", [7])
    else:
        write_tar(tmp_path / "a.tar", {"0.png": encoded(7)})
    write_arrays(tmp_path, {"mean.npy": 9})
    records = list(open_images(tmp_path).records())
    assert [int(decode(record.encoded, 1)[0, 0, 0]) for record in records] == [7]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "photos", "a/x.png")
    write(tmp_path / "elsewhere", "y.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "b")
    os.symlink(tmp_path / "photos", tmp_path / "photos" / "a" / "circle")
    assert len(open_source(tmp_path / "photos")) == 2


def test_a_file_that_went_away_is_named(tmp_path):
    source = open_source(write(tmp_path, "a.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="a.png' is not there; put it back"):
        source[0]


# Parquet


def write_parquet(path: Path, numbers: list[int], **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [encoded(i) for i in numbers], **columns}), path)


def test_a_parquet_file_a_folder_and_a_glob(tmp_path):
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", [0, 1])
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", [2])
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", [3])
    for source in (str(tmp_path), str(tmp_path / "data"), str(tmp_path / "**/*.parquet")):
        assert values(open_source(source)) == [0, 1, 2]
        assert values(open_source(source, "test")) == [3]
    one_file = open_source(tmp_path / "data/test-00000-of-00001.parquet", "test")
    assert one_file[0].name.endswith("test[0]")


def test_a_changed_parquet_file_is_seen_as_changed(tmp_path):
    path = tmp_path / "images[1].parquet"  # a name that is not to be read as a pattern
    write_parquet(path, [0, 1])
    assert values(open_source(path)) == [0, 1]
    write_parquet(path, [5, 6])
    assert values(open_source(path)) == [5, 6]


def test_the_library_s_progress_bars_are_off_and_its_setting_is_kept(tmp_path, capfd):
    import datasets

    datasets.enable_progress_bars()
    write_parquet(tmp_path / "a.parquet", [0, 1])
    open_source(tmp_path)
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()


# `datasets` objects and their columns


def test_a_dataset_passed_directly_with_a_transform_and_a_selection():
    dataset = labelled([1, 0, 1, 1], label=ClassLabel(names=["no", "yes"])).select([3, 1])
    source = open_source(dataset.with_transform(lambda batch: {"image": [None]}))
    assert values(source) == [3, 1] and source.class_names == ("no", "yes")
    assert [source[i].label for i in range(2)] == [1, 0]


def test_a_dataset_of_paths_is_read_from_the_files(tmp_path):
    write(tmp_path, "a.png", "b.png")
    paths = [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    assert values(open_source(Dataset.from_dict({"img": paths}))) == [1, 0]


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["x", "b", "x"], ("b", "x"), [1, 0, 1]),
        ([7, 3, 3], ("3", "7"), [1, 0, 0]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
    ],
)
def test_labels_without_names_are_the_sorted_values(labels, names, ids):
    source = open_source(labelled(labels))
    assert source.class_names == names and source.labels is not None
    assert source.labels.tolist() == ids and source.labels.dtype == np.int64


def test_a_split_without_any_label_is_unlabelled_and_gaps_are_refused():
    two = ClassLabel(names=["a", "b"])
    assert open_source(labelled([-1, -1], label=two)).class_names is None
    assert open_source(labelled([None, None], label=Value("string"))).labels is None
    gaps = labelled([0, -1, 1], label=two)
    with pytest.raises(ValueError, match=r"no label for 1 of its 3 images \(column 'label'\)"):
        open_source(gaps)
    assert len(open_source(gaps, use_labels=False)) == 3


def test_columns_are_found_by_type_then_by_name_or_are_named():
    images = [{"bytes": encoded(0), "path": None}]
    features = Features(
        text=Value("string"), scan=Image(), kind=ClassLabel(names=["k"]), label=Value("string")
    )
    row = {"text": ["t"], "scan": images, "kind": [0], "label": ["l"]}
    dataset = Dataset.from_dict(row, features=features)
    assert open_source(dataset).image_column == "scan"
    assert open_source(dataset).class_names == ("k",)
    assert open_source(dataset, label_column="text").class_names == ("t",)

    two = Dataset.from_dict(
        {"left": images, "right": images}, features=Features(left=Image(), right=Image())
    )
    with pytest.raises(ValueError, match=r"several image columns \(columns: left, right\)"):
        open_source(two)
    assert open_source(two, image_column="right").image_column == "right"


# Training and evaluation


def test_evaluation_prefers_what_is_said_over_what_is_found():
    parts = {"train": [0] * 10, "test": [0] * 2, "validation": [0] * 3}
    splits = DatasetDict({k: labelled(v, label=ClassLabel(names=["a"])) for k, v in parts.items()})

    def sizes(**options) -> tuple[int, int | None]:
        train, evaluation = open_train_and_eval(DataConfig(**options), 0, source=splits)
        return len(train), None if evaluation is None else len(evaluation)

    assert sizes() == (10, 3)
    assert sizes(eval_split="test") == (10, 2)
    assert sizes(eval_share=0.2) == (8, 2)
    assert sizes(split="validation") == (3, 2)
    assert open_train_and_eval(DataConfig(), 0, source=splits["train"])[1] is None


def test_a_hold_out_is_disjoint_stratified_and_seeded():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    dataset = labelled(labels, label=ClassLabel(names=["a", "b", "c"]))

    def held(seed: int) -> list[int]:
        train, evaluation = open_train_and_eval(DataConfig(eval_share=0.2), seed, source=dataset)
        assert evaluation is not None and evaluation.class_names == train.class_names
        assert sorted(values(train) + values(evaluation)) == list(range(100))
        assert evaluation.labels is not None
        assert np.bincount(evaluation.labels).tolist() == [12, 6, 2]
        assert [labels[v] for v in values(evaluation)] == evaluation.labels.tolist()
        return values(evaluation)

    assert held(0) == held(0) != held(1)


def test_a_hold_out_without_labels_has_its_share():
    dataset = labelled([0] * 11).remove_columns("label")
    train, evaluation = open_train_and_eval(DataConfig(eval_share=0.25), 0, source=dataset)
    assert evaluation is not None and (len(train), len(evaluation)) == (8, 3)
    with pytest.raises(ValueError, match="eval_share=0.01 of the 11 images .* is 0 to evaluate on"):
        open_train_and_eval(DataConfig(eval_share=0.01), 0, source=dataset)


def test_few_labels_are_drawn_per_class_from_the_training_side_only():
    parts = {"train": [0] * 9 + [1] * 6 + [2], "test": [0] * 5}
    names = ClassLabel(names=["a", "b", "c"])
    splits = DatasetDict({k: labelled(v, label=names) for k, v in parts.items()})
    config = DataConfig(samples_per_class=3)
    train, evaluation = open_train_and_eval(config, 0, source=splits, use_labels=False)
    assert train.labels is not None and np.bincount(train.labels).tolist() == [3, 3, 1]
    assert evaluation is not None and len(evaluation) == 5
    assert values(train) == values(open_train_and_eval(config, 0, source=splits)[0])
    assert values(train) != values(open_train_and_eval(config, 1, source=splits)[0])


def test_class_ids_of_evaluation_follow_the_training_images():
    splits = DatasetDict({"train": labelled(["a", "b", "c"]), "test": labelled(["c", "b"])})
    _, evaluation = open_train_and_eval(DataConfig(), 0, source=splits)
    assert evaluation is not None and evaluation.class_names == ("a", "b", "c")
    assert evaluation.labels is not None and evaluation.labels.tolist() == [2, 1]


def test_classes_that_only_evaluation_has_are_refused_where_labels_are_used():
    splits = DatasetDict({"train": labelled(["good"]), "test": labelled(["bad", "good"])})
    with pytest.raises(ValueError, match=r"1 classes that the training images lack \(bad\)"):
        open_train_and_eval(DataConfig(), 0, source=splits)
    _, evaluation = open_train_and_eval(DataConfig(), 0, source=splits, use_labels=False)
    assert evaluation is not None and len(evaluation) == 2 and evaluation.labels is None


def test_labels_on_one_side_only():
    bare = labelled([0, 1]).remove_columns("label")
    splits = DatasetDict({"train": labelled([0, 1]), "test": bare})
    with pytest.raises(ValueError, match="has no labels and the training images have; evaluate on"):
        open_train_and_eval(DataConfig(), 0, source=splits)
    splits = DatasetDict({"train": bare, "test": labelled([0, 1])})
    train, evaluation = open_train_and_eval(DataConfig(), 0, source=splits)
    assert evaluation is not None and evaluation.class_names is None
    with pytest.raises(ValueError, match="has no labels; put the images into one folder per class"):
        train.require_classes()


# What cannot be opened


@pytest.mark.parametrize(
    ("source", "error", "line"),
    [
        ("missing", FileNotFoundError, r"no folder or file '.*missing'; check the path"),
        ("empty", FileNotFoundError, r"empty holds no images; .* \.avif .*, \.tar or \.parquet"),
        ("table.csv", ValueError, "neither a folder nor a .parquet or .tar file; name the"),
        ("*.parquet", FileNotFoundError, "matches no .parquet or .tar file; check the pattern"),
        ("broken", ValueError, "broken cannot be read as parquet: "),
    ],
)
def test_a_source_that_cannot_be_opened_says_so_in_one_line(tmp_path, source, error, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/x.parquet").write_text("no parquet")
    with pytest.raises(error, match=line) as caught:
        open_source(str(tmp_path / source))
    assert "\n" not in str(caught.value)


def test_a_hub_id_that_cannot_be_reached_says_so_in_one_line():
    with pytest.raises(ValueError, match="'no/such' is not a folder here, and does not") as caught:
        open_source("no/such:config")
    assert "\n" not in str(caught.value)


def test_a_stream_is_refused_where_images_are_needed_by_number(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not even looked at")
    for source in (tmp_path, labelled([0]).to_iterable_dataset()):
        with pytest.raises(ValueError, match="can only be read from front to back, and") as caught:
            open_source(source)
        assert "\n" not in str(caught.value)


def test_another_object_is_refused():
    with pytest.raises(ValueError, match="a datasets.Dataset, an IterableDataset .*, not dict"):
        open_source({"train": 1})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"split": "dev"}, "The DatasetDict has no split 'dev'; its splits are: train, extra."),
        ({"image_column": "photo"}, "no column 'photo'; its columns are: image, label."),
        ({"label_column": "kind"}, "no column 'kind'; its columns are: image, label."),
        ({"image_column": "label"}, "Column 'label' .* does not fit"),
        ({"label_column": "image"}, "Column 'image' .* does not fit"),
    ],
)
def test_a_split_or_column_that_is_not_there_is_answered_with_those_that_are(options, line):
    splits = DatasetDict({"train": labelled([0]), "extra": labelled([0])})
    with pytest.raises(ValueError, match=line):
        open_source(splits, **options)


def test_a_data_set_without_images_names_its_columns():
    with pytest.raises(ValueError, match=r"no image column \(columns: text, id\)"):
        open_source(Dataset.from_dict({"text": ["a"], "id": [1]}))


@pytest.mark.parametrize(
    "options",
    [
        {"eval_share": 1.0},
        {"eval_share": -0.1},
        {"samples_per_class": 0},
        {"num_workers": -1},
        {"eval_split": "test", "eval_share": 0.1},
    ],
)
def test_an_impossible_config_is_refused_by_field(options):
    with pytest.raises(ValueError, match=f"data.{next(iter(options))}"):
        DataConfig(**options)


# The embedded set


def test_the_embedded_set_opens_by_name():
    train, evaluation = open_train_and_eval(DataConfig(), 0)
    assert evaluation is not None and len(train) > len(evaluation) > 100
    assert train.class_names == evaluation.class_names
    assert len(train.require_classes()) > 5 and train.name == "emoji/train"
    assert decode(train[0].encoded, 3).shape == (3, 64, 64)


# Metadata and saved data sets


def write_metadata(root: Path, name: str, text: str) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root


def test_metadata_csv_labels_the_images_of_a_flat_folder(tmp_path):
    write(tmp_path, "a.png", "sub/b.png", "c.png")
    write_metadata(
        tmp_path, "metadata.csv", "file_name,age,label\nc.png,7,dog\na.png,,cat\nsub/b.png,3,dog\n"
    )
    source = open_source(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert {source[i].name[-5:]: source[i].label for i in range(3)} == {
        "a.png": 0,
        "b.png": 1,
        "c.png": 1,
    }
    with pytest.raises(ValueError, match="no label for 1 of its 3 images"):
        open_source(tmp_path, label_column="age")
    with pytest.raises(ValueError, match="no column 'sex'; its columns are: image, age, label"):
        open_source(tmp_path, label_column="sex")


def test_metadata_jsonl_lies_in_each_split_and_beats_the_folders_of_classes(tmp_path):
    write(tmp_path, "train/x/0.png", "train/y/1.png", "val/x/2.png")
    write_metadata(
        tmp_path,
        "train/metadata.jsonl",
        '{"file_name": "x/0.png", "label": 10}\n\n'
        '{"file_name": "y/1.png", "label": 9, "box": [1]}\n',
    )
    write_metadata(tmp_path, "val/metadata.jsonl", '{"file_name": "x/2.png", "label": 10}\n')
    train, evaluation = open_train_and_eval(DataConfig(source=str(tmp_path)), 0)
    assert evaluation is not None and train.class_names == ("9", "10")
    assert [train[i].label for i in range(2)] == [1, 0] and evaluation[0].label == 1
    write_metadata(tmp_path, "val/metadata.jsonl", '{"file_name": "x/2.png", "text": "no label"}\n')
    assert open_source(tmp_path, "val").class_names == ("x",)


def test_classes_that_are_numbers_and_text_stay_as_they_are_written(tmp_path):
    write(tmp_path, "a.png", "b.png")
    write_metadata(tmp_path, "metadata.csv", "file_name,label\na.png,007\nb.png,x\n")
    assert open_source(tmp_path).class_names == ("007", "x")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "metadata.csv",
            "file_name,label\nz.png,cat\n",
            r"Row 1 of .*csv names 'z.png', which is not",
        ),
        (
            "metadata.csv",
            "name,label\na.png,cat\n",
            r"Row 1 of .*metadata.csv has no file_name; give",
        ),
        ("metadata.jsonl", '{"file_name": "a.png"}\n[1]\n', "Row 2 of .* has no file_name"),
        ("metadata.jsonl", "{\n", "metadata.jsonl cannot be read: "),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path, name, text, line):
    write_metadata(write(tmp_path, "a.png"), name, text)
    with pytest.raises(ValueError, match=line) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_save_to_disk_wrote(tmp_path, streaming):
    names = ClassLabel(names=["a", "b"])
    parts = DatasetDict(
        {"train": labelled([0, 1], label=names), "test": labelled([1], label=names)}
    )
    parts.save_to_disk(str(tmp_path / "dict"))
    parts["train"].save_to_disk(str(tmp_path / "one"))
    for folder in ("dict", "one"):
        config = DataConfig(source=str(tmp_path / folder), streaming=streaming)
        train, evaluation = open_any_train_and_eval(config, 0)
        assert [record.label for record in train.records()] == [0, 1]
        assert (evaluation is None) == (folder == "one")
        assert isinstance(train, StreamSource) == streaming
    (tmp_path / "dict/train/state.json").write_text("{")
    with pytest.raises(ValueError, match="dict cannot be read as Arrow: ") as caught:
        open_source(tmp_path / "dict")
    assert "\n" not in str(caught.value)


def test_a_streamed_data_set_of_the_hub_is_read_from_its_own_files(tmp_path, monkeypatch):
    """A local folder stands for the Hub: `datasets` finds files, splits and formats alike."""
    write_parquet(tmp_path / "user/tables/data/train-00000.parquet", [0, 1])
    write_parquet(tmp_path / "user/tables/data/test-00000.parquet", [2])
    monkeypatch.chdir(tmp_path)
    opened = splits.find_in_hub("./user/tables", None, splits.Reading(streaming=True))
    assert set(opened) == {"train", "test"}
    assert isinstance(opened["train"](), ParquetFiles)
    write(tmp_path / "user/pictures", "a/0.png", "b/1.png")  # what is no shard streams as it can
    pictures = splits.find_in_hub("./user/pictures", None, splits.Reading(streaming=True))
    stream = open_stream("pictures", cast(ShardSet, pictures["train"]()))
    assert [record.label for record in stream.records()] == [0, 1]
    assert stream.class_names == ("a", "b")
