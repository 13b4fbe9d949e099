"""Weights as 8-bit integers through torchao: the answers stay, the memory shrinks.

torchao lies in a folder of its own, and a process of its own finds it: transformers imports it
wherever it can, and every command of this environment would then print torchao's troubles.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification

from .tiny import random_images, tiny_config

TORCHAO = Path(sys.prefix) / "torchao"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TORCHAO.exists(), reason="`make test-slow` installs torchao"),
]

# Run from a folder with `model` and images.pt: quantises, saves as `int8`, and notes what it saw.
PROGRAM = """
import torch
from torchao.quantization import Int8WeightOnlyConfig
from torchao.utils import TorchAOBaseTensor
from transformers import AutoModelForImageClassification as Auto, TorchAoConfig

import hf_vitmae

images = torch.load("images.pt")
model = Auto.from_pretrained("model", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
model.save_pretrained("int8")
linear = {n: m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
seen = {
    "class": type(model).__name__,
    "kept": [name for name, w in linear.items() if not isinstance(w, TorchAOBaseTensor)],
    "quantised": len(linear),
    "logits": model(images).logits.detach(),
    "logits again": Auto.from_pretrained("int8")(images).logits.detach(),
}
torch.save(seen, "seen.pt")
"""


def train(folder: Path) -> tuple[Tensor, Tensor]:
    """Save a classifier that has learned eight images, and these; its logits and their labels.

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
    model.eval().save_pretrained(folder / "model")
    torch.save(images, folder / "images.pt")
    return model(images).logits.detach(), labels


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw, what the model says without it, and the sizes of both files."""
    folder = tmp_path_factory.mktemp("quantisation")
    expected, labels = train(folder)
    paths = [str(TORCHAO), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    names = ("model", "int8")
    sizes = [(folder / name / "model.safetensors").stat().st_size for name in names]
    found = torch.load(folder / "seen.pt")
    return found | {"expected": expected, "labels": labels, "sizes": sizes}


def test_every_linear_map_is_quantised(seen: dict[str, Any]) -> None:
    assert seen["class"] == "VitMaeForImageClassification"
    assert seen["quantised"] == 2 * 6 + 1 and not seen["kept"]  # two blocks and the classifier


def test_int8_weights_change_logits_by_less_than_one_percent(seen: dict[str, Any]) -> None:
    got, expected = seen["logits"], seen["expected"]
    assert 0 < (got - expected).norm() / expected.norm() < 0.01
    assert torch.equal(expected.argmax(dim=1), seen["labels"])
    assert torch.equal(got.argmax(dim=1), seen["labels"])


def test_an_int8_model_is_a_quarter_of_the_size_and_the_same_after_saving(
    seen: dict[str, Any],
) -> None:
    before, after = seen["sizes"]
    assert after < 0.35 * before
    assert torch.equal(seen["logits again"], seen["logits"])
