"""Bad images are left out of their batches and named; all that is good is as it is without them."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image

from hf_vitmae.data.augmentation.transforms import EvalTransform, TrainTransform
from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import eval_batches, train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.reader import Skipped
from hf_vitmae.data.request import Missing
from hf_vitmae.data.sources import open_images, open_source
from hf_vitmae.models import pictures

from .shard_files import encoded, features, write_tar

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores

NUM_IMAGES = 12
BAD = {2: b"junk", 5: None, 9: encoded(9)[:-28]}  # None has no image at all, or its file is gone
TRANSFORM = TrainTransform((4, 4), num_channels=1, crop_scale=(1.0, 1.0))
KINDS = ("folder", "parquet", "parquet stream", "tar stream")


class AsItIs:
    """Stands for an image processor."""

    num_channels = 1

    def resize_and_crop(self, image):
        return image[:, :1, :1]

    def resize_and_crop_map(self, label_map):
        return label_map[:1, :1]


def open_kind(root: Path, kind: str, bad: dict[int, bytes | None] = BAD) -> AnySource:
    """Twelve images, image i filled with i, but for the bad ones; a tar knows no empty rows."""
    bytes_of = {number: bad.get(number, encoded(number)) for number in range(NUM_IMAGES)}
    if kind == "folder":
        for number in range(NUM_IMAGES):
            (root / f"{number:02d}.png").write_bytes(bytes_of[number] or b"")
        source = open_source(root)
        for number in bad:
            if bytes_of[number] is None:
                (root / f"{number:02d}.png").unlink()
        return source
    if kind == "tar stream":
        write_tar(root / "x.tar", {f"{n:02d}.png": found or b"" for n, found in bytes_of.items()})
        return open_images(root)
    images = [None if found is None else {"bytes": found} for found in bytes_of.values()]
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    pq.write_table(pa.table({"image": images}, schema=schema), root / "x.parquet")
    return open_images(root, streaming=kind == "parquet stream")


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> tuple[AnySource, AnySource]:
    """A source with bad images and the same one without."""
    roots = [tmp_path_factory.mktemp("data") for _ in range(2)]
    return open_kind(roots[0], request.param), open_kind(roots[1], request.param, {})


Taken = tuple[list[dict[str, torch.Tensor]], list[Skipped]]


def take(source: AnySource, num_batches: int, **options) -> Taken:
    skipped: list[Skipped] = []
    settings: dict = {"seed": 3, "batch_size": 4, "num_noise": 5, "skip": skipped.append} | options
    batches = train_batches(source, TRANSFORM, **settings)
    taken = list(itertools.islice(batches, num_batches))
    batches.close()
    return taken, skipped


def samples(batches: list[dict[str, torch.Tensor]]) -> list[tuple[int, list[float]]]:
    """Number and noise of every image that counts."""
    batches = [batch for batch in batches if "valid" not in batch]
    pixels = torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in batches]).tolist()
    noise = torch.cat([batch["noise"] for batch in batches]).tolist()
    return list(zip(pixels, noise, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_that_is_good_comes_once_and_as_it_is_without_bad_images(pair, num_workers):
    broken, whole = pair
    taken, skipped = take(broken, 6, num_workers=num_workers)
    expected, none = take(whole, 6)
    assert samples(taken) == [s for s in samples(expected) if s[0] not in BAD]
    assert [len(b["noise"]) for b in taken] == [
        4 - len(set(b["pixel_values"][:, 0, 0, 0].tolist()) & set(BAD)) for b in expected
    ]
    assert all("valid" not in batch for batch in taken) and none == []
    assert [image.epoch for image in skipped] == [0, 0, 0, 1, 1, 1]
    for epoch in (0, 1):
        of_epoch = [image for image in skipped if image.epoch == epoch]
        assert len({image.name for image in of_epoch}) == len(BAD)
        assert all("\n" not in f"{image.name} {image.reason}" for image in of_epoch)


def test_a_resumed_run_skips_the_same(pair):
    assert samples(take(pair[0], 6)[0][2:]) == samples(take(pair[0], 4, start_step=2)[0])
    assert take(pair[0], 3, start_step=3)[1] == take(pair[0], 6)[1][3:]


def test_ranks_skip_each_their_own(pair):
    parts = [take(pair[0], 6, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    skipped = [image for part in parts for image in part[1]]
    assert sorted(skipped) == sorted(take(pair[0], 6)[1])


def test_reasons_and_names(tmp_path):
    _, skipped = take(open_kind(tmp_path, "folder"), 3)
    reasons = {Path(image.name).name: image.reason for image in skipped}
    assert reasons["02.png"].startswith("cannot be decoded: it is not an image")
    assert reasons["05.png"] == "is not there; put it back, or open the source anew."
    assert "cannot be decoded" in reasons["09.png"] and "truncated" in reasons["09.png"].lower()


@pytest.mark.parametrize("kind", ["parquet", "parquet stream"])
def test_a_row_without_an_image_is_known_by_its_number(tmp_path, kind):
    _, skipped = take(open_kind(tmp_path, kind), 3)
    reasons = {image.name.removeprefix(str(tmp_path)): image.reason for image in skipped}
    assert reasons["/train[5]"] == "holds no image; leave the row out."


@pytest.mark.parametrize("num_workers", [0, 1])
def test_without_a_way_to_skip_it_is_an_error(pair, num_workers):
    with pytest.raises(BadImage) as caught:
        take(pair[0], 3, num_workers=num_workers, skip=None)
    assert "\n" not in str(caught.value)


def test_a_bug_in_decoding_stops_the_run(pair, monkeypatch):
    monkeypatch.setattr(pictures, "turn_upright", None)
    with pytest.raises(TypeError, match="not callable"):
        take(pair[1], 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_of_nothing_is_a_black_image_that_does_not_count(tmp_path, num_workers):
    source = open_kind(tmp_path, "folder", {number: b"junk" for number in range(NUM_IMAGES)})
    (batch,), skipped = take(source, 1, num_workers=num_workers)
    assert len(skipped) == 4 and batch.keys() == {"pixel_values", "noise", "valid"}
    assert batch["valid"].tolist() == [False]
    assert batch["pixel_values"].shape == (1, 1, 4, 4) and not batch["pixel_values"].any()
    assert batch["noise"].shape == (1, 5) and batch["noise"].any()


def test_a_batch_of_nothing_has_the_labels_of_others(tmp_path):
    columns = {"image": [{"bytes": b"junk"}] * 3, "label": [2, 2, 2]}
    source = open_source(Dataset.from_dict(columns, features=features()))
    (batch,), _ = take(source, 1, batch_size=3)
    assert batch["labels"].tolist() == [2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_evaluation_a_bad_image_keeps_its_place_and_does_not_count(pair, num_workers):
    skipped: list[Skipped] = []
    options: dict = {"seed": 0, "batch_size": 5, "num_noise": 2}
    batches = list(
        eval_batches(
            pair[0],
            EvalTransform(AsItIs()),
            num_workers=num_workers,
            skip=skipped.append,
            **options,
        )
    )
    assert [len(batch["valid"]) for batch in batches] == [5, 5, 2]
    valid = torch.cat([batch["valid"] for batch in batches])
    pixels = torch.cat([batch["pixel_values"] for batch in batches]).flatten()
    assert valid.tolist() == [number not in BAD for number in range(NUM_IMAGES)]
    assert pixels.tolist() == [0 if number in BAD else number for number in range(NUM_IMAGES)]
    noise = [b["noise"] for b in eval_batches(pair[1], EvalTransform(AsItIs()), **options)]
    assert torch.equal(torch.cat([batch["noise"] for batch in batches]), torch.cat(noise))
    assert len(skipped) == len(BAD)


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_evaluate_as_many_batches_and_every_good_image_once(pair, world_size):
    seen, sizes = [], []
    for rank in range(world_size):
        batches = eval_batches(
            pair[0],
            EvalTransform(AsItIs()),
            seed=0,
            batch_size=2,
            rank=rank,
            world_size=world_size,
            skip=lambda image: None,
        )
        batches = list(batches)
        sizes.append([len(batch["valid"]) for batch in batches])
        seen += [b["pixel_values"][b["valid"]].flatten().tolist() for b in batches]
    assert all(size == sizes[0] for size in sizes)
    assert sorted(itertools.chain(*seen)) == [n for n in range(NUM_IMAGES) if n not in BAD]


# Label maps


def mapped(maps: list) -> ImageSource:
    columns = {"image": [{"bytes": encoded(number)} for number in range(len(maps))], "mask": maps}
    data = Dataset.from_dict(columns, features=Features(image=Image(), mask=Image()))
    return open_source(data, use_label_maps=True)


def test_a_bad_label_map_makes_its_image_bad():
    maps = [{"bytes": encoded(0)}, {"bytes": b"junk"}, None, {"bytes": encoded(300)}]
    (batch,), skipped = take(mapped(maps), 1)
    assert batch["pixel_values"].shape == (1, 1, 4, 4) and batch["labels"].shape == (1, 4, 4)
    assert {image.name[-3:] for image in skipped} == {"[1]", "[2]", "[3]"}
    reasons = " ".join(image.reason for image in skipped)
    assert "holds no label map; leave the row out." in reasons
    assert "its label map 3x3" in reasons and "cannot be decoded" in reasons


def test_a_batch_of_nothing_has_a_label_map():
    (batch,), skipped = take(mapped([{"bytes": b"junk"}] * 2), 1, batch_size=2)
    assert len(skipped) == 2 and batch["valid"].tolist() == [False]
    assert batch["labels"].shape == (1, 4, 4) and batch["labels"].dtype == torch.int64


# Records


def test_a_record_says_what_is_missing_and_indexing_raises_it(tmp_path):
    source = open_kind(tmp_path, "folder")
    assert isinstance(source, ImageSource)
    missing = source.record(5).encoded
    assert isinstance(missing, Missing) and missing == b""
    with pytest.raises(FileNotFoundError, match="The image .*05.png' is not there; put it back"):
        source[5]
    again = pickle.loads(pickle.dumps(source.record(5)))
    assert isinstance(again.encoded, Missing) and again.encoded.reason == missing.reason
    assert len(list(source.records())) == len(source.examples(NUM_IMAGES)) == NUM_IMAGES


def test_a_file_that_may_not_be_read_is_bad(tmp_path):
    source = open_kind(tmp_path, "folder", {})
    (tmp_path / "03.png").unlink()
    (tmp_path / "03.png").mkdir()  # root may read everything but this
    _, skipped = take(source, 3)
    assert [image.reason for image in skipped] == ["cannot be read: Is a directory."]
    with pytest.raises(IsADirectoryError):
        source[3]  # type: ignore[index]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_names_are_those_of_the_records(tmp_path, kind):
    source = open_kind(tmp_path, kind)
    assert isinstance(source, ImageSource)
    chosen = source.select(np.array([7, 5, 0]))
    assert chosen.names([0, 1, 2]) == [chosen.record(index).name for index in range(3)]
    assert len(set(chosen.names([0, 1, 2]))) == 3


# Repeats


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("repeats", [2, 4])
def test_every_good_image_comes_several_times_in_a_row(pair, repeats, num_workers):
    steps = NUM_IMAGES * repeats // 4
    taken, skipped = take(pair[0], steps, repeats=repeats, num_workers=num_workers)
    pixels = [number for number, _ in samples(taken)]
    assert all(pixels[i] == pixels[i - i % repeats] for i in range(len(pixels)))
    assert sorted(pixels[::repeats]) == [n for n in range(NUM_IMAGES) if n not in BAD]
    noise = [tuple(drawn) for _, drawn in samples(taken)]
    assert len(set(noise)) == len(noise) and len(skipped) == len(BAD)
    alone, _ = take(pair[0], steps, batch_size=4 // repeats)
    assert pixels[::repeats] == [number for number, _ in samples(alone)]


def test_repeats_resume_bit_for_bit(pair):
    whole, _ = take(pair[1], 9, repeats=2)
    parts = take(pair[1], 4, repeats=2)[0] + take(pair[1], 5, repeats=2, start_step=4)[0]
    assert samples(whole) == samples(parts)
    with pytest.raises(ValueError, match="4 is no multiple of 3 repeats; set data.repeats"):
        take(pair[1], 1, repeats=3)
