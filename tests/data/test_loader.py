"""Batches are the same bit for bit for any number of workers and from any step, and end cleanly."""

import io
import itertools
import multiprocessing
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage

from hf_vitmae.data.augmentation.transforms import EvalTransform, TrainTransform
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import eval_batches, train_batches
from hf_vitmae.data.order import Stream, permutation, random_stream
from hf_vitmae.data.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores

NUM_IMAGES = 11
TRANSFORM = TrainTransform((8, 6))


class Resize:
    """Stands for an image processor."""

    num_channels = 3

    def resize_and_crop(self, image):
        return F.interpolate(image[None], size=(8, 6), mode="bicubic", antialias=True)[0]

    def resize_and_crop_map(self, label_map):
        return label_map[:8, :6]


def encode(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def random_pixels() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = [(9 + i, 12, 3) for i in range(NUM_IMAGES)]
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def make_source(labelled: bool = True, broken: int | None = None) -> ImageSource:
    """Images of random pixels; image `broken` cannot be decoded."""
    images = [encode(pixels) for pixels in random_pixels()]
    if broken is not None:
        images[broken]["bytes"] = b"junk"
    columns: dict = {"image": images}
    features: dict = {"image": Image()}
    if labelled:
        columns["label"] = [i % 3 for i in range(NUM_IMAGES)]
        features["label"] = ClassLabel(names=["a", "b", "c"])
    return open_source(Dataset.from_dict(columns, features=Features(features)))


def make_mapped_source(**maps: np.ndarray) -> ImageSource:
    """The same images with label maps, which are their red channel; `map_<i>` is another one."""
    pixels = random_pixels()
    columns = {
        "image": [encode(image) for image in pixels],
        "label_map": [
            encode(maps.get(f"map_{i}", np.ascontiguousarray(image[..., 0])))
            for i, image in enumerate(pixels)
        ],
    }
    features = Features(image=Image(), label_map=Image())
    return open_source(Dataset.from_dict(columns, features=features), use_label_maps=True)


def take(num_batches: int, source: ImageSource, **options) -> list[dict]:
    settings: dict = {"seed": 5, "batch_size": 4, "num_noise": 7} | options
    batches = train_batches(source, TRANSFORM, **settings)
    taken = list(itertools.islice(batches, num_batches))
    batches.close()
    return taken


def assert_equal(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return make_source()


@pytest.fixture(scope="module")
def stream(source) -> list[dict]:
    """The first eight batches, read in this process: almost three epochs."""
    return take(8, source)


def test_a_batch_holds_what_it_says(stream):
    assert stream[0].keys() == {"pixel_values", "labels", "noise"}
    assert stream[0]["pixel_values"].shape == (4, 3, 8, 6)
    assert stream[0]["pixel_values"].dtype == torch.uint8
    assert stream[0]["labels"].shape == (4,) and stream[0]["labels"].dtype == torch.int64
    assert stream[0]["noise"].shape == (4, 7) and stream[0]["noise"].dtype == torch.float32
    plain = take(1, make_source(labelled=False), num_noise=None)[0]
    assert plain.keys() == {"pixel_values"}


def test_labels_follow_the_order_of_the_stream(stream):
    order = np.concatenate([permutation(5, epoch, NUM_IMAGES) for epoch in range(3)])[:32]
    labels = torch.cat([batch["labels"] for batch in stream])
    assert labels.tolist() == [int(i) % 3 for i in order]


def test_noise_is_the_first_draw_of_the_place_and_changes_with_the_epoch(stream):
    noise = torch.cat([batch["noise"] for batch in stream])
    expected = random_stream(Stream.TRAIN, 5, epoch=1, slot=2).random(7, dtype=np.float32)
    assert np.array_equal(noise[NUM_IMAGES + 2].numpy(), expected)
    assert len(noise.unique(dim=0)) == len(noise)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("start_step", [0, 5])
def test_batches_are_equal_for_any_workers_and_any_start(source, stream, num_workers, start_step):
    taken = take(8 - start_step, source, num_workers=num_workers, start_step=start_step)
    assert_equal(taken, stream[start_step:])


def test_ranks_make_up_the_batch_of_one(source, stream):
    ranks = [take(8, source, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    joined = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(*ranks, strict=True)]
    assert_equal(joined, stream)


def test_another_seed_gives_other_batches(source, stream):
    assert not torch.equal(take(1, source, seed=6)[0]["noise"], stream[0]["noise"])


def test_opening_a_stream_leaves_the_global_generators_alone(source):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(2, source, num_workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_smaller_than_a_batch_repeats(source):
    few = source.select(np.arange(3))
    labels = take(1, few, batch_size=8)[0]["labels"]
    assert sorted(labels[:6].tolist()) == [0, 0, 1, 1, 2, 2]


# Evaluation


def evaluate(source: ImageSource, **options) -> list[dict]:
    settings: dict = {"seed": 5, "batch_size": 4, "num_noise": 7} | options
    return list(eval_batches(source, EvalTransform(Resize()), **settings))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_shows_every_image_once_in_order(source, num_workers):
    batches = evaluate(source, num_workers=num_workers)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 3]
    assert torch.cat([b["labels"] for b in batches]).tolist() == [i % 3 for i in range(NUM_IMAGES)]
    assert all(batch["valid"].all() for batch in batches)
    assert_equal(batches, evaluate(source))


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_gathered_over_ranks_is_that_of_one(source, world_size):
    def gather(batches: list[dict], key: str) -> torch.Tensor:
        return torch.cat([batch[key][batch["valid"]] for batch in batches])

    ranks = [
        evaluate(source, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)
    ]
    in_turn = [batch for step in zip(*ranks, strict=True) for batch in step]
    for key in ("pixel_values", "labels", "noise"):
        assert torch.equal(gather(in_turn, key), gather(evaluate(source), key))


def test_evaluation_noise_is_fixed_for_each_image(source):
    large, small = evaluate(source, batch_size=11)[0], evaluate(source, batch_size=2)
    assert torch.equal(large["noise"], torch.cat([batch["noise"] for batch in small]))
    assert not torch.equal(large["noise"], evaluate(source, batch_size=11, seed=6)[0]["noise"])


# Label maps


@pytest.fixture(scope="module")
def mapped() -> ImageSource:
    return make_mapped_source()


def test_a_batch_holds_the_label_maps_and_the_images_as_they_are_without(mapped, stream):
    batches = take(8, mapped)
    assert batches[0].keys() == {"pixel_values", "labels", "noise"}
    assert batches[0]["labels"].shape == (4, 8, 6) and batches[0]["labels"].dtype == torch.int64
    for ours, plain in zip(batches, stream, strict=True):
        assert torch.equal(ours["pixel_values"], plain["pixel_values"])
        assert torch.equal(ours["noise"], plain["noise"])


def test_label_maps_are_cut_like_the_images_of_their_places(mapped):
    order, pixels = permutation(5, 0, NUM_IMAGES), random_pixels()
    labels = torch.cat([batch["labels"] for batch in take(2, mapped)])
    for slot in range(8):
        generator = random_stream(Stream.TRAIN, 5, epoch=0, slot=slot)
        generator.random(7, dtype=np.float32)  # the noise comes first
        image = torch.from_numpy(pixels[order[slot]]).permute(2, 0, 1)
        _, expected = TRANSFORM.with_label_map(image, image[0].long(), generator)
        assert torch.equal(labels[slot], expected)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_label_maps_are_equal_for_any_workers_and_any_start(mapped, num_workers):
    taken = take(3, mapped, num_workers=num_workers, start_step=5)
    assert_equal(taken, take(8, mapped)[5:])


def test_evaluation_shows_the_label_map_of_every_image_in_order(mapped):
    batches = evaluate(mapped, num_workers=1)
    labels = torch.cat([batch["labels"][batch["valid"]] for batch in batches])
    expected = [torch.from_numpy(pixels[:8, :6, 0]).long() for pixels in random_pixels()]
    assert torch.equal(labels, torch.stack(expected))


@pytest.mark.parametrize(
    ("label_map", "line"),
    [
        (np.zeros((15, 13), np.uint8), r"has 15x12 pixels .* and its label map 15x13; save"),
        (np.zeros((12, 15), np.uint8), r"has 15x12 pixels .* and its label map 12x15; save"),
        (
            np.zeros((15, 12, 3), np.uint8),
            r"label map of The Dataset/train\[6\] holds colours .*\(mode RGB\)",
        ),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_label_map_that_does_not_fit_is_one_clean_line(label_map, line, num_workers):
    with pytest.raises(ValueError, match=line) as caught:
        take(8, make_mapped_source(map_6=label_map), num_workers=num_workers)
    assert "\n" not in str(caught.value) and "The Dataset/train[6]" in str(caught.value)


# Errors and ends


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_one_clean_line(num_workers):
    with pytest.raises(ValueError, match=r"The Dataset/train\[6\] cannot be decoded") as caught:
        take(8, make_source(broken=6), num_workers=num_workers)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"num_workers": -2}, "workers must be at least 0, not -2"),
    ],
)
def test_bad_numbers_are_refused_before_the_first_batch(source, options, line):
    with pytest.raises(ValueError, match=line):
        train_batches(source, TRANSFORM, **({"seed": 0, "batch_size": 4} | options))
    with pytest.raises(ValueError, match="holds no images"):
        eval_batches(source.select(np.arange(0)), TRANSFORM, seed=0, batch_size=4)


@pytest.mark.parametrize("consume", [0, 3])
def test_closing_ends_the_workers(source, consume):
    batches = train_batches(source, TRANSFORM, seed=0, batch_size=2, num_workers=2)
    for _ in range(consume):
        next(batches)
    assert len(multiprocessing.active_children()) == (2 if consume else 0)
    batches.close()
    assert multiprocessing.active_children() == []


def test_an_error_ends_the_workers():
    batches = train_batches(
        make_source(broken=6), TRANSFORM, seed=0, batch_size=NUM_IMAGES, num_workers=2
    )
    with pytest.raises(ValueError, match="cannot be decoded"):
        next(batches)
    assert multiprocessing.active_children() == []


SPAWNED = """
import multiprocessing, sys
from hf_vitmae.data import TrainTransform, open_source, train_batches

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    source = open_source(sys.argv[1])
    options = dict(seed=0, batch_size=2)
    batches = train_batches(source, TrainTransform((8, 8)), num_workers=1, **options)
    here = train_batches(source, TrainTransform((8, 8)), **options)
    assert (next(batches)["pixel_values"] == next(here)["pixel_values"]).all()
    print("equal")  # and the program ends here with the stream still open
"""


@pytest.mark.slow
def test_workers_may_be_spawned_and_a_program_may_end_with_an_open_stream(tmp_path):
    for i in range(3):
        PillowImage.new("RGB", (9, 9), (i, 2 * i, 3 * i)).save(tmp_path / f"{i}.png")
    (tmp_path / "program.py").write_text(SPAWNED)
    command = [sys.executable, "-W", "error", str(tmp_path / "program.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "equal\n", "")


def test_nothing_warns(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(2, source, num_workers=1)
