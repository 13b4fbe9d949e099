"""A card is made of what a run recorded: every number of it is in the run's folder, nothing private
is in it, and a record with holes gives a shorter card that is as true.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hf_vitmae.cli import main
from hf_vitmae.hub.card import TEMPLATE
from hf_vitmae.hub.card_kinds import KINDS
from hf_vitmae.hub.privacy import find_private
from hf_vitmae.recipes import FINETUNE, PRETRAIN
from hf_vitmae.tasks.card import write_card
from hf_vitmae.training.advice import advise
from hf_vitmae.training.run_folder import RunFolder

from ..small import FAST, write_images
from .small_models import save_small_model

REPOSITORY = "someone/small-mae"
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
DIGITS = 4  # significant ones that a card shows of what is not whole


@pytest.fixture(scope="module")
def run(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run, and beside it a fine-tuning of its model under two seeds."""
    root = tmp_path_factory.mktemp("card")
    shutil.copytree(pretrained.parent, root / "first")
    flags = ["--model", str(root / "first" / "model"), "--data.samples-per-class", "2"]
    for seed in ("0", "1"):
        out = ["--seed", seed, "--output-dir", str(root / f"tuned-{seed}")]
        assert main(["finetune", "smoke", *FAST, *flags, *out]) == 0
    return root / "first"


def numbers(text: str) -> set[float]:
    return {float(found.replace(",", "")) for found in NUMBER.findall(text)}


