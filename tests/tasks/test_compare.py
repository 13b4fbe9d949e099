"""The comparison is fair, goes on where it stopped, and says no more than its numbers do.

Most tests take the place of fine-tuning, so that they see what each run would be given; what a run
does with it is tested elsewhere, and once here for all parts together.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_vitmae.cli import main
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.sources import open_train_and_eval
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining
from hf_vitmae.recipes import FINETUNE
from hf_vitmae.tasks import compare, compare_measure, finetune
from hf_vitmae.tasks.checkpoints import load_config
from hf_vitmae.tasks.compare import CompareRequest, small_finetuning
from hf_vitmae.tasks.compare_measure import make_encoder
from hf_vitmae.tasks.compare_plan import TUNING_SEED, SharedImages, make_arms
from hf_vitmae.tasks.compare_report import T_95, Comparison, Difference, sentence
from hf_vitmae.tasks.compute import pretraining_flops, step_flops
from hf_vitmae.tasks.finetune import FinetuneRecipe

from .runs import Stopped, stop_at
from .test_command_line import fails

SEEDS, BASE_LRS = 2, (1e-3, 1e-2)
DATA = DataConfig(num_workers=0, eval_share=0.25)


@pytest.fixture(scope="module")
def checkpoints(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """One in the folder of its run, and one that came from elsewhere, with other weights."""
    folder = tmp_path_factory.mktemp("elsewhere") / "borrowed"
    shutil.copytree(pretrained, folder)
    torch.manual_seed(1)
    VitMaeForPreTraining(load_config(str(pretrained))).save_pretrained(folder)
    return str(pretrained), str(folder)


def request(checkpoints: tuple[str, str], source: Path, output: Path, **fields: Any):
    """Everything at once, at the smallest size."""
    settings: dict[str, Any] = {
        "models": (*checkpoints, "random", "pixels"),
        "labels_per_class": 3,
        "seeds": SEEDS,
        "data": DATA,
        "strengths": (10.0, 100.0),
        "folds": 2,
        "base_lrs": BASE_LRS,
        "finetune": replace(small_finetuning(), steps=3, batch_size=4),
    }
    return CompareRequest(source=str(source), output_dir=output, **settings | fields)


class Finetuning:
    """Stands for `finetune.run`: notes the images of each run, and learns by arithmetic."""

    def __init__(self) -> None:
        self.recipes: list[FinetuneRecipe] = []
        self.images: list[tuple[list[str], list[str]]] = []

    def __call__(self, recipe: FinetuneRecipe, source: Any = None) -> dict[str, float]:
        self.recipes.append(recipe)
        train, evaluation = open_train_and_eval(recipe.data, recipe.seed, source=source)
        assert evaluation is not None
        self.images.append((names_of(train), names_of(evaluation)))
        accuracy = 0.5 + 1.5 * recipe.optim.base_lr + 0.01 * recipe.seed % 0.07
        accuracy -= 0.2 * recipe.from_scratch
        return {"eval_accuracy": accuracy, "eval_images": len(evaluation)}

    def tuning(self) -> Iterator[tuple[FinetuneRecipe, set[str], set[str]]]:
        """Recipe, training and evaluation images of the runs that tune."""
        for recipe, (train, evaluation) in zip(self.recipes, self.images, strict=True):
            if recipe.seed == TUNING_SEED:
                yield recipe, set(train), set(evaluation)

    def draws(self) -> Iterator[tuple[FinetuneRecipe, list[str], list[str]]]:
        """The same of the others."""
        for recipe, (train, evaluation) in zip(self.recipes, self.images, strict=True):
            if recipe.seed != TUNING_SEED:
                yield recipe, train, evaluation


def names_of(source: Any) -> list[str]:
    return source.names(range(len(source)))


@pytest.fixture
def finetuning(monkeypatch: pytest.MonkeyPatch) -> Finetuning:
    fake = Finetuning()
    monkeypatch.setattr(compare_measure.finetune, "run", fake)
    return fake


def files(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions."""
    names = ("results.jsonl", "comparison.json", "comparison.md", "comparison.png")
    return {name: (folder / name).read_bytes() for name in names}


