"""Any damage to the newest checkpoint is seen, named, and answered with the one before it."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vitmae.cli import main
from hf_vitmae.training.checkpoint import checkpoints, latest_good_checkpoint, load_checkpoint

from ..small import FAST, write_images
from .small_run import FILES, average_of, flip_a_bit, save, trained

CUTS, FLIPS = 10, 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save(folder, 1)
    save(folder, 2)
    return folder


@pytest.fixture
def newest(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / "step-00000002"


def assert_passed_over(newest: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one before is used, with its own values, and the damaged one named."""
    found = latest_good_checkpoint(newest.parent)
    assert found is not None and found == newest.with_name("step-00000001")
    assert f"{newest} is damaged" in caplog.text
    model, optimizer = trained(5)
    ema = average_of(model)
    assert load_checkpoint(found, model, optimizer, ema=ema) == {"step": 1}
    expected = trained(1)[0]
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(ema, average_of(expected), rtol=0, atol=0)


def test_undamaged_the_newest_is_used(newest: Path, caplog: pytest.LogCaptureFixture):
    assert latest_good_checkpoint(newest.parent) == newest
    assert caplog.text == ""


@pytest.mark.parametrize("cut", range(CUTS))
def test_a_file_that_was_cut(newest: Path, cut: int, caplog: pytest.LogCaptureFixture):
    file = newest / FILES[cut % len(FILES)]
    os.truncate(file, random.Random(cut).randrange(file.stat().st_size))
    assert_passed_over(newest, caplog)


@pytest.mark.parametrize("flip", range(FLIPS))
def test_a_bit_that_flipped(newest: Path, flip: int, caplog: pytest.LogCaptureFixture):
    file, chance = newest / FILES[flip % len(FILES)], random.Random(flip)
    flip_a_bit(file, chance.randrange(file.stat().st_size), chance.randrange(8))
    assert_passed_over(newest, caplog)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 0)])
def test_a_file_that_is_gone_or_empty(newest: Path, name: str, damage, caplog):
    damage(newest / name)
    assert_passed_over(newest, caplog)
    if name != "MANIFEST.json" or damage is Path.unlink:
        assert name in caplog.text


def test_a_file_that_grew_or_became_a_folder(newest: Path, caplog: pytest.LogCaptureFixture):
    with (newest / "state.json").open("a") as file:
        file.write(" ")
    assert_passed_over(newest, caplog)
    (newest / "state.json").unlink()
    (newest / "state.json").mkdir()
    assert_passed_over(newest, caplog)


def test_each_byte_of_the_manifest_matters(newest: Path):
    manifest = newest / "MANIFEST.json"
    whole = manifest.read_bytes()
    for place in range(0, len(whole), 3):
        flip_a_bit(manifest, place, bit=place % 8)
        assert latest_good_checkpoint(newest.parent) != newest, f"byte {place}"
        manifest.write_bytes(whole)
    assert latest_good_checkpoint(newest.parent) == newest


def test_no_checkpoint_is_a_fresh_start_and_only_damaged_ones_are_an_error(newest: Path, caplog):
    assert latest_good_checkpoint(newest / "nothing here") is None
    for path in checkpoints(newest.parent).values():
        flip_a_bit(path / "model.safetensors")
    with pytest.raises(ValueError, match="Every checkpoint in .* is damaged"):
        latest_good_checkpoint(newest.parent)
    assert caplog.text.count("is damaged (model.safetensors is not what") == 2


def test_the_command_falls_back_and_without_a_good_checkpoint_exits_with_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
):
    images, run = str(write_images(tmp_path / "images", 12)), tmp_path / "run"
    command = ["pretrain", "smoke", *FAST, "--data.source", images, "--output-dir", str(run)]
    assert main(command) == 0
    older, newest = checkpoints(run / "checkpoints").values()
    expected = load_file(newest / "model.safetensors")
    flip_a_bit(newest / "optimizer.safetensors")
    assert main(command) == 0  # the last steps again
    assert f"{newest} is damaged (optimizer.safetensors is not what" in caplog.text
    assert "resumes at step 2" in capsys.readouterr().err
    again = load_file(newest / "model.safetensors")
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    assert_no_pickles(run)

    flip_a_bit(newest / "model.safetensors")
    flip_a_bit(older / "model.safetensors")
    assert main(command) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"Every checkpoint in {run / 'checkpoints'} is damaged" in message


def assert_no_pickles(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        with file.open("rb") as opened:
            start = opened.read(4)
        is_zip = start == b"PK\x03\x04"  # as torch.save writes
        is_pickle = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
        assert not (is_zip or is_pickle), file