def data_of(card: str) -> Any:
    """What the Hub reads of a card."""
    return ModelCard(card).data


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def recorded(folder: Path) -> set[float]:
    """Every number of a folder's records, rounded as cards do."""
    texts = [yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")]
    for path in [*folder.rglob("*.json"), *folder.glob("*.jsonl")]:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        texts += [json.loads(line) for line in lines]
    found = set()
    for value in leaves(texts):
        if isinstance(value, str):
            found |= numbers(value)
        elif isinstance(value, int | float):
            found |= {float(value), rounded(value)}
    return found


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def test_every_number_is_in_the_record(run: Path) -> None:
    card = write_card(run, run / "model", REPOSITORY)
    lines = RunFolder(run).read_metrics()
    last = next(line for line in reversed(lines) if "loss" in line)
    tensors = load_file(run / "model" / "model.safetensors")
    seen = last["step"] * lines[0]["effective_batch"]
    accuracies = [
        RunFolder(run.parent / f"tuned-{seed}").read_metrics()[-1]["eval_accuracy"]
        for seed in (0, 1)
    ]
    derived = {
        float(seen),
        rounded(seen / last["seconds"]),
        float(sum(tensor.numel() for tensor in tensors.values())),
        float(sum(t.numel() for name, t in tensors.items() if name.startswith("vit."))),
        rounded(sum(accuracies) / 2),
        rounded(abs(accuracies[0] - accuracies[1]) / math.sqrt(2)),  # sample deviation of two
        2.0,  # draws
    }
    derived |= numbers(advise(lines).sentence)
    words = TEMPLATE.read_text() + KINDS["VitMaeForPreTraining"].what
    known = derived | numbers(words) | recorded(run) | recorded(run.parent / "tuned-0")
    found = numbers(card)
    assert len(found) > 25
    assert found <= known, sorted(found - known)
    # Each stands where it belongs, also where another number happens to be in the record.
    state = json.loads(max((run / "checkpoints").glob("*/state.json")).read_text())["run"]
    recipe = RunFolder(run).read_recipe()
    rows = {
        "images of an epoch": state["num_samples"],
        "images of a step": state["effective_batch"],
        "images seen": seen,
        "steps": state["step"],
        "epochs": last["epoch"],
        "learning rate": lines[0]["effective_lr"],
        "base learning rate": recipe["optim"]["base_lr"],
        "weight decay": recipe["optim"]["weight_decay"],
        "warm-up (share of the steps)": recipe["optim"]["warmup_share"],
        "horizontal flips": recipe["augment"]["horizontal_flip"],
        "width": recipe["model"]["hidden_size"],
        "decoder: width": recipe["model"]["decoder_hidden_size"],
        "images per second": seen / last["seconds"],
    }
    for name, value in rows.items():
        told = f"{value:,}" if isinstance(value, int) else f"{value:.{DIGITS}g}"
        assert f"| {name} | {told} |" in card


def test_a_card_names_what_its_run_did(run: Path) -> None:
    card = write_card(run, run / "model", REPOSITORY, license="cc-by-4.0")
    for words in (
        "| objective | masked autoencoder |",
        "| start | fresh weights |",
        "| share of hidden patches | 0.75 |",
        "| images | emoji (embedded in hf_vitmae) |",
        "| schedule | cosine |",
        "](samples/reconstruction.png)",
        "](samples/loss_curve.png)",
        "CC-BY 4.0",
    ):
        assert words in card, words
    assert "erasing" not in card and "RandAugment" not in card and "licence of the w" not in card
    assert (run / "samples" / "loss_curve.png").is_file()
    data = data_of(card)
    assert data.license == "cc-by-4.0" and data.datasets is None and data.base_model is None
    assert data.pipeline_tag == "image-feature-extraction"


def test_what_started_from_the_model_is_among_its_results(run: Path) -> None:
    card = write_card(run, run / "model", REPOSITORY)
    results = {r.metric_name: r for r in data_of(card).eval_results}
    found = results["accuracy (fine-tuning, 2 labelled images a class, 4 steps)"]
    assert found.metric_args is not None and found.metric_args["draws"] == 2
    assert found.dataset_type == "emoji" and found.task_type == "image-classification"
    assert "loss (held-out images)" in results
    assert re.search(r"\| the mean visible colour \|.*\| loss \|", card)


def test_another_run_beside_it_is_not(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "second")
    shutil.copytree(run.parent / "tuned-0", tmp_path / "tuned-0")  # of first's model
    card = write_card(tmp_path / "second", tmp_path / "second" / "model", REPOSITORY)
    assert "fine-tuning, 2" not in card and "held-out images" in card


def test_a_folder_that_moved_as_a_whole_has_the_same_card(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "moved")
    moved = tmp_path / "moved" / run.name
    assert write_card(moved, moved / "model", REPOSITORY) == write_card(
        run, run / "model", REPOSITORY
    )


def test_a_classifier_says_where_it_comes_from(run: Path) -> None:
    tuned = run.parent / "tuned-0"
    card = write_card(tuned, tuned / "model", REPOSITORY)
    assert "| start | the encoder of first |" in card
    assert "| labelled images a class | 2 |" in card and "| classes | 9 |" in card
    assert data_of(card).pipeline_tag == "image-classification"
    assert data_of(card).base_model is None


def test_nothing_private_is_in_a_card(
    tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "annab" / "x-rays", 12)
    run = tmp_path / "run"
    assert main(["pretrain", "smoke", *FAST, "--data.source", str(images), *out(run)]) == 0
    monkeypatch.setattr("getpass.getuser", lambda: "annab")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu7")
    card = write_card(run, run / "model", REPOSITORY)
    assert "| images | x-rays |" in card and "images of x-rays;" in card
    assert find_private(card) == [] and str(tmp_path) not in card and "annab" not in card


def out(run: Path) -> list[str]:
    return ["--output-dir", str(run)]


# Records written by hand: what a real run seldom leaves.


@pytest.fixture
def empty_run(tmp_path: Path) -> RunFolder:
    """A run that left a model and a recipe, and nothing else."""
    recipe = replace(PRETRAIN["smoke"](), output_dir=tmp_path / "run")
    run = RunFolder.open(tmp_path / "run", recipe)
    save_small_model(run.model)
    return run


def card_of(run: RunFolder, **more: Any) -> str:
    card = write_card(run.path, run.model, REPOSITORY, **more)
    ModelCard(card)  # its metadata can be read
    assert "None" not in card and "null" not in card
    return card


def setting(step: int = 0) -> dict[str, Any]:
    return {"step": step, "epoch": 0.0, "effective_batch": 8, "base_lr": 0.01, "device": "cpu"}


def test_a_run_without_a_log(empty_run: RunFolder) -> None:
    card = card_of(empty_run)
    assert "Nothing was evaluated on held-out images." in card
    for words in (
        "| steps |",
        "images seen",
        "of an epoch",
        "loss_curve",
        "How it went",
        "one run",
    ):
        assert words not in card


def test_a_run_that_is_not_finished_says_so(empty_run: RunFolder) -> None:
    lines = [
        setting(),
        {"step": 2, "epoch": 0.5, "loss": 1.0},
        {"step": 2, "epoch": 0.5, "eval_loss": 0.777},  # of other weights
        {"step": 4, "epoch": 1, "loss": 0.9},
    ]
    for line in lines:
        empty_run.append_metrics(line)
    with empty_run.metrics.open("a") as file:
        file.write('{"step": 6, "epoch": 1.5, "lo')  # killed in a write
    card = card_of(empty_run)
    assert "0.777" not in card and "Nothing was evaluated" in card
    assert "The run is not finished: 4 of 10 steps were taken." in card
    assert "| images of an epoch | 32 |" in card and "| epochs | 1 |" in card
    assert "loss_curve.png" in card


def test_what_went_wrong_is_told(empty_run: RunFolder) -> None:
    empty_run.append_metrics(setting())
    bad = {"loss": math.nan, "grad_norm": math.inf, "skipped_steps": 3}
    empty_run.append_metrics({"step": 5, "loss": 0.8})
    empty_run.append_metrics({"step": 10, **bad})
    empty_run.append_metrics({"step": 10, "eval_loss": math.nan, "eval_images": 7})
    names = ["/home/anna/1.jpg", "/home/anna/2.jpg"]
    lines = [{"name": name, "reason": "is cut off", "split": "train"} for name in names]
    empty_run.bad_images.write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = card_of(empty_run)
    assert "3 steps were left out because loss or gradient were not finite." in card
    assert "2 images could not be used" in card and "| bad training images left out | 2 |" in card
    assert "anna" not in card and "jpg" not in card
    assert "| loss | nan |" in card and "model-index" not in data_of(card).to_dict()


def test_the_best_evaluation_is_told_where_its_weights_were_saved(tmp_path: Path) -> None:
    short = {"model": str(tmp_path / "a" / "model"), "output_dir": tmp_path / "run"}
    evaluations = [(2, 0.5), (4, 0.75), (6, 0.625)]
    for best_model, told in ((False, "0.625"), (True, "0.75")):
        recipe = replace(FINETUNE["smoke"](), best_model=best_model, **short)
        run = RunFolder.open(tmp_path / f"run-{best_model}", recipe)
        save_small_model(run.model)
        for step, accuracy in evaluations:
            run.append_metrics({"step": step, "loss": 1.0})
            run.append_metrics({"step": step, "eval_accuracy": accuracy, "eval_images": 8})
        card = card_of(run)
        assert f"| accuracy | {told} |" in card
        assert ("flatters" in card) == best_model


def test_hub_ids_are_in_the_metadata(tmp_path: Path) -> None:
    recipe = FINETUNE["smoke"]()
    data = replace(recipe.data, source="someone/birds:small")
    recipe = replace(recipe, data=data, model="someone/base", output_dir=tmp_path / "run")
    run = RunFolder.open(tmp_path / "run", recipe)
    save_small_model(run.model)
    data = data_of(card_of(run))
    assert data.datasets == ["someone/birds"] and data.base_model == "someone/base"
    (run.path / "environment.json").write_text(json.dumps({"from_hub": ["someone/base"]}))
    data = data_of(card_of(run))
    assert data.datasets is None and data.base_model == "someone/base"


def test_the_environment_is_told_where_it_was_noted(empty_run: RunFolder) -> None:
    empty_run.append_metrics(setting())
    noted = {
        "device_name": "Fast GPU",
        "versions": {"torch": "2.13.0", "python": "3.11.4"},
        "recipe": "smoke",
        "data_license": "cc0-1.0",
    }
    (empty_run.path / "environment.json").write_text(json.dumps(noted))
    card = card_of(empty_run)
    for row in (
        "| device | Fast GPU |",
        "| torch | 2.13.0 |",
        "| python | 3.11.4 |",
        "| recipe | smoke |",
        "| licence of the images | cc0-1.0 |",
    ):
        assert row in card
    assert "| device | cpu |" not in card


def test_a_model_without_a_run_claims_nothing_of_its_training(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    card = write_card(None, model, REPOSITORY)
    assert "How it was trained is not recorded" in card and "## Training\n" not in card
    assert "| mean | 0.5, 0.5, 0.5 |" in card
    noted = {"origin": "timm", "source": "/data/vit.pth", "said": ["Differs by 1e-06."]}
    (model / "conversion.json").write_text(json.dumps(noted))
    card = write_card(None, model, REPOSITORY)
    assert "- Converted from vit.pth, a checkpoint of timm." in card
    assert "- Differs by 1e-06." in card and "/data" not in card


def test_results_of_a_comparison_stand_with_their_spread(empty_run: RunFolder) -> None:
    folder, checkpoint = empty_run.path.parent / "compare", f"{empty_run.path}/model"
    folder.mkdir()
    recipe = {"task": "CompareRequest", "models": [checkpoint, "random"], "output_dir": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arm = {"checkpoint": checkpoint, "is_random": False, "is_pixels": False, "steps": 1200}
    arms = [{"name": "run", **arm}, {"name": "random", **arm, "is_random": True}]
    rows = [
        {
            "method": "finetune",
            "model": name,
            "mean": mean,
            "spread": 0.02,
            "accuracies": [mean] * 5,
        }
        for name, mean in (("run", 0.6), ("random", 0.4))
    ]
    settings = {"source": "/a/birds", "models": arms, "labels_per_class": 7, "eval_images": 90}
    (folder / "comparison.json").write_text(json.dumps({"settings": settings, "rows": rows}))
    card = card_of(empty_run)
    how = "fine-tuning, 7 labelled images a class, 1,200 steps"
    assert f"| {how} | this model | birds | accuracy | 0.6 | 0.02 | 5 | 90 |" in card
    assert f"| {how} | random weights | birds | accuracy | 0.4 | 0.02 | 5 | 90 |" in card
    (result,) = data_of(card).eval_results
    assert (result.dataset_type, result.metric_value) == ("birds", 0.6)


def test_results_of_evaluate_are_those_of_this_model(empty_run: RunFolder) -> None:
    folder = empty_run.path.parent / "evaluation"
    folder.mkdir()
    found = {"model": "moved/run/model", "source": "/a/birds/test", "split": "test"}
    found |= {"task": "image-classification", "num_images": 90, "accuracy": 0.875}
    (folder / "evaluation.json").write_text(json.dumps(found))
    row = "| hf-vitmae evaluate | this model | birds, test | accuracy | 0.875 |  |  | 90 |"
    assert row in card_of(empty_run)
    (folder / "evaluation.json").write_text(json.dumps(found | {"model": "moved/other/model"}))
    assert "hf-vitmae evaluate" not in card_of(empty_run)


def test_what_is_no_run_or_no_model_is_refused(empty_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        write_card(empty_run.path, tmp_path, REPOSITORY)
    with pytest.raises(ValueError, match="not the folder of a run"):
        write_card(tmp_path / "nothing", empty_run.model, REPOSITORY)
