"""Streams: what random access gives, whatever the shards; memory, ends, labels and errors."""

import gc
import io
import itertools
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.loader import eval_batches, train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.request import Share
from hf_vitmae.data.sources import Sources, open_images, open_train_and_eval
from hf_vitmae.data.streams.shards import ShardMemory
from hf_vitmae.data.streams.stream import StreamOptions, StreamSource

from ..shard_files import (
    CLASS_NAMES,
    encoded,
    features,
    make_dataset,
    rows,
    sample_files,
    value_of,
    values_of,
    write_parquet,
    write_tar,
    write_tars,
)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores

TRANSFORM = TrainTransform((4, 4), num_channels=1)
SIZES = (7, 0, 4, 9)


def open_stream(source: Sources, **options) -> StreamSource:
    settings: dict = {"streaming": True} | options
    config = DataConfig(**settings)
    source = str(source) if isinstance(source, Path) else source
    stream = open_train_and_eval(config, seed=0, source=source)[0]
    assert isinstance(stream, StreamSource)
    return stream


def shown(source: AnySource, num_images: int, **options) -> list[int]:
    """The numbers of the first images of the stream, of all ranks together."""
    settings: dict = {"start_step": 0, "world_size": 1} | options
    share = [Share(1, rank, settings["world_size"]) for rank in range(settings["world_size"])]
    requests = [source.train_requests(3, s, settings["start_step"]) for s in share]
    records = (next(rank).records for rank in itertools.cycle(requests))
    return [value_of((record or [])[0]) for record in itertools.islice(records, num_images)]


# Every kind of shard


def save_arrow(root: Path, sizes) -> Path:
    make_dataset(range(sum(sizes))).save_to_disk(str(root))
    return root


WRITE = {
    "parquet": write_parquet,
    "tar": write_tars,
    "tar of json": lambda root, sizes: write_tars(root, sizes, label="json"),
    "compressed tar": lambda root, sizes: write_tars(root, sizes, suffix="tar.gz"),
    "arrow": save_arrow,
}


def objects(kind: str):
    data = rows(range(sum(SIZES)))

    def generate(shards):
        for shard in shards:
            for i in shard:
                yield {name: values[i] for name, values in data.items()}

    from datasets import IterableDataset

    shards = {"shards": [range(0, 5), range(5, 9), range(9, 20)]}
    return {
        "typed": IterableDataset.from_generator(generate, features(), gen_kwargs=shards),
        "untyped": IterableDataset.from_generator(generate, gen_kwargs=shards),
        "from a Dataset": make_dataset(range(20)).to_iterable_dataset(num_shards=3),
    }[kind]


@pytest.fixture(params=[*WRITE, "typed", "untyped", "from a Dataset"])
def stream(request, tmp_path) -> StreamSource:
    if request.param in WRITE:
        return open_stream(WRITE[request.param](tmp_path / "data", SIZES))
    return open_stream(objects(request.param))


def test_every_kind_gives_all_images_with_their_classes_in_order(stream):
    assert len(stream) == stream.epoch_size == 20
    records = list(stream.records())
    assert values_of(records) == list(range(20))
    names = stream.require_classes()
    assert [names[r.label or 0] for r in records] in (
        [CLASS_NAMES[i % 3] for i in range(20)],
        [str(i % 3) for i in range(20)],
    )
    assert len({record.name for record in records}) == 20


def test_every_kind_starts_anywhere(stream):
    whole = shown(stream, 60)
    assert [Counter(whole[i : i + 20]) for i in (0, 20, 40)] == [Counter(range(20))] * 3
    for start in (1, 13, 20, 37):
        assert shown(stream, 10, start_step=start) == whole[start : start + 10]


def test_every_kind_is_read_at_two_places_at_once(stream):
    first, second = stream.records(), stream.select(np.arange(3, 20)).records()
    pairs = [(value_of(a), value_of(b)) for a, b in zip(first, second, strict=False)]
    assert pairs == [(i, i + 3) for i in range(17)]
    assert values_of(first) == [18, 19]  # `zip` took 17 and threw it away


