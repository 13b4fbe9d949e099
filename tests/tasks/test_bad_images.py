"""Every task goes on without bad images, names them, and stops where they are too many."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_vitmae.cli import main
from hf_vitmae.recipes.mae import smoke
from hf_vitmae.tasks import pretrain

from ..small import write_images
from .runs import Stopped, stop_at, wait_for_step

STEPS = 12
BAD = ("007.jpg", "031.jpg", "032.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fifty JPEGs, three of them damaged."""
    return spoil(write_images(tmp_path / "photos", 50), *BAD)


def spoil(folder: Path, *names: str) -> Path:
    for name in names:
        path = next(folder.rglob(name))
        path.write_bytes(path.read_bytes()[:200])
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pretrain_smoke(run: Path, source: Path, *flags: str) -> list[str]:
    command = ["pretrain", "smoke", "--steps", str(STEPS), "--log-every", "1"]
    command += ["--checkpoint-every", "5", "--output-dir", str(run)]
    return [*command, "--data.source", str(source), *flags]


def fails(capsys: pytest.CaptureFixture, command: list[str]) -> str:
    """The line that a command fails with."""
    capsys.readouterr()
    assert main(command) == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_pretraining_lists_each_bad_image_once(folder: Path, tmp_path: Path, capfd, workers: str):
    run = tmp_path / "run"
    flags = ["--data.max-bad", "0.1", "--data.num-workers", workers]
    assert main(pretrain_smoke(run, folder, *flags)) == 0  # 96 samples of 50 images
    listed = lines(run / "bad_images.jsonl")
    assert sorted(Path(line["name"]).name for line in listed) == list(BAD)
    for line in listed:
        assert line.keys() == {"name", "reason", "split", "epoch", "step"}
        assert line["split"] == "train" and line["epoch"] == 0 and 1 <= line["step"] <= 7
        assert "cannot be decoded" in line["reason"]
    steps = [line["step"] for line in listed]
    for record in lines(run / "metrics.jsonl")[1:]:
        assert record.get("bad_images", 0) == sum(step <= record["step"] for step in steps)
        assert (record["loss"] if "loss" in record else record["health_loss"]) > 0
    said = capfd.readouterr()
    assert f"3 bad images were left out: {run / 'bad_images.jsonl'}" in said.err
    assert (run / "samples" / "reconstruction.png").exists() and "Traceback" not in said.err


