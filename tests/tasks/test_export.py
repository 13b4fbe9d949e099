"""An exported folder computes what the model does, for any batch; what fails leaves nothing."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vitmae.cli import main
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.tasks import export

from ..models.family import family_config
from ..models.tiny import random_images, stir


def save(kind: type[VitMaePreTrainedModel], folder: Path, stem: str = "linear") -> Path:
    """A stirred tiny model and its processor."""
    torch.manual_seed(0)
    model = kind(family_config(stem))
    stir(model)
    model.save_pretrained(folder)
    patch_size, size = model.config.patch_size, model.config.image_size
    VitMaeImageProcessor(patch_size=patch_size, size=size).save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return save(VitMaeForImageClassification, tmp_path / "classifier")


def fails(capsys: pytest.CaptureFixture, *command: Any, words: tuple[str, ...]) -> None:
    """Assert that an export ends with code 1 and one line that has all the words."""
    capsys.readouterr()
    assert main(["export", *map(str, command)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line, line


def run_onnx(folder: Path, images: Tensor) -> dict[str, Tensor]:
    session = InferenceSession(folder / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["pixel_values"]
    names = [value.name for value in session.get_outputs()]
    found = session.run(names, {"pixel_values": images.numpy()})
    return {name: torch.as_tensor(value) for name, value in zip(names, found, strict=True)}


def run_torch(folder: Path, images: Tensor) -> dict[str, Tensor]:
    return dict(torch.export.load(folder / "model.pt2").module()(pixel_values=images))


CASES = [
    (VitMaeForImageClassification, VitMaeForImageClassification, ["logits"]),
    (VitMaeForSemanticSegmentation, VitMaeForSemanticSegmentation, ["logits"]),
    (VitMaeForPreTraining, VitMaeModel, ["last_hidden_state", "pooler_output"]),
]


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # torch's own, on loading
@pytest.mark.parametrize("stem", ["linear", pytest.param("hybrid", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["onnx", "torch"])
@pytest.mark.parametrize(("saved", "kind", "names"), CASES, ids=["classes", "maps", "features"])
def test_what_is_written_computes_what_the_model_does(
    saved: Any, kind: Any, names: list[str], form: str, stem: str, tmp_path: Path, capsys: Any
) -> None:
    source, out = save(saved, tmp_path / "source", stem), tmp_path / "deep" / "out"
    capsys.readouterr()
    flags = ["--format", form] + (["--what", "features"] if kind is VitMaeModel else [])
    assert main(["export", str(source), str(out), *flags]) == 0
    said = capsys.readouterr()
    (line,) = said.out.strip().splitlines()
    assert line.startswith(f"{out}: {kind.__name__} from pixel_values (batch, 3, 16,")
    assert "batches of 1 and 7" in line
    assert not said.err.strip()

    model = kind.from_pretrained(source)
    for batch in (1, 7):
        images = random_images(model.config, batch, seed=9)
        found = (run_onnx if form == "onnx" else run_torch)(out, images)
        assert list(found) == names
        for name, value in found.items():
            torch.testing.assert_close(value, model(images)[name], rtol=0, atol=1e-4)
    assert AutoConfig.from_pretrained(out).image_pair == model.config.image_pair
    assert type(AutoImageProcessor.from_pretrained(out)) is VitMaeImageProcessor
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_transformers_opens_the_folder(classifier: Path, tmp_path: Path) -> None:
    base = pytest.importorskip("transformers.exporters.base")
    if not hasattr(base, "ExportedModel"):
        pytest.skip("this transformers writes such folders and does not open them")
    assert main(["export", str(classifier), str(tmp_path / "out"), "--format", "torch"]) == 0
    model = VitMaeForImageClassification.from_pretrained(classifier)
    images = random_images(model.config)
    found = base.ExportedModel.from_pretrained(tmp_path / "out")(pixel_values=images).logits
    torch.testing.assert_close(found, model(images).logits, rtol=0, atol=1e-5)


def test_a_graph_that_differs_is_not_kept(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run_exported = export.run_exported
    for wrong in (3e-4, torch.nan):

        def off(folder: Path, images: Tensor, wrong: float = wrong) -> dict[str, Tensor]:
            found = run_exported(folder, images)
            return (
                {name: value + wrong for name, value in found.items()}
                if len(images) == 7
                else found
            )

        monkeypatch.setattr(export, "run_exported", off)
        words = ("differs from the model", "batch of 7", "1e-04")
        fails(capsys, classifier, tmp_path / "out", "--format", "torch", words=words)
        assert [path.name for path in tmp_path.iterdir()] == ["classifier"]


@pytest.mark.parametrize(
    "error", [RuntimeError("no such operator\nand\nmore"), KeyboardInterrupt()]
)
def test_what_breaks_off_leaves_nothing(
    error: BaseException, classifier: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def breaks_off(model: object, form: str, folder: Path) -> None:
        (folder / "model.onnx").write_text("half")
        raise error

    monkeypatch.setattr(export, "_write", breaks_off)
    code = main(["export", str(classifier), str(tmp_path / "out")])
    (line,) = capsys.readouterr().err.strip().splitlines()
    if isinstance(error, KeyboardInterrupt):
        assert code == 130
    else:
        assert code == 1 and line.endswith("cannot be exported: no such operator")
    assert [path.name for path in tmp_path.iterdir()] == ["classifier"]


def test_nothing_is_written_over(classifier: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("precious")
    fails(capsys, classifier, tmp_path / "photos", words=("photos exists already", "new folder"))
    (tmp_path / "file").write_text("precious")
    fails(capsys, classifier, tmp_path / "file", words=("file exists already",))
    assert (tmp_path / "photos" / "one.jpg").read_text() == "precious"
    fails(capsys, classifier, tmp_path / "vit.onnx", words=("vit.onnx is to be a folder", "/vit."))
    assert not (tmp_path / "vit.onnx").exists()


def test_an_empty_folder_is_filled(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert main(["export", str(classifier), str(tmp_path / "out"), "--format", "torch"]) == 0
    assert (tmp_path / "out" / "model.pt2").exists()


def test_models_without_logits_are_refused(tmp_path: Path, capsys: Any) -> None:
    pretrained = save(VitMaeForPreTraining, tmp_path / "pretrained")
    words = ("VitMaeForPreTraining", "VitMaeForImageClassification", "--what features")
    fails(capsys, pretrained, tmp_path / "out", words=words)
    config = json.loads((pretrained / "config.json").read_text())
    config["architectures"] = ["VitMaeForImageClassification"]
    (pretrained / "config.json").write_text(json.dumps(config))
    fails(capsys, pretrained, tmp_path / "out", words=("lacks the weights of its classifier",))
    fails(capsys, tmp_path / "nowhere", tmp_path / "out", words=("no model", "nowhere"))
    assert [path.name for path in tmp_path.iterdir()] == ["pretrained"]


def test_missing_packages_are_named(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "onnxscript" else find_spec(name, *rest),
    )
    words = ("takes onnxscript;", "pip install 'hf-vitmae[export]'")
    fails(capsys, classifier, tmp_path / "out", words=words)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier"]
