"""A saved checkpoint opens in a process that cannot import the package, through every Auto class,
and again after it was saved there: one file or several, with its image processor.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor

from .family import AUTO_CLASSES, CLASSES, family_config, family_inputs
from .tiny import stir

SHARD_SIZE = "16KB"

# Run from a folder with a saved model for each class, values.pt and picture.png, and nothing else.
PROGRAM = """
import importlib.abc
import sys
from pathlib import Path


class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "hf_vitmae":
            raise ImportError("this process cannot import the package")


sys.meta_path.insert(0, Blocked())
import torch
import transformers
from PIL import Image
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.image_processing_auto import AutoImageProcessor

values = torch.load("values.pt")
trust = {"trust_remote_code": True}
picture = Image.open("picture.png")


def flat(output):
    parts = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [parts] if isinstance(parts, torch.Tensor) else sum(map(flat, parts), [])


def open_model(kind, auto, folder):
    if auto is None:
        reference = f"modeling_vitmae.{kind}"
        return get_class_from_dynamic_module(reference, folder).from_pretrained(folder)
    auto_class = getattr(transformers, auto)
    if auto == "AutoBackbone":  # it opens no local folder, whatever the model
        config = transformers.AutoConfig.from_pretrained(folder, **trust)
        return type(auto_class.from_config(config, **trust)).from_pretrained(folder)
    return auto_class.from_pretrained(folder, **trust)


def check(kind, folder):
    expected = values["models"][kind]
    model = open_model(kind, expected["auto"], folder)
    assert type(model).__name__ == kind
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        got = flat(model(**expected["inputs"]))
    assert len(got) == len(expected["outputs"]) > 0
    for one, other in zip(got, expected["outputs"]):
        assert torch.equal(one, other), (kind, folder, (one.double() - other).abs().max())
    processor = AutoImageProcessor.from_pretrained(folder, **trust)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, values["pixel_values"]), (kind, folder)
    return model, processor


for kind in values["models"]:
    model, processor = check(kind, kind)
    again = f"{kind}-again"
    model.save_pretrained(again, max_shard_size=values["shard_size"])
    processor.save_pretrained(again)
    files, before = ({path.name for path in Path(f).iterdir()} for f in (again, kind))
    assert files == before, files ^ before
    assert ("model.safetensors.index.json" in files) == values["is_sharded"]
    check(kind, again)

for task, kind in values["pipelines"].items():
    answers = []
    for folder in (kind, f"{kind}-again"):
        answer = transformers.pipeline(task, model=folder, **trust)(picture)
        answers.append([one["label"] for one in answer] if "seg" in task else answer)
    assert answers[0] and answers[0] == answers[1], task
assert not any(name.partition(".")[0] == "hf_vitmae" for name in sys.modules)
print("all opened")
"""


def flat(output: Any) -> list[Tensor]:
    """All tensors of a model's output, in order."""
    parts = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [parts] if isinstance(parts, Tensor) else sum(map(flat, parts), [])


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "is_sharded"), [("linear", False), ("hybrid", True)])
def test_every_class_opens_without_the_package_and_again_after_it_is_saved_there(
    stem: str, is_sharded: bool, tmp_path: Path
) -> None:
    shard_size, config = SHARD_SIZE if is_sharded else "1GB", family_config(stem)
    processor = VitMaeImageProcessor.for_model(config)
    models: dict[str, dict[str, Any]] = {}
    for kind in CLASSES:
        model = kind(family_config(stem)).eval()
        stir(model)
        inputs = family_inputs(kind, model.config)
        with torch.no_grad():
            outputs = flat(model(**inputs))
        auto = AUTO_CLASSES[kind]
        models[kind.__name__] = {
            "auto": None if auto is None else auto.__name__,
            "inputs": inputs,
            "outputs": outputs,
        }
        model.save_pretrained(tmp_path / kind.__name__, max_shard_size=shard_size)
        processor.save_pretrained(tmp_path / kind.__name__)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "picture.png")
    values = {
        "models": models,
        "shard_size": shard_size,
        "is_sharded": is_sharded,
        "pixel_values": processor(picture, return_tensors="pt")["pixel_values"],
        "pipelines": {
            "image-classification": "VitMaeForImageClassification",
            "image-feature-extraction": "VitMaeForPreTraining",
            "image-segmentation": "VitMaeForSemanticSegmentation",
        },
    }
    torch.save(values, tmp_path / "values.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "all opened" in done.stdout, done.stderr
