"""A linear probe from the command line: its classifier, its choice, and that it goes on exactly."""

import json
import runpy
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from transformers import pipeline

from hf_vitmae import VitMaeForImageClassification
from hf_vitmae.cli import main
from hf_vitmae.data import DataConfig, open_source
from hf_vitmae.recipes import LINEAR_PROBE
from hf_vitmae.tasks import linear_probe
from hf_vitmae.tasks.encoders import NetworkEncoder, trained_encoder
from hf_vitmae.tasks.features import cached_features
from hf_vitmae.tasks.linear_probe import LinearProbeRecipe
from hf_vitmae.training.features import hold_out_rows
from hf_vitmae.training.metrics import top_k_accuracy
from hf_vitmae.training.probe import LinearHead, choose_strength, fit_exact_probe
from hf_vitmae.training.probe_sweep import Sweep

from ..small import write_images
from .fork_server import ForkServer
from .runs import Stopped, end_group, wait_for
from .small_models import save_small_model
from .test_command_line import fails

SWEEP = ["--base-lrs", "0.5", "50", "--epochs", "6", "--warmup-epochs", "1", "--views", "2"]
SWEEP += ["--checkpoint-every", "2", "--log-every", "1", "--validation-share", "0.2"]
EXACT = ["--solver", "exact", "--views", "1", "--strengths", "0.01", "1.0", "--folds", "3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def whole(model: Path, class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(run, model, class_folder, *SWEEP)) == 0
    return run


def command(run: Path, model: Path, source: Path, *flags: str) -> list[str]:
    command = ["linear-probe", "smoke", "--model", str(model), "--data.source", str(source)]
    command += ["--data.eval-share", "0.25", "--data.samples-per-class", "None"]
    command += ["--embed-batch-size", "4", "--images-per-part", "8", "--output-dir", str(run)]
    return [*command, *flags]


def contents(run: Path) -> dict[str, bytes]:
    """All files of a run but its recipe, which says where it lies."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in files
        if path.name != "recipe.yaml"
    }


def stop_after(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, number: int) -> None:
    """Let a method raise where it would be called once more than `number` times."""
    whole, calls = getattr(owner, method), []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > number:
            raise Stopped
        return whole(*arguments)

    monkeypatch.setattr(owner, method, stopped)


def read(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("flags", [SWEEP, EXACT], ids=["sweep", "exact"])
def test_the_classifier_gives_the_answers_of_the_head(
    flags: list, model: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[LinearHead] = []
    make = linear_probe.make_classifier

    def noted(
        encoder: NetworkEncoder, head: LinearHead, names: Any
    ) -> VitMaeForImageClassification:
        made.append(head)
        return make(encoder, head, names)

    monkeypatch.setattr(linear_probe, "make_classifier", noted)
    run = tmp_path / "run"
    assert main(command(run, model, class_folder, *flags)) == 0
    classify: Any = pipeline("image-classification", str(run / "model"), function_to_apply="none")
    features = cached_features(tmp_path, trained_encoder(str(model)), open_source(class_folder))
    expected = made[0].logits(features.values)
    for row, path in enumerate(sorted(class_folder.rglob("*.PNG"))[::5]):
        with Image.open(path) as picture:
            scores = {answer["label"]: answer["score"] for answer in classify(picture, top_k=3)}
        got = [scores[name] for name in ("cats", "dogs", "owls")]
        np.testing.assert_allclose(got, expected[row * 5], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("owner", "method", "number"),
    [
        (NetworkEncoder, "embed", 3),  # in the plain features
        (NetworkEncoder, "embed", 22),  # in the images to evaluate on
        (Sweep, "run_epoch", 3),  # after a save and a line that it does not hold
        (Sweep, "run_epoch", 6),  # between the two trainings
        (Sweep, "run_epoch", 11),
    ],
)
def test_an_interrupted_probe_ends_in_the_same_bytes(
    owner: type, method: str, number: int, whole: Path, model: Path, class_folder: Path, tmp_path
):
    again = command(tmp_path / "broken", model, class_folder, *SWEEP)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, owner, method, number)
        main(again)
    assert not (tmp_path / "broken" / "results.json").exists()
    assert main(again) == 0
    assert contents(tmp_path / "broken") == contents(whole)


def test_a_finished_probe_embeds_and_trains_nothing_anew(whole: Path, model, class_folder):
    before = contents(whole)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, NetworkEncoder, "embed", 0)
        stop_after(patch, Sweep, "run_epoch", 0)
        assert main(command(whole, model, class_folder, *SWEEP)) == 0
    assert contents(whole) == before


def has_more(run: Path, pattern: str, than: int) -> bool:
    return len(list(run.glob(pattern))) > than


@pytest.mark.slow
def test_a_killed_probe_ends_in_the_same_bytes(model: Path, class_folder: Path, tmp_path: Path):
    flags = [*SWEEP, "--epochs", "200", "--checkpoint-every", "1"]
    broken = tmp_path / "broken"
    with ForkServer() as server:
        said = tmp_path / "said"
        whole = command(tmp_path / "whole", model, class_folder, *flags)
        assert server.wait(server.start(whole, said)) == 0, said.read_text()
        for sign in ("features/*.parts/part-000001*", "heads-*", "heads-*"):
            process = server.start(command(broken, model, class_folder, *flags), said)
            seen = len(list(broken.glob(sign)))
            wait_for(partial(has_more, broken, sign, seen), sign)
            end_group(process, signal.SIGKILL)
            assert server.wait(process) == -signal.SIGKILL
        assert not (broken / "results.json").exists()
        assert server.wait(server.start(command(broken, model, class_folder, *flags), said)) == 0
    left_over = [path for path in broken.rglob("*") if "unfinished" in path.name]
    assert left_over == []
    assert contents(broken) == contents(tmp_path / "whole")


def test_the_learning_rate_is_chosen_on_held_out_images_and_trained_on_all(
    model: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    assert main(command(run, model, class_folder, *SWEEP, "--views", "1")) == 0
    table = capsys.readouterr().out.splitlines()
    results, lines = read(run), log(run)
    assert results["images"] == 27 and results["eval_images"] == 9
    assert [c["value"] for c in results["candidates"]] == [0.5, 50.0]
    best = max(results["candidates"], key=lambda c: (c["accuracy"], -c["loss"]))
    assert results["best"] == best["value"]
    (row,) = (line for line in table if line.endswith("<- trained on all"))
    assert row.split()[:3] == [
        f"{best['value']:g}",
        f"{best['accuracy']:.4f}",
        f"{best['loss']:.4f}",
    ]
    assert [line["step"] for line in lines] == [*range(1, 13), 13, 13, 13]
    assert [len(line) for line in lines[:12]] == [3] * 6 + [2] * 6
    assert lines[-1]["eval_accuracy"] == results["eval_accuracy"]

    # By hand, from the features that it left.
    files = sorted((run / "features").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    assert len(files) == 2
    recipe = replace(LINEAR_PROBE["smoke"](), base_lrs=(best["value"],))
    train, evaluation = linear_probe.open_labelled(
        DataConfig(source=str(class_folder), eval_share=0.25), recipe.seed
    )
    encoder = trained_encoder(str(model))
    features = cached_features(tmp_path / "a", encoder, train)
    assert evaluation is not None
    others = cached_features(tmp_path / "a", encoder, evaluation)
    config = linear_probe.SweepConfig(
        base_lrs=(best["value"],), batch_size=64, epochs=6, warmup_epochs=1
    )
    rest, held = hold_out_rows(features.labels, 0.2, 0)
    heads = []
    for rows in (rest, np.arange(27)):
        sweep = Sweep(config, [features], rows)
        for _ in range(6):
            sweep.run_epoch()
        heads += sweep.heads()
    logits = heads[0].logits(features.values[held])
    assert top_k_accuracy(logits, features.labels[held], 1) == best["accuracy"]
    logits = heads[1].logits(others.values)
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(others.labels))
    assert results["eval_loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert results["eval_accuracy"] == top_k_accuracy(logits, others.labels, 1)


def test_the_strength_is_chosen_by_cross_validation(
    model: Path, class_folder: Path, tmp_path: Path
):
    assert main(command(tmp_path / "run", model, class_folder, *EXACT)) == 0
    results = read(tmp_path / "run")
    train, evaluation = linear_probe.open_labelled(
        DataConfig(source=str(class_folder), eval_share=0.25), 0
    )
    assert evaluation is not None
    features, others = (
        cached_features(tmp_path / "a", trained_encoder(str(model)), images)
        for images in (train, evaluation)
    )
    assert results["best"] == choose_strength(features, (0.01, 1.0), 3, 0)
    logits = fit_exact_probe(features, results["best"]).logits(others.values)
    assert results["eval_accuracy"] == top_k_accuracy(logits, others.labels, 1)


def test_one_setting_needs_no_choice(model: Path, class_folder: Path, tmp_path: Path):
    for name, flags in {
        "a": [*SWEEP, "--base-lrs", "5"],
        "b": [*EXACT, "--strengths", "1"],
    }.items():
        assert main(command(tmp_path / name, model, class_folder, *flags)) == 0
        (candidate,) = read(tmp_path / name)["candidates"]
        assert candidate["accuracy"] is None and read(tmp_path / name)["images"] == 27
    assert [line["step"] for line in log(tmp_path / "a")] == [*range(1, 7), 7, 7]


def test_few_labels_of_each_class(model: Path, class_folder: Path, tmp_path: Path):
    flags = ["--data.samples-per-class", "3", *EXACT]
    assert main(command(tmp_path / "run", model, class_folder, *flags)) == 0
    assert read(tmp_path / "run")["images"] == 9


def test_images_to_evaluate_on_may_be_missing(
    model: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    flags = ["--data.eval-share", "0", *EXACT]
    assert main(command(tmp_path / "run", model, class_folder, *flags)) == 0
    assert "no images to evaluate on" in capsys.readouterr().out
    assert "eval_accuracy" not in read(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_bad_images_are_left_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("cats", "dogs"):
        write_images(tmp_path / "photos" / name, 12)
    path = tmp_path / "photos" / "cats" / "002.jpg"
    path.write_bytes(path.read_bytes()[:100])
    asked = command(tmp_path / "run", model, tmp_path / "photos", *EXACT)
    fails(capsys, 1, asked, "1 of the", "002.jpg", "--data.max-bad")
    assert main([*asked, "--data.max-bad", "0.2"]) == 0
    results = read(tmp_path / "run")
    assert results["images"] + results["eval_images"] == 23


def test_all_diverged_is_an_error(
    model: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    flags = [*SWEEP, "--solver", "sgd", "--base-lrs", "1e39", "2e39"]
    flags += ["--images-per-part", "99"]
    asked = command(tmp_path / "run", model, class_folder, *flags)
    fails(capsys, 1, asked, "stayed finite", "--base-lrs")


def test_mistakes_are_one_line(
    model: Path, class_folder: Path, flat_folder: Path, tmp_path: Path, capsys
):
    run = tmp_path / "run"
    for code, flags, words in [
        (2, ["--validation-share", "0"], ["2 base learning rates", "validation_share"]),
        (2, ["--validation-share", "1"], ["`validation_share`", "1.0"]),
        (2, ["--base-lrs", "1", "1"], ["`base_lrs`", "different"]),
        (2, ["--base-lrs", "0"], ["`base_lrs`", "above 0"]),
        (2, ["--strengths"], ["strengths"]),
        (2, ["--epochs", "3", "--warmup-epochs", "4"], ["`warmup_epochs` 4", "3 epochs"]),
        (2, ["--views", "0"], ["`views`", "at least 1", "0"]),
        (2, ["--solver", "exact"], ["`views` 2", "exact"]),
        (2, ["--data.stats", "auto"], ["data.stats is auto"]),
        (2, ["--data.repeats", "2"], ["data.repeats is 2"]),
        (2, ["--crop-scale", "0", "1"], ["crop_scale"]),
        (1, ["--data.source", str(flat_folder)], ["no labels"]),
        (1, ["--model", "no/such/model"], ["no/such/model"]),
        (1, ["--validation-share", "0.01"], ["0.01", "27 labelled images"]),
    ]:
        flags = [*SWEEP, *flags, "--images-per-part", "99"]  # which says nothing of its progress
        fails(capsys, code, command(run, model, class_folder, *flags), *words)
        assert run.exists() == ("27 labelled images" in words), flags


def test_a_stream_is_refused(model: Path, class_folder: Path, tmp_path: Path):
    rows = Dataset.from_dict({"image": [b"x"], "label": ["a"]})
    stream: IterableDataset = rows.to_iterable_dataset()
    recipe = LinearProbeRecipe(model=str(model), output_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="front to back"):
        linear_probe.run(recipe, stream)


def test_a_changed_recipe_is_refused(
    model: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    asked = command(tmp_path / "run", model, class_folder, *EXACT)
    assert main(asked) == 0
    fails(capsys, 1, [*asked, "--batch-size", "7"], "batch_size was 64 and is now 7")
    assert main([*asked, "--data.num-workers", "1"]) == 0


def test_another_model_of_the_same_name_is_probed_anew(class_folder: Path, tmp_path: Path):
    asked = command(tmp_path / "run", tmp_path / "model", class_folder, *SWEEP)
    save_small_model(tmp_path / "model")
    assert main(asked) == 0
    first = read(tmp_path / "run")
    shutil.rmtree(tmp_path / "model")
    save_small_model(tmp_path / "model", seed=1)
    assert main(asked) == 0
    assert read(tmp_path / "run")["eval_loss"] != first["eval_loss"]
    assert len(log(tmp_path / "run")) == 15


def test_from_pretraining_to_a_probe_by_one_command(pretrained: Path, tmp_path: Path):
    """What `pretrain smoke` made, by the recipe of that name; it is better than chance."""
    flags = ["--model", str(pretrained), "--output-dir", str(tmp_path / "run")]
    flags += ["--data.samples-per-class", "30", "--data.num-workers", "0"]
    assert main(["linear-probe", "linear-probe-few", *flags, "--data.source", "emoji"]) == 0
    results = read(tmp_path / "run")
    assert results["images"] == 270 and results["eval_images"] == 555
    assert results["eval_accuracy"] > 0.25
    assert VitMaeForImageClassification.from_pretrained(tmp_path / "run" / "model")


def test_the_script_does_what_the_command_does(
    model: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (_, *flags) = command(tmp_path / "run", model, class_folder, *EXACT)
    script = Path(__file__).parents[2] / "scripts" / "linear_probe.py"
    monkeypatch.setattr(sys, "argv", [str(script), *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert read(tmp_path / "run")["images"] == 27
