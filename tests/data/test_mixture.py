"""Mixtures: how often an epoch shows what, classes by name, and what cannot be mixed."""

import itertools
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.reader import Skipped
from hf_vitmae.data.request import Share
from hf_vitmae.data.sources import open_images, open_train_and_eval
from hf_vitmae.data.streams.stream import StreamSource

from .shard_files import (
    CLASS_NAMES,
    make_dataset,
    rows,
    value_of,
    values_of,
    write_folder,
    write_parquet,
    write_tars,
)


def shown(source: AnySource, num_images: int, start: int = 0) -> list[int]:
    """The numbers of the images from a position on."""
    requests = itertools.islice(source.train_requests(3, Share(1), start), num_images)
    if isinstance(source, StreamSource):
        return [value_of((request.records or [])[0]) for request in requests]
    return [value_of(source[request.places[0].index]) for request in requests]


def epochs_of(source: AnySource, num_epochs: int) -> list[Counter[int]]:
    size = source.epoch_size
    order = shown(source, num_epochs * size)
    return [Counter(order[i * size : (i + 1) * size]) for i in range(num_epochs)]


FIRST, SECOND, THIRD = range(8), range(8, 20), range(20, 26)


def open_mixture(kind: str, *weights: float) -> AnySource:
    parts = [make_dataset(numbers) for numbers in (FIRST, SECOND, THIRD)]
    sources: list = [*parts]
    if kind == "stream":
        sources[1] = parts[1].to_iterable_dataset(num_shards=3)
    config = DataConfig(source=("a", "b", "c"), weights=weights, shuffle_block=8, stream_readers=2)
    return open_train_and_eval(config, 0, source=sources)[0]


@pytest.mark.parametrize("kind", ["random access", "stream"])
def test_without_weights_an_epoch_is_the_union(kind):
    mixture = open_mixture(kind)
    assert len(mixture) == mixture.epoch_size == 26
    assert isinstance(mixture, StreamSource) == (kind == "stream")
    assert epochs_of(mixture, 3) == [Counter(range(26))] * 3
    assert mixture.require_classes() == CLASS_NAMES
    assert all(record.label == value_of(record) % 3 for record in mixture.records())


@pytest.mark.parametrize("kind", ["random access", "stream"])
def test_a_weight_is_how_often_an_epoch_shows_each_image(kind):
    mixture = open_mixture(kind, 2, 1, 0.5)
    assert (len(mixture), mixture.epoch_size) == (26, 16 + 12 + 3)
    epochs = epochs_of(mixture, 4)
    for epoch in epochs:
        assert all(epoch[i] == 2 for i in FIRST) and all(epoch[i] == 1 for i in SECOND)
        assert sum(epoch[i] for i in THIRD) == 3
    for two in (epochs[:2], epochs[2:]):  # every other epoch shows the other half
        assert all(two[0][i] + two[1][i] == 1 for i in THIRD)


@pytest.mark.parametrize("kind", ["random access", "stream"])
def test_a_weighted_mixture_starts_anywhere(kind):
    mixture = open_mixture(kind, 1.5, 0.25, 1)
    whole = shown(mixture, 80)
    for start in (1, 20, 21, 50):
        assert shown(open_mixture(kind, 1.5, 0.25, 1), 10, start) == whole[start : start + 10]


def test_half_of_a_sorted_source_has_all_classes():
    labels = [0] * 50 + [1] * 50
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]))
    images = rows(range(100))["image"]
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    for other in (make_two_classes(), make_two_classes().to_iterable_dataset()):
        config = DataConfig(source=("a", "b"), weights=(0.5, 1))
        mixture = open_train_and_eval(config, 0, source=[dataset, other])[0]
        shown_first = [i for i in epochs_of(mixture, 1)[0] if i < 100]
        assert len(shown_first) == 50 and 15 < sum(i < 50 for i in shown_first) < 35


def make_two_classes() -> Dataset:
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]))
    images = rows(range(200, 202))["image"]
    return Dataset.from_dict({"image": images, "label": [1, 0]}, features=features)


def test_classes_are_matched_by_name(tmp_path):
    images = rows(range(2))["image"]
    first = Features(image=Image(), label=ClassLabel(names=["dog", "cat"]))
    second = Features(image=Image(), label=ClassLabel(names=["cat", "owl"]))
    one = Dataset.from_dict({"image": images, "label": [0, 1]}, features=first)
    two = Dataset.from_dict({"image": images, "label": [0, 1]}, features=second)
    for other in (two, two.to_iterable_dataset()):
        mixture = open_images([one, other])
        assert mixture.class_names == ("dog", "cat", "owl")
        assert [record.label for record in open_ordered([one, other])] == [0, 1, 1, 2]


def open_ordered(sources: list) -> list:
    """The records of a mixture by the sources' order, whatever the order by chance is."""
    records = list(open_images(sources).records())
    assert len(records) == 4
    return sorted(records, key=lambda r: (r.label == 2, r.label))


