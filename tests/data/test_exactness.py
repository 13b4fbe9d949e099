"""Every epoch shows every image exactly once, and a run that was stopped goes on bit for bit.

The grid: kinds of sources x workers x where a run stops x ranks. Images, labels and noise of what
follows must be those of the run that was not stopped.
"""

import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.reader import Skipped
from hf_vitmae.data.sources import open_train_and_eval

from . import shard_files
from .shard_files import encoded, write_folder, write_parquet, write_tars

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores

NUM_IMAGES = 36  # six batches of three on two ranks are an epoch
SIZES = (11, 0, 4, 13, 8)
READERS = 2
BLOCK = 6  # of each of the two lanes; each has 18 rows of an epoch: three blocks
BATCH = 3
STEPS = 15  # of two ranks: two epochs and a half
TRANSFORM = TrainTransform((4, 4), num_channels=1)

# A stop after so many steps of two ranks: each takes 6 positions, 3 of each lane.
STOPS = {
    "inside a block": [3],
    "at a block's end": [4],
    "at an epoch's end": [6],
    "twice in one epoch": [7, 10],
}
KINDS = ("folder", "parquet stream", "tar stream", "mixture", "streamed mixture")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "folder", range(NUM_IMAGES))
    write_parquet(root / "parquet", SIZES)
    write_tars(root / "tars", SIZES, label="json")
    write_folder(root / "part", range(20))
    write_folder(root / "rest", range(20, NUM_IMAGES))
    write_parquet(root / "shards", [7, 13])  # the same twenty as in `part`
    return root


def open_kind(root: Path, kind: str) -> AnySource:
    sources = {
        "folder": ("folder",),
        "parquet stream": ("parquet",),
        "tar stream": ("tars",),
        "mixture": ("part", "rest"),
        "streamed mixture": ("shards", "rest"),
    }[kind]
    config = DataConfig(
        source=tuple(str(root / source) for source in sources),
        streaming=True,
        stream_readers=READERS,
        shuffle_block=BLOCK * READERS,
    )
    return open_train_and_eval(config, seed=0)[0]


Batches = list[dict[str, torch.Tensor]]


def take(
    source: AnySource,
    start: int,
    stop: int,
    workers: int,
    rank: int,
    ranks: int,
    skip: Callable[[Skipped], object] | None = None,
) -> Batches:
    """The batches of one rank from one step to another; as many samples a step for any ranks."""
    batches = train_batches(
        source,
        TRANSFORM,
        seed=5,
        batch_size=BATCH * 2 // ranks,
        start_step=start,
        rank=rank,
        world_size=ranks,
        num_workers=workers,
        num_noise=7,
        skip=skip,
    )
    taken = list(itertools.islice(batches, stop - start))
    batches.close()
    return taken


def run(
    source: AnySource,
    stops: list[int],
    workers: int,
    ranks: int,
    skip: Callable[[Skipped], object] | None = None,
) -> list[Batches]:
    """The batches of each rank, of a run that is stopped and begins anew at each stop."""
    marks = [0, *stops, STEPS]
    parts = list(zip(marks, marks[1:], strict=False))
    return [
        [batch for part in parts for batch in take(source, *part, workers, rank, ranks, skip)]
        for rank in range(ranks)
    ]


def values(batch: dict[str, torch.Tensor]) -> list[int]:
    """The numbers that the images of a batch are filled with."""
    return batch["pixel_values"][:, 0, 0, 0].tolist()


@pytest.fixture(scope="module")
def whole(data) -> dict[tuple[str, int], list[Batches]]:
    """What each kind of source gives, not stopped and without workers."""
    return {
        (kind, ranks): run(open_kind(data, kind), [], 0, ranks)
        for kind in KINDS
        for ranks in (1, 2)
    }


SLOW = pytest.mark.slow
GRID = [
    pytest.param(
        kind, workers, stop, ranks, marks=SLOW if workers == 3 or (workers, ranks) == (1, 2) else ()
    )
    for kind in KINDS
    for workers in (0, 1, 3)
    for stop in STOPS
    for ranks in (1, 2)
]


