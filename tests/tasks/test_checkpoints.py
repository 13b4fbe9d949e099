"""Every task opens folders of transformers' own models as it opens ours, or says why not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from hf_vitmae.cli import main
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeModel
from hf_vitmae.tasks.checkpoints import load_config, load_model, load_processor, save_model
from hf_vitmae.tasks.export import run_exported

from ..models.tiny import random_images, tiny_config
from ..models.transformers_models import their_model, write_processor
from ..small import FAST
from .test_command_line import fails

CLASSES = ("cats", "dogs", "owls")  # of `class_folder`
STATISTICS: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}
GRAY: dict[str, Any] = {"image_mean": 0.5, "image_std": 0.5}
STILL = ["--optim.base-lr", "1e-9"]  # so that weights stay as they were loaded


def their_folder(folder: Path, kind: type[PreTrainedModel], **fields: Any) -> Path:
    """A model of transformers, every weight random, with an image processor of ViT."""
    their_model(kind, **fields).save_pretrained(folder)
    write_processor(folder, size={"height": 16, "width": 16}, resample=2, **STATISTICS)
    return folder


def labels(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def finetune(model: Path, source: Path, run: Path, *flags: str) -> list[str]:
    command = ["finetune", "smoke", *FAST, *STILL, "--model", str(model), *flags]
    return [*command, "--data.source", str(source), "--output-dir", str(run)]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ViTModel, "VitMaeModel"),
        (ViTMAEModel, "VitMaeModel"),
        (ViTForImageClassification, "VitMaeForImageClassification"),
        (DeiTForImageClassification, "VitMaeForImageClassification"),
        (ViTMAEForPreTraining, "VitMaeForPreTraining"),
    ],
)
def test_the_configuration_names_the_model_with_the_same_parts(
    kind: type[PreTrainedModel], name: str, tmp_path: Path
) -> None:
    config = load_config(str(their_folder(tmp_path, kind)))
    assert config.architectures == [name]
    assert (config.hidden_size, config.image_pair, config.patch_pair) == (32, (16, 16), (4, 4))
    assert config.position_embedding == "learned" and config.layer_norm_eps == 1e-5
    assert config.image_mean == STATISTICS["image_mean"]


def test_a_processor_of_vit_stretches_as_it_did(tmp_path: Path) -> None:
    source = their_folder(tmp_path, ViTModel)
    processor = load_processor(str(source), load_config(str(source)))
    assert type(processor) is VitMaeImageProcessor
    assert {name: getattr(processor, name) for name in STATISTICS} == STATISTICS
    assert not processor.do_center_crop and processor.resample == 2
    assert (processor.size, processor.patch_size) == ({"height": 16, "width": 16}, 4)


@pytest.mark.parametrize("kind", ["image_processor_type", "feature_extractor_type"])
def test_a_crop_travels_to_another_geometry(kind: str, tmp_path: Path) -> None:
    source = their_folder(tmp_path, ViTModel)
    crop = {"do_center_crop": True, "crop_size": 16, "size": {"shortest_edge": 20}}
    stored = {kind: "CLIPImageProcessor", **crop, **STATISTICS}
    (source / "preprocessor_config.json").write_text(json.dumps(stored))
    config = load_config(str(source)).with_fields(image_size=(36, 24), patch_size=12)
    processor = load_processor(str(source), config)  # 12 does not divide the stored 16
    assert processor.do_center_crop and processor.crop_pct == 0.8
    assert (processor.size, processor.patch_size) == ({"height": 36, "width": 24}, 12)
    whole = load_processor(str(source), config, do_center_crop=False, crop_pct=1.0)
    assert not whole.do_center_crop and whole.image_mean == STATISTICS["image_mean"]
    with pytest.raises(ValueError, match="does not fit num_channels=1"):
        load_processor(str(source), config.with_fields(num_channels=1, **GRAY))


def test_our_own_processor_keeps_its_options(tmp_path: Path) -> None:
    model = VitMaeModel(tiny_config())
    processor = VitMaeImageProcessor(size=16, patch_size=4, crop_pct=0.9, do_reduce_labels=True)
    save_model(tmp_path / "model", model, processor)
    name, config = str(tmp_path / "model"), model.config.with_fields(image_size=(36, 24))
    again = load_processor(name, config.with_fields(patch_size=12))
    assert (again.crop_pct, again.do_reduce_labels, again.patch_size) == (0.9, True, 12)
    assert again.size == {"height": 36, "width": 24}


def test_without_a_processor_the_configuration_has_the_statistics(tmp_path: Path) -> None:
    source = their_folder(tmp_path, ViTModel)
    (source / "preprocessor_config.json").unlink()
    processor = load_processor(str(source), load_config(str(source)))
    assert processor.image_mean == processor.image_std == [0.5, 0.5, 0.5]


def test_fine_tuning_a_vit_mae(class_folder: Path, tmp_path: Path, capsys: Any) -> None:
    source, run = their_folder(tmp_path / "theirs", ViTMAEForPreTraining), tmp_path / "run"
    assert main(finetune(source, class_folder, run)) == 0
    said = capsys.readouterr().out
    assert f"{source}: encoder loaded; starting afresh: classifier." in said
    assert f"{source}: opened a transformers vit_mae checkpoint with decoder." in said
    tuned, start = weights_of(run), VitMaeModel.from_pretrained(source).state_dict()
    for name, value in start.items():
        torch.testing.assert_close(tuned[f"vit.{name}"], value, rtol=0, atol=1e-5)
    processor = VitMaeImageProcessor.from_pretrained(run / "model")
    assert {name: getattr(processor, name) for name in STATISTICS} == STATISTICS


def test_the_classifier_of_a_vit_stays_for_the_same_classes(
    class_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    source = their_folder(tmp_path / "theirs", ViTForImageClassification, **labels(*CLASSES))
    assert main(finetune(source, class_folder, tmp_path / "run")) == 0
    assert "starting afresh: nothing." in capsys.readouterr().out
    start = load_file(source / "model.safetensors")["classifier.weight"]
    tuned = weights_of(tmp_path / "run")["classifier.weight"]
    torch.testing.assert_close(tuned, start, rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", [("a", "b"), ("owls", "dogs", "cats")], ids=["fewer", "others"])
@pytest.mark.parametrize("is_foreign", [True, False], ids=["theirs", "ours"])
def test_another_classifier_is_only_replaced_on_purpose(
    is_foreign: bool, names: tuple[str, ...], class_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    if is_foreign:
        their_folder(source, ViTForImageClassification, **labels(*names))
    else:
        model = VitMaeForImageClassification(tiny_config(**labels(*names)))
        save_model(source, model, VitMaeImageProcessor.for_model(model.config))
    words = (str(source), f"{len(names)} classes", "--new-head")
    fails(capsys, 1, finetune(source, class_folder, run), *words)
    assert not run.exists()
    assert main(finetune(source, class_folder, run, "--new-head")) == 0
    assert "starting afresh: classifier." in capsys.readouterr().out
    start, tuned = load_file(source / "model.safetensors"), weights_of(run)
    assert tuned["classifier.weight"].shape == (3, 32)
    same = len(names) == 3
    assert not same or (tuned["classifier.weight"] - start["classifier.weight"]).abs().max() > 0.01
    name = "vit.layernorm.weight"
    torch.testing.assert_close(tuned[name], start[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [ViTForImageClassification, ViTModel])
def test_a_new_head_at_another_geometry(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    source = str(their_folder(tmp_path, kind, **labels(*CLASSES)))
    config = load_config(source).with_fields(image_size=24)
    ours = VitMaeForImageClassification
    model, new, adaptations = load_model(ours, source, config, new_head=True)
    assert new == {"classifier"} and not model.training
    assert adaptations[-1].startswith("position table 4x4 -> 6x6")
    expected = VitMaeModel.from_pretrained(source, image_size=24).state_dict()
    assert ("pooler.dense.weight" in expected) == (kind is ViTModel)
    for name, value in model.vit.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_features_of_a_vit_are_its_own(class_folder: Path, tmp_path: Path, capsys: Any) -> None:
    source, out = their_folder(tmp_path / "theirs", ViTModel), tmp_path / "out"
    command = ["embed", str(source), str(class_folder), "--data.num-workers", "0", "-o", str(out)]
    assert main(command) == 0
    assert f"{source}: opened a transformers vit checkpoint" in capsys.readouterr().out
    rows = pq.read_table(sorted(out.glob("*.parquet"))).to_pydict()
    with Image.open(rows["name"][0]) as picture:
        small = picture.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255  # (1, 3, 16, 16)
    mean, std = (torch.tensor(STATISTICS[name])[:, None, None] for name in STATISTICS)
    with torch.no_grad():
        tokens = ViTModel.from_pretrained(source)((pixels - mean) / std).last_hidden_state
    # The resizes of Pillow and of this package differ by a rounding here and there.
    torch.testing.assert_close(torch.tensor(rows["features"][0]), tokens[0, 0], rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # torch's own, on loading
def test_export_of_a_vit_classifier(tmp_path: Path, capsys: Any) -> None:
    source = their_folder(tmp_path / "theirs", ViTForImageClassification, **labels(*CLASSES))
    assert main(["export", str(source), str(tmp_path / "out"), "--format", "torch"]) == 0
    assert "with a classifier of 3 classes" in capsys.readouterr().out
    images = random_images(tiny_config(), batch=5)
    theirs = ViTForImageClassification.from_pretrained(source)
    got = run_exported(tmp_path / "out", images)["logits"]
    torch.testing.assert_close(got, theirs(images).logits, rtol=0, atol=1e-5)
    processor = VitMaeImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_std == STATISTICS["image_std"]


def test_reconstruct_takes_a_vit_mae_with_decoder_only(
    class_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    picture, out = str(next(class_folder.rglob("*.PNG"))), tmp_path / "deep" / "panel.png"
    for kind in (ViTMAEModel, ViTModel):
        source = their_folder(tmp_path / kind.__name__, kind)
        fails(capsys, 1, ["reconstruct", source, picture, "-o", out], str(source), "no decoder")
    assert not out.parent.exists()
    source = their_folder(tmp_path / "whole", ViTMAEForPreTraining)
    assert main(["reconstruct", str(source), picture, "-o", str(out)]) == 0
    with Image.open(out) as panel:
        assert panel.width > 400


def bert(folder: Path) -> str:
    BertConfig().save_pretrained(folder)
    return "is a `bert` model"


def truncated(folder: Path) -> str:
    file = their_folder(folder, ViTForImageClassification) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "cannot be used"


def without_weights(folder: Path) -> str:
    (their_folder(folder, ViTMAEForPreTraining) / "model.safetensors").unlink()
    return "cannot be used"


def without_blocks(folder: Path) -> str:
    file = their_folder(folder, ViTMAEForPreTraining) / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if ".layer." not in name}
    save_file(kept, file, metadata={"format": "pt"})
    return "lacks 32 weights"


@pytest.mark.parametrize("make", [bert, truncated, without_weights, without_blocks])
def test_what_cannot_be_used_is_one_line_in_every_task_and_nothing_is_written(
    make: Any, class_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    words = (str(tmp_path / "source"), make(tmp_path / "source"))
    picture, out = next(class_folder.rglob("*.PNG")), tmp_path / "deep" / "out"
    source = tmp_path / "source"
    segment = ["finetune", "smoke-segment", "--model", source, "--output-dir", out]
    for command in (
        finetune(source, class_folder, out),
        [*segment, "--data.source", "shapes"],
        ["embed", source, class_folder, "-o", out],
        ["export", source, out],
        ["reconstruct", source, picture, "-o", out / "panel.png"],
    ):
        fails(capsys, 1, command, *words)
        assert [path.name for path in tmp_path.iterdir()] == ["source"], command


def test_weights_that_are_missing_are_found_in_an_encoder_too(tmp_path: Path, capsys: Any) -> None:
    model = VitMaeModel(tiny_config())
    source = tmp_path / "source"
    save_model(source, model, VitMaeImageProcessor.for_model(model.config))
    file = source / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.1" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    command = ["export", source, tmp_path / "out", "--what", "features"]
    fails(capsys, 1, command, str(source), "lacks 16 weights of the encoder, layers.1.")
    assert not (tmp_path / "out").exists()


def test_a_model_is_saved_in_the_place_of_another(tmp_path: Path) -> None:
    for size in (16, 32):
        model = VitMaeModel(tiny_config(image_size=size))
        save_model(tmp_path / "model", model, VitMaeImageProcessor.for_model(model.config))
        (tmp_path / "model" / f"{size}.txt").write_text("note")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert "32.txt" in names and "16.txt" not in names
    assert load_config(str(tmp_path / "model")).image_pair == (32, 32)
    shutil.rmtree(tmp_path / "model")
    assert not list(tmp_path.iterdir())
