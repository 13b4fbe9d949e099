"""Files of weights open, and nothing in any file is executed."""

import argparse
import os
import pathlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_vitmae.convert.pickles import load_pickle


class Calls:
    """Unpickled the usual way, it runs a function."""

    def __init__(self, function: Any, *arguments: str) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What a malicious file would write."""
    return tmp_path / "canary"


def refusal(path: Path) -> str:
    """The error of a file that is refused, one line that names it."""
    with pytest.raises(ValueError) as caught:
        load_pickle(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ["posix.system", "eval"])
def test_a_malicious_pickle_is_refused_unexecuted(
    name: str, is_zip: bool, tmp_path: Path, canary: Path
) -> None:
    evil = {
        "posix.system": Calls(os.system, f"touch {canary}"),
        "eval": Calls(eval, f"open({str(canary)!r}, 'w').close()"),
    }[name]
    path = tmp_path / "model.pth"
    content = {"model": {"weight": torch.ones(3)}, "args": evil}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    said = refusal(path)
    assert f"`{name}`" in said and "nothing in it was executed" in said
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the canary sings where it can
    assert canary.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_plain_pickle_is_refused_unexecuted(protocol: int, tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {canary}"), protocol))
    refusal(path)
    assert not canary.exists()


def test_a_harmless_class_that_is_not_on_the_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"args": argparse.Namespace(output=Calls(pathlib.PurePosixPath, "runs"))}, path)
    assert "`pathlib.PurePosixPath`" in refusal(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_options_of_a_training_script_open(is_zip: bool, tmp_path: Path) -> None:
    path, weight = tmp_path / "model.pth", torch.arange(6.0).reshape(2, 3)
    options = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.75, resume=None, betas=(0.9, 1))
    content = {"model": {"weight": weight}, "args": options, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    opened = load_pickle(path)
    assert opened.keys() == content.keys() and opened["args"] == options and opened["epoch"] == 3
    torch.testing.assert_close(opened["model"]["weight"], weight, rtol=0, atol=0)


def test_the_list_of_what_may_open_is_as_before(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    path = tmp_path / "model.pth"
    torch.save({"args": argparse.Namespace()}, path)
    load_pickle(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_safetensors_open(tmp_path: Path) -> None:
    path, weight = tmp_path / "model.safetensors", torch.arange(6.0)
    save_file({"weight": weight}, path)
    assert load_pickle(path).keys() == {"weight"}
    torch.testing.assert_close(load_pickle(path)["weight"], weight, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.98])
def test_a_truncated_file_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    weights = {"weight": torch.ones(100), "bias": torch.ones(50)}
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "truncated" in refusal(path)


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("to do: train a model\nand another")
    assert "no file of weights" in refusal(tmp_path / "notes.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "list" in refusal(tmp_path / "list.pth")
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    assert "Tensor" in refusal(tmp_path / "tensor.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth is not there"):
        load_pickle(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_pickle(tmp_path)