@pytest.mark.parametrize("indices", [[0], [3, 4, 11], [19], list(range(0, 20, 3)), list(range(20))])
def test_every_kind_gives_any_selection(stream, indices):
    assert values_of(stream.select(np.array(indices)).records()) == indices


@pytest.mark.parametrize("most", [1, 3, 8, 50])
def test_examples_are_some_images_and_all_of_them_where_there_are_few(stream, most):
    found = values_of(stream.examples(most))
    assert len(set(found)) == len(found) == min(most, 20)


def test_streaming_and_random_access_give_the_same_samples_and_names(tmp_path):
    for kind in ("parquet", "arrow"):
        folder = str(WRITE[kind](tmp_path / kind, SIZES))
        for use_labels in (True, False):
            by_index, stream = (
                open_images(folder, streaming=streaming, use_labels=use_labels)
                for streaming in (False, True)
            )
            assert list(stream.records()) == list(by_index.records())
            assert stream.class_names == by_index.class_names
            assert len(stream) == len(by_index) and isinstance(stream, StreamSource)


def array(value: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.full((2, 2), value, np.uint8))
    return buffer.getvalue()


def test_an_array_of_numpy_is_the_image_of_a_sample_that_has_no_other(tmp_path):
    files = {"0.npy": array(5), "0.cls": b"1", "1.cls": b"0", "1.npy": array(6)}
    stream = open_stream(write_tar(tmp_path / "x.tar", files))
    assert [(value_of(r), r.label) for r in stream.records()] == [(5, 1), (6, 0)]
    assert next(iter(stream.records())).name == f"{tmp_path}/x.tar/0.npy"


@pytest.mark.parametrize("order", [1, -1])
def test_an_array_beside_the_image_of_a_sample_is_not_taken_for_it(tmp_path, order):
    samples = [{"0.tif": encoded(3), "0.npy": array(9)}, {"1.jpg": encoded(4), "1.f.npy": b"junk"}]
    files = [pair for sample in samples for pair in list(sample.items())[::order]]
    stream = open_stream(write_tar(tmp_path / "x.tar", dict(files)))
    assert values_of(stream.records()) == [3, 4]
    named = open_stream(tmp_path / "x.tar", image_column="npy")
    assert values_of(named.records()) == [9]


def test_two_arrays_of_a_sample_must_be_told_apart_by_name(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"0.a.npy": array(3), "0.b.npy": array(4)})
    with pytest.raises(ValueError, match=r"several images in the sample '0' \(a.npy, b.npy\); nam"):
        list(open_stream(path).records())
    assert values_of(open_stream(path, image_column="b.npy").records()) == [4]


def test_a_url_is_read_like_a_file(tmp_path):
    for kind in ("parquet", "tar"):
        folder = WRITE[kind](tmp_path / kind, SIZES)
        pattern = f"file://{folder}/*.{kind}"
        assert values_of(open_images(pattern, streaming=True).records()) == list(range(20))
        one = f"file://{folder}/0002.{kind}"
        assert values_of(open_images(one, streaming=True).records()) == list(range(7, 11))


def test_a_numbered_pattern_is_expanded(tmp_path):
    write_tars(tmp_path, [2, 3, 4])
    assert values_of(open_images(f"{tmp_path}/{{0001..0002}}.tar").records()) == list(range(2, 9))


def test_splits_of_shards_are_found_by_their_names(tmp_path):
    write_tar(tmp_path / "train-0.tar", sample_files(1))
    write_tar(tmp_path / "train-1.tar", sample_files(2))
    write_tar(tmp_path / "val-0.tar", sample_files(2))
    train, evaluation = open_train_and_eval(DataConfig(source=str(tmp_path)), 0)
    assert evaluation is not None and train.class_names == evaluation.class_names == ("1", "2")
    assert (values_of(train.records()), values_of(evaluation.records())) == ([1, 2], [2])
    assert [record.label for record in evaluation.records()] == [1]


# Epochs, ranks, workers


@pytest.mark.parametrize("num_images", [1, 3, 7, 8, 9])
def test_a_stream_with_fewer_images_than_readers(tmp_path, num_images):
    stream = open_stream(write_parquet(tmp_path, [num_images]))
    order = shown(stream, 5 * num_images)
    epochs = [order[i : i + num_images] for i in range(0, len(order), num_images)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(num_images))] * 5


