"""Which files a model is read from: safetensors, and nothing outside of its folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_vitmae import VitMaeModel

from .tiny import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    VitMaeModel(tiny_config()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_pickle_is_refused(folder: Path):
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    assert VitMaeModel.from_pretrained(folder)  # beside safetensors nobody reads it
    weights.unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
        VitMaeModel.from_pretrained(folder)


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder.parent / "x.safetensors", {"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../x.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names \.\./x\.safetensors, which lies outside"):
        VitMaeModel.from_pretrained(folder)