def test_every_model_sees_the_same_and_tuning_sees_no_evaluation_image(
    checkpoints, class_folder: Path, tmp_path: Path, finetuning: Finetuning, monkeypatch
) -> None:
    seen: dict[str, set[tuple[str, ...]]] = {}
    weights: dict[str, set[str]] = {}
    embed = compare_measure.cached_features

    def noted(folder: Path, encoder: Any, source: Any, **options: Any) -> Any:
        seen.setdefault(encoder.name, set()).add(tuple(names_of(source)))
        weights.setdefault(encoder.name, set()).add(encoder.digest)
        return embed(folder, encoder, source, **options)

    monkeypatch.setattr(compare_measure, "cached_features", noted)
    comparison = compare.run(request(checkpoints, class_folder, tmp_path / "out"))

    drawn: dict[int, set[tuple[str, ...]]] = {}
    evaluated = set()
    for recipe, train, evaluation in finetuning.draws():
        drawn.setdefault(recipe.seed, set()).add(tuple(train))
        evaluated.add(tuple(evaluation))
    assert [len(drawn[seed]) for seed in range(SEEDS)] == [1, 1] and len(evaluated) == 1
    assert drawn[0] != drawn[1]
    (held_out,) = evaluated
    shared = {*drawn[0], *drawn[1], held_out}
    assert len(seen) == 4 and all(images == shared for images in seen.values())
    assert {name: len(kinds) for name, kinds in weights.items()} == {
        name: SEEDS if name == "random" else 1 for name in seen
    }
    assert len(held_out) == 9 and all(not set(held_out) & set(train) for (train,) in drawn.values())

    tuned = list(finetuning.tuning())
    assert len(tuned) == 4 * len(BASE_LRS)
    assert len({(frozenset(train), frozenset(validation)) for _, train, validation in tuned}) == 1
    for _, train, validation in tuned:
        assert train and validation and not train & validation
        assert not (train | validation) & set(held_out)
    assert {r["eval_images"] for r in comparison.records if r["method"] != "tuning"} == {9}


def test_a_split_of_its_own_is_evaluated_on_and_never_tuned_on() -> None:
    data = DataConfig(num_workers=0)
    images = SharedImages.open(data, None, labels_per_class=2, validation_share=0.2, eval_images=50)
    assert images.evaluation.name == "emoji/test" and len(images.evaluation) == 50
    drawn, validation = open_train_and_eval(images.tuning_config(), TUNING_SEED)
    assert validation is not None and len(validation) == round(0.2 * len(images.training))
    names = names_of(validation)
    assert all(name.startswith("emoji/train") for name in names)
    assert not set(names) & set(names_of(drawn)) and len(drawn) == 18
    assert names_of(images.draw(3)) == names_of(open_train_and_eval(images.draw_config(), 3)[0])


def test_each_model_gets_its_own_best_learning_rate_for_all_seeds(
    checkpoints, class_folder: Path, tmp_path: Path, finetuning: Finetuning, monkeypatch
) -> None:
    def breaks_down(recipe: FinetuneRecipe, source: Any = None) -> dict[str, float]:
        if recipe.from_scratch and recipe.optim.base_lr == max(BASE_LRS):
            raise FloatingPointError
        return finetuning(recipe, source)

    monkeypatch.setattr(finetune, "run", breaks_down)
    asked = request(checkpoints, class_folder, tmp_path / "out", methods=("finetune",))
    comparison = compare.run(asked)
    lrs = {
        is_fresh: {r.optim.base_lr for r, *_ in finetuning.draws() if r.from_scratch == is_fresh}
        for is_fresh in (False, True)
    }
    assert lrs == {False: {max(BASE_LRS)}, True: {min(BASE_LRS)}}
    for recipe in finetuning.recipes:
        is_trained = not recipe.from_scratch
        assert recipe.optim.layer_decay == (0.75 if is_trained else 1.0)
        assert recipe.new_head == is_trained and not recipe.best_model
    notes = "\n".join(comparison.notes)
    assert "random 0.001 (accuracy" in notes and "end of the grid" in notes
    assert f"seed {TUNING_SEED}" in notes