@pytest.mark.parametrize(("kind", "workers", "stop", "ranks"), GRID)
def test_a_stopped_run_goes_on_bit_for_bit(data, whole, kind, workers, stop, ranks):
    taken = run(open_kind(data, kind), STOPS[stop], workers, ranks)
    for mine, expected in zip(taken, whole[kind, ranks], strict=True):
        assert len(mine) == len(expected) == STEPS
        for batch, other in zip(mine, expected, strict=True):
            assert batch.keys() == other.keys() == {"pixel_values", "labels", "noise"}
            assert all(torch.equal(batch[key], other[key]) for key in batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_epoch_is_the_data_set_once(whole, kind, ranks):
    steps = list(zip(*whole[kind, ranks], strict=True))  # (step, rank)
    seen = [
        (v, int(label))
        for step in steps
        for b in step
        for v, label in zip(values(b), b["labels"], strict=True)
    ]
    everything = Counter((i, i % 3) for i in range(NUM_IMAGES))
    epochs = [seen[i : i + NUM_IMAGES] for i in range(0, len(seen), NUM_IMAGES)]
    assert [Counter(epoch) for epoch in epochs[:2]] == [everything] * 2
    assert len(epochs) == 3 and not Counter(epochs[2]) - everything
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_global_batch_does_not_depend_on_the_number_of_ranks(whole, kind):
    """As sets: of a stream rank r takes every W-th position, else each a part of the batch."""
    one, two = whole[kind, 1][0], zip(*whole[kind, 2], strict=True)
    for batch, parts in zip(one, two, strict=True):
        joined = torch.cat([part["noise"] for part in parts])
        assert sorted(joined.tolist()) == sorted(batch["noise"].tolist())


BAD = frozenset({0, 7, 8, 21, 30, 35})


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data with six images that cannot be decoded."""
    root = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shard_files, "encoded", lambda number: b"junk" if number in BAD else encoded(number)
        )
        write_folder(root / "folder", range(NUM_IMAGES))
        write_parquet(root / "parquet", SIZES)
        write_tars(root / "tars", SIZES, label="json")
    return root


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("workers", [0, 1, pytest.param(3, marks=SLOW)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_without_its_bad_images_a_stopped_run_is_that_of_good_ones(
    damaged, whole, kind, workers, ranks
):
    skipped: list[Skipped] = []
    stops = STOPS["twice in one epoch"]
    taken = run(open_kind(damaged, kind), stops, workers, ranks, skipped.append)
    for mine, expected in zip(taken, whole[kind, ranks], strict=True):
        for batch, other in zip(mine, expected, strict=True):
            good = [number not in BAD for number in values(other)]
            if any(good):
                assert batch.keys() == other.keys()
                assert all(torch.equal(batch[key], other[key][good]) for key in batch)
            else:
                assert batch["valid"].tolist() == [False]
    counts = Counter(image.name for image in skipped if image.epoch < 2)
    assert len(counts) == len(BAD) and set(counts.values()) == {2}  # once in either epoch


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tests.data.test_exactness import STEPS, STOPS, open_kind, take

rank, root, kind = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{sys.argv[5]}", rank=rank, world_size=2)
source = open_kind(root, kind)
marks = [0, *STOPS["twice in one epoch"], STEPS]
for start, stop in zip(marks, marks[1:]):
    for step, batch in enumerate(take(source, start, stop, 1, rank, 2), start):
        both = [torch.empty_like(batch["noise"]) for _ in range(2)]
        dist.all_gather(both, batch["noise"])  # every rank takes the same number of steps
        torch.save(batch, f"{sys.argv[5]}-{rank}-{step}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet stream", "tar stream", "mixture", "streamed mixture"])
def test_two_processes_take_what_two_ranks_of_one_process_take(data, whole, kind, tmp_path):
    here, meeting = str(Path(__file__).parents[2]), str(tmp_path / "meeting")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(data), kind, here, meeting],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for rank, step in itertools.product(range(2), range(STEPS)):
        batch = torch.load(f"{meeting}-{rank}-{step}.pt")
        expected = whole[kind, 2][rank][step]
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
