"""What a pretraining run says of its health, and that it tells good runs from bad ones."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn

from hf_vitmae import VitMaeForPreTraining, VitMaeImageProcessor
from hf_vitmae.cli import main
from hf_vitmae.data.sources import open_source
from hf_vitmae.models.losses import masked_pixel_loss, pixel_targets
from hf_vitmae.models.masking import order_from_noise
from hf_vitmae.recipes.mae import smoke
from hf_vitmae.tasks import fit, health, pretrain
from hf_vitmae.tasks.checkpoints import load_processor
from hf_vitmae.tasks.health import NUM_WHOLE_IMAGES, HealthReport, NeighborAccuracy
from hf_vitmae.tasks.images import spread
from hf_vitmae.tasks.objectives import MaskedAutoencoding
from hf_vitmae.tasks.pretrain import PretrainRecipe, health_period, make_objective
from hf_vitmae.training.advice import advise
from hf_vitmae.training.health import effective_rank

from ..small import FAST, write_images

FIGURES = {
    "health_loss",
    "health_loss_mean_visible",
    "health_loss_interpolation",
    "health_prediction_spread_images",
    "health_prediction_spread_patches",
    "health_position_use",
    "health_feature_rank",
    "health_feature_rank_share",
    "health_feature_spread_images",
    "health_feature_spread_patches",
    "health_attention_distance_1",
    "health_attention_distance_2",
    "health_verdict",
}


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last_report(run: Path) -> dict[str, Any]:
    return [record for record in read_log(run) if "health_loss" in record][-1]


def report_on(run: Path, recipe: PretrainRecipe, source: Any) -> tuple[HealthReport, Any]:
    """The report of a finished run's model, and the model."""
    model = VitMaeForPreTraining.from_pretrained(run / "model")
    model.eval()
    objective = MaskedAutoencoding(model.config, recipe.mask_pattern)
    processor = load_processor(str(run / "model"), model.config)
    accelerator = Accelerator(cpu=True)
    return HealthReport(recipe, objective, accelerator, processor, source, 0), model


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision for a process; each test may choose its own."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the embedded set."""
    run = tmp_path_factory.mktemp("health") / "run"
    assert main(["pretrain", "smoke", *FAST, "--output-dir", str(run)]) == 0
    return run


def test_the_log_has_the_report_of_the_saved_model(finished: Path) -> None:
    recipe = replace(smoke(), output_dir=finished, eval_images=16)
    source = spread(open_source("emoji", "test"), 16)
    report, model = report_on(finished, recipe, source)
    with torch.no_grad():
        found = report(model)
        again = report(model)
    logged = last_report(finished)
    assert {name for name in logged if name.startswith("health_")} == FIGURES
    assert found.keys() == FIGURES and again == found
    for name in FIGURES - {"health_verdict"}:
        assert found[name] == pytest.approx(logged[name], rel=1e-4), name


def test_the_figures_are_those_of_the_model(finished: Path) -> None:
    recipe = replace(smoke(), output_dir=finished)
    source = spread(open_source("emoji", "test"), 20)
    report, model = report_on(finished, recipe, source)
    images, noise = report.sample
    assert len(images) == 20 and torch.equal(noise, replace(report).sample[1])
    mask = order_from_noise(noise, 0.75).mask
    with torch.no_grad():
        found = report(model)
        loss = model(images, noise=noise).loss.item()
        logits = model(images, mask=mask).logits
        whole = model.vit(images[:NUM_WHOLE_IMAGES], output_attentions=True)
    assert found["health_loss"] == pytest.approx(loss, rel=1e-5)
    targets = pixel_targets(images, (8, 8), False)
    assert loss == pytest.approx(masked_pixel_loss(logits, targets, mask).item(), rel=1e-5)
    tokens = whole.last_hidden_state[:, 1:]
    rank = effective_rank(tokens.flatten(0, 1))
    assert found["health_feature_rank"] == pytest.approx(rank, rel=1e-4)
    assert found["health_feature_rank_share"] == pytest.approx(rank / 32, rel=1e-4)
    weights = whole.attentions[1][..., 1:, 1:]
    weights = weights / weights.sum(dim=-1, keepdim=True)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)) * 8.0
    distance = (weights * torch.cdist(places, places)).sum(dim=-1).mean().item()
    assert found["health_attention_distance_2"] == pytest.approx(distance, rel=1e-3)


