"""`hf-vitmae push`: a run or a model goes to a Hub on this computer and opens from there."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import ViTConfig, ViTForImageClassification

from hf_vitmae import VitMaeForPreTraining
from hf_vitmae.cli import main
from hf_vitmae.hub.privacy import find_private
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeModel
from hf_vitmae.recipes import PRETRAIN
from hf_vitmae.tasks.checkpoints import save_model
from hf_vitmae.tasks.push import push_result

from ..hub.client import SENDING, TOKEN, Hub
from ..models.tiny import random_images, tiny_config

pytestmark = pytest.mark.filterwarnings(SENDING)
SECRET = "/home/bob.secret"

# Opens a repository by its code alone, and compares what it computes with what came along.
WITHOUT_THE_PACKAGE = """
import sys
import torch
sys.modules["hf_vitmae"] = None
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

name, revision, place = sys.argv[1:]
saved = torch.load(place)
options = {"revision": revision, "trust_remote_code": True}
model = AutoModel.from_pretrained(name, **options)
assert torch.equal(model(saved["images"]).last_hidden_state, saved["expected"])
assert AutoImageProcessor.from_pretrained(name, **options).image_mean == [0.5] * 3
print("it opened")
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tiny model of random weights."""
    pretrained = VitMaeForPreTraining(tiny_config())
    save_model(
        tmp_path / "run/model", pretrained, VitMaeImageProcessor.for_model(pretrained.config)
    )
    return tmp_path / "run/model"


@pytest.fixture
def run(model: Path) -> Path:
    """The folder of a run that made the model, with a path in its recipe."""
    recipe = {
        "task": "PretrainRecipe",
        "data": {"source": f"{SECRET}/my-photos"},
        "output_dir": f"{SECRET}/runs/first",
        "steps": 4,
        "seed": 0,
    }
    folder = model.parent
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [{"step": step, "loss": 1.0 / step, "lr": 0.1} for step in (1, 2, 3, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "samples").mkdir()
    (folder / "samples/reconstruction.png").write_bytes(b"\x89PNG")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/state.json").write_text("{}")
    return folder


def push(*arguments: object) -> int:
    return main(["push", *map(str, arguments)])


def said_in_error(capsys: pytest.CaptureFixture) -> str:
    """The last line: before it stand the client's progress bars."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_a_run_goes_with_what_describes_it(hub: Hub, run: Path) -> None:
    name = hub.new_name()
    assert push(run, name) == 0
    (row,) = hub.pushes(name)
    described = {"README.md", "recipe.yaml", "metrics.jsonl", "samples/reconstruction.png"}
    weights = {"config.json", "preprocessor_config.json", "model.safetensors", "layers.py"}
    assert set(row["visible"]) >= described | weights
    assert not [path for path in row["visible"] if path.startswith(("checkpoints", "model/"))]
    card = ModelCard.load(name)
    card.validate()
    assert name in card.content and card.data.to_dict()["library_name"]
    pictures = re.findall(r"\]\((samples/[^)]*)\)", card.content)
    assert set(pictures) <= set(row["visible"])
    recipe = (run / "recipe.yaml").read_text()
    assert SECRET in recipe  # in the folder it stays


def test_nothing_private_is_pushed(hub: Hub, run: Path, tmp_path: Path) -> None:
    name = hub.new_name()
    config = json.loads((run / "model/config.json").read_text()) | {"made_in": f"{SECRET}/there"}
    (run / "model/config.json").write_text(json.dumps(config))
    assert push(run, name) == 0
    folder = Path(hub.api.snapshot_download(name, cache_dir=tmp_path / "cache"))
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (SECRET, str(tmp_path), TOKEN, str(Path.cwd())):
                assert secret.encode() not in content, path
        if path.suffix in (".md", ".yaml", ".json", ".jsonl"):
            assert not find_private(path.read_text(), allowed=(name,)), path
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["data"]["source"] == "my-photos" and recipe["output_dir"] == "first"
    assert json.loads((folder / "config.json").read_text())["made_in"] == "there"


def test_a_model_comes_back(hub: Hub, model: Path, capsys: pytest.CaptureFixture) -> None:
    name, images = hub.new_name(), random_images(tiny_config())
    assert push(model, name) == 0
    first = capsys.readouterr().out
    assert f"is pushed: {hub.endpoint}/{name} (commit " in first
    assert push(model, name) == 0
    assert f"is there already: {hub.endpoint}/{name}" in capsys.readouterr().out
    assert len(hub.pushes(name)) == 1
    got = VitMaeModel.from_pretrained(name)
    expected = VitMaeModel.from_pretrained(model)
    assert torch.equal(got(images).last_hidden_state, expected(images).last_hidden_state)