def test_too_many_end_the_run_with_one_line_and_a_larger_share_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    whole = tmp_path / "whole"
    assert main(pretrain_smoke(whole, folder, "--data.max-bad", "0.5")) == 0
    line = fails(capsys, pretrain_smoke(run, folder, "--data.max-bad", "0.05"))
    first = lines(run / "bad_images.jsonl")[0]["name"]
    assert f"3 of the 50 images of {folder}/train cannot be used. The first is {first}: " in line
    assert f"listed in {run / 'bad_images.jsonl'}" in line and "than 0.05 with --data.max-" in line
    assert main(pretrain_smoke(run, folder, "--data.max-bad", "0.5")) == 0
    for name in ("bad_images.jsonl", "model/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    line = fails(capsys, pretrain_smoke(tmp_path / "zero", folder, "--data.max-bad", "0"))
    assert "1 of the 50 images" in line and len(lines(tmp_path / "zero/bad_images.jsonl")) == 1


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, capsys, share: str):
    command = ["pretrain", "smoke", "--data.max-bad", share, "--output-dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert f"data.max_bad is a share and must lie in 0..1, not {share}" in capsys.readouterr().err


def test_a_source_of_bad_images_alone_never_trains(tmp_path: Path, capsys):
    photos = spoil(write_images(tmp_path / "photos", 3), "000.jpg", "001.jpg", "002.jpg")
    line = fails(capsys, pretrain_smoke(tmp_path / "run", photos, "--data.max-bad", "1"))
    assert "3 of the 3 images" in line and "mend them." in line


def test_a_stopped_run_with_bad_images_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Batches of two: some are left with nothing."""

    def train(run: str, last: int | None = None) -> list[bytes]:
        stop_at(monkeypatch, last)
        data = replace(smoke().data, source=str(folder), max_bad=0.1)
        recipe = replace(smoke(), data=data, steps=30, batch_size=2, checkpoint_every=8)
        pretrain.run(replace(recipe, output_dir=tmp_path / run, log_every=5))
        names = ("model/model.safetensors", "bad_images.jsonl")
        return [(tmp_path / run / name).read_bytes() for name in names]

    whole = train("whole")
    for last in (20, 21):
        with pytest.raises(Stopped):
            train("broken", last)
    assert train("broken") == whole
    logs = [lines(tmp_path / run / "metrics.jsonl") for run in ("whole", "broken")]
    one, other = ([record.get("bad_images", 0) for record in log] for log in logs)
    assert one == other and one[-1] == len(BAD)


def test_fine_tuning_evaluates_what_is_good(pretrained: Path, tmp_path: Path):
    root = tmp_path / "classes"
    for split in ("train", "val"):
        for seed, name in enumerate(("cats", "dogs")):
            write_images(root / split / name, 10, ".PNG", seed)
    spoil(root / "val" / "dogs", "003.PNG", "009.PNG")
    spoil(root / "train" / "cats", "000.PNG")
    run = tmp_path / "run"
    flags = ["--model", str(pretrained), "--data.source", str(root), "--data.max-bad", "0.2"]
    command = ["finetune", "smoke", "--steps", "4", "--eval-every", "2", "--log-every", "2", *flags]
    assert main([*command, "--output-dir", str(run)]) == 0
    records = lines(run / "metrics.jsonl")
    evaluations = [record for record in records if "eval_accuracy" in record]
    assert [record["eval_images"] for record in evaluations] == [18, 18]
    assert [record["bad_images"] for record in evaluations][0] >= 2
    listed = lines(run / "bad_images.jsonl")
    of_eval = [(Path(x["name"]).name, x["step"]) for x in listed if x["split"] == "eval"]
    assert of_eval == [("003.PNG", 2), ("009.PNG", 2)]
    assert len({(line["split"], line["name"]) for line in listed}) == len(listed)


def test_segmentation_leaves_out_a_map_of_another_size(pretrained: Path, tmp_path: Path):
    for folder in ("images", "annotations"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(12):
        image = Image.new("RGB", (32, 32), (20 * number, 0, 255))
        image.save(tmp_path / "data" / "images" / f"{number}.png")
        size = (32, 32) if number % 5 else (31, 32)
        Image.new("L", size, number % 2).save(tmp_path / "data" / "annotations" / f"{number}.png")
    run = tmp_path / "run"
    command = ["finetune", "smoke-segment", "--model", str(pretrained), "--steps", "4"]
    flags = ["--data.max-bad", "0.3", "--class-names", "a", "b", "--data.eval-share", "0.5"]
    flags += ["--data.source", str(tmp_path / "data"), "--output-dir", str(run)]
    assert main([*command, *flags]) == 0
    listed = lines(run / "bad_images.jsonl")
    assert {Path(line["name"]).name for line in listed} == {"0.png", "5.png", "10.png"}
    assert all("its label map 32x31" in line["reason"] for line in listed)
    of_eval = sum(line["split"] == "eval" for line in listed)
    assert lines(run / "metrics.jsonl")[-1]["eval_images"] == 6 - of_eval
    assert (run / "samples" / "segmentation.png").exists()


EMBED = ["--batch-size", "4", "--images-per-part", "8", "--data.num-workers", "0"]


def features(out: Path) -> tuple[list[str], list[dict], list[int]]:
    parts = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    names = [Path(name).name for part in parts for name in part.column("name").to_pylist()]
    return names, lines(out / ".bad_images.jsonl"), [part.num_rows for part in parts]


def test_embedding_gives_bad_images_no_row(pretrained: Path, folder: Path, tmp_path: Path, capsys):
    gone = [f"{number:03d}.jpg" for number in range(16, 24)]  # a part of nothing
    spoil(folder, *gone)
    command = ["embed", str(pretrained), str(folder), "-o", str(tmp_path / "out"), *EMBED]
    line = fails(capsys, command)
    assert "1 of the 50 images" in line and "--data.max-bad" in line
    assert main([*command, "--data.max-bad", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "11 bad images have no row" in said and "39 images, features" in said
    names, bad, rows = features(tmp_path / "out")
    bad_names = [Path(line["name"]).name for line in bad]
    assert bad_names == sorted([*BAD, *gone]) and rows == [7, 8, 0, 7, 7, 8, 2]
    assert names == [f"{n:03d}.jpg" for n in range(50) if f"{n:03d}.jpg" not in bad_names]

    whole = tmp_path / "out"
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for number in range(3, 7):  # as a kill in the fourth part leaves it
        (cut / f"part-{number:06d}.parquet").unlink()
    lost = (cut / ".bad_images.jsonl").read_text().splitlines(keepends=True)
    (cut / ".bad_images.jsonl").write_text("".join(lost[:-1]) + '{"name"')
    assert main([*command[:4], str(cut), *EMBED, "--data.max-bad", "0.4"]) == 0
    assert "11 bad images have no row" in capsys.readouterr().out
    assert features(cut) == features(whole)
    assert main([*command[:4], str(cut), *EMBED]) == 0  # finished, and says the same
    assert "39 images" in capsys.readouterr().out


def test_a_reconstruction_leaves_out_what_cannot_be_decoded(
    pretrained: Path, folder: Path, tmp_path: Path, capsys
):
    out = tmp_path / "picture.png"
    good, bad = str(folder / "000.jpg"), str(folder / BAD[0])
    assert main(["reconstruct", str(pretrained), good, bad, good, "-o", str(out)]) == 0
    assert f"Left out: {bad} cannot be decoded" in capsys.readouterr().err
    with Image.open(out) as picture:
        height = picture.height
    assert main(["reconstruct", str(pretrained), good, good, "-o", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.height == height
    assert "cannot be decoded" in fails(capsys, ["reconstruct", str(pretrained), bad])


# Processes


def start(command: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hf_vitmae.cli", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def launch(command: list[str]) -> list[tuple[int, str]]:
    """Exit code and last line of two processes, with the environment that launchers set."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        start(command, MASTER_PORT=port, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=240)[1] for process in processes]
    return [
        (process.returncode, (text.splitlines() or [""])[-1])
        for process, text in zip(processes, said, strict=True)
    ]


@pytest.mark.slow
def test_two_processes_list_each_once_and_stop_alike(folder: Path, tmp_path: Path):
    """With a batch of one image a process often has nothing while the other one learns."""
    flags = ["--data.max-bad", "0.1", "--batch-size", "1", "--data.num-workers", "2"]
    flags += ["--steps", "60", "--checkpoint-every", "25", "--data.eval-share", "0.2"]
    run = tmp_path / "run"
    assert [code for code, _ in launch(pretrain_smoke(run, folder, *flags))] == [0, 0]
    listed = lines(run / "bad_images.jsonl")
    assert sorted(Path(line["name"]).name for line in listed) == list(BAD)
    losses = [record["loss"] for record in lines(run / "metrics.jsonl") if "loss" in record]
    assert len(losses) == 60 and all(loss is not None and loss > 0 for loss in losses)
    flags[1] = "0.03"
    results = launch(pretrain_smoke(tmp_path / "stopped", folder, *flags))
    assert [code for code, _ in results] == [1, 1]
    assert all("2 of the 50 images" in line for _, line in results)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_killed_run_lists_the_same(folder: Path, tmp_path: Path, workers: str):
    flags = ["--data.max-bad", "0.1", "--data.num-workers", workers]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(pretrain_smoke(whole, folder, *flags)) == 0
    process = start(pretrain_smoke(broken, folder, *flags))
    wait_for_step(broken, 7, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    process = start(pretrain_smoke(broken, folder, *flags))
    process.communicate(timeout=120)
    assert process.returncode == 0
    for name in ("bad_images.jsonl", "model/model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
