"""What is pushed comes back: every class by its Auto class, with the package and without it, with
the outputs that it had; and a repository reaches nothing outside its folder.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image
from safetensors.torch import load
from torch import Tensor
from transformers import ViTForImageClassification, ViTImageProcessor

from hf_vitmae.cli import main
from hf_vitmae.hub.push import push_folder
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.tasks.checkpoints import save_model

from ..data.shard_files import write_folder
from ..models.family import AUTO_CLASSES, CLASSES, family_config, family_inputs
from ..models.tiny import random_images, stir, tiny_config
from .client import SENDING, TOKEN, Hub
from .pushing import HASTY
from .unusual import push_raw

pytestmark = pytest.mark.filterwarnings(SENDING)
SHARDED = VitMaeForSemanticSegmentation
SHARD_SIZE = "16KB"

# Opens every repository at the commit that was pushed and compares what it computes with what came
# along; its arguments: that file, and whether the package may be imported.
OPENING = """
import sys
import torch
import transformers
from PIL import Image
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.image_processing_auto import AutoImageProcessor

saved, with_package = torch.load(sys.argv[1]), sys.argv[2] == "with"
if not with_package:
    sys.modules["hf_vitmae"] = None
else:
    import hf_vitmae
home = "hf_vitmae." if with_package else "transformers_modules."
picture = Image.open(saved["picture"])


def flat(output):
    parts = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [parts] if isinstance(parts, torch.Tensor) else sum(map(flat, parts), [])


def open_model(kind, auto, name, options):
    if auto is not None:
        return getattr(transformers, auto).from_pretrained(name, **options)
    if with_package:
        return getattr(hf_vitmae, kind).from_pretrained(name, **options)
    reference = f"modeling_vitmae.{kind}"
    opener = get_class_from_dynamic_module(reference, name, revision=options["revision"])
    return opener.from_pretrained(name, revision=options["revision"])


for name, asked in saved["models"].items():
    options = {"revision": asked["commit"]}
    if not with_package and not asked["plain"]:
        try:
            transformers.AutoModel.from_pretrained(name, **options)
        except ValueError as error:
            assert "trust_remote_code=True" in str(error), error
        else:
            raise AssertionError(f"{name} ran its code unasked")
        options["trust_remote_code"] = True
    model = open_model(asked["kind"], asked["auto"], name, options)
    assert type(model).__name__ == asked["kind"] and not model.training
    module = type(model).__module__
    assert module.startswith("transformers.models." if asked["plain"] else home), module
    with torch.no_grad():
        got = flat(model(**asked["inputs"]))
    assert len(got) == len(asked["outputs"]) > 0
    for one, other in zip(got, asked["outputs"]):
        assert torch.equal(one, other), (name, asked["kind"], (one - other).abs().max())
    processor = AutoImageProcessor.from_pretrained(name, **options)
    assert asked["plain"] or type(processor).__module__.startswith(home), type(processor)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, asked["pixel_values"]), (name, asked["kind"])
print("all opened")
"""


def flat(output: Any) -> list[Tensor]:
    """All tensors of a model's output, in order."""
    parts = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [parts] if isinstance(parts, Tensor) else sum(map(flat, parts), [])


def push(hub: Hub, folder: Path) -> dict[str, str]:
    """Push to a new repository: its name and the commit."""
    name = hub.new_name()
    quiet: dict[str, Any] = {"report": lambda line: None, "patience": HASTY}
    pushed = push_folder(folder, name, endpoint=hub.endpoint, token=TOKEN, **quiet)
    return {"name": name, "commit": pushed.commit}


def expected_of(
    model: Any, inputs: dict[str, Any], processor: Any, picture: Image.Image
) -> dict[str, Any]:
    """What a model and its processor give here."""
    with torch.no_grad():
        outputs = flat(model(**inputs))
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    facts = {"kind": type(model).__name__, "inputs": inputs, "outputs": outputs}
    return facts | {"pixel_values": pixels}


def push_class(
    hub: Hub, kind: type[VitMaePreTrainedModel], folder: Path, picture: Image.Image
) -> dict[str, Any]:
    """A model of a class with weights of its own, that of `SHARDED` in several files."""
    model = kind(family_config("linear")).eval()
    stir(model)
    processor = VitMaeImageProcessor.for_model(model.config)
    if kind is SHARDED:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        processor.save_pretrained(folder)
    else:
        save_model(folder, model, processor)
    auto = AUTO_CLASSES[kind]
    facts = expected_of(model, family_inputs(kind, model.config), processor, picture)
    facts |= {"auto": None if auto is None else auto.__name__, "plain": False}
    return facts | push(hub, folder)


def push_plain(hub: Hub, folder: Path, picture: Image.Image) -> dict[str, Any]:
    """A classifier that was converted to the one of transformers."""
    ours = VitMaeForImageClassification(tiny_config(num_labels=3, position_embedding="learned"))
    stir(ours)
    save_model(folder / "ours", ours, VitMaeImageProcessor.for_model(ours.config))
    command = ["convert", str(folder / "ours"), str(folder / "plain"), "--to", "transformers"]
    assert main(command) == 0
    plain = ViTForImageClassification.from_pretrained(folder / "plain")
    inputs = {"pixel_values": random_images(ours.config)}
    processor = ViTImageProcessor.from_pretrained(folder / "plain")
    facts = expected_of(plain, inputs, processor, picture)
    torch.testing.assert_close(ours.eval()(**inputs).logits.detach(), facts["outputs"][0])
    facts |= {"auto": "AutoModelForImageClassification", "plain": True}
    return facts | push(hub, folder / "plain")