def test_steps_are_the_same_and_one_more_model_has_the_same_compute(
    checkpoints, class_folder: Path, tmp_path: Path, finetuning: Finetuning
) -> None:
    asked = request(checkpoints, class_folder, tmp_path / "out", methods=("finetune",))
    comparison = compare.run(asked)
    names = [arm.name for arm in comparison.arms]
    own = Path(checkpoints[0]).parent.name
    assert names == [own, "borrowed", "random", "random, same total compute", "pixels"]
    models = {model["name"]: model for model in comparison.settings["models"]}
    assert {models[name]["steps"] for name in names[:3]} == {3}
    longer = models["random, same total compute"]
    assert {r.steps for r in finetuning.recipes} == {3, longer["steps"]} and longer["steps"] > 3
    one_step = models["random"]["total_flops"] / 3
    assert abs(longer["total_flops"] - models[own]["total_flops"]) <= one_step / 2
    assert [d.reference for d in comparison.differences] == ["random", "random, same total compute"]
    short = compare.run(replace(asked, output_dir=tmp_path / "short", same_compute=False))
    assert [arm.name for arm in short.arms] == [own, "borrowed", "random", "pixels"]


def test_stopped_after_any_result_it_ends_with_the_same_bytes(
    checkpoints, class_folder: Path, tmp_path: Path, finetuning: Finetuning, monkeypatch
) -> None:
    few: dict[str, Any] = {"models": (checkpoints[0], "random"), "seeds": 1, "same_compute": False}
    whole = request(checkpoints, class_folder, tmp_path / "whole", **few)
    compare.run(whole)
    add = compare_measure.Results.add
    measured = []

    def stopped(results: Any, record: dict) -> None:
        add(results, record)
        measured.append(record)
        raise Stopped

    resumed = replace(whole, output_dir=tmp_path / "resumed")
    monkeypatch.setattr(compare_measure.Results, "add", stopped)
    num_results = len((tmp_path / "whole" / "results.jsonl").read_text().splitlines())
    for count in range(num_results):
        with pytest.raises(Stopped):
            compare.run(resumed)
        lines = (tmp_path / "resumed" / "results.jsonl").read_text().splitlines()
        assert len(lines) == len(measured) == count + 1
    compare.run(resumed)
    assert len(measured) == num_results  # the last start measured nothing
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_the_numbers_follow_from_the_results(
    checkpoints, class_folder: Path, tmp_path: Path, finetuning: Finetuning, capsys
) -> None:
    compare.run(request(checkpoints, class_folder, tmp_path / "out"))
    said = capsys.readouterr().out
    out = tmp_path / "out"
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    found = json.loads((out / "comparison.json").read_text())
    markdown = (out / "comparison.md").read_text()
    assert len(found["rows"]) == 4 + 4 + 4
    by_hand = {}
    for row in found["rows"]:
        own = [r for r in results if (r["method"], r["model"]) == (row["method"], row["model"])]
        accuracies = [r["accuracy"] for r in sorted(own, key=lambda record: record["seed"])]
        by_hand[row["method"], row["model"]] = np.array(accuracies)
        assert row["accuracies"] == accuracies and len(accuracies) == SEEDS
        assert row["mean"] == pytest.approx(np.mean(accuracies))
        assert row["spread"] == pytest.approx(np.std(accuracies, ddof=1))
        cells = f"| {row['model']} | {np.mean(accuracies):.3f} | {np.std(accuracies, ddof=1):.3f} |"
        assert cells in markdown
        words = [row["model"], f"{row['mean']:.3f}", f"{row['spread']:.3f}", str(SEEDS)]
        assert any(
            line.split()[-3:] == words[1:] and words[0] in line for line in said.splitlines()
        )
    assert found["differences"]
    for difference in found["differences"]:
        model, other = (
            by_hand[difference["method"], difference[role]] for role in ("model", "reference")
        )
        assert difference["mean"] == pytest.approx((model - other).mean())
        error = (model - other).std(ddof=1) / SEEDS**0.5
        assert difference["standard_error"] == pytest.approx(error)
    for line in found["conclusion"]:
        assert line in markdown and line in said
    labels = {r["labels"] for r in results if "labels" in r}
    assert labels == {found["settings"]["labels"]} == {9}


