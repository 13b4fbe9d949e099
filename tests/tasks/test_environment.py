"""What a run notes of the machine where it began."""

import json
from pathlib import Path

import torch

from hf_vitmae.cli import main
from hf_vitmae.tasks.environment import FILE, note_environment


def test_a_run_notes_device_and_versions_once(tmp_path: Path) -> None:
    note_environment(tmp_path, torch.device("cpu"))
    noted = json.loads((tmp_path / FILE).read_text())
    assert noted["versions"]["torch"] == torch.__version__
    assert {"python", "transformers", "numpy"} < noted["versions"].keys()
    assert noted["device_name"]
    (tmp_path / FILE).write_text('{"device_name": "where it began"}')
    note_environment(tmp_path, torch.device("cpu"))
    assert json.loads((tmp_path / FILE).read_text()) == {"device_name": "where it began"}


def test_training_writes_it_into_the_runs_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--data.source", "emoji", "--output-dir", str(run), "--steps", "2"]
    assert main(["pretrain", "smoke", *flags]) == 0
    assert json.loads((run / FILE).read_text())["versions"]