def open_all(hub: Hub, saved: Path, home: Path, package: str, *, xet: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(saved), package],
        stdin=subprocess.DEVNULL,
        env=hub.environment(home, xet=xet),
        cwd=saved.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "all opened" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["lfs", "xet"])
def test_every_class_comes_back(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture, transport: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    picture = Image.open(tmp_path / "picture.png")
    pushed = [push_class(hub, kind, tmp_path / kind.__name__, picture) for kind in CLASSES]
    pushed.append(push_plain(hub, tmp_path / "converted", picture))
    for one in pushed:  # what is read is pinned, so this is not seen
        hub.api.upload_file(path_or_fileobj=b"{", path_in_repo="config.json", repo_id=one["name"])
        is_sharded = one["kind"] == SHARDED.__name__
        files = set(hub.pushes(one["name"])[0]["visible"])
        assert ("model.safetensors.index.json" in files) == is_sharded
        assert ("modeling_vitmae.py" in files) == (not one["plain"])
    picture_path = str(tmp_path / "picture.png")
    saved = {"picture": picture_path, "models": {one.pop("name"): one for one in pushed}}
    torch.save(saved, tmp_path / "saved.pt")
    xet = transport == "xet"
    for package in ("with", "without"):
        hub.clear()
        home = tmp_path / f"home-{package}"  # with nothing in its cache
        open_all(hub, tmp_path / "saved.pt", home, package, xet=xet)
        assert ("terms" in hub.routes()) == xet


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Those of a saved encoder, by name."""
    model = VitMaeModel(tiny_config())
    save_model(tmp_path / "saved", model, VitMaeImageProcessor.for_model(model.config))
    paths = [path for path in (tmp_path / "saved").iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in paths}


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def said_in_error(capsys: pytest.CaptureFixture) -> str:
    """The only line."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_names_that_lead_outside_write_nothing_there(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    absolute, home = tmp_path / "absolute-1-of-1.json", tmp_path / "deep"
    outside = ["../escaped.json", f"model-{'/..' * 9}{home}/escaped-of-1.safetensors", absolute]
    name = push_raw(hub, files | {str(path): b"{}" for path in outside})
    before = names_below(tmp_path)
    got = VitMaeModel.from_pretrained(name, cache_dir=home / "cache")
    images = random_images(got.config)
    expected = VitMaeModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(got(images).last_hidden_state, expected(images).last_hidden_state)
    capsys.readouterr()
    assert main(["convert", name, str(tmp_path / "out"), "--to", "timm"]) == 1
    assert name in (line := said_in_error(capsys)) and "escaped-of-1.safetensors" in line
    with pytest.raises(ValueError, match="Invalid filename"):
        hub.api.snapshot_download(name, local_dir=home / "local")
    new = names_below(tmp_path) - before
    assert not [found for found in new if "escaped" in found or "absolute" in found]
    assert not (tmp_path / "out").exists() and not names_below(Path(HF_HOME)) & {"escaped.json"}


def test_an_index_that_leads_outside_reads_nothing_there(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights, outside = files.pop("model.safetensors"), "../x.safetensors"
    rows = dict.fromkeys(load(weights), outside)
    index = json.dumps({"metadata": {}, "weight_map": rows}).encode()
    name = push_raw(hub, files | {"model.safetensors.index.json": index, outside: weights})
    with pytest.raises(ValueError, match="x.safetensors") as caught:
        VitMaeModel.from_pretrained(name, cache_dir=tmp_path / "cache")
    assert len(str(caught.value).splitlines()) == 1
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    (snapshot.parent / "x.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="x.safetensors"):
        VitMaeModel.from_pretrained(name, cache_dir=tmp_path / "cache")
    capsys.readouterr()
    assert main(["convert", name, str(tmp_path / "out"), "--to", "timm"]) == 1
    assert "x.safetensors" in said_in_error(capsys) and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_verbs_take_an_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for kind in (VitMaeForPreTraining, VitMaeForImageClassification):
        model = kind(tiny_config(id2label=dict(enumerate("abc"))))
        save_model(tmp_path / kind.__name__, model, VitMaeImageProcessor.for_model(model.config))
        names.append(push(hub, tmp_path / kind.__name__)["name"])
    encoder, classifier = names
    images = write_folder(tmp_path / "images", range(60))
    data = ["--data.source", images, "--data.num-workers", "0"]
    commands: list[list[Any]] = [
        ["reconstruct", encoder, next(images.rglob("*.png")), "--output", "panel.png"],
        ["knn", "--model", encoder, *data, "--data.eval-share", "0.3", "--k", "3"],
        ["evaluate", "--model", classifier, *data, "--data.split", "train"],
        ["evaluate", "--model", f"{classifier}@main", *data, "--data.split", "train"],
        ["reconstruct", f"{encoder}@main", next(images.rglob("*.png")), "--output", "b.png"],
    ]
    codes = [main([str(part) for part in command]) for command in commands]
    assert not any(codes), codes
