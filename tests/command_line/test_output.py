"""--json, --quiet, --verbose and --dry-run do what they say, and leave nothing else behind."""

import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from hf_vitmae.cli import main
from hf_vitmae.command_line.output import Manner, plain, take_switches
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining
from hf_vitmae.recipes import PRETRAIN
from hf_vitmae.tasks.plan import DryRun
from hf_vitmae.tasks.pretrain import run as pretrain

from ..small import FAST


def test_json_is_the_result_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    command = ["stats", "emoji", "--sample", "20", "--output", str(tmp_path / "stats.json")]
    assert main([*command, "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    stored = json.loads((tmp_path / "stats.json").read_text())
    assert result["mean"] == stored["mean"] and len(result["mean"]) == 3
    assert "emoji" in output.err  # what a person reads


def test_quiet_prints_nothing_but_errors(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = ["pretrain", "smoke", *FAST, "--quiet", "--output-dir", str(tmp_path / "run")]
    assert main(run) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert main([*run, "--seed", "7"]) == 1
    assert "seed" in capsys.readouterr().err


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture):
    assert main(["stats", "emoji", "--quiet", "--verbose"]) == 2
    assert "not both" in capsys.readouterr().err


def test_switches_stand_anywhere():
    manner, rest = take_switches(["smoke", "--json", "--steps", "3", "--quiet"])
    assert (manner, rest) == (Manner(json=True, quiet=True), ["smoke", "--steps", "3"])


class Pair(NamedTuple):
    first: Path
    second: float


def test_every_result_is_json():
    values = [Pair(Path("a"), math.nan), np.float32(0.5), torch.ones(2), {1: (2, None)}]
    assert plain(values) == [{"first": "a", "second": "nan"}, 0.5, [1.0, 1.0], {"1": [2, None]}]


def test_a_dry_run_says_what_the_run_would_be(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "run"
    command = ["pretrain", "smoke", "--epochs", "3", "--output-dir", str(folder), "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    recipe = PRETRAIN["smoke"]()
    model = VitMaeForPreTraining(recipe.model.to_config())
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in said
    assert "base_lr: " in said and "epochs: 3.0" in said
    assert "3.0 epochs" in said and "images a second" in said and "memory" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_fine_tuning_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    smoke = PRETRAIN["smoke"]().model.to_config()
    VitMaeForImageClassification(smoke).save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "run")]
    capsys.readouterr()
    assert main(["finetune", "smoke", *flags, "--dry-run"]) in (0, 1)
    assert not (tmp_path / "run").exists()


def test_from_python_a_dry_run_is_an_exception_with_the_plan(tmp_path: Path):
    from dataclasses import replace

    recipe = replace(PRETRAIN["smoke"](), dry_run=True, output_dir=tmp_path / "run")
    with pytest.raises(DryRun, match="Nothing was trained"):
        pretrain(recipe)


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stdout say that it is a terminal with colours."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--kind", "atention"], "invalid choice 'atention' for argument '--kind'"),
        (["--knd", "masks"], "Unrecognized options: --knd, masks. Did you mean --kind?"),
        (["--k", "many"], "--k"),
    ],
)
def test_an_error_is_one_plain_line_on_a_terminal_too(
    wrong: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pretend_terminal(monkeypatch)
    assert main(["look", "model", "photo.jpg", *wrong]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-vitmae look: ") and said in line and line.isprintable()
    assert not set(line) & set("│╭╮╰╯─")


def test_no_color_takes_the_colours_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pretend_terminal(monkeypatch)
    pages = {}
    for wanted in ("", "1"):
        monkeypatch.setenv("NO_COLOR", wanted)
        with pytest.raises(SystemExit, match="0"):
            main(["look", "--help-all"])
        pages[wanted] = capsys.readouterr().out
    assert "\x1b[" in pages[""] and "\x1b[" not in pages["1"]
    assert re.sub(r"\x1b\[[0-9;]*m", "", pages[""]) == pages["1"]
