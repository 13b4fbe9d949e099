"""The other objectives of pretraining: they run, say what is trivial, and beat it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from hf_vitmae.cli import main
from hf_vitmae.models.losses import patch_targets
from hf_vitmae.models.masking import order_from_noise
from hf_vitmae.models.patches import patchify
from hf_vitmae.tasks.objectives import (
    MaskedAutoencoding,
    MaskedPatchPrediction,
    NextPatchPrediction,
)

from ..models.tiny import random_images, tiny_config
from ..small import FAST

BASELINES = {
    "smoke": "eval_loss_mean_visible",
    "smoke-masked-patch": "eval_loss_color_frequencies",
    "smoke-next-patch": "eval_loss_previous_patch",
}
PICTURES = {
    "smoke": "reconstruction.png",
    "smoke-masked-patch": "prediction.png",
    "smoke-next-patch": "continuation.png",
}


def last_record(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("recipe", BASELINES)
def test_every_objective_trains_and_its_encoder_fine_tunes(
    recipe: str, class_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", recipe, *FAST, "--output-dir", str(run)]) == 0
    record = last_record(run)
    assert record["eval_images"] == 16
    assert 0 < record["eval_loss"] < 10 and 0 < record[BASELINES[recipe]] < 10
    with Image.open(run / "samples" / PICTURES[recipe]) as picture:
        assert picture.width > 200

    tuned = tmp_path / "tuned"
    flags = ["--model", str(run / "model"), "--data.source", str(class_folder)]
    assert main(["finetune", "smoke", *FAST, *flags, "--output-dir", str(tuned)]) == 0
    model = AutoModelForImageClassification.from_pretrained(tuned / "model")
    assert list(model.config.id2label.values()) == ["cats", "dogs", "owls"]


@pytest.mark.parametrize(
    "flags",
    [
        ["smoke", "--model.stem-depths", "1", "1", "--model.stem-num-groups", "8"],
        ["smoke", "--mask-pattern", "block"],
        ["smoke", "--mask-pattern", "grid"],
        ["smoke", "--mask-pattern", "contrast"],
        ["smoke-masked-patch", "--model.patch-target", "colors_4x4"],
        ["smoke-masked-patch", "--model.patch-target", "pixels"],
        ["smoke-next-patch", "--prefix-share", "0.5", "--model.norm-pix-loss"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_variants_run(flags: list[str], tmp_path: Path) -> None:
    assert main(["pretrain", *flags, *FAST, "--output-dir", str(tmp_path / "run")]) == 0
    assert math.isfinite(last_record(tmp_path / "run")["eval_loss"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["smoke-next-patch", "--mask-pattern", "grid"], ["mask_pattern", "grid", "next-patch"]),
        (["smoke", "--prefix-share", "0.5"], ["prefix_share", "0.5", "mae"]),
        (["smoke-next-patch", "--prefix-share", "1.5"], ["prefix_share", "1.5", "below 1"]),
        (["smoke", "--mask-pattern", "stripes"], ["stripes", "block"]),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["pretrain", *flags, *FAST, "--output-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_mask_pattern_is_what_the_model_hides() -> None:
    config = tiny_config(mask_ratio=0.5)
    objective = MaskedAutoencoding(config, "grid")
    inputs = objective.inputs(random_images(config), torch.rand(3, objective.num_noise))
    mask = objective.model_class(config)(**inputs).mask.unflatten(1, config.grid)
    checkerboard = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert all(torch.equal(m, checkerboard) or torch.equal(m, ~checkerboard) for m in mask)


def test_contrast_hides_rather_what_is_not_flat() -> None:
    config = tiny_config(mask_ratio=0.5)
    images = random_images(config, batch=64)
    images[:, :, :8] = 0.0  # the upper half is flat
    objective = MaskedAutoencoding(config, "contrast")
    noise = objective.inputs(images, torch.rand(64, config.num_patches))["noise"]
    hidden = order_from_noise(noise, 0.5).mask.float().mean(dim=0)  # (N,)
    assert hidden[8:].mean() > hidden[:8].mean() + 0.2


@pytest.mark.parametrize("target", ["mean_color", "colors_4x4"])
def test_the_colour_baselines_are_entropy_and_the_commonest_colour(target: str) -> None:
    config = tiny_config(patch_target=target, patch_size=8, num_channels=1)
    objective = MaskedPatchPrediction(config)
    model, sums = objective.model_class(config).eval(), torch.zeros((), dtype=torch.float64)
    parts, classes, right = [], [], []
    for seed in range(2):
        images = random_images(config, batch=5, seed=seed)
        noise = torch.rand(5, objective.num_noise, generator=torch.Generator().manual_seed(seed))
        output = model(**objective.inputs(images, noise))
        sums = sums + objective.measure(images, output)
        targets = patch_targets(images, config)[output.mask]  # (n, S)
        answers = output.logits[output.mask].unflatten(1, (-1, 8)).argmax(dim=-1)
        classes.append(targets)
        right.append(answers == targets)
        parts.append(output.loss.item())
    report, classes = objective.report(sums), torch.cat(classes)
    entropies, commonest = [], []
    for place in classes.T:
        shares = place.bincount(minlength=8) / len(place)
        entropies.append(-sum(share * math.log(share) for share in shares.tolist() if share))
        commonest.append(shares.max().item())
    assert report["eval_loss"] == pytest.approx(sum(parts) / 2)
    assert report["eval_loss_color_frequencies"] == pytest.approx(sum(entropies) / len(entropies))
    assert report["eval_accuracy_most_frequent_color"] == pytest.approx(
        sum(commonest) / len(commonest)
    )
    assert report["eval_accuracy"] == pytest.approx(torch.cat(right).float().mean().item())
    assert report["eval_images"] == 10


def test_the_next_patch_baseline_repeats_the_patch_before() -> None:
    config = tiny_config()
    objective, images = NextPatchPrediction(config), random_images(config)
    output = objective.model_class(config)(**objective.inputs(images, torch.rand(3, 1)))
    report = objective.report(objective.measure(images, output))
    errors = []
    for patches in patchify(images, 4):
        before = torch.zeros_like(patches[0])
        for patch in patches:
            errors.append((patch - before).square().mean().item())
            before = patch
    assert report["eval_loss_previous_patch"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert report["eval_loss"] == pytest.approx(output.loss.item())


def test_prefixes_are_drawn_up_to_the_share() -> None:
    objective = NextPatchPrediction(tiny_config(), prefix_share=0.5)
    noise = torch.linspace(0, 0.999, 900)[:, None]
    prefix = objective.inputs(torch.zeros(900, 3, 16, 16), noise)["num_prefix_patches"]
    counts = prefix.bincount()
    assert len(counts) == 9 and counts.min() > 95


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["masked-patch-cpu", "next-patch-cpu"])
def test_the_other_objectives_beat_their_trivial_baselines(recipe: str, tmp_path: Path) -> None:
    flags = ["--steps", "400", "--log-every", "100", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", recipe, *flags]) == 0
    record = last_record(tmp_path / "run")
    baseline = BASELINES[f"smoke-{recipe.removesuffix('-cpu')}"]
    assert record["eval_images"] == 555
    assert record["eval_loss"] < 0.95 * record[baseline]
