"""transformers' Trainer pushes the models of this package, at its end or at every save, and what
arrives opens again, with and without the package.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .client import ROOT, SENDING, Hub

pytestmark = pytest.mark.filterwarnings(SENDING)
CLASSES = {"end": "VitMaeForPreTraining", "every_save": "VitMaeForImageClassification"}
WEIGHTS = {"config.json", "model.safetensors", "preprocessor_config.json"}
CODE = {"modeling_vitmae.py", "layers.py", "image_processing_vitmae.py"}

# Opens a repository by its Auto classes and compares what it computes with what came along.
OPENING = """
import sys
import torch
import transformers
from transformers.models.auto.image_processing_auto import AutoImageProcessor


def check(name, saved, home, **options):
    auto = saved["class"].replace("VitMae", "AutoModel")
    model = getattr(transformers, auto).from_pretrained(name, **options)
    assert type(model).__name__ == saved["class"]
    assert type(model).__module__.startswith(home), type(model)
    with torch.no_grad():
        assert torch.equal(model(saved["images"]).logits, saved["logits"]), name
    processor = AutoImageProcessor.from_pretrained(name, **options)
    assert type(processor).__module__.startswith(home), type(processor)
    print("came back", name)
"""

# Trains and pushes, and opens what arrived; its arguments: names by strategy, a folder.
TRAINING = """
import json
from pathlib import Path

import hf_vitmae
from tests.hub.test_trainer import CLASSES
from tests.models.test_trainer import make_trainer
from tests.models.tiny import random_images

folder, saved = Path(sys.argv[2]), {}
for strategy, name in json.loads(sys.argv[1]).items():
    options = {"push_to_hub": True, "hub_model_id": name, "hub_strategy": strategy}
    kind = getattr(hf_vitmae, CLASSES[strategy])
    trainer = make_trainer(kind, folder / strategy, hub_always_push=True, **options)
    model = trainer.model
    trainer.processing_class = hf_vitmae.VitMaeImageProcessor.for_model(model.config)
    if strategy == "every_save":  # the Trainer pushes all of its folder, but puts no code there
        model.save_pretrained(folder / strategy)
    trainer.train()
    if strategy == "end":
        trainer.push_to_hub()
    else:
        trainer._finish_current_push()
    images = random_images(model.eval().config)
    with torch.no_grad():
        logits = model(images).logits
    saved[name] = {"class": CLASSES[strategy], "images": images, "logits": logits}
    check(name, saved[name], "hf_vitmae.")
torch.save(saved, folder / "saved.pt")
"""

WITHOUT_THE_PACKAGE = """
sys.modules["hf_vitmae"] = None
for name, saved in torch.load(sys.argv[1]).items():
    check(name, saved, "transformers_modules.", trust_remote_code=True)
"""


def run(program: str, *arguments: object, **options: Any) -> None:
    """Run a program that opens two repositories."""
    done = subprocess.run(
        [sys.executable, "-c", OPENING + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == 0 and done.stdout.count("came back") == 2, done.stderr


@pytest.mark.slow
def test_what_the_trainer_pushes_comes_back(hub: Hub, tmp_path: Path) -> None:
    names, runs = {strategy: hub.new_name() for strategy in CLASSES}, tmp_path / "runs"
    environment = hub.environment(tmp_path / "home")
    run(TRAINING, json.dumps(names), runs, env=environment, cwd=ROOT)
    for name in names.values():
        for row in hub.pushes(name):
            assert set(row["visible"]) >= WEIGHTS | CODE, row["message"]
            assert not [path for path in row["visible"] if path.startswith("checkpoint")]
    assert hub.pushes(names["end"])[0]["visible"].keys() >= {"README.md"}
    saves = [row["visible"]["model.safetensors"] for row in hub.pushes(names["every_save"])]
    assert len(set(saves)) == 2  # after two steps, and after four
    run(WITHOUT_THE_PACKAGE, runs / "saved.pt", env=environment, cwd=tmp_path)