def test_the_verdict_is_the_advice_on_the_log_and_ends_the_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    records = read_log(finished)
    assert records[-1]["health_verdict"] == advise(records).verdict
    command = ["pretrain", "smoke", *FAST, "--output-dir", str(finished)]
    assert main(command) == 0  # of a run that is finished it is said again
    advice = advise(records)
    assert f"Health: {advice.verdict}. {advice.sentence}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.norm-pix-loss", "--precision", "bf16"],
        ["--mask-pattern", "contrast", "--ema-decay", "0.9"],
        ["--model.image-size", "32", "48", "--model.patch-size", "8", "16", "--batch-size", "3"],
        ["--model.stem-depths", "1", "1", "--model.stem-num-groups", "8"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_every_masked_autoencoder_has_a_report(
    flags: list[str], flat_folder: Path, tmp_path: Path
) -> None:
    """Without held-out images too: of images that train, then."""
    run = tmp_path / "run"
    data = ["--data.source", str(flat_folder), "--output-dir", str(run)]
    assert main(["pretrain", "smoke", *FAST, *flags, *data]) == 0
    report = last_report(run)
    assert "eval_loss" not in report
    numbers = [report[name] for name in FIGURES - {"health_verdict"}]
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert 0 < report["health_attention_distance_1"] < 48


def test_bad_images_are_left_out_of_the_report(tmp_path: Path, finished: Path) -> None:
    folder = write_images(tmp_path / "images", 6)
    (folder / "003.jpg").write_bytes(b"broken")
    recipe = replace(smoke(), output_dir=tmp_path / "none")
    report, model = report_on(finished, recipe, open_source(str(folder)))
    assert len(report.sample[0]) == 5
    with torch.no_grad():
        assert report(model)["health_loss"] > 0
    for file in folder.iterdir():
        file.write_bytes(b"broken")
    report, model = report_on(finished, recipe, open_source(str(folder)))
    assert report(model) == {}


@pytest.mark.parametrize("recipe", ["smoke-masked-patch", "smoke-next-patch"])
def test_neighbours_are_measured_for_every_objective(
    recipe: str, class_folder: Path, tmp_path: Path
) -> None:
    flags = ["--data.source", str(class_folder), "--data.eval-share", "0.25", "--knn-every", "1"]
    run = tmp_path / "run"
    assert main(["pretrain", recipe, *FAST, *flags, "--output-dir", str(run)]) == 0
    records = [record for record in read_log(run) if "eval_knn_accuracy" in record]
    assert [record["step"] for record in records] == [3, 4]  # 27 images by 8: an epoch, the end
    assert all(0 <= record["eval_knn_accuracy"] <= 1 for record in records)
    assert not any(name.startswith("health_") for record in records for name in record)


class Colors(nn.Module):
    """Stands for a model whose features are the images' mean colours."""

    class _Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layernorm = nn.Identity()

    def __init__(self) -> None:
        super().__init__()
        self.vit = self._Encoder()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> None:
        colors = pixel_values.mean(dim=(2, 3))[:, None]  # (B, 1, 3)
        self.vit.layernorm(colors.expand(-1, 17, -1))


def test_the_accuracy_is_that_of_the_nearest_training_images(tmp_path: Path) -> None:
    """Red and blue pictures, of which some held-out ones have the wrong label."""
    colors = {"red": (200, 10, 10), "blue": (10, 10, 200)}
    for split, wrong in (("train", 0), ("test", 2)):
        for index, name in enumerate(colors):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(5):
                shown = list(colors)[index ^ (number < wrong)]
                color = tuple(value + number for value in colors[shown])
                Image.new("RGB", (32, 32), color).save(folder / f"{number}.png")
    recipe = replace(smoke(), batch_size=4, output_dir=tmp_path / "run")
    config = recipe.model.to_config()
    train, test = (open_source(str(tmp_path), split) for split in ("train", "test"))
    processor = VitMaeImageProcessor.for_model(config)
    objective = make_objective(recipe, config)
    sources = (train, test)
    evaluate = NeighborAccuracy(recipe, objective, Accelerator(cpu=True), processor, *sources, 1)
    assert evaluate(Colors()) == {"eval_knn_accuracy": pytest.approx(0.6)}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--knn-every", "-1"], ["knn_every", "-1"]),
        (["--health-every", "-5"], ["health_every", "-5"]),
        (["--objective", "next-patch", "--health-every", "5"], ["health_every", "5", "mae"]),
    ],
)
def test_what_cannot_be_is_refused(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["pretrain", "smoke", *flags, "--output-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--knn-every", "1", "--data.eval-share", "0.2"], ["no labels"]),
        (["--knn-every", "1"], ["knn_every", "held-out", "--data.eval-share"]),
        (["--best-model"], ["best_model", "held-out"]),
    ],
)
def test_what_needs_more_than_there_is_is_refused_at_the_start(
    flags: list[str],
    words: list[str],
    flat_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    run = ["--data.source", str(flat_folder), "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "smoke", *FAST, *flags, *run]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_labels_stay_unread_where_they_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    opened = pretrain.open_sources

    def open_sources(*arguments: Any, use_labels: bool, **options: Any) -> Any:
        asked.append(use_labels)
        return opened(*arguments, use_labels=use_labels, **options)

    monkeypatch.setattr(pretrain, "open_sources", open_sources)
    for number, more in enumerate(([], ["--knn-every", "2"])):
        out = ["--output-dir", str(tmp_path / str(number))]
        assert main(["pretrain", "smoke", *FAST, *more, *out]) == 0
    assert asked == [False, True]
    losses = [[r["loss"] for r in read_log(tmp_path / n) if "loss" in r] for n in ("0", "1")]
    assert losses[0] == losses[1]  # measuring changes nothing


@pytest.mark.parametrize(
    ("steps", "epochs", "log_every", "period"),
    [(1000, None, 50, 100), (1000, None, 30, 90), (4, None, 2, 2), (None, 10.0, 10, 100)],
)
def test_a_run_has_some_ten_reports(
    steps: int | None, epochs: float | None, log_every: int, period: int
) -> None:
    recipe = replace(smoke(), steps=steps, epochs=epochs, log_every=log_every, batch_size=8)
    assert health_period(recipe, num_samples=800 * 2, num_processes=2) == period
    as_said = replace(recipe, health_every=7)
    assert health_period(as_said, num_samples=1600, num_processes=2) == 7


@pytest.mark.parametrize(
    ("flags", "reports", "losses", "neighbors"),
    [
        (["--health-every", "3"], [3, 6, 8], [8], [8]),
        (["--health-every", "3", "--eval-every", "4"], [3, 4, 6, 8], [4, 8], [8]),
        (["--health-every", "0", "--knn-every", "0.004"], [8], [8], [2, 4, 6, 8]),
    ],
)
def test_each_measure_is_taken_when_it_is_due(
    flags: list[str],
    reports: list[int],
    losses: list[int],
    neighbors: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "MOST_NEIGHBORS_FROM", 30)
    if "--knn-every" not in flags:
        flags = [*flags, "--knn-every", "100"]
    out = ["--steps", "8", "--eval-images", "16", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "smoke", *flags, *out]) == 0
    log = read_log(tmp_path / "run")
    for name, steps in (
        ("health_loss", reports),
        ("eval_loss", losses),
        ("eval_knn_accuracy", neighbors),
    ):
        assert [record["step"] for record in log if name in record] == steps, name


@pytest.fixture
def short_run(tmp_path: Path) -> PretrainRecipe:
    """A few seconds of `smoke` with ten reports; its learning rate is about the best."""
    optim = replace(smoke().optim, base_lr=0.06, warmup_share=0.1, clip_grad_norm=1.0)
    shared: dict[str, Any] = dict(log_every=5, eval_every=10, checkpoint_every=0, batch_size=32)
    return replace(smoke(), optim=optim, steps=100, output_dir=tmp_path / "run", **shared)


def advice_of(recipe: PretrainRecipe) -> str:
    pretrain.run(recipe)
    records = read_log(recipe.output_dir)
    assert records[-1]["health_verdict"] == advise(records).verdict
    return advise(records).verdict


@pytest.mark.slow
def test_a_healthy_run_is_told_apart(short_run: PretrainRecipe) -> None:
    assert advice_of(short_run) not in ("collapsed", "learning rate too high")
    reports = [record for record in read_log(short_run.output_dir) if "health_loss" in record]
    verdicts = [report["health_verdict"] for report in reports]
    assert not set(verdicts) & {"collapsed", "learning rate too high"}
    assert {"still learning", "not better than interpolation yet"} <= set(verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vit.embeddings", "decoder"])
def test_a_run_that_cannot_tell_positions_apart_has_collapsed(
    part: str, short_run: PretrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zero_positions(model: nn.Module, *_: Any) -> None:
        """In place of the guard, which would end the run."""
        positions: Any = model.get_submodule(part).position_embeddings
        positions.data.zero_()

    monkeypatch.setattr(fit, "check_positions", zero_positions)
    assert advice_of(short_run) == "collapsed"


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
def test_a_learning_rate_that_is_far_too_high_is_named(
    normalize: bool, short_run: PretrainRecipe
) -> None:
    optim = replace(short_run.optim, base_lr=100 * short_run.optim.base_lr)
    model = replace(short_run.model, norm_pix_loss=normalize)
    assert advice_of(replace(short_run, optim=optim, model=model)) == "learning rate too high"