def test_a_card_of_ones_own_stays(hub: Hub, model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    name = hub.new_name()
    assert push(model, name, "--message", "My model") == 0
    assert ModelCard.load(name).text.strip() == "Mine."
    assert hub.pushes(name)[0]["message"] == "My model"


def test_where_it_goes(hub: Hub, model: Path) -> None:
    own, team = hub.new_name().split("/")[1], hub.new_name().split("/")[1]
    assert push(model, own, "--private") == 0
    assert hub.repo(f"user/{own}")["private"]
    assert push(model, team, "--organization", "team", "--revision", "v2") == 0
    repo = hub.repo(f"team/{team}")
    assert len(repo["branches"]) == 2 and set(repo["log"][-1]["visible"]) == {".gitattributes"}
    assert push(model, f"team/{team}", "--create-pr") == 0
    assert list(hub.repo(f"team/{team}")["pulls"]) == ["refs/pr/1"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_one_line(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture, status: int
) -> None:
    name = hub.new_name()
    hub.fault("commit", {"status": status})
    assert push(model, name) == 1
    line = said_in_error(capsys)
    assert f"{name} was not pushed: the Hub answers {status}" in line and TOKEN not in line
    assert push(model, name) == 0 and len(hub.pushes(name)) == 1


def test_mistakes_are_one_line(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a/b/c", "/b", "a/"):
        assert push(model, name) == 2 and "name or user/name" in said_in_error(capsys)
    assert push(model, "a/b", "--organization", "team") == 2
    assert "an organization goes before" in said_in_error(capsys)
    assert push(tmp_path / "absent", "user/x") == 1
    assert "holds no model" in said_in_error(capsys)
    hub.fault("whoami", {"status": 401})
    assert push(model, "own") == 1 and "own was not pushed: the Hub answers 401" in said_in_error(
        capsys
    )
    assert not hub.api.repo_exists("user/x")


@pytest.mark.slow
def test_it_opens_without_the_package(hub: Hub, model: Path, tmp_path: Path) -> None:
    name, images = hub.new_name(), random_images(tiny_config())
    assert push(model, name) == 0
    expected = VitMaeModel.from_pretrained(model)(images).last_hidden_state.detach()
    torch.save({"images": images, "expected": expected}, tmp_path / "saved.pt")
    commit = hub.pushes(name)[0]["id"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, name, commit, str(tmp_path / "saved.pt")],
        env=hub.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "it opened" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_script_does_the_same(hub: Hub, model: Path, tmp_path: Path) -> None:
    name = hub.new_name()
    script = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
    done = subprocess.run(
        [sys.executable, str(script), str(model), name],
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and f"is pushed: {hub.endpoint}/{name}" in done.stdout, done.stderr


def pretrain(run: Path, *flags: str) -> int:
    command = ["pretrain", "smoke", "--data.source", "emoji", "--output-dir", str(run)]
    return main([*command, "--steps", "2", *flags])


def test_a_finished_run_pushes_itself_and_a_refusal_loses_nothing(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, name = tmp_path / "run", hub.new_name()
    for _ in range(3):
        hub.fault("commit", {"status": 403})
    assert pretrain(run, "--push-to-hub", name) == 1
    line = said_in_error(capsys)
    assert name in line and "403" in line and TOKEN not in line
    assert (run / "model" / "model.safetensors").exists() and not hub.pushes(name)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    hub.clear()
    assert pretrain(run, "--push-to-hub", name) == 0  # trains no further
    (row,) = hub.pushes(name)
    assert {"model.safetensors", "README.md", "samples/reconstruction.png"} <= set(row["visible"])
    assert pretrain(run) == 0 and len(hub.pushes(name)) == 1


def test_only_the_first_process_pushes(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pretrain(tmp_path / "run") == 0
    name = hub.new_name()
    recipe = dataclasses.replace(PRETRAIN["smoke"](), output_dir=tmp_path / "run", push_to_hub=name)
    monkeypatch.setenv("RANK", "1")
    push_result(recipe)
    assert hub.requests("create") == 0
    monkeypatch.setenv("RANK", "0")
    push_result(recipe)
    assert len(hub.pushes(name)) == 1


def test_a_name_that_is_none_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert pretrain(tmp_path / "run", "--push-to-hub", "a/b/c") == 2
    assert "`push_to_hub` must be name or user/name, got 'a/b/c'" in said_in_error(capsys)
    assert not (tmp_path / "run").exists()


def test_a_converted_model_tells_how_and_not_from_where(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    place = tmp_path / "home" / "bob.secret" / "their-vit"
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 4, "hidden_size": 16}
    layers: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2}
    their = ViTConfig(**sizes, **layers, intermediate_size=32)
    ViTForImageClassification(their).save_pretrained(place)
    out, name = tmp_path / "ours", hub.new_name()
    assert main(["convert", str(place), str(out)]) == 0
    assert str(place) not in (out / "conversion.json").read_text()
    assert push(out, name, "--license", "apache-2.0") == 0
    card = ModelCard.load(name)
    card.validate()
    assert "their-vit" in card.content and "Largest difference between the outputs" in card.content
    assert card.data.to_dict()["license"] == "apache-2.0"
    folder = Path(hub.api.snapshot_download(name, cache_dir=tmp_path / "cache"))
    told = [path.name for path in folder.rglob("*") if path.is_file()]
    assert "conversion.json" in told
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"bob.secret" not in content and str(tmp_path).encode() not in content, path


def test_a_licence_that_the_hub_does_not_know_so(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert push(run, "user/name", "--license", "Apache License 2") == 2
    assert "such as apache-2.0" in said_in_error(capsys)
