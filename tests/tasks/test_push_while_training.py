"""Checkpoints go to a Hub on this computer while a run trains, and a run goes on from there."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session
from safetensors.torch import load_file

from hf_vitmae import VitMaeForPreTraining
from hf_vitmae.cli import main
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.recipes import FINETUNE, PRETRAIN
from hf_vitmae.tasks.push import PushRequest
from hf_vitmae.tasks.push import run as push
from hf_vitmae.tasks.push_while_training import OUTBOX, TROUBLE, Outbox, parcels, push_newest
from hf_vitmae.training.run_folder import RunFolder

from ..hub.client import SENDING, Hub
from ..models.tiny import tiny_config
from ..small import FAST

pytestmark = pytest.mark.filterwarnings(SENDING)
RUN = ["pretrain", "smoke", *FAST]
CLOCK = ("images_per_second", "data_wait", "seconds")


@pytest.fixture
def hub(running_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub without faults that this process and its children may reach."""
    running_hub.reach_from_here(monkeypatch)
    for name, value in running_hub.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield running_hub
    close_session()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run's folder whose checkpoints are made by hand."""
    return RunFolder.open(tmp_path / "run", PRETRAIN["smoke"]())


def checkpoint(run: RunFolder, step: int) -> Path:
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(f"weights of {step}")
    return folder


