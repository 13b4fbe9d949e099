"""Data sets on a Hub are read like those on this computer, streamed or not, also while connections
break: the same images in the same order, none lost.
"""

import gc
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets.config
import pytest
from huggingface_hub import HfFileSystem, constants

from hf_vitmae.cli import main
from hf_vitmae.data import remote
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.request import Share
from hf_vitmae.data.sources import open_images

from ..data.shard_files import values_of, write_folder, write_parquet, write_tars
from .client import SENDING, Hub

pytestmark = pytest.mark.filterwarnings(
    SENDING,
    "ignore:This DataLoader will create",  # more than the cores
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed:ResourceWarning",
)
SIZES = (9, 7, 8)
WRITE: dict[str, Callable[[Path], Path]] = {
    "parquet": lambda folder: write_parquet(folder, SIZES, row_group=2),
    "tars": lambda folder: write_tars(folder, SIZES),
    "folder": lambda folder: write_folder(folder, range(sum(SIZES))),
}
TROUBLES: dict[str, dict[str, Any]] = {
    "cut": {"torn": True},
    "dropped": {"dropped": True},
    "overloaded": {"status": 503},
}


@pytest.fixture(autouse=True)
def reachable(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The Hub is where `datasets` looks in this process, and nobody waits between tries."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    HfFileSystem.clear_instance_cache()  # each keeps the address that it was made with
    yield
    HfFileSystem.clear_instance_cache()
    gc.collect()  # `datasets` leaves event loops behind, which are to be found here and not later


def push(hub: Hub, folder: Path) -> str:
    """A new data set with these files: -> its name."""
    name = hub.new_name()
    hub.api.create_repo(name, repo_type="dataset")
    hub.api.upload_folder(repo_id=name, folder_path=folder, repo_type="dataset")
    return name


def shown(source: AnySource, num_steps: int = 12) -> list[tuple[int, int]]:
    """Which image each position of two epochs of training shows, and what it holds."""
    requests = source.train_requests(seed=3, share=Share(4, 0, 1), start_step=0)
    pairs = []
    for request in islice(requests, num_steps):
        values = values_of(request.records or [])
        pairs += zip([place.index for place in request.places], values, strict=True)
    return pairs


@pytest.mark.parametrize("kind", ["parquet", "tars"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_stream_with_every_third_range_cut_loses_nothing(
    hub: Hub, kind: str, trouble: str, tmp_path: Path
) -> None:
    folder = WRITE[kind](tmp_path / kind)
    name = push(hub, folder)
    expected = open_images(str(folder), streaming=True)
    hub.clear()
    hub.fault("cdn", TROUBLES[trouble], every=3)
    got = open_images(name, streaming=True)
    assert values_of(got.records()) == values_of(expected.records()) == list(range(sum(SIZES)))
    assert shown(got) == shown(expected)
    assert hub.requests("cdn") > 9 and len({value for _, value in shown(got)}) == sum(SIZES)


@pytest.mark.parametrize("kind", WRITE)
def test_not_streamed_it_is_the_same(hub: Hub, kind: str, tmp_path: Path) -> None:
    folder = WRITE[kind](tmp_path / kind)
    name = push(hub, folder)
    expected = open_images(str(folder))
    hub.clear()
    for route in ("cdn", "get", "resolve"):
        hub.fault(route, TROUBLES["cut"], every=3)
    got = open_images(name)
    records, same = list(got.records()), list(expected.records())
    assert values_of(records) == values_of(same)
    assert [record.label for record in records] == [record.label for record in same]
    assert got.class_names == expected.class_names


def test_a_folder_of_images_is_streamed(hub: Hub, tmp_path: Path) -> None:
    folder = WRITE["folder"](tmp_path / "folder")
    name = push(hub, folder)
    hub.clear()
    hub.fault("resolve", TROUBLES["cut"], every=3)
    got, expected = open_images(name, streaming=True), open_images(str(folder))
    assert values_of(got.records()) == values_of(expected.records())


@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_a_hub_that_always_breaks_off_is_one_line(hub: Hub, kind: str, tmp_path: Path) -> None:
    name = push(hub, WRITE[kind](tmp_path / kind))
    source = open_images(name, streaming=True)
    hub.fault("cdn", TROUBLES["cut"], every=1)
    with pytest.raises(OSError, match="0000.* cannot be read, tried 5 times: ") as caught:
        list(source.records())
    assert len(str(caught.value).splitlines()) == 1


def test_a_data_set_that_is_not_there_is_one_line(hub: Hub) -> None:
    for streaming in (False, True):
        with pytest.raises(
            ValueError, match="'user/absent' is not a folder here, and does not"
        ) as e:
            open_images("user/absent", streaming=streaming)
        assert len(str(e.value).splitlines()) == 1


def test_pretraining_from_a_stream(hub: Hub, tmp_path: Path) -> None:
    name = push(hub, folder := WRITE["parquet"](tmp_path / "parquet"))
    hub.clear()
    hub.fault("cdn", TROUBLES["cut"], every=3)
    losses = []
    for source in (name, str(folder)):
        flags = ["--data.source", source, "--data.streaming", "--data.num-workers", "0"]
        flags += ["--output-dir", str(tmp_path / "runs" / Path(source).name), "--steps", "6"]
        assert main(["pretrain", "smoke", *flags, "--batch-size", "4"]) == 0
        lines = (tmp_path / "runs" / Path(source).name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
    assert losses[0] == losses[1] and len(losses[0]) > 1
    assert hub.requests("cdn") > 9
