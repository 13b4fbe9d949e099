"""Both tasks by the command line on every kind of source, and what they leave behind."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from hf_vitmae import VitMaeForPreTraining
from hf_vitmae.cli import main

from ..small import FAST


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def parquet(class_folder: Path, tmp_path: Path) -> Path:
    """The images of `class_folder` as one parquet file."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    files = sorted(class_folder.rglob("*.PNG"))
    names = sorted({file.parent.name for file in files})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [names.index(file.parent.name) for file in files],
    }
    path = tmp_path / "images.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["flat_folder", "class_folder", "parquet", "emoji"])
def test_any_source_pretrains_and_its_model_fine_tunes(
    kind: str, class_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = "emoji" if kind == "emoji" else str(request.getfixturevalue(kind))
    run = tmp_path / "pretrain"
    assert (
        main(["pretrain", "smoke", *FAST, "--data.source", source, "--output-dir", str(run)]) == 0
    )
    losses = [record["loss"] for record in read_metrics(run) if "loss" in record]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    with Image.open(run / "samples" / "reconstruction.png") as panel:
        assert panel.width > 400

    labelled = str(class_folder) if kind == "flat_folder" else source
    tuned = tmp_path / "finetune"
    flags = ["--model", str(run / "model"), "--data.source", labelled, "--output-dir", str(tuned)]
    assert main(["finetune", "smoke", *FAST, *flags]) == 0
    model = AutoModelForImageClassification.from_pretrained(tuned / "model")
    num_classes = 3 if kind != "emoji" else model.config.num_labels
    assert model.config.num_labels == num_classes > 2


def test_the_result_opens_as_other_classes_with_the_same_encoder(pretrained: Path) -> None:
    mae = VitMaeForPreTraining.from_pretrained(pretrained)
    encoder = AutoModel.from_pretrained(pretrained)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, mae.vit.state_dict()[name]), name
    names = load_file(pretrained / "model.safetensors").keys()
    assert set(names) == mae.state_dict().keys()


def test_held_out_images_are_evaluated_beside_a_baseline(
    class_folder: Path, tmp_path: Path
) -> None:
    flags = ["--data.source", str(class_folder), "--data.eval-share", "0.25"]
    assert main(["pretrain", "smoke", *FAST, *flags, "--output-dir", str(tmp_path / "a")]) == 0
    (record,) = [r for r in read_metrics(tmp_path / "a") if "eval_loss" in r]
    assert record["eval_images"] == 9
    assert 0 < record["eval_loss_mean_visible"] < record["eval_loss"] < 10


def test_from_scratch_takes_the_architecture_and_no_weight(
    pretrained: Path, class_folder: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(pretrained), "--data.source", str(class_folder), "--seed", "1"]
    flags += ["--optim.base-lr", "1e-9"]
    for name, extra in (("tuned", []), ("scratch", ["--from-scratch"])):
        out = ["--output-dir", str(tmp_path / name)]
        assert main(["finetune", "smoke", *FAST, *flags, *extra, *out]) == 0
    source = load_file(pretrained / "model.safetensors")
    tuned = load_file(tmp_path / "tuned/model/model.safetensors")
    scratch = load_file(tmp_path / "scratch/model/model.safetensors")
    name = "vit.layers.0.mlp.fc1.weight"
    assert torch.allclose(tuned[name], source[name], atol=1e-5)
    assert not torch.allclose(scratch[name], source[name], atol=1e-2)


def test_accuracy_and_labels_reach_the_pipeline(
    pretrained: Path, class_folder: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(pretrained), "--data.source", str(class_folder)]
    flags += ["--data.eval-share", "0.25", "--output-dir", str(tmp_path / "a")]
    assert main(["finetune", "smoke", *FAST, *flags]) == 0
    (record,) = [r for r in read_metrics(tmp_path / "a") if "eval_accuracy" in r]
    assert record["eval_images"] == 9 and record["eval_top_5_accuracy"] == 1.0
    classify = pipeline("image-classification", model=str(tmp_path / "a" / "model"))
    answers = classify(str(next(class_folder.rglob("*.PNG"))))
    assert {answer["label"] for answer in answers} == {"cats", "dogs", "owls"}


def test_a_finished_run_says_where_it_is_and_changes_nothing_when_started_again(
    flat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    command = ["pretrain", "smoke", *FAST, "--data.source", str(flat_folder)]
    command += ["--output-dir", str(run)]
    assert main(command) == 0
    assert f"The model is in {run / 'model'}" in capsys.readouterr().out
    before = {p: p.read_bytes() for p in run.rglob("*") if p.suffix in (".safetensors", ".jsonl")}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_datasets_object_is_a_source_too(class_folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from datasets import load_dataset

    from hf_vitmae.recipes import FINETUNE, PRETRAIN
    from hf_vitmae.tasks import finetune, pretrain

    files = [str(path) for path in sorted(class_folder.rglob("*.PNG"))]
    dataset = load_dataset("imagefolder", data_files=files, drop_labels=False, split="train")
    short = {"steps": 2, "checkpoint_every": 0}
    recipe = replace(PRETRAIN["smoke"](), output_dir=tmp_path / "a", **short)
    assert pretrain.run(recipe, source=dataset)["epoch"] == pytest.approx(2 * 8 / 36)
    tuning = replace(FINETUNE["smoke"](), output_dir=tmp_path / "b", **short)
    finetune.run(replace(tuning, model=str(tmp_path / "a" / "model")), source=dataset)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "b" / "model")
    assert list(model.config.id2label.values()) == ["cats", "dogs", "owls"]


def test_evaluations_leave_the_pictures_that_are_asked_for(tmp_path: Path) -> None:
    """And a run without them ends with the same weights."""
    flags = ["--eval-every", "2", "--tracker", "none"]
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, pictures in zip(runs, (["--pictures", "attention", "features"], []), strict=True):
        assert main(["pretrain", "smoke", *FAST, *flags, *pictures, "--output-dir", str(run)]) == 0
    drawn, plain = (
        sorted(path.name for path in (run / "samples" / "steps").iterdir()) for run in runs
    )
    assert plain == ["reconstruction-00000002.png", "reconstruction-00000004.png"]
    assert drawn == sorted(
        f"{name}-0000000{step}.png"
        for name in ("attention", "features", "reconstruction")
        for step in (2, 4)
    )
    first, second = (load_file(run / "model" / "model.safetensors") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
