"""A checkpoint is whole or absent, damage is seen, and what comes back is what was saved."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_vitmae.training import checkpoint as module
from hf_vitmae.training.checkpoint import (
    find_damage,
    latest_good_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)


def trained(seed: int = 0, optimizer_class=torch.optim.AdamW, **options):
    """A small model and its optimiser after two steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    for _ in range(2):
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, *trained(step), {"step": step}, keep)


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    assert manifest.keys() == {p.name for p in path.iterdir()} - {"MANIFEST.json"}
    assert all(p.suffix in (".safetensors", ".json") for p in path.iterdir())
    assert manifest["state.json"]["bytes"] == (path / "state.json").stat().st_size


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-00000002", "step-00000003"]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json"]
)
@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda file: os.truncate(file, 1)])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, name: str, damage, caplog):
    good = save(tmp_path, 1)
    bad = save(tmp_path, 2)
    damage(bad / name)
    assert latest_good_checkpoint(tmp_path) == good
    assert str(bad) in caplog.text
    assert name in caplog.text


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
    path = save(tmp_path, 15, keep=1)
    assert steps(tmp_path) == ["step-00000015"]
    assert latest_good_checkpoint(tmp_path) == path


def test_a_step_is_written_again_over_its_damaged_self(tmp_path: Path):
    flip_a_bit(save(tmp_path, 1) / "model.safetensors")
    assert find_damage(save(tmp_path, 1)) is None


def test_a_write_that_dies_leaves_the_one_before_and_no_trace(tmp_path: Path, monkeypatch):
    good = save(tmp_path, 1, keep=1)

    def die(path: Path) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(module, "_flush", die)
        save(tmp_path, 2, keep=1)
    assert latest_good_checkpoint(tmp_path) == good
    assert len(steps(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert steps(tmp_path) == [good.name]


def test_everything_is_flushed_before_the_rename_and_old_ones_go_last(tmp_path: Path, monkeypatch):
    save(tmp_path, 1, keep=1)
    events = []
    monkeypatch.setattr(module, "_flush", lambda path: events.append((path.name, steps(tmp_path))))
    save(tmp_path, 2, keep=1)
    *before, (last, names_then) = events
    assert len(before) == 6  # five files and their folder
    assert all("step-00000002" not in names for _, names in before)
    assert last == tmp_path.name
    assert names_then == ["step-00000001", "step-00000002"]
    assert steps(tmp_path) == ["step-00000002"]


def test_another_model_is_refused_and_left_alone(tmp_path: Path):
    path = save(tmp_path, 1)
    bigger = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(2, 2))
    wider = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    smaller = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for model, words in ((bigger, "lacks 3.bias"), (wider, "shape of 2.bias"), (smaller, "2.bias")):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=words):
            load_checkpoint(path, model, torch.optim.AdamW(model.parameters()))
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_state_of_a_parameter_that_is_not_trained_is_refused(tmp_path: Path):
    path = save(tmp_path, 1)
    model, _ = trained()
    with pytest.raises(ValueError, match="optimiser state for 2.bias, which this run"):
        load_checkpoint(path, model, torch.optim.AdamW(list(model.parameters())[:-1]))