def test_files_of_every_kind_mix_and_keep_their_names(tmp_path):
    write_folder(tmp_path / "folder", FIRST)
    write_parquet(tmp_path / "parquet", [3, 5])
    write_tars(tmp_path / "tars", [4, 2], label="json")
    folders = tuple(str(tmp_path / name) for name in ("folder", "parquet", "tars"))
    mixture = open_train_and_eval(DataConfig(source=folders), 0)[0]
    assert epochs_of(mixture, 2) == [Counter([*FIRST, *range(8), *range(6)])] * 2
    by_index = open_train_and_eval(DataConfig(source=folders[:2]), 0)[0]
    names = [record.name for record in by_index.records()]
    assert names[0] == f"{folders[0]}/a/00000.png"
    assert names[8:] == [f"{folders[1]}/train[{i}]" for i in range(8)]
    assert values_of(by_index.select(np.array([9, 0])).records()) == [1, 0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_vanished_inside_a_streamed_mixture_is_a_bad_image(tmp_path, num_workers):
    write_folder(tmp_path / "folder", range(4))
    write_tars(tmp_path / "tars", [4, 2])
    mixture = open_images([tmp_path / "folder", tmp_path / "tars"])
    assert isinstance(mixture, StreamSource)
    gone = tmp_path / "folder/b/00001.png"
    gone.unlink()
    skipped: list[Skipped] = []
    transform = TrainTransform((4, 4), num_channels=1)
    options: dict = {"seed": 0, "num_workers": num_workers, "skip": skipped.append}
    batches = train_batches(mixture, transform, batch_size=5, **options)
    sizes = [len(batch["labels"]) for batch in itertools.islice(batches, 2)]
    batches.close()
    reason = "is not there; put it back, or open the source anew."
    assert skipped == [Skipped(str(gone), reason, 0)] and sum(sizes) == 9


def test_evaluation_is_of_all_that_have_a_split_for_it(tmp_path):
    for name, numbers in (("one", range(3)), ("two", range(3, 7))):
        write_folder(tmp_path / name / "train", range(20, 26))
        write_folder(tmp_path / name / "val", numbers)
    write_folder(tmp_path / "three", range(26, 29))
    config = DataConfig(source=tuple(str(tmp_path / n) for n in ("one", "two", "three")))
    train, evaluation = open_train_and_eval(config, 0)
    assert evaluation is not None and len(train) == 15
    assert sorted(values_of(evaluation.records())) == list(range(7))
    held = open_train_and_eval(DataConfig(source=config.source[2:], eval_share=0.34), 0)[1]
    assert held is not None and len(held) == 1
    with pytest.raises(ValueError, match="three has no split 'val'; its splits are: train"):
        open_train_and_eval(DataConfig(source=config.source, eval_split="val"), 0)


def test_a_hold_out_of_a_mixture_is_of_each_source():
    sources = [make_dataset(range(10)), make_dataset(range(10, 30))]
    config = DataConfig(source=("a", "b"), weights=(2, 1), eval_share=0.2)
    train, evaluation = open_train_and_eval(config, 0, source=sources)
    assert evaluation is not None and (len(train), len(evaluation)) == (24, 6)
    held = values_of(evaluation.records())
    assert sum(i < 10 for i in held) == 2 and evaluation.epoch_size == 6
    assert sorted(held + values_of(train.records())) == list(range(30))


def test_labels_here_and_none_there_mix_for_pretraining_only():
    bare = make_dataset(range(3)).remove_columns("label")
    sources = [make_dataset(range(3)), bare]
    with pytest.raises(
        ValueError, match="The Dataset/train has labels and .* has none; only pretr"
    ):
        open_images(sources)
    assert len(open_images(sources, use_labels=False)) == 6


def test_label_maps_mix():
    maps = [{"image": image, "label_map": image} for image in rows(range(4))["image"]]
    features = Features(image=Image(), label_map=Image())
    one, two = (Dataset.from_list(part, features=features) for part in (maps[:3], maps[3:]))
    two = two.rename_columns({"image": "photo", "label_map": "mask"})
    mixture = open_images([one, two], use_label_maps=True)
    assert all(record.label_map == record.encoded for record in mixture.records())
    assert [record.label_map for record in open_images([one, two]).records()] == [None] * 4


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"weights": (1.0,)}, r"data.weights has 1 values and data.source has 2; give one weight"),
        ({"weights": (1.0, 2.0, 3.0)}, r"data.weights has 3 values and data.source has 2"),
        ({"weights": (1.0, 0.0)}, "data.weights must be above 0, not 0.0"),
        ({"weights": (1.0, -1.0)}, "data.weights must be above 0, not -1.0"),
        ({"weights": (1.0, float("nan"))}, "data.weights must be above 0, not nan"),
        ({"weights": (1.0, float("inf"))}, "data.weights must be above 0, not inf"),
        ({"source": ()}, "data.source is empty; name at least one source"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(options, line):
    with pytest.raises(ValueError, match=line):
        DataConfig(**({"source": ("a", "b")} | options))


def test_what_cannot_be_mixed_is_said_in_one_line():
    dataset = make_dataset(range(3))
    sources = [dataset, dataset.select([])]
    cases: list[tuple[dict, str]] = [
        (
            {"weights": (1, 0.1), "source": [dataset, dataset]},
            "weight 0.1 of The Dataset/train, wh",
        ),
        ({"source": sources}, "holds no images; leave it out of the mixture"),
        ({"source": []}, "The list of sources is empty"),
        ({"source": [dataset, 3]}, "A source is a name, a path, .* not int"),
        (
            {"source": [dataset], "weights": (1, 2)},
            "data.weights has 2 values and data.source has 1",
        ),
    ]
    for options, line in cases:
        with pytest.raises(ValueError, match=line) as caught:
            open_images(options.pop("source"), **options)
        assert "\n" not in str(caught.value)


def test_few_labels_and_weights_exclude_each_other():
    config = DataConfig(source=("a", "b"), weights=(2, 1), samples_per_class=1)
    with pytest.raises(ValueError, match="data.samples_per_class=1 and data.weights both choose"):
        open_train_and_eval(config, 0, source=[make_dataset(range(6)), make_dataset(range(6))])
    config = DataConfig(source=("a", "b"), samples_per_class=1)
    sources = [make_dataset(range(6)), make_dataset(range(6))]
    assert len(open_train_and_eval(config, 0, source=sources)[0]) == 3
