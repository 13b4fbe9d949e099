"""A worker that dies is replaced without a trace in the batches; one that always dies is named."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, dataloader

from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.loader import eval_batches, train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.sources import open_images
from hf_vitmae.data.workers import serve

from .shard_files import value_of, write_folder, write_parquet, write_tars

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores

NUM_IMAGES = 24
CROP = TrainTransform((4, 4), num_channels=1)
KINDS = ("folder", "parquet stream", "tar stream")


@pytest.fixture(autouse=True)
def soon_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch looks after its workers every five seconds; here more often."""
    waiting = dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waiting, "__defaults__", (0.2,))


@dataclass(frozen=True)
class Deadly:
    """Kills its process at some images: once each where there is a folder for marks, else always.

    Args:
        numbers: what the images are filled with at which it does so.
    """

    numbers: tuple[int, ...]
    marks: Path | None = None
    num_channels: int = 1
    value_range: tuple[float, float] | None = None

    def read(self, encoded: bytes, generator: np.random.Generator, name: str) -> Tensor:
        image = CROP.read(encoded, generator, name)
        number = int(image[0, 0, 0])
        if number in self.numbers and self._is_due(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return image

    def _is_due(self, number: int) -> bool:
        if self.marks is None:
            return True
        try:
            (self.marks / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        raise NotImplementedError

    def with_label_map(
        self, image: Tensor, label_map: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def open_kind(root: Path, kind: str) -> AnySource:
    if kind == "folder":
        return open_images(write_folder(root, range(NUM_IMAGES)))
    write = write_parquet if kind == "parquet stream" else write_tars
    return open_images(write(root, [10, 14]), streaming=True)


def take(source: AnySource, transform, num_batches: int, **options) -> list[dict[str, Tensor]]:
    settings: dict = {"seed": 1, "batch_size": 4, "num_noise": 3} | options
    batches = train_batches(source, transform, **settings)
    try:
        return list(itertools.islice(batches, num_batches))
    finally:
        batches.close()


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_dead_worker_had_to_do_is_done_by_another(tmp_path, kind, num_workers):
    source = open_kind(tmp_path / "data", kind)
    (tmp_path / "marks").mkdir()
    deadly = Deadly((3, 4, 11, 20), tmp_path / "marks")
    taken = take(source, deadly, 12, num_workers=num_workers)
    assert len(list((tmp_path / "marks").iterdir())) == 4
    for batch, expected in zip(taken, take(source, CROP, 12), strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in batch)
    assert multiprocessing.active_children() == []


def test_evaluation_goes_on_to_its_end(tmp_path):
    source = open_kind(tmp_path / "data", "folder")
    (tmp_path / "marks").mkdir()
    deadly = Deadly((0, 23), tmp_path / "marks")  # the first image and the last
    batches = eval_batches(source, deadly, seed=0, batch_size=5, num_workers=2)
    pixels = torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in batches])
    assert sorted(pixels.tolist()) == list(range(NUM_IMAGES))
    assert pixels[0] == 0 and pixels[-1] == 23
    assert len(list((tmp_path / "marks").iterdir())) == 2


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_always_dies_is_an_error_that_names_the_images(tmp_path, kind, num_workers):
    source = open_kind(tmp_path / "data", kind)
    expected = take(source, CROP, 6)  # an epoch
    numbers = [batch["pixel_values"][:, 0, 0, 0].tolist() for batch in expected]
    where = next(i for i, inside in enumerate(numbers) if 7 in inside)
    batches = train_batches(source, Deadly((7,)), seed=1, batch_size=4, num_workers=num_workers)
    came = []
    with pytest.raises(ValueError, match="3 worker processes died while they read") as caught:
        for batch in batches:
            came.append(batch["pixel_values"][:, 0, 0, 0].tolist())
    assert came == numbers[:where]
    line = str(caught.value)
    assert "\n" not in line and "Traceback" not in line and "--data.num-workers" in line
    names = {value_of(record): record.name for record in source.records()}
    assert f"read {', '.join(names[number] for number in numbers[where])}; look" in line
    assert multiprocessing.active_children() == []


def test_many_names_are_cut_short(tmp_path):
    source = open_kind(tmp_path, "folder")
    with pytest.raises(ValueError, match=r"read (\S+, ){4}\S+ and 3 more; look at these files"):
        take(source, Deadly(tuple(range(NUM_IMAGES))), 1, batch_size=8, num_workers=1)


def test_a_death_disturbs_nobody_who_is_at_work(tmp_path):
    """Torch would raise wherever the main process is, such as inside a step of the optimiser."""
    source = open_kind(tmp_path, "folder")
    before = signal.getsignal(signal.SIGCHLD)
    batches = train_batches(source, CROP, seed=1, batch_size=4, num_workers=2)
    taken = [next(batches)]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:  # the signal of the death comes in here
        sum(range(1000))
    taken += itertools.islice(batches, 5)
    batches.close()
    for batch, expected in zip(taken, take(source, CROP, 6, num_noise=None), strict=True):
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert signal.getsignal(signal.SIGCHLD) == before


class Wrong(Deadly):
    """Has a mistake of its own."""

    def read(self, encoded: bytes, generator: np.random.Generator, name: str) -> Tensor:
        raise RuntimeError("a mistake in the code")


def test_a_mistake_in_the_code_is_no_death(tmp_path):
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        take(open_kind(tmp_path, "folder"), Wrong(()), 1, num_workers=1)


@dataclass(frozen=True)
class Echo(Dataset[int]):
    """Answers with what it is asked."""

    def __getitem__(self, asked: int) -> int:
        return asked


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_of_the_requests_is_not_taken_for_a_death(num_workers):
    def requests() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    answers = serve(Echo(), requests(), num_workers, names=lambda asked: [str(asked)])
    with pytest.raises(OSError, match="the disk is gone"):
        list(answers)
