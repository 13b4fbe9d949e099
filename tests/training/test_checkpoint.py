"""A checkpoint is whole or absent, damage is seen, and what comes back is what was saved."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_vitmae.training import checkpoint as module
from hf_vitmae.training.checkpoint import (
    checkpoints,
    find_damage,
    latest_good_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)

from .small_run import FILES, average_of, flip_a_bit, names, save, trained


@pytest.mark.parametrize(
    "optimizer_class, options",
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
    ],
)
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, optimizer_class: type, options: dict):
    model, optimizer = trained(0, optimizer_class, **options)
    path = save_checkpoint(tmp_path, 2, model, optimizer, {"loss_sum": 0.1 + 0.2})
    other_model, other_optimizer = trained(1, optimizer_class, **options)
    assert load_checkpoint(path, other_model, other_optimizer) == {"loss_sum": 0.1 + 0.2}
    torch.testing.assert_close(other_model.state_dict(), model.state_dict(), rtol=0, atol=0)
    saved, loaded = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    torch.testing.assert_close(loaded, saved, rtol=0, atol=0)


def test_optimizer_state_goes_by_parameter_name_not_by_order(tmp_path: Path):
    model, optimizer = trained()
    path = save_checkpoint(tmp_path, 2, model, optimizer, {})
    assert "exp_avg/0.weight" in load_file(path / "optimizer.safetensors")
    backwards = torch.optim.AdamW(list(model.parameters())[::-1], lr=0.1)
    load_checkpoint(path, model, backwards)
    for parameter in model.parameters():
        assert torch.equal(
            backwards.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"]
        )


def test_shared_tensors_are_saved(tmp_path: Path):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = save_checkpoint(tmp_path, 1, model, optimizer, {})
    expected = first.weight.detach().clone()
    nn.init.zeros_(first.weight)
    load_checkpoint(path, model, optimizer)
    assert torch.equal(second.weight, expected)


def test_the_manifest_covers_every_file_and_nothing_is_pickled(tmp_path: Path):
    path = save(tmp_path, 7)
    assert path.name == "step-00000007"
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert names(path) == list(FILES)
    assert manifest.keys() == set(FILES) - {"MANIFEST.json"}
    assert manifest["state.json"]["bytes"] == (path / "state.json").stat().st_size
    for file in path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            load_file(file)  # raises for a pickle or a zip archive


def test_files_may_be_read_by_those_who_may_read_others(tmp_path: Path):
    before = os.umask(0o022)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_manifest_that_is_gone_or_unreadable_is_damage(tmp_path: Path):
    path = save(tmp_path, 1)
    for content in ("", "[]", "{}", '{"model.safetensors": {}}'):
        (path / "MANIFEST.json").write_text(content)
        assert find_damage(path)
    (path / "MANIFEST.json").unlink()
    assert find_damage(path) == "MANIFEST.json is missing"


def test_no_checkpoint_is_a_fresh_start_and_only_damaged_ones_are_an_error(tmp_path: Path):
    assert latest_good_checkpoint(tmp_path / "nothing here") is None
    flip_a_bit(save(tmp_path, 1) / "model.safetensors")
    with pytest.raises(ValueError, match="Every checkpoint in .* is damaged"):
        latest_good_checkpoint(tmp_path)


def test_saving_below_a_damaged_checkpoint_keeps_the_new_one(tmp_path: Path):
    save(tmp_path, 10, keep=1)
    flip_a_bit(save(tmp_path, 20, keep=2) / "model.safetensors")
    path = save(tmp_path, 15, keep=1, protect=(20,))
    assert names(tmp_path) == ["step-00000015"]
    assert latest_good_checkpoint(tmp_path) == path


def test_a_step_is_written_again_over_its_damaged_self(tmp_path: Path):
    flip_a_bit(save(tmp_path, 1) / "model.safetensors")
    assert find_damage(save(tmp_path, 1)) is None


def test_a_write_that_fails_leaves_the_one_before_and_no_trace(tmp_path: Path, monkeypatch):
    good = save(tmp_path, 1, keep=1)

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(module, "_flush", fail)
        save(tmp_path, 2, keep=1)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'step-00000002'} could not be written (Input/output error")
    assert "needs 1.0 MB" in line and "MB is free" in line
    assert line.endswith("the same command resumes at step 1.") and "\n" not in line
    assert latest_good_checkpoint(tmp_path) == good
    assert names(tmp_path) == [good.name]


def test_a_first_write_that_fails_says_that_the_run_starts_again(tmp_path: Path, monkeypatch):
    def fail(*_) -> None:
        raise OSError("no room")

    monkeypatch.setattr(module, "_put_in_place", fail)
    with pytest.raises(OSError, match="the same command starts from the beginning"):
        save(tmp_path / "new", 1)
    assert names(tmp_path / "new") == []


def test_an_old_checkpoint_that_cannot_be_removed_ends_nothing(tmp_path, monkeypatch, caplog):
    save(tmp_path, 1, keep=1)

    def fail(*_, **__) -> None:
        raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", fail)
        path = save(tmp_path, 2, keep=1)
    assert "step-00000001 could not be removed: busy" in caplog.text
    assert checkpoints(tmp_path) == {2: path}
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [path.name]


def test_everything_is_flushed_before_the_rename_and_old_ones_go_last(tmp_path: Path, monkeypatch):
    save(tmp_path, 1, keep=1)
    events = []
    monkeypatch.setattr(module, "_flush", lambda path: events.append((path.name, names(tmp_path))))
    save(tmp_path, 2, keep=1)
    *before, (last, names_then) = events
    assert len(before) == 7  # six files and their folder
    assert all("step-00000002" not in names for _, names in before)
    assert last == tmp_path.name
    assert names_then == ["step-00000001", "step-00000002"]
    assert names(tmp_path) == ["step-00000002"]


def test_a_new_folder_is_flushed_too(tmp_path: Path, monkeypatch):
    flushed = []
    monkeypatch.setattr(module, "_flush", flushed.append)
    save(tmp_path / "checkpoints", 1)
    assert flushed[0] == tmp_path


def small(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), *layers)


@pytest.mark.parametrize(
    "model, words",
    [
        (small(nn.Linear(5, 1), nn.Linear(1, 2)), "lacks 3.bias, 3.weight .2 in all"),
        (small(nn.Linear(5, 4)), "has another shape of 2.bias"),
        (small(), "has, but the model does not, 2.bias"),
    ],
)
def test_another_model_is_refused_and_left_alone(tmp_path: Path, model: nn.Module, words: str):
    model_of_the_run, optimizer = trained()
    path = save_checkpoint(tmp_path, 1, model_of_the_run, optimizer, {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        load_checkpoint(path, model, torch.optim.AdamW(model.parameters()))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_state_of_a_parameter_that_is_not_trained_is_refused(tmp_path: Path):
    path = save_checkpoint(tmp_path, 1, *trained(), {})
    model, _ = trained(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="optimiser state for 2.bias, which this run"):
        load_checkpoint(path, model, torch.optim.AdamW(list(model.parameters())[:-1]))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_averaged_weights_come_back_in_place(tmp_path: Path):
    path = save(tmp_path, 3)
    expected = average_of(trained(3)[0])
    model, optimizer = trained(4)
    ema = average_of(model)
    tensors = dict(ema)
    assert load_checkpoint(path, model, optimizer, ema=ema) == {"step": 3}
    assert all(ema[name] is tensors[name] for name in expected)
    torch.testing.assert_close(ema, expected, rtol=0, atol=0)


def test_averaged_weights_on_one_side_only_are_refused(tmp_path: Path):
    model, optimizer = trained(2)
    ema = average_of(model)
    plain = save_checkpoint(tmp_path / "plain", 1, *trained(), {})
    assert not (plain / "ema.safetensors").exists()
    averaged = save(tmp_path / "averaged", 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="no averaged weights .* set ema_decay to 0"):
        load_checkpoint(plain, model, optimizer, ema=ema)
    with pytest.raises(ValueError, match="has averaged weights .* set ema_decay as it was"):
        load_checkpoint(averaged, model, optimizer)
    with pytest.raises(ValueError, match="has, but the model does not, 0.bias"):
        load_checkpoint(averaged, model, optimizer, ema={"0.weight": ema["0.weight"]})
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_protected_steps_stay_beside_the_newest(tmp_path: Path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2, protect=(2,) if step > 1 else ())
    assert list(checkpoints(tmp_path)) == [2, 4, 5]
    save(tmp_path, 6, keep=2, protect=(5, 99))
    assert list(checkpoints(tmp_path)) == [5, 6]


def test_only_the_main_process_writes(tmp_path: Path):
    path = save_checkpoint(tmp_path / "new", 1, *trained(), {}, is_main=False)
    assert path == tmp_path / "new" / "step-00000001"
    assert names(tmp_path) == []


def test_a_folder_that_a_process_does_not_see_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="step-00000009 .* processes must share the run's folder"):
        load_checkpoint(tmp_path / "step-00000009", *trained())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["model", "buffer", "ema", "optimizer"])
@pytest.mark.parametrize("is_main", [True, False])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, kind: str, value: float, is_main: bool):
    good = save(tmp_path, 1, keep=1)
    model, optimizer = trained(2)
    ema = average_of(model)
    last = list(model.parameters())[-1]  # of one value
    tensor, name = {
        "model": (last, "2.bias in model.safetensors"),
        "buffer": (model[1].running_var, "1.running_var in model.safetensors"),  # pyright: ignore
        "ema": (ema["0.weight"], "0.weight in ema.safetensors"),
        "optimizer": (optimizer.state[last]["exp_avg"], "exp_avg/2.bias in optimizer.safetensors"),
    }[kind]
    with torch.no_grad():
        tensor.view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=f"^{name} holds nan or inf .1 tensors in all"):
        save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=1, ema=ema, is_main=is_main)
    assert names(tmp_path) == [good.name]
    assert find_damage(good) is None


def test_empty_and_integer_tensors_are_finite(tmp_path: Path):
    model = nn.Linear(2, 2)
    model.register_buffer("none", torch.zeros(0, 3))
    model.register_buffer("counts", torch.arange(3))
    path = save_checkpoint(tmp_path, 1, model, torch.optim.SGD(model.parameters()), {})
    saved = load_file(path / "model.safetensors")
    torch.testing.assert_close(saved, dict(model.state_dict()), rtol=0, atol=0)


def test_checkpoints_are_listed_in_order_and_nothing_else_is(tmp_path: Path):
    for name in (
        "step-00000020",
        "step-100000000",
        "step-00000003",
        "step-7",
        "best",
        ".unfinished-step-00000009",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000005").write_text("a file")
    assert [*checkpoints(tmp_path).items()] == [
        (3, tmp_path / "step-00000003"),
        (20, tmp_path / "step-00000020"),
        (100_000_000, tmp_path / "step-100000000"),
    ]
    assert checkpoints(tmp_path / "nothing here") == {}
    assert find_damage(tmp_path / "best") == "MANIFEST.json is missing"


def test_a_checkpoint_that_was_to_be_replaced_counts_until_its_successor_is_there(tmp_path: Path):
    path = save(tmp_path, 1)
    aside = path.rename(tmp_path / "step-00000001.replaced")
    assert checkpoints(tmp_path) == {1: aside}
    assert latest_good_checkpoint(tmp_path) == aside
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [path.name]
    path.rename(aside)
    save(tmp_path / "other", 1).rename(path)
    assert checkpoints(tmp_path) == {1: path}
    remove_leftovers(tmp_path / "other")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["other", path.name]


def test_training_reads_and_writes_no_pickles():
    for source in Path(module.__file__).parent.glob("*.py"):
        text = source.read_text(encoding="utf-8")
        assert not any(word in text for word in ("import pickle", "torch.save(", "torch.load("))
