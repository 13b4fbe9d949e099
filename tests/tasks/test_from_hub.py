"""Models on a Hub open by their id in every place that takes a folder.

The Hub is one on this computer; its clients are processes of their own, and few, as each imports
the libraries anew.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTForImageClassification, ViTMAEForPreTraining, ViTModel

from hf_vitmae.cli import main
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeModel
from hf_vitmae.tasks.checkpoints import save_model

from ..hub_reader import HubReader
from ..models.timm_models import import_timm
from ..models.tiny import random_images, stir, tiny_config
from ..models.transformers_models import their_model, write_processor
from ..small import FAST

# Runs commands, one JSON list a line, and says how each ended.
PROGRAM = """
import json, sys
from hf_vitmae.cli import main

for line in sys.stdin:
    print("EXIT", main(json.loads(line)), flush=True)
    print("EXIT", file=sys.stderr, flush=True)
"""

# Opens models by id and by folder, and compares what they compute.
OPENING = """
import sys
import torch
from transformers import AutoModel, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from hf_vitmae import VitMaeForImageClassification, VitMaeImageProcessor, VitMaeModel

root, images = sys.argv[1], torch.load(sys.argv[2])
for kind, auto, name, revision in (
    (VitMaeModel, VitMaeModel, "user/vit", "main"),
    (VitMaeModel, VitMaeModel, "user/vit", "v1"),
    (VitMaeForImageClassification, VitMaeForImageClassification, "user/sharded", "main"),
    (VitMaeForImageClassification, AutoModelForImageClassification, "user/ours", "main"),
    (VitMaeModel, AutoModel, "user/ours", "main"),
):
    got = auto.from_pretrained(name, revision=revision)
    expected = kind.from_pretrained(f"{root}/{name}/{revision}")
    assert type(got) is kind, type(got)
    assert torch.equal(got(images)[0], expected(images)[0]), name
processor = AutoImageProcessor.from_pretrained("user/ours")
assert type(processor) is VitMaeImageProcessor, type(processor)
print("all opened")
"""


def save_pickled(model: Any, folder: Path) -> None:
    """As before there was safetensors."""
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubReader]:
    """Models of transformers, timm and this package, one with two revisions."""
    import_timm()
    root = tmp_path_factory.mktemp("hub")
    for revision, seed in (("main", 0), ("v1", 1)):
        theirs = their_model(ViTModel)
        stir(theirs, seed)
        theirs.save_pretrained(root / "user/vit" / revision)
        write_processor(root / "user/vit" / revision, image_mean=[0.4, 0.5, 0.6])
    (root / "user/vit/main/flax_model.msgpack").write_bytes(b"0" * 1000)
    (root / "user/vit/main/pytorch_model.bin").write_bytes(b"0" * 1000)
    sharded = root / "user/sharded/main"
    their_model(ViTForImageClassification).save_pretrained(sharded, max_shard_size="20KB")
    save_pickled(their_model(ViTMAEForPreTraining), root / "user/pickled/main")
    (root / "user/empty/main").mkdir(parents=True)
    (root / "user/empty/main/vit.npz").write_bytes(b"")
    ours = VitMaeForImageClassification(tiny_config(position_embedding="learned"))
    stir(ours)
    save_model(root / "user/ours/main", ours, VitMaeImageProcessor.for_model(ours.config))
    command = ["convert", str(root / "user/ours/main"), str(root / "user/vit.timm-v1/main")]
    assert main([*command, "--to", "timm"]) == 0
    with HubReader(root) as server:
        yield server


def run(hub: HubReader, home: Path, commands: list[list[Any]]) -> list[tuple[int, str, str]]:
    """Exit code, output and error output of each command, all run in one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(json.dumps([str(part) for part in command]) for command in commands),
        env=hub.environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said, errors = done.stdout.split("EXIT"), done.stderr.split("EXIT")
    assert len(said) == len(errors) == len(commands) + 1, done.stderr
    codes = [int(part.split()[0]) for part in said[1:]]
    outputs = [said[0], *(part.split("\n", 1)[1] for part in said[1:-1])]
    return list(zip(codes, outputs, errors, strict=False))


