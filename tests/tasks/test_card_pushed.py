"""What each kind of push sends says nothing of who pushed it from where, wherever that could have
come in; and an adapter's card is that of an adapter, and its code runs.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import ViTConfig, ViTForImageClassification

from hf_vitmae.cli import main
from hf_vitmae.hub.card_push import push_model
from hf_vitmae.hub.privacy import find_private
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining
from hf_vitmae.tasks.checkpoints import save_model
from hf_vitmae.tasks.lora import add_adapters, save_adapter

from ..hub.client import SENDING, TOKEN, Hub
from ..models.tiny import stir, tiny_config
from ..small import FAST

# PEFT asks transformers by an old name.
PEFT = "ignore:.is_gradient_checkpointing. is dep:FutureWarning"
pytestmark = [pytest.mark.filterwarnings(SENDING), pytest.mark.filterwarnings(PEFT)]
USER, HOST, SECRET = "bobsecret", "bobs-laptop-42", "hf_" + "Abcd1234" * 4
KINDS = ("pretrain", "finetune", "linear-probe", "converted", "adapter")


def write_telling_images(root: Path) -> Path:
    """Two classes of pictures that tell in EXIF and text chunks who took them."""
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            picture = Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8))
            exif, notes = Image.Exif(), PngInfo()
            exif[0x013B] = f"{USER} on {HOST}"  # the artist
            notes.add_text("Comment", f"/home/{USER}/secret {SECRET}")
            picture.save(root / name / f"{number}.png", exif=exif, pnginfo=notes)
    return root


@pytest.fixture(scope="module")
def telling_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind that can be pushed, made where everything has a name in it."""
    home = tmp_path_factory.mktemp("home") / USER
    images, runs = write_telling_images(home / "photos"), home / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: HOST)
        patch.setattr("getpass.getuser", lambda: USER)
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("MY_TOKEN", SECRET)
        (runs / ".git").mkdir(parents=True)
        (runs / ".git/config").write_text(
            f'[remote "origin"]\n\turl = https://{USER}:{SECRET}@example.org/x.git\n'
        )
        model = ["--model", str(runs / "pretrain/model")]
        data = ["--data.source", str(images)]
        labels = [*data, *model, "--data.eval-share", "0.25"]
        for verb, flags in (
            ("pretrain", [*FAST, *data]),
            ("finetune", [*FAST, *labels, "--lora-rank", "2"]),
            ("linear-probe", labels),
        ):
            assert main([verb, "smoke", *flags, "--output-dir", str(runs / verb)]) == 0
        sizes: dict[str, Any] = {
            "image_size": 16,
            "patch_size": 4,
            "hidden_size": 16,
            "num_hidden_layers": 1,
        }
        their = ViTConfig(**sizes, num_attention_heads=2, intermediate_size=32)
        ViTForImageClassification(their).save_pretrained(home / "their-vit")
        assert main(["convert", str(home / "their-vit"), str(runs / "converted")]) == 0
    return {kind: runs / kind for kind in KINDS[:-1]} | {"adapter": runs / "finetune/adapter"}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_private_arrives(
    hub: Hub,
    telling_runs: dict[str, Path],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, name = telling_runs[kind], hub.new_name()
    monkeypatch.setattr("socket.gethostname", lambda: HOST)
    monkeypatch.setattr("getpass.getuser", lambda: USER)
    assert main(["push", str(folder), name]) == 0
    arrived = Path(hub.api.snapshot_download(name, cache_dir=tmp_path / "cache"))
    files = [path for path in arrived.rglob("*") if path.is_file()]
    assert {"README.md", "config.json"} <= {path.name for path in files}
    secrets = (
        USER,
        HOST,
        SECRET,
        TOKEN,
        "/home/",
        str(folder),
        str(folder.parent),
        str(Path.cwd()),
    )
    for path in files:
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, (path.name, secret)
        if path.suffix in (".md", ".yaml", ".json", ".jsonl"):
            assert find_private(content.decode(), allowed=(name,)) == [], path.name


@pytest.mark.parametrize("how", ["text", "exif"])
def test_a_picture_that_tells_too_much_is_refused(
    hub: Hub, tmp_path: Path, how: str, capsys: pytest.CaptureFixture
) -> None:
    model = VitMaeForPreTraining(tiny_config())
    save_model(tmp_path / "model", model, VitMaeImageProcessor.for_model(model.config))
    exif, notes = Image.Exif(), PngInfo()
    if how == "exif":
        exif[0x013B] = "/home/bob.secret"
    else:
        notes.add_text("Comment", "/home/bob.secret")
    (tmp_path / "model/samples").mkdir()
    picture = tmp_path / "model/samples/a.png"
    Image.new("RGB", (4, 4)).save(picture, exif=exif, pnginfo=notes)
    name = hub.new_name()
    assert main(["push", str(tmp_path / "model"), name]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a.png is not pushed, it holds a path (/home/bob.secret)" in said
    assert not hub.api.repo_exists(name)


def test_the_card_of_an_adapter_opens_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, name = hub.new_name(), hub.new_name()
    torch.manual_seed(0)
    pretrained = VitMaeForPreTraining(tiny_config()).eval()
    push_model(pretrained, base)
    model = VitMaeForImageClassification(tiny_config(num_labels=3)).eval()
    model.vit.load_state_dict(pretrained.vit.state_dict())
    add_adapters(model, 2)
    frozen = {key: value.clone() for key, value in model.state_dict().items()}
    stir(model)
    model.load_state_dict({k: v for k, v in frozen.items() if is_frozen(k)}, strict=False)
    processor = VitMaeImageProcessor.for_model(model.config)
    save_adapter(tmp_path / "adapter", model, processor, base)
    assert main(["push", str(tmp_path / "adapter"), name, "--license", "mit"]) == 0

    card: Any = ModelCard.load(name)
    card.validate()
    data = card.data.to_dict()
    assert (data["library_name"], data["base_model"], data["license"]) == ("peft", base, "mit")
    assert data["base_model_relation"] == "adapter" and "lora" in data["tags"]
    assert "| rank | 2 |" in card.content and "trust_remote_code" not in card.content
    (block,) = re.findall(r"```python\n(.*?)```", card.content, flags=re.DOTALL)
    random_picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(random_picture).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    # `peft` asks by the client's own object, whose Hub was set when it was imported.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
    names: dict = {}
    exec(block, names)
    inputs = processor(Image.open("image.png"), return_tensors="pt")
    expected = model(**inputs).logits
    torch.testing.assert_close(names["logits"], expected, rtol=0, atol=1e-5)


def is_frozen(name: str) -> bool:
    return name.startswith("vit.") and ".lora_" not in name


def test_the_base_of_an_adapter_in_a_folder_is_not_named_by_its_path(
    hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "bob.secret/base").mkdir(parents=True)
    model = VitMaeForImageClassification(tiny_config(num_labels=3))
    add_adapters(model, 2)
    processor = VitMaeImageProcessor.for_model(model.config)
    save_adapter(tmp_path / "adapter", model, processor, str(tmp_path / "bob.secret/base"))
    name = hub.new_name()
    assert main(["push", str(tmp_path / "adapter"), name]) == 0
    card: Any = ModelCard.load(name)
    assert "base_model" not in card.data.to_dict() and 'base = "path/to/base"' in card.content
    settings = Path(hub.api.hf_hub_download(name, "adapter_config.json", cache_dir=tmp_path / "c"))
    assert json.loads(settings.read_text())["base_model_name_or_path"] == "base"


@pytest.mark.parametrize("name", ["mit", "cc-by-nc-4.0", "apache-2.0", "other"])
def test_a_licence_stands_in_the_metadata(hub: Hub, tmp_path: Path, name: str) -> None:
    repository = push_small(hub, tmp_path, "--license", name)
    card: Any = ModelCard.load(repository)
    card.validate()
    assert card.data.to_dict()["license"] == name
    assert "No licence of the weights" not in card.content


def test_without_a_licence_the_card_says_so(hub: Hub, tmp_path: Path) -> None:
    card: Any = ModelCard.load(push_small(hub, tmp_path))
    assert "license" not in card.data.to_dict()
    assert "- No licence of the weights is recorded." in card.content


def push_small(hub: Hub, root: Path, *flags: str) -> str:
    """Push a model's folder: -> where to."""
    model, name = VitMaeForPreTraining(tiny_config()), hub.new_name()
    save_model(root / "model", model, VitMaeImageProcessor.for_model(model.config))
    assert main(["push", str(root / "model"), name, *flags]) == 0
    return name


@pytest.mark.parametrize("name", ["Apache License 2", "MIT", "", "-mit", "a/b", "mit\nx: y"])
def test_a_licence_of_another_form_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["push", "nowhere", "user/name", f"--license={name}"]) == 2
    assert "such as apache-2.0" in capsys.readouterr().err
