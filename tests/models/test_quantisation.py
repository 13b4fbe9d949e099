"""Weights as 8-bit integers through torchao: the answers stay, the memory shrinks."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, TorchAoConfig

from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification

from .tiny import random_images, tiny_config

# torchao is not of the environment: transformers imports it at once, and every command then prints
# its troubles. By hand: pip install -e '.[quantize]', then this file with `-m network`.
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, Tensor]:
    """A classifier that has learned eight images, saved; the images; its logits.

    Logits of fresh weights are small differences of large sums, where any rounding shows.
    """
    torch.manual_seed(0)
    config = tiny_config(hidden_size=128, intermediate_size=256, num_labels=4)
    model, images = VitMaeForImageClassification(config), random_images(config, batch=8)
    labels = torch.arange(8) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("quantisation") / "model"
    model.eval().save_pretrained(folder)
    logits = model(images).logits.detach()
    assert torch.equal(logits.argmax(dim=1), labels)
    return folder, images, logits


def load_quantised(folder: Path) -> VitMaeForImageClassification:
    quantization: Any = importlib.import_module("torchao.quantization")
    quantisation = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return AutoModelForImageClassification.from_pretrained(folder, quantization_config=quantisation)


def test_int8_weights_change_logits_by_less_than_one_percent(
    trained: tuple[Path, Tensor, Tensor],
) -> None:
    folder, images, expected = trained
    quantised = importlib.import_module("torchao.utils").TorchAOBaseTensor
    model = load_quantised(folder)
    assert type(model) is VitMaeForImageClassification
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert isinstance(module.weight, quantised), name
    got = model(images).logits
    difference = (got - expected).norm() / expected.norm()
    assert 0 < difference < 0.01
    assert torch.equal(got.argmax(dim=1), expected.argmax(dim=1))


def test_an_int8_model_is_a_quarter_of_the_size_and_the_same_after_saving(
    trained: tuple[Path, Tensor, Tensor], tmp_path: Path
) -> None:
    folder, images, _ = trained
    model = load_quantised(folder)
    model.save_pretrained(tmp_path)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path, folder)]
    assert sizes[0] < 0.35 * sizes[1]
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(images).logits, model(images).logits)
