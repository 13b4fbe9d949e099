"""`hf-vitmae convert`: whose checkpoint it is, what it becomes, and that nothing half is left."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from hf_vitmae.cli import main
from hf_vitmae.convert import from_big_vision, from_mae, from_transformers
from hf_vitmae.convert.converted import Converted
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.tasks.checkpoints import save_model

from ..models.timm_models import import_timm, timm_model
from ..models.tiny import stir, tiny_config

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
LABELS: dict[str, Any] = {"num_labels": 3}
DECODER: dict[str, Any] = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
}
SAME = pytest.approx(0, abs=1e-5)


def our_folder(folder: Path, kind: type[VitMaePreTrainedModel], **fields: Any) -> Path:
    """A model of ours, every weight off its start."""
    model = kind(tiny_config(**fields))
    stir(model)
    save_model(folder, model, VitMaeImageProcessor.for_model(model.config))
    return folder


def their_folder(folder: Path, model: Any) -> Path:
    """A model of transformers."""
    stir(model)
    model.save_pretrained(folder)
    return folder


def mae_file(path: Path, kind: type[VitMaePreTrainedModel] = VitMaeForPreTraining) -> Path:
    """A file such as the original code writes."""
    model = kind(tiny_config(position_embedding="learned"))
    stir(model)
    torch.save({"model": from_mae.write(model), "args": {"num_heads": 4}, "epoch": 1}, path)
    return path


def weights_of(folder: Path, kind: type[VitMaePreTrainedModel]) -> dict[str, Tensor]:
    return kind.from_pretrained(folder).state_dict()


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def convert(capsys: pytest.CaptureFixture, *command: Any) -> str:
    """Run the verb; what it says."""
    capsys.readouterr()
    code = main(["convert", *map(str, command)])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def fails(capsys: pytest.CaptureFixture, *command: Any) -> str:
    """Run the verb, which ends with code 1 and one line."""
    capsys.readouterr()
    assert main(["convert", *map(str, command)]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "Traceback" not in said
    return said


def difference(said: str) -> float:
    """The largest difference that the verb printed."""
    (line,) = [line for line in said.splitlines() if line.startswith("Largest difference")]
    return float(line.split(": ")[1].split()[0])


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: ViTForImageClassification(ViTConfig(**SIZES, **LABELS)), "classifier"),
        (lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False), "encoder"),
        (lambda: ViTModel(ViTConfig(**SIZES)), "encoder"),
        (lambda: ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER)), "pretraining"),
        (lambda: ViTMAEModel(ViTMAEConfig(**SIZES, **DECODER)), "encoder"),
    ],
    ids=[
        "ViTForImageClassification",
        "ViTModel without pooler",
        "ViTModel",
        "ViTMAEForPreTraining",
        "ViTMAEModel",
    ],
)
def test_a_folder_of_transformers(
    make: Any, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = their_folder(tmp_path / "theirs", make())
    said = convert(capsys, source, tmp_path / "ours")
    assert "checkpoint of transformers" in said and difference(said) == SAME
    classes = {
        "classifier": VitMaeForImageClassification,
        "encoder": VitMaeModel,
        "pretraining": VitMaeForPreTraining,
    }
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == [classes[kind].__name__]
    assert (tmp_path / "ours" / "preprocessor_config.json").exists()
    assert names_in(tmp_path) == {"theirs", "ours"}
    noted = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert (noted["source"], noted["hub_id"]) == ("theirs", None)
    assert "transformers" in noted["origin"]
    assert noted["said"] and all(line in said for line in noted["said"])


@pytest.mark.parametrize(
    "kind",
    [VitMaeModel, VitMaeForImageClassification, VitMaeForPreTraining],
    ids=lambda k: k.__name__,
)
def test_to_transformers_and_back(
    kind: type, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = our_folder(tmp_path / "ours", kind, position_embedding="learned")
    said = convert(capsys, source, tmp_path / "theirs", "--to", "transformers")
    assert "checkpoint of this package" in said and difference(said) == SAME
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] in (
        "vit",
        "vit_mae",
    )
    assert difference(convert(capsys, tmp_path / "theirs", tmp_path / "again")) == SAME
    assert_same(weights_of(tmp_path / "again", kind), weights_of(source, kind))


@pytest.mark.parametrize("kind", [VitMaeModel, VitMaeForImageClassification])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_to_timm_and_back(
    pooling: str, kind: type, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import_timm()
    fields = {"position_embedding": "learned", "pooling": pooling}
    source = our_folder(tmp_path / "ours", kind, **fields)
    said = convert(capsys, source, tmp_path / "theirs", "--to", "timm")
    assert "this package and of timm" in said and difference(said) == SAME
    said = convert(capsys, tmp_path / "theirs", tmp_path / "again")
    assert "checkpoint of timm" in said and difference(said) == SAME
    assert_same(weights_of(tmp_path / "again", kind), weights_of(source, kind))


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "with training state"])
def test_a_file_of_timm(wrapped: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    theirs = timm_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=3)
    source = tmp_path / "vit_tiny_patch16_224.pth"
    weights = theirs.state_dict()
    torch.save({"state_dict": weights, "epoch": 2} if wrapped else weights, source)
    said = convert(capsys, source, tmp_path / "ours")
    assert "checkpoint of timm" in said and difference(said) == SAME


def test_without_timm_it_is_said_that_nothing_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    source = our_folder(tmp_path / "ours", VitMaeForImageClassification)
    said = convert(capsys, source, tmp_path / "theirs", "--to", "timm")
    assert "Not opened with timm: timm cannot be imported" in said
    said = convert(capsys, tmp_path / "theirs", tmp_path / "again")
    assert "Not compared with timm: timm cannot be imported" in said
    assert "Largest" not in said
    assert "largest_difference" not in json.loads((tmp_path / "again/conversion.json").read_text())


@pytest.mark.parametrize("to", ["hf_vitmae", "transformers"])
def test_a_file_of_the_original_mae(to: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = mae_file(tmp_path / "mae.pth")
    said = convert(capsys, source, tmp_path / "new", "--to", to)
    assert "checkpoint of the original MAE" in said and "pretraining, with decoder" in said
    assert "Not compared with the original MAE: there is no library of it." in said
    assert ("Largest" in said) == (to == "transformers")
    opened = {"hf_vitmae": VitMaeForPreTraining, "transformers": ViTMAEForPreTraining}[to]
    weights = opened.from_pretrained(tmp_path / "new").state_dict()
    expected = torch.load(source, weights_only=True)["model"]["decoder_pred.weight"]
    name = "decoder.predict.weight" if to == "hf_vitmae" else "decoder.decoder_pred.weight"
    assert torch.equal(weights[name], expected)


@pytest.mark.parametrize("name", ["vit.npz", "vit"])
def test_a_file_of_big_vision(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kind = VitMaeForImageClassification
    model = kind(tiny_config(position_embedding="learned", hidden_act="gelu_pytorch_tanh"))
    stir(model)
    with (tmp_path / name).open("wb") as file:
        np.savez(file, **from_big_vision.write(model, older=True))  # type: ignore[arg-type]
    said = convert(capsys, tmp_path / name, tmp_path / "ours")
    assert "checkpoint of big_vision" in said
    assert "Not compared with big_vision: there is no library of it." in said
    assert_same(weights_of(tmp_path / "ours", kind), model.state_dict())


def test_the_image_that_is_compared_on_may_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = our_folder(tmp_path / "ours", VitMaeForImageClassification)
    Image.new("RGB", (20, 30), (200, 30, 90)).save(tmp_path / "photo.png")
    command = [source, tmp_path / "theirs", "--to", "transformers", "--image"]
    assert "absent.png" in fails(capsys, *command, tmp_path / "absent.png")
    assert "cannot be read as an image" in fails(capsys, *command, __file__)
    assert not (tmp_path / "theirs").exists()
    assert difference(convert(capsys, *command, tmp_path / "photo.png")) == SAME


def test_what_was_done_is_noted_beside_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    theirs = ViTForImageClassification(ViTConfig(**SIZES, **LABELS))
    their_folder(tmp_path / "theirs", theirs)
    said = convert(capsys, tmp_path / "theirs", tmp_path / "ours")
    noted = json.loads((tmp_path / "ours/conversion.json").read_text())
    assert (noted["origin"], noted["to"]) == ("transformers", "this package")
    assert noted["source"] == "theirs" and noted["hub_id"] is None
    assert noted["tensors"] == len(load_file(tmp_path / "ours/model.safetensors"))
    assert f"{noted['largest_difference']:.2g}" == f"{difference(said):.2g}"
    assert 0 <= noted["largest_difference"] < 1e-4 < noted["largest_output"]
    assert noted["said"] and all(line in said for line in noted["said"])


def test_an_empty_folder_and_new_parents_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = mae_file(tmp_path / "mae.pth")
    (tmp_path / "empty").mkdir()
    convert(capsys, source, tmp_path / "empty")
    convert(capsys, source, tmp_path / "new" / "deep" / "folder")
    assert names_in(tmp_path / "empty") == names_in(tmp_path / "new" / "deep" / "folder")
    assert names_in(tmp_path / "new" / "deep") == {"folder"}


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_there_stays(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = mae_file(tmp_path / "mae.pth")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    assert "is there already" in fails(capsys, source, tmp_path / name)
    assert names_in(tmp_path) == {"mae.pth", "file", "folder"}
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "thesis.txt").read_text()


class Malicious:
    """Unpickled the usual way, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def unreadable(folder: Path) -> dict[str, tuple[Path, str]]:
    """Sources that cannot be converted, and what is said of each."""
    folder.mkdir()
    for name, config in {
        "resnet": '{"model_type": "resnet"}',
        "no type": "{}",
        "list": "[]",
        "broken": '{"model_type"',
        "run/model": "{}",
        "empty": None,
    }.items():
        (folder / name).mkdir(parents=True)
        if config is not None:
            (folder / name / "config.json").write_text(config)
    torch.save({"conv1.weight": torch.ones(2)}, folder / "resnet.pth")
    torch.save({"model": {"cls_token": torch.ones(1, 1, 4)}}, folder / "half.pth")
    torch.save({"model": Malicious(folder / "canary")}, folder / "malicious.pth")
    whole = mae_file(folder / "whole.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.npz").write_bytes(b"PK\x03\x04")
    theirs = their_folder(folder / "vit", ViTModel(ViTConfig(**SIZES)))
    weights = (theirs / "model.safetensors").read_bytes()
    (theirs / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    return {
        "absent": (folder / "absent", "no checkpoint"),
        "unknown model": (folder / "resnet", "'resnet'"),
        "no model type": (folder / "no type", "unknown kind"),
        "no object": (folder / "list", "unknown kind"),
        "no JSON": (folder / "broken", "not JSON"),
        "no config": (folder / "empty", "no config.json"),
        "a run": (folder / "run", f"did you mean {folder / 'run' / 'model'}"),
        "unknown tensors": (folder / "resnet.pth", "conv1.weight"),
        "half a file": (folder / "half.pth", "unknown kind"),
        "malicious": (folder / "malicious.pth", "nothing in it was executed"),
        "truncated": (folder / "truncated.pth", "truncated"),
        "truncated folder": (folder / "vit", str(folder / "vit")),
        "truncated arrays": (folder / "truncated.npz", "truncated.npz"),
    }


def test_what_cannot_be_read_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for case, (source, words) in unreadable(tmp_path / "sources").items():
        said = fails(capsys, source, tmp_path / "new" / "folder")
        assert words in said and str(source) in said, (case, said)
    assert names_in(tmp_path) == {"sources"}
    assert not (tmp_path / "sources" / "canary").exists()


@pytest.mark.parametrize(
    ("kind", "fields", "to", "words"),
    [
        (VitMaeForImageClassification, {"pooling": "mean"}, "transformers", "pooling"),
        (VitMaeModel, {"layer_scale_init_value": 0.1}, "transformers", "layer_scale_init_value"),
        (VitMaeForSemanticSegmentation, {}, "transformers", "VitMaeForSemanticSegmentation"),
        (VitMaeForPreTraining, {}, "timm", "VitMaeForPreTraining"),
        (VitMaeModel, {}, "hf_vitmae", "already; name another --to"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    kind: type,
    fields: dict,
    to: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    source = our_folder(tmp_path / "ours", kind, **fields)
    assert words in fails(capsys, source, tmp_path / "new" / "folder", "--to", to)
    assert names_in(tmp_path) == {"ours"}


def test_a_folder_of_ours_without_its_head_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = our_folder(tmp_path / "ours", VitMaeModel)
    config = json.loads((source / "config.json").read_text())
    for name, words in {"VitMaeForPreTraining": "decoder", "Strange": "Strange"}.items():
        (source / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
        assert words in fails(capsys, source, tmp_path / "new", "--to", "transformers")
    assert names_in(tmp_path) == {"ours"}


def whole_models(folder: Path) -> dict[str, Path]:
    """A checkpoint of every origin with more than an encoder."""
    kind, learned = VitMaeForImageClassification, {"position_embedding": "learned"}
    folder.mkdir()
    sizes = {"depth": 1, "img_size": 32, "num_classes": 3, "global_pool": "avg"}
    theirs = timm_model("vit_tiny_patch16_224", **sizes)
    torch.save(theirs.state_dict(), folder / "vit_tiny_patch16_224.pth")
    model = kind(tiny_config(**learned, hidden_act="gelu_pytorch_tanh"))
    stir(model)
    np.savez(folder / "vit.npz", **from_big_vision.write(model, older=True))  # type: ignore[arg-type]
    return {
        "ours": our_folder(folder / "ours", VitMaeForPreTraining),
        "ours with mean": our_folder(folder / "mean", kind, pooling="mean"),
        "vit": their_folder(
            folder / "vit", ViTForImageClassification(ViTConfig(**SIZES, **LABELS))
        ),
        "vit_mae": their_folder(
            folder / "vit_mae", ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER))
        ),
        "timm": folder / "vit_tiny_patch16_224.pth",
        "mae": mae_file(folder / "mae.pth"),
        "big_vision": folder / "vit.npz",
    }


@pytest.mark.parametrize(
    "origin", ["ours", "ours with mean", "vit", "vit_mae", "timm", "mae", "big_vision"]
)
def test_the_encoder_alone(origin: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import_timm()
    source = whole_models(tmp_path / "sources")[origin]
    said = convert(capsys, source, tmp_path / "ours", "--encoder-only")
    left_out = "decoder" if origin in ("ours", "vit_mae", "mae") else "classifier"
    assert f"Left out {left_out}: the encoder alone is written." in said
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["VitMaeModel"]
    got = weights_of(tmp_path / "ours", VitMaeModel)
    if source.is_dir():  # ours opens it by itself
        assert_same(got, weights_of(source, VitMaeModel))
    else:
        convert(capsys, source, tmp_path / "whole")
        assert_same(got, weights_of(tmp_path / "whole", VitMaeModel))
    assert ("Largest difference" in said) == (origin in ("vit", "vit_mae", "timm"))
    convert(capsys, source, tmp_path / "theirs", "--encoder-only", "--to", "transformers")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["architectures"] == ["ViTModel"]
    assert_same(weights_of(tmp_path / "theirs", VitMaeModel), got)


def test_an_encoder_stays_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = our_folder(tmp_path / "ours", VitMaeModel)
    said = convert(capsys, source, tmp_path / "new", "--encoder-only")
    assert "Left out" not in said
    assert_same(weights_of(tmp_path / "new", VitMaeModel), weights_of(source, VitMaeModel))


@pytest.mark.parametrize("kind", [DeiTModel, DeiTForImageClassification])
@pytest.mark.parametrize("flags", [[], ["--encoder-only"]])
def test_a_deit_is_not_compared_as_its_distillation_token_is_left_out(
    flags: list[str], kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = their_folder(tmp_path / "theirs", kind(DeiTConfig(**SIZES, **LABELS)))
    said = convert(capsys, source, tmp_path / "ours", *flags)
    assert "left out its distillation token" in said
    assert "Not compared with transformers: its own model attends to the distillation" in said
    ours = VitMaeModel if flags or kind is DeiTModel else VitMaeForImageClassification
    assert_same(weights_of(tmp_path / "ours", ours), weights_of(source, ours))


@pytest.mark.parametrize("weight", ["layers.1.mlp.fc1.weight", "pooler.dense.weight"])
def test_outputs_that_differ_are_an_error(
    weight: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = from_transformers.read

    def wrong(name: str) -> Converted:
        converted = right(name)
        converted.weights[weight][:] = 0
        return converted

    source = their_folder(tmp_path / "theirs", ViTModel(ViTConfig(**SIZES)))
    monkeypatch.setattr(from_transformers, "read", wrong)
    said = fails(capsys, source, tmp_path / "new")
    assert "differ by" in said and "nothing was written" in said
    assert names_in(tmp_path) == {"theirs"}
