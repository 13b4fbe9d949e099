"""Runs on streams: stopped and resumed to the same bytes, from objects, on two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_vitmae.cli import main
from hf_vitmae.data.config import DataConfig
from hf_vitmae.recipes.mae import smoke
from hf_vitmae.tasks import pretrain
from hf_vitmae.tasks.images import SHARDS

from ..data.shard_files import make_dataset, write_parquet, write_tars
from ..small import FAST
from .runs import Stopped, stop_at, wait_for_step

STEPS = 12
SIZES = (21, 0, 40, 35)
STREAM = ["--data.streaming", "--data.stream-readers", "2", "--data.shuffle-block", "32"]


def start(run: Path, source: Path, *flags: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_vitmae.cli", "pretrain", "smoke", "--steps", str(STEPS)]
    command += ["--checkpoint-every", "5", "--log-every", "1", "--output-dir", str(run)]
    command += ["--data.source", str(source), "--data.num-workers", "1", *STREAM, *flags]
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_parquet, write_tars], ids=["parquet", "tar"])
def test_a_killed_run_on_a_stream_ends_with_the_same_bytes(write, tmp_path: Path) -> None:
    source = write(tmp_path / "source", SIZES)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, source).wait(timeout=120) == 0

    process = start(broken, source)
    wait_for_step(broken, 7, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert start(broken, source).wait(timeout=120) == 0
    for name in ("model/model.safetensors", f"checkpoints/step-{STEPS:08d}/optimizer.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert len(json.loads((broken / SHARDS).read_text())) == len(SIZES)


def recipe(run: Path, **data) -> pretrain.PretrainRecipe:
    config = DataConfig(num_workers=0, stream_readers=2, shuffle_block=16, **data)
    return replace(smoke(), data=config, steps=3, log_every=1, output_dir=run)


@pytest.mark.parametrize("kind", ["parquet", "tar", "mixture"])
def test_a_stopped_run_on_a_stream_ends_with_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [
        str(write_parquet(tmp_path / "parquet", SIZES)),
        str(write_tars(tmp_path / "tars", SIZES)),
    ]
    source = {"parquet": sources[0], "tar": sources[1], "mixture": tuple(sources)}[kind]

    def train(run: str, last: int | None = None) -> bytes:
        stop_at(monkeypatch, last)
        config = recipe(tmp_path / run, source=source, streaming=True)
        pretrain.run(replace(config, steps=9, checkpoint_every=4))
        return (tmp_path / run / "model/model.safetensors").read_bytes()

    whole = train("whole")
    with pytest.raises(Stopped):
        train("broken", last=6)
    assert train("broken") == whole


def test_objects_train_and_their_shards_are_counted_once(tmp_path: Path, capfd) -> None:
    stream = make_dataset(range(30)).to_iterable_dataset(num_shards=2)
    sources = [make_dataset(range(20)), stream]
    data = {"source": ("a", "b"), "weights": (0.5, 1.0)}
    metrics = pretrain.run(recipe(tmp_path / "run", **data), source=sources)
    assert metrics["step"] == 3 and "counting the images of 2 shards" in capfd.readouterr().err
    assert metrics["epoch"] == pytest.approx(3 * smoke().plan_batches(1).num_images / 40)
    assert "counting" not in capfd.readouterr().err

    again = replace(recipe(tmp_path / "again", **data), checkpoint_every=1)
    pretrain.run(replace(again, steps=2), source=sources)
    (tmp_path / "again" / "recipe.yaml").write_text(
        (tmp_path / "again" / "recipe.yaml").read_text().replace("steps: 2", "steps: 3")
    )
    capfd.readouterr()
    pretrain.run(again, source=sources)
    assert "counting" not in capfd.readouterr().err
    for name in ("epoch", "step"):
        assert (
            metrics[name]
            == json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[-1])[name]
        )


def test_a_run_goes_on_only_with_as_many_images(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "source", [9])
    config = replace(recipe(tmp_path / "run", source=str(source), streaming=True), steps=1)
    pretrain.run(config)
    write_parquet(source, [8])
    with pytest.raises(ValueError, match="began with 9 images and would go on with 8"):
        pretrain.run(config)


def test_tars_with_classes_fine_tune_and_are_evaluated(pretrained: Path, tmp_path: Path) -> None:
    for split, sizes in {"train": [10, 14], "val": [7]}.items():
        write_tars(tmp_path / "tars" / split, sizes, label="json")
    flags = ["--model", str(pretrained), "--data.source", str(tmp_path / "tars")]
    run = tmp_path / "run"
    assert main(["finetune", "smoke", *FAST, *flags, "--output-dir", str(run)]) == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval_images"] == 7 and 0 <= last["eval_accuracy"] <= 1
    assert json.loads((run / "model/config.json").read_text())["id2label"]["2"] == "c"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--data.weights", "1", "2"], "data.weights has 2 values and data.source has 1"),
        (["--data.weights", "-1"], "data.weights must be above 0, not -1.0"),
        (["--data.stream-readers", "0"], "data.stream_readers must be at least 1, not 0"),
        (["--data.eval-share", "0.5"], "data.eval_share=0.5 draws single images"),
    ],
)
def test_a_wrong_flag_is_answered_in_one_line(tmp_path: Path, capfd, flags, line) -> None:
    source = str(write_tars(tmp_path / "tars", [3]))
    command = ["pretrain", "smoke", "--data.source", source, "--output-dir", str(tmp_path / "run")]
    assert main([*command, *flags]) in (1, 2)
    error = capfd.readouterr().err
    assert line in error and error.count("\n") == 1


def test_several_sources_by_the_command_line(tmp_path: Path) -> None:
    sources = [str(write_tars(tmp_path / name, [20])) for name in ("one", "two")]
    command = ["pretrain", "smoke", *FAST, "--data.source", *sources, "--data.weights", "2", "1"]
    assert main([*command, "--output-dir", str(tmp_path / "run")]) == 0
    assert len(json.loads((tmp_path / "run" / SHARDS).read_text())) == 2


def launch(run: Path, source: Path, codes: list[int], *flags: str) -> None:
    """The run on two CPU processes, with the environment that launchers set."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        start(run, source, *flags, MASTER_PORT=port, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=240) for process in processes] == codes


@pytest.mark.slow
def test_two_processes_train_on_one_count_and_fail_alike(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "source", SIZES)
    launch(tmp_path / "run", source, [0, 0])
    assert load_file(tmp_path / "run/model/model.safetensors")
    assert json.loads((tmp_path / "run" / SHARDS).read_text())
    launch(tmp_path / "odd", source, [1, 1], "--data.stream-readers", "3")
    assert not (tmp_path / "odd").exists()  # else it would hold on to the wrong number
    (source / "0002.tar").write_bytes(b"junk" * 300)
    launch(tmp_path / "broken", source, [1, 1])
