"""What training must come to: errors fall, ranks agree, and what cannot learn is stopped."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_vitmae.cli import main
from hf_vitmae.models import embeddings

from ..small import FAST


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_model_that_cannot_tell_positions_apart_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def zeros(grid: tuple[int, int], hidden_size: int, device: object = None) -> torch.Tensor:
        return torch.zeros(1, 1 + grid[0] * grid[1], hidden_size)

    monkeypatch.setattr(embeddings, "sincos_positions", zeros)
    assert main(["pretrain", "smoke", *FAST, "--output-dir", str(tmp_path / "run")]) == 1
    assert "position" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_normalised_targets_can_be_drawn_without_a_leak(tmp_path: Path, class_folder: Path) -> None:
    run, picture = tmp_path / "run", next(class_folder.rglob("*.PNG"))
    command = ["pretrain", "smoke", *FAST, "--model.norm-pix-loss", "--output-dir", str(run)]
    assert main(command) == 0
    panels = []
    for statistics in ("hidden", "visible"):
        output = tmp_path / f"{statistics}.png"
        flags = ["--statistics", statistics, "-o", str(output)]
        assert main(["reconstruct", str(run / "model"), str(picture), *flags]) == 0
        with Image.open(output) as panel:
            panels.append(panel.tobytes())
    assert panels[0] != panels[1]


@pytest.mark.slow
def test_pretraining_beats_the_mean_of_what_is_visible(tmp_path: Path) -> None:
    flags = ["--steps", "200", "--log-every", "50", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "mae-cpu", *flags]) == 0
    (record,) = [r for r in read_metrics(tmp_path / "run") if "eval_loss" in r]
    assert record["eval_images"] == 555
    assert record["eval_loss"] < 0.9 * record["eval_loss_mean_visible"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("pretrain", "smoke"),
        ("pretrain", "smoke-masked-patch"),
        ("finetune", "smoke"),
        ("finetune", "smoke-segment"),
    ],
)
def test_two_processes_train_as_one(
    task: str, recipe: str, pretrained: Path, tmp_path: Path
) -> None:
    extra = ["--model", str(pretrained)] if task == "finetune" else []
    records = {}
    for processes in (1, 2):
        run = tmp_path / f"{processes}"
        command = [sys.executable, "-m", "hf_vitmae.cli", task, recipe, *extra]
        command += ["--batch-size", str(8 // processes), "--output-dir", str(run)]
        command += ["--eval-images", "31"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = [
            subprocess.Popen(
                command,
                env=os.environ
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            )
            for rank in range(processes)
        ]
        assert [rank.wait(timeout=300) for rank in ranks] == [0] * processes
        records[processes] = read_metrics(run)
    for one, two in zip(records[1][1:], records[2][1:], strict=True):
        for name in ("loss", "eval_loss", "eval_accuracy", "eval_mean_iou", "eval_images"):
            assert one.get(name) == pytest.approx(two.get(name), abs=1e-6), name