@pytest.fixture
def outbox(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """One whose process is not started."""
    monkeypatch.setattr(Outbox, "_start", lambda self: None)
    model = VitMaeForPreTraining(tiny_config())
    return Outbox(run, "user/name", model, VitMaeImageProcessor.for_model(model.config))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (newest,) = sorted(folder.glob("checkpoints/step-*"))[-1:]
    return {
        f"{name}/{key}": value
        for name in ("model", "optimizer")
        for key, value in load_file(newest / f"{name}.safetensors").items()
    }


def log_of(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def same_run(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    same = all(torch.equal(first[name], second[name]) for name in first)
    return first.keys() == second.keys() and same and log_of(one) == log_of(other)


def test_the_newest_checkpoint_wins(outbox: Outbox, run: RunFolder) -> None:
    outbox.add(checkpoint(run, 1))
    pushed = []

    def push_one(parcel: Path) -> None:
        pushed.append(parcel.name)
        assert (parcel / "model" / "config.json").is_file()
        if len(pushed) == 1:  # two more come while the first is under way
            outbox.add(checkpoint(run, 2))
            outbox.add(checkpoint(run, 3))

    push_newest(outbox.path, push_one)
    assert pushed == ["step-00000001", "step-00000003"]
    assert parcels(outbox.path) == []


def test_a_checkpoint_on_its_way_outlives_the_run_s_own(outbox: Outbox, run: RunFolder) -> None:
    folder = checkpoint(run, 1)
    outbox.add(folder)
    (parcel,) = parcels(outbox.path)
    (folder / "model.safetensors").unlink()
    for kept in (parcel / "model", parcel / "checkpoints" / folder.name):
        assert (kept / "model.safetensors").read_text() == "weights of 1"


def test_trouble_is_told_once_and_gone_with_the_next_success(
    outbox: Outbox, run: RunFolder, capsys: pytest.CaptureFixture
) -> None:
    def fail(parcel: Path) -> None:
        raise OSError("the Hub\nsaid no")

    for step in (1, 2, 3):
        outbox.add(checkpoint(run, step))
        push_newest(outbox.path, fail)
    outbox.close(wait=True)
    assert capsys.readouterr().out.count("training goes on: the Hub said no") == 1
    assert not outbox.path.exists()


def test_a_success_takes_the_trouble_away(outbox: Outbox, run: RunFolder) -> None:
    (outbox.path / TROUBLE).write_text("x")
    outbox.add(checkpoint(run, 1))
    push_newest(outbox.path, lambda parcel: None)
    assert not (outbox.path / TROUBLE).exists()


def test_a_disk_that_takes_nothing_costs_no_training(
    outbox: Outbox, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    outbox.add(checkpoint(run, 1))
    assert "No space left" in capsys.readouterr().out
    assert parcels(outbox.path) == []


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("pretrain", {"push_checkpoints": True}, "push_to_hub"),
        ("finetune", {"push_checkpoints": True, "push_to_hub": "a/b", "lora_rank": 4}, "LoRA"),
    ],
)
def test_what_cannot_be_pushed_is_refused(name: str, changes: dict, words: str) -> None:
    recipe = {"pretrain": PRETRAIN, "finetune": FINETUNE}[name]["smoke"]()
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(recipe, **changes)


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_as_if_it_had_never_stopped(hub: Hub, tmp_path: Path) -> None:
    """Pushed while it trains, opened as a model, and resumed on 'another machine' to the bit."""
    name = hub.new_name()
    flags = ["--checkpoint-every", "2", "--log-every", "1"]
    whole, first, second = (tmp_path / part for part in ("whole", "first", "second"))
    assert main([*RUN, *flags, "--steps", "6", "--output-dir", str(whole)]) == 0
    # The first machine runs the whole plan and dies after step 4.
    pushing = ["--push-to-hub", name, "--push-checkpoints"]
    assert main([*RUN, *flags, "--steps", "6", "--output-dir", str(first), *pushing]) == 0
    assert same_run(first, whole)  # pushing changes nothing
    assert not (first / OUTBOX).exists()
    trim_to(first, 4)
    push(PushRequest(folder=first, repo=name, checkpoint=True, message="step 4"))
    again = [*RUN, *flags, "--steps", "6", "--output-dir", str(second), "--resume-from", name]
    assert main(again) == 0
    assert same_run(second, whole)
    assert (second / "checkpoints" / "step-00000004").is_dir()
    assert main(again) == 0  # a finished run stays one
    model = VitMaeForPreTraining.from_pretrained(name)
    assert model.config.model_type == "hf_vitmae"


def trim_to(folder: Path, step: int) -> None:
    """Make a run's folder what it was after a step."""
    for path in (folder / "checkpoints").iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    RunFolder(folder).cut_metrics(step)


@pytest.mark.slow
def test_checkpoints_arrive_while_training_and_each_opens(hub: Hub, tmp_path: Path) -> None:
    name = hub.new_name()
    folder = tmp_path / "run"
    flags = ["--steps", "1000", "--checkpoint-every", "20", "--output-dir", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_vitmae.cli", *RUN, *flags, "--push-to-hub", name]
        + ["--push-checkpoints", "--precision", "fp32"],
        env={**hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not pushed_steps(hub, name) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.2)
        assert pushed_steps(hub, name)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143 and "with a checkpoint" in said
    assert not (folder / OUTBOX).exists()
    model = VitMaeForPreTraining.from_pretrained(name)
    fetched = Path(hub.api.snapshot_download(name, cache_dir=tmp_path / "cache"))
    last = load_file(fetched / "last-checkpoint" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in last.items())


def pushed_steps(hub: Hub, name: str) -> list[dict]:
    try:
        rows = hub.pushes(name)
    except Exception:  # there is no repository yet
        return []
    return [row for row in rows if "last-checkpoint/MANIFEST.json" in row["visible"]]


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_refuses_costs_no_training(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture, status: int
) -> None:
    name = hub.new_name()
    hub.fault("create", *[{"status": status}] * 200)
    folder = tmp_path / "run"
    flags = ["--steps", "4", "--checkpoint-every", "2", "--output-dir", str(folder)]
    pushing = ["--push-to-hub", name, "--push-checkpoints"]
    assert main([*RUN, *flags, *pushing]) == 1
    assert (folder / "model" / "config.json").is_file()
    assert (folder / "checkpoints" / "step-00000004").is_dir()
    hub.clear()
    assert main([*RUN, *flags, *pushing]) == 0
    assert "last-checkpoint/MANIFEST.json" in hub.pushes(name)[-1]["visible"]


@pytest.mark.slow
def test_what_is_not_there_or_damaged_is_one_line(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    name, folder = hub.new_name(), tmp_path / "run"
    resuming = [*RUN, "--output-dir", str(folder), "--resume-from"]

    def refused(repo: str, *words: str) -> None:
        capsys.readouterr()
        assert main([*resuming, repo]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert all(word in line for word in words), line
        assert not folder.exists()

    refused(name, name, "There is no")
    first = tmp_path / "first"
    assert main([*RUN, "--output-dir", str(first)]) == 0
    push(PushRequest(folder=first, repo=name))
    refused(name, name, "--push-checkpoints")
    push(PushRequest(folder=first, repo=name, checkpoint=True))
    hub.api.upload_file(
        path_or_fileobj=b"{}", path_in_repo="last-checkpoint/state.json", repo_id=name
    )
    refused(name, name, "state.json")
    push(PushRequest(folder=first, repo=name, checkpoint=True))
    other = [*resuming, name, "--seed", "5"]
    capsys.readouterr()
    assert main(other) == 1 and "seed was 0 and is now 5" in capsys.readouterr().err
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    assert main([*resuming, name]) == 1 and "not empty" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