def test_random_weights_are_fresh_for_each_seed(checkpoints, class_folder: Path) -> None:
    trained, random, pixels = make_arms([checkpoints[0], "random", "pixels"])
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoders = [make_encoder(arm, seed, "mean") for arm in (trained, random) for seed in (0, 1)]
    one, same, fresh, other = (encoder.embed(pictures) for encoder in encoders)
    assert torch.equal(one, same)
    assert not torch.allclose(one, fresh, atol=1e-3)
    assert not torch.allclose(fresh, other, atol=1e-3)
    again = make_encoder(random, 0, "mean")
    assert torch.equal(again.embed(pictures), fresh) and again.config.hidden_size == 32
    plain = make_encoder(pixels, 0, "mean").embed(pictures)
    assert torch.equal(plain, pictures.flatten(1))


def test_the_whole_of_it_by_one_command(
    checkpoints, class_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    out = tmp_path / "out"
    command = ["compare", str(class_folder), "--models", checkpoints[0], "random"]
    command += ["--labels-per-class", "3", "--seeds", "1", "--strengths", "10"]
    command += ["--base-lrs", "1e-3", "--finetune.steps", "4", "--finetune.checkpoint-every", "1"]
    command += ["--finetune.batch-size", "4", "--data.eval-share", "0.25", "--data.num-workers"]
    command += ["0", "--no-same-compute"]
    stop_at(monkeypatch, 2)  # within the first fine-tuning run
    with pytest.raises(Stopped):
        main([*command, "--output-dir", str(out)])
    assert len((out / "results.jsonl").read_text().splitlines()) == 4  # knn and linear probe
    stop_at(monkeypatch, None)
    assert main([*command, "--output-dir", str(out)]) == 0
    assert "resumes at step 2" in capsys.readouterr().err
    assert main([*command, "--output-dir", str(tmp_path / "whole"), "--keep-models"]) == 0
    assert files(out) == files(tmp_path / "whole")
    left = {path.name for path in out.rglob("*")}
    assert {"inputs.json", "recipe.yaml", "metrics.jsonl"} <= left
    assert not {"model", "checkpoints", "features"} & left
    assert len(list((tmp_path / "whole" / "runs").glob("*/model/config.json"))) == 2
    assert "it was not tuned" in (out / "comparison.md").read_text()


def test_a_folder_of_another_comparison(
    checkpoints, class_folder: Path, tmp_path: Path, finetuning: Finetuning
) -> None:
    borrowed = shutil.copytree(checkpoints[1], tmp_path / "borrowed")
    few: dict[str, Any] = {"methods": ("knn",), "models": (str(borrowed), "random")}
    asked = request(checkpoints, class_folder, tmp_path / "out", **few)
    compare.run(asked)
    with pytest.raises(ValueError, match="labels_per_class was 3 and is now 2"):
        compare.run(replace(asked, labels_per_class=2))
    with pytest.raises(ValueError, match=r"finetune.batch_size was 4 and is now 8"):
        compare.run(replace(asked, finetune=replace(asked.finetune, batch_size=8)))
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    compare.run(replace(asked, seeds=3, allow_change=("seeds",)))  # more of the same
    after = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert after.startswith(before) and after.count(b"\n") == before.count(b"\n") * 3 // 2
    torch.manual_seed(2)
    VitMaeForPreTraining(load_config(str(borrowed))).save_pretrained(borrowed)
    with pytest.raises(ValueError, match="borrowed changed since"):
        compare.run(replace(asked, seeds=3))


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--models", "CHECKPOINT"], 2, ["1 model", "random"]),
        (["--models", "random", "pixels"], 2, ["no checkpoint", "random pixels"]),
        (["--models", "no/such/model", "random"], 1, ["no/such/model"]),
        (["--models", "CHECKPOINT", "random", "--labels-per-class", "0"], 2, ["labels_per_class"]),
        (["--models", "CHECKPOINT", "random", "--labels-per-class", "1"], 2, ["cross-validate"]),
        (["--models", "CHECKPOINT", "random", "--seeds", "0"], 2, ["seeds", "0"]),
        (["--models", "CHECKPOINT", "random", "--base-lrs", "-1"], 2, ["base_lrs", "-1"]),
        (["--models", "CHECKPOINT", "random", "--finetune.seed", "1"], 2, ["seed", "--seeds"]),
        (["--models", "CHECKPOINT", "random", "--finetune.best-model"], 2, ["best_model"]),
        (["--models", "CHECKPOINT", "random", "--finetune.lora-rank", "4"], 2, ["lora_rank` 4"]),
        (["--models", "CHECKPOINT", "random", "--data.stats", "auto"], 2, ["data.stats` auto"]),
        (["--models", "CHECKPOINT", "random"], 1, ["no split", "--data.eval-split"]),
        (["--models", "CHECKPOINT", "random", "--data.eval-split", "dev"], 1, ["'dev'"]),
        (["--models", "CHECKPOINT", "random", "--validation-share", "0.01", "--data.eval-share"]
         + ["0.25"], 1, ["validation_share", "0.01"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(
    flags: list[str], code: int, words: list[str], checkpoints, class_folder, tmp_path, capsys
) -> None:
    flags = [checkpoints[0] if flag == "CHECKPOINT" else flag for flag in flags]
    out = tmp_path / "out"
    fails(capsys, code, ["compare", class_folder, *flags, "--output-dir", out], *words)
    assert not out.exists()


@pytest.mark.parametrize("flags", [[], ["--data.eval-share", "0.2"]])
def test_labels_are_needed(flags, checkpoints, flat_folder: Path, tmp_path: Path, capsys) -> None:
    command = ["compare", flat_folder, "--models", checkpoints[0], "random", *flags]
    command += ["--output-dir", tmp_path / "out"]
    fails(capsys, 1, command, "no labels", "folder per class")
    assert not (tmp_path / "out").exists()


def test_compute_of_a_pretraining_run_is_that_of_its_steps(
    pretrained: Path, checkpoints, tmp_path: Path
) -> None:
    config = load_config(str(pretrained))
    spent = pretraining_flops(str(pretrained))
    assert spent == 4 * step_flops(VitMaeForPreTraining(config), 8)  # 4 steps of 8 images
    assert pretraining_flops(checkpoints[1]) is None
    classifier = VitMaeForImageClassification(config)
    assert step_flops(classifier, 6) == 3 * step_flops(classifier, 2) > 0


def test_fine_tuning_is_that_of_the_recipe() -> None:
    """The recipe lies above the tasks, so its numbers stand here twice."""
    recipe = replace(FINETUNE["finetune-cpu"](), tracker=("none",))
    assert small_finetuning() == recipe


DRAWS = {
    "above": (0.50, 0.52, 0.51, 0.53, 0.50),
    "below": (0.30, 0.32, 0.31, 0.33, 0.30),
    "near": (0.46, 0.38, 0.42, 0.37, 0.41),
}
SCRATCH = (0.40, 0.41, 0.39, 0.42, 0.40)


def reported(**methods: tuple[float, ...]) -> Comparison:
    """What is said of a checkpoint with these accuracies beside random ones."""
    arms = make_arms(["runs/mae/model", "random"])
    records = [
        {"method": method, "model": model, "seed": seed, "accuracy": accuracy}
        for method, own in methods.items()
        for model, accuracies in (("mae", own), ("random", SCRATCH))
        for seed, accuracy in enumerate(accuracies[: len(own)])
    ]
    return Comparison(arms, records, {"eval_images": 100, "labels": 45}, [])


@pytest.mark.parametrize(
    ("draws", "verdict", "words", "answer"),
    [
        ("above", "above", "mae is 0.108 above random", "Yes by kNN."),
        ("below", "below", "mae is 0.092 below random", "No by kNN."),
        ("near", "cannot be told", "cannot be told apart; +0.004", "Cannot be told by kNN."),
    ],
)
def test_words_are_right_in_every_direction(
    draws: str, verdict: str, words: str, answer: str
) -> None:
    comparison = reported(knn=DRAWS[draws])
    (difference,) = comparison.differences
    assert difference.verdict == verdict
    assert words in comparison.conclusion[0]
    assert comparison.conclusion[-1].endswith(answer)
    assert "standard error" in comparison.conclusion[0] and "5 draws" in comparison.conclusion[0]


def test_methods_may_disagree() -> None:
    comparison = reported(**{"knn": DRAWS["above"], "finetune": DRAWS["below"]})
    answer = comparison.conclusion[-1]
    assert answer == "Did pretraining help, with 45 labels? Yes by kNN. No by fine-tuning."


def test_a_single_draw_tells_nothing() -> None:
    (difference,) = reported(knn=(0.9,)).differences
    assert difference.verdict == "cannot be told" and difference.standard_error is None
    assert "+0.500" in sentence(difference) and "--seeds 5" in sentence(difference)
    assert reported(knn=(0.9,)).table().splitlines()[1].split()[-2:] == ["-", "1"]


def test_the_margin_is_that_of_student() -> None:
    from scipy.stats import t

    for freedom, quantile in enumerate(T_95, start=1):
        assert quantile == pytest.approx(t.ppf(0.975, freedom), abs=0.006)
    values = np.array([0.01, 0.03, 0.02, 0.05])
    for shift, verdict in ((0.0, "above"), (-0.005, "cannot be told"), (-0.06, "below")):
        difference = Difference("knn", "a", "b", tuple(values + shift))
        low, high = t.interval(0.95, 3, difference.mean, difference.standard_error)
        assert difference.verdict == verdict == _side(low, high)


def _side(low: float, high: float) -> str:
    return "above" if low > 0 else "below" if high < 0 else "cannot be told"


def test_checkpoints_alone_are_set_against_each_other() -> None:
    arms = make_arms(["runs/a/model", "runs/b/model", "hub/c"])
    records = [
        {"method": "knn", "model": arm.name, "seed": seed, "accuracy": 0.1 * arm.number + 0.01 * s}
        for arm in arms
        for seed, s in enumerate((1, 2, 3))
    ]
    comparison = Comparison(arms, records, {"eval_images": 100, "labels": 45}, [])
    assert [(d.model, d.reference) for d in comparison.differences] == [("c", "a"), ("c", "b")]
    assert "flatters" in " ".join(comparison.conclusion)
    assert not any("Did pretraining help" in line for line in comparison.conclusion)


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["runs/a/model", "runs/b/model"], ["a", "b"]),
        (["x/a/model", "y/a/model"], ["x/a/model", "y/a/model"]),
        (["user/vit", "./random"], ["vit", "./random"]),
    ],
)
def test_names_are_short_and_tell_models_apart(models: list[str], names: list[str]) -> None:
    assert [arm.name for arm in make_arms([*models, "random"])] == [*names, "random"]