def test_convert_fetches_what_it_needs(hub: HubReader, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", len(hub.requests)
    names = ["vit", "vit@v1", "sharded", "pickled", "vit.timm-v1", "ours"]
    sources = {name: f"user/{name}" for name in names}
    commands = [["convert", source, out / name] for name, source in sources.items()]
    commands[-1] += ["--to", "transformers"]
    results = run(hub, tmp_path / "home", commands)
    for source, (code, said, errors) in zip(names, results, strict=True):
        assert code == 0 and not errors.strip(), errors
        assert f"user/{source} is a checkpoint of " in said and str(tmp_path / "home") not in said
        compared = "timm cannot be imported" if "timm" in source else "Largest difference"
        assert compared in said, said
    for name in ("vit", "vit@v1"):
        folder = hub.root / "user/vit" / ("v1" if "@" in name else "main")
        got = VitMaeModel.from_pretrained(out / name).state_dict()["layernorm.weight"]
        assert torch.equal(got, ViTModel.from_pretrained(folder).state_dict()["layernorm.weight"])
        assert VitMaeImageProcessor.from_pretrained(out / name).image_mean == [0.4, 0.5, 0.6]
    fetched = {path.split("/")[-1] for path in hub.requests[seen:] if "/user/vit/resolve" in path}
    assert fetched == {"config.json", "preprocessor_config.json", "model.safetensors"}


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_one_line(hub: HubReader, tmp_path: Path) -> None:
    cases = {
        "user/absent": "check the name",
        "user/vit@v9": "it has no revision 'v9'",
        "user/empty": "has no model.safetensors and no pytorch_model.bin",
    }
    out = tmp_path / "deep" / "out"
    results = run(hub, tmp_path / "home", [["convert", source, out] for source in cases])
    for (source, words), (code, said, errors) in zip(cases.items(), results, strict=True):
        assert code == 1 and not said
        (line,) = errors.strip().splitlines()
        assert source in line and words in line
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.slow
def test_models_open_by_their_id(hub: HubReader, tmp_path: Path) -> None:
    torch.save(random_images(tiny_config()), tmp_path / "images.pt")
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(hub.root), str(tmp_path / "images.pt")],
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "all opened" in done.stdout, done.stderr


@pytest.mark.slow
def test_tasks_take_an_id(hub: HubReader, class_folder: Path, tmp_path: Path) -> None:
    tuned = ["finetune", "smoke", *FAST, "--data.source", class_folder, "--model", "user/vit"]
    embed = ["embed", "user/vit", class_folder, "--data.num-workers", "0", "-o", tmp_path / "rows"]
    export = ["export", "user/sharded", tmp_path / "graph", "--format", "torch"]
    commands = [[*tuned, "--output-dir", tmp_path / "run"], embed, export]
    for code, said, errors in run(hub, tmp_path / "home", commands):
        assert code == 0 and "user/" in said, errors
    processor = VitMaeImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.image_mean == [0.4, 0.5, 0.6]
    model = VitMaeForImageClassification.from_pretrained(tmp_path / "run" / "model")
    assert list(model.config.id2label.values()) == ["cats", "dogs", "owls"]
    assert list((tmp_path / "rows").glob("*.parquet")) and (tmp_path / "graph/model.pt2").exists()


def test_without_a_network_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", "user/vit", str(tmp_path / "out")]) == 1  # offline, as all tests are
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no folder or file 'user/vit', and the Hub does not give" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_hub_out_of_reach_is_one_line(hub: HubReader, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # closed by now, and not soon given out again
    environment = hub.environment(tmp_path / "home") | {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    done = subprocess.run(
        [sys.executable, "-m", "hf_vitmae.cli", "convert", "user/vit", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "no folder or file 'user/vit'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["user/mae.pth", "user/vit.npz", "a/b/c", "./a/b", "vit", "a/b@"])
def test_what_is_no_hub_id_is_not_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", name, "out"]) == 1
    assert "There is no checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