def test_images_are_shuffled_over_shards_and_within_blocks(tmp_path):
    stream = open_stream(write_parquet(tmp_path, [25] * 8), stream_readers=4, shuffle_block=40)
    order = shown(stream, 400)
    assert order[:200] != order[200:] and sorted(order[:200]) == list(range(200))
    assert len({i // 25 for i in order[:4]}) == 4  # four shards side by side
    assert np.abs(np.diff(order[:200:4])).max() > 1  # and not in order within one


def test_ranks_read_lanes_of_their_own(tmp_path):
    stream = open_stream(write_parquet(tmp_path, [5] * 8), stream_readers=8)
    parts = [shown(stream, 40, world_size=world_size) for world_size in (1, 2, 4)]
    assert parts[0] == parts[1] == parts[2]
    read: list[set[str]] = []
    for rank in range(4):
        requests = stream.train_requests(3, Share(10, rank, 4), 0)
        read.append({record.name for record in next(requests).records or []})
    assert sum(map(len, read)) == len(set[str]().union(*read)) == 40


def no_sleep(seconds: float) -> None:
    raise AssertionError(f"a sleep of {seconds} s")


@pytest.mark.parametrize("num_shards", [400, 10])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_many_uneven_shards_with_two_ranks_and_three_workers(
    tmp_path, monkeypatch, num_shards, kind
):
    """Two epochs: nothing is lost or repeated, and nothing waits at an epoch's end."""
    sizes = np.random.default_rng(0).integers(0, 2000 // num_shards, num_shards).tolist()
    sizes[:2] = [0, 1]
    folder, total = WRITE[kind](tmp_path, sizes), sum(sizes)
    stream = open_stream(folder)
    assert len(stream) == total
    monkeypatch.setattr(time, "sleep", no_sleep)
    steps, seen = -(-total * 2 // 64), []
    for rank in range(2):
        batches = train_batches(
            stream, TRANSFORM, seed=0, batch_size=32, rank=rank, world_size=2, num_workers=3
        )
        taken = [
            (batch["pixel_values"][:, 0, 0, 0].tolist(), batch["labels"].tolist())
            for batch in itertools.islice(batches, steps)
        ]
        batches.close()
        seen.append(taken)
    places: dict[int, tuple[int, int]] = {}
    for rank, taken in enumerate(seen):
        for step, (values, labels) in enumerate(taken):
            for i, pair in enumerate(zip(values, labels, strict=True)):
                places[step * 64 + rank + 2 * i] = pair
    expected = Counter((i % 256, i % 3) for i in range(total))
    for epoch in range(2):
        inside = range(epoch * total, (epoch + 1) * total)
        assert Counter(places[p] for p in inside) == expected


def test_processes_that_do_not_divide_the_readers_are_refused_by_name(tmp_path):
    stream = open_stream(write_parquet(tmp_path, [5]))
    line = (
        "16 processes do not divide 8 stream readers; set --data.stream-readers to a multiple of 16"
    )
    with pytest.raises(ValueError, match=line):
        train_batches(stream, TRANSFORM, seed=0, batch_size=1, world_size=16)


def test_bytes_are_read_in_the_main_process_and_its_thread_ends_with_the_batches(tmp_path):
    stream = open_stream(write_parquet(tmp_path, SIZES))
    batches = train_batches(stream, TRANSFORM, seed=0, batch_size=2, num_workers=1)
    next(batches)
    assert "read-ahead" in [thread.name for thread in threading.enumerate()]
    batches.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


# Evaluation


class AsItIs(TrainTransform):
    """Cuts the corner, as one would with an image processor."""

    def read(self, encoded, generator, name):
        from hf_vitmae.data.decoding.decode import decode

        return decode(encoded, 1, name)[:, :2, :2]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [SIZES, (1,), (5, 2)])
def test_evaluation_shows_every_image_once_over_all_ranks(tmp_path, world_size, sizes):
    stream = open_stream(write_tars(tmp_path, sizes))
    seen, shapes = [], []
    for rank in range(world_size):
        batches = list(
            eval_batches(
                stream,
                AsItIs((2, 2)),
                seed=1,
                batch_size=3,
                rank=rank,
                world_size=world_size,
                num_noise=4,
            )
        )
        shapes.append([len(batch["valid"]) for batch in batches])
        for batch in batches:
            values = batch["pixel_values"][:, 0, 0, 0][batch["valid"]].tolist()
            seen += zip(values, batch["noise"][batch["valid"]].tolist(), strict=True)
    assert [value for value, _ in seen] == list(range(sum(sizes)))
    assert all(shape == shapes[0] for shape in shapes)  # what gathering needs
    by_index = open_images(make_dataset(range(sum(sizes))))
    batches = eval_batches(by_index, AsItIs((2, 2)), seed=1, batch_size=32, num_noise=4)
    assert torch.equal(torch.tensor([noise for _, noise in seen]), next(batches)["noise"])


# Memory


def test_a_block_takes_the_memory_of_its_encoded_bytes(tmp_path):
    size, image = 20_000, np.random.default_rng(0)
    images = [{"bytes": image.bytes(size), "path": None} for _ in range(2400)]
    table = Dataset.from_dict({"image": images}, features=Features(image=Image()))
    for i in range(12):
        part = table.select(range(i * 200, (i + 1) * 200))
        part.to_parquet(str(tmp_path / f"{i}.parquet"))
    del images, table, part
    stream = open_stream(tmp_path, shuffle_block=1000)
    requests = stream.train_requests(0, Share(50), 0)
    gc.collect()
    tracemalloc.start()
    held = []
    for _ in range(60):  # more than an epoch
        next(requests)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    requests.close()
    block = 1000 * size
    assert 0.8 * block < min(held) and max(held) < 1.2 * block


# Labels


def test_labels_without_names_are_the_sorted_values_of_all_shards(tmp_path):
    for i, labels in enumerate([[10, 9], [9, 2]]):
        columns = {"image": rows(range(2))["image"], "kind": labels}
        typed = Features(image=Image(), kind=Value("int64"))
        Dataset.from_dict(columns, features=typed).to_parquet(str(tmp_path / f"{i}.parquet"))
    stream = open_stream(tmp_path, label_column="kind")
    assert stream.class_names == ("2", "9", "10")
    assert [record.label for record in stream.records()] == [2, 1, 1, 0]


def test_no_labels_at_all_is_unlabelled_and_gaps_are_refused(tmp_path):
    for name, labels in {"none": [-1, -1, -1], "gaps": [0, -1, 2]}.items():
        columns = {"image": rows(range(3))["image"], "label": labels}
        typed = Features(image=Image(), label=ClassLabel(names=list(CLASS_NAMES)))
        (tmp_path / name).mkdir()
        Dataset.from_dict(columns, features=typed).to_parquet(str(tmp_path / name / "0.parquet"))
    assert open_stream(tmp_path / "none").class_names is None
    with pytest.raises(ValueError, match="no label for 1 of its 3 images"):
        open_stream(tmp_path / "gaps")
    assert len(open_images(tmp_path / "gaps", streaming=True, use_labels=False)) == 3


def test_classes_that_only_evaluation_has_are_refused(tmp_path):
    train = open_stream(write_tars(tmp_path / "train", [3]))
    more = open_stream(write_tar(tmp_path / "more.tar", {"0.cls": b"7", "0.png": encoded(0)}))
    with pytest.raises(ValueError, match=r"1 classes that the training images lack \(7\)"):
        more.with_classes(train.require_classes())
    assert train.with_classes(("2", "1", "0")).class_names == ("2", "1", "0")
    with pytest.raises(ValueError, match="has no labels and the training images have"):
        more.without_labels().with_classes(("7",))
    with pytest.raises(ValueError, match="has no labels; put"):
        more.without_labels().require_classes()


# Tars


def test_a_tar_may_hold_more_than_images_and_labels(tmp_path):
    files = {
        "folder/.DS_Store": b"junk",
        "folder/a.x.txt": b"only text, so no sample",
        **{
            f"folder/b.{end}": content
            for end, content in {"png": encoded(5), "json": b"[]"}.items()
        },
        "README": b"no dot",
        "other/b.PNG": encoded(6),
    }
    stream = open_stream(write_tar(tmp_path / "x.tar", files))
    assert values_of(stream.records()) == [5, 6] and stream.class_names is None
    assert [r.name for r in stream.records()] == [
        f"{tmp_path}/x.tar/folder/b.png",
        f"{tmp_path}/x.tar/other/b.png",
    ]


def test_one_of_several_images_of_a_sample_is_taken_by_its_extension(tmp_path):
    files = {"0.left.png": encoded(1), "0.right.png": encoded(2), "0.kind": b"cat"}
    path = write_tar(tmp_path / "x.tar", files)
    with pytest.raises(ValueError, match=r"several images in the sample '0' \(left.png, right.png"):
        list(open_stream(path).records())
    stream = open_stream(path, image_column="right.png", label_column="kind")
    assert values_of(stream.records()) == [2] and stream.class_names == ("cat",)


# What goes wrong


def test_a_shard_that_changed_is_named(tmp_path):
    write_parquet(tmp_path, [4, 4])
    stream = open_stream(tmp_path)
    for size, what in ((3, "fewer"), (5, "more")):
        table = make_dataset(range(size)).data.table
        pq.write_table(table, tmp_path / "0001.parquet")
        with pytest.raises(ValueError, match=f"0001.parquet holds {what} samples than the 4") as e:
            list(stream.records())
        assert "\n" not in str(e.value) and "shards.json" in str(e.value)
        with pytest.raises(ValueError, match=f"0001.parquet holds {what} samples than the 4"):
            batches = train_batches(stream, TRANSFORM, seed=0, batch_size=9, num_workers=1)
            next(batches)
            next(batches)


def test_an_error_of_the_reading_thread_comes_after_the_batches_before_it(tmp_path):
    write_tars(tmp_path, [30, 30])
    stream = open_stream(tmp_path, stream_readers=1, shuffle_block=4)
    for path in tmp_path.iterdir():  # the middle of both is gone
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    batches = train_batches(stream, TRANSFORM, seed=0, batch_size=2, num_workers=2)
    with pytest.raises(ValueError, match=r"\d.tar (cannot be read as tar|holds fewer)") as caught:
        for count in itertools.count():  # noqa: B007
            next(batches)
    assert count >= 2 and "\n" not in str(caught.value)


def test_an_image_that_cannot_be_decoded_is_named_by_its_place(tmp_path):
    files = {**sample_files(0), "00001.cls": b"0", "00001.png": b"junk"}
    stream = open_stream(write_tar(tmp_path / "x.tar", files))
    for workers in (0, 1):
        batches = train_batches(stream, TRANSFORM, seed=0, batch_size=4, num_workers=workers)
        with pytest.raises(ValueError, match="x.tar/00001.png cannot be decoded"):
            next(batches)


def test_a_row_without_an_image_is_named(tmp_path):
    columns = {"image": [*rows([0])["image"], None]}
    Dataset.from_dict(columns, features=Features(image=Image())).to_parquet(
        str(tmp_path / "x.parquet")
    )
    batches = train_batches(open_stream(tmp_path), TRANSFORM, seed=0, batch_size=2)
    with pytest.raises(ValueError, match=r"/train\[1\] holds no image; leave the row out"):
        next(batches)


@pytest.mark.parametrize(
    ("files", "options", "line"),
    [
        ({"a.txt": b"no image"}, {}, "holds no images; choose another split or source"),
        ({}, {}, "holds no images; choose another split or source"),
        (sample_files(0), {"image_column": "jpg"}, "holds no images; choose another split"),
        (sample_files(0), {"label_column": "kind"}, "has no label 'kind'; name another label"),
        ({"a.png": encoded(0), "a.json": b"{"}, {}, r"x.tar/a.json cannot be read as JSON"),
    ],
)
def test_a_tar_that_cannot_be_used_says_so_in_one_line(tmp_path, files, options, line):
    write_tar(tmp_path / "x.tar", files)
    with pytest.raises(ValueError, match=line) as caught:
        train_batches(open_stream(tmp_path, **options), TRANSFORM, seed=0, batch_size=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"image_column": "photo"}, "no column 'photo'; its columns are: image, label"),
        ({"label_column": "kind"}, "no column 'kind'; its columns are: image, label"),
        ({"image_column": "label"}, "Column 'label' .* does not fit"),
        ({"eval_share": 0.5}, r"data.eval_share=0.5 draws single images, .* read as a stream"),
        ({"samples_per_class": 2}, "data.samples_per_class=2 draws single images"),
        ({"split": "test"}, "has no split 'test'; its splits are: train"),
    ],
)
def test_an_option_that_a_stream_cannot_have_is_refused_by_name(tmp_path, options, line):
    write_parquet(tmp_path, [4])
    with pytest.raises(ValueError, match=line) as caught:
        open_stream(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_a_shard_that_lacks_the_columns_of_the_first_is_named(tmp_path):
    write_parquet(tmp_path, [2, 2])
    make_dataset(range(2)).rename_column("image", "photo").to_parquet(
        str(tmp_path / "0001.parquet")
    )
    with pytest.raises(ValueError, match="0001.parquet has no column 'image'; its columns are"):
        open_stream(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_damaged_or_lost_shard_is_named(tmp_path, kind):
    WRITE[kind](tmp_path, SIZES)
    stream, path = open_stream(tmp_path), tmp_path / f"0002.{kind}"
    path.write_bytes(b"junk" * 300)
    with pytest.raises(ValueError, match=f"0002.{kind} cannot be read as {kind}: "):
        list(stream.records())
    with pytest.raises(ValueError, match=f"0002.{kind} cannot be read as {kind}: "):
        open_stream(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"0002.{kind}' is not there; put it back"):
        list(stream.records())


def test_label_maps_of_a_stream_are_refused(tmp_path):
    write_parquet(tmp_path, [2])
    with pytest.raises(ValueError, match="is read as a stream, and label maps are not; use"):
        open_images(tmp_path, streaming=True, use_label_maps=True)


# What is remembered


def test_shards_are_looked_through_once(tmp_path, capfd, monkeypatch):
    dataset, path = objects("typed"), tmp_path / "shards.json"
    config = DataConfig()

    def open_again() -> StreamSource:
        memory = ShardMemory.read(path)
        stream, _ = open_train_and_eval(config, 0, source=dataset, memory=memory)
        assert isinstance(stream, StreamSource) and stream.memory is memory
        memory.write()
        return stream

    first = open_again()
    assert "counting the images of 3 shards" in capfd.readouterr().err
    second = open_again()
    assert capfd.readouterr().err == "" and list(second.records()) == list(first.records())
    assert second.class_names == CLASS_NAMES
    path.write_text("damaged")
    assert len(open_again()) == 20 and "counting" in capfd.readouterr().err


def test_a_file_that_changed_is_counted_anew(tmp_path):
    memory, config = ShardMemory(), DataConfig(source=str(tmp_path), streaming=True)
    for sizes in ([3, 4], [3, 5]):
        write_parquet(tmp_path, sizes)
        assert len(open_train_and_eval(config, 0, memory=memory)[0]) == sum(sizes)


def test_options_reach_the_stream(tmp_path):
    stream = open_stream(write_parquet(tmp_path, [3]), stream_readers=3, shuffle_block=9)
    assert stream.options == StreamOptions(3, 9)


def test_shards_on_another_computer_are_read_through_their_file_system(tmp_path):
    """The file system in memory of fsspec stands for any: nothing of it is a path here."""
    memory = fsspec.filesystem("memory")
    for kind in ("parquet", "tar"):
        for path in WRITE[kind](tmp_path / kind, SIZES).iterdir():
            memory.pipe_file(f"/{kind}/{path.name}", path.read_bytes())
        stream = open_images(f"memory://{kind}/*.{kind}", streaming=True)
        assert values_of(stream.records()) == list(range(20))
        assert Counter(shown(stream, 20)) == Counter(range(20))
    memory.rm("/", recursive=True)
