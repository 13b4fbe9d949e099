"""Augmented, mixed or repeated images: runs resume exactly, and what is senseless is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_vitmae.cli import main
from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.loader import train_batches
from hf_vitmae.recipes import finetune as finetune_recipes
from hf_vitmae.tasks import finetune, fit
from hf_vitmae.tasks.finetune import make_targets, smooth_labels

from .runs import Stopped, stop_at

ALL = AugmentConfig(rand_augment=9, erasing=0.5, mixup=0.8, cutmix=1.0)


def fine_tune(
    run: Path, source: Path, model: Path, monkeypatch: Any, last: int | None = None, **data: Any
) -> bytes:
    stop_at(monkeypatch, last)
    recipe = finetune_recipes.smoke()
    recipe = replace(
        recipe,
        model=str(model),
        data=replace(recipe.data, source=str(source), **data),
        augment=ALL,
        label_smoothing=0.1,
        accumulation=2,
        batch_size=4,
        steps=6,
        checkpoint_every=2,
        output_dir=run,
    )
    finetune.run(recipe)
    return (run / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_mixed_run_resumes_to_the_same_bytes(
    class_folder: Path, pretrained: Path, tmp_path: Path, monkeypatch, repeats: int
):
    data = {"repeats": repeats}
    whole = fine_tune(tmp_path / "whole", class_folder, pretrained, monkeypatch, **data)
    with pytest.raises(Stopped):
        fine_tune(tmp_path / "parts", class_folder, pretrained, monkeypatch, last=7, **data)
    parts = fine_tune(tmp_path / "parts", class_folder, pretrained, monkeypatch, **data)
    assert parts == whole
    other = fine_tune(
        tmp_path / "other", class_folder, pretrained, monkeypatch, repeats=3 - repeats
    )
    assert other != whole


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(6, 3, 8, 8, generator=generator)
    return {"pixel_values": pixel_values, "labels": torch.arange(6) % 3}


def test_labels_are_smoothed_once_and_mixed_with_their_images():
    recipe = replace(finetune_recipes.smoke(), augment=ALL, label_smoothing=0.3)
    soften = make_targets(recipe, 3)
    torch.manual_seed(1)
    mixed = [soften(batch()) for _ in range(8)]
    smooth = smooth_labels(torch.arange(6) % 3, 3, 0.3)
    for one in mixed:
        labels = one["labels"]
        assert labels.shape == (6, 3) and torch.allclose(labels.sum(dim=1), torch.ones(6))
        assert labels.min() >= 0.1 - 1e-6 and labels.max() <= 0.8 + 1e-6
        share = (labels[0, 0] - smooth[1, 0]) / (smooth[0, 0] - smooth[1, 0])
        expected = torch.lerp(smooth.roll(-1, 0), smooth, share.item())
        assert torch.allclose(labels, expected, atol=1e-5)
    assert not torch.equal(mixed[0]["pixel_values"], mixed[1]["pixel_values"])
    torch.manual_seed(1)
    again = soften(batch())
    assert torch.equal(again["pixel_values"], mixed[0]["pixel_values"])


def test_without_mixing_images_stay_and_nothing_is_drawn():
    recipe = replace(finetune_recipes.smoke(), label_smoothing=0.3)
    before = torch.get_rng_state()
    plain = make_targets(recipe, 3)(batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plain["pixel_values"], batch()["pixel_values"])
    assert torch.equal(plain["labels"], smooth_labels(torch.arange(6) % 3, 3, 0.3))


@pytest.mark.parametrize(
    ("verb", "flags", "line"),
    [
        (["pretrain", "smoke"], ["--augment.mixup", "0.8"], "pretraining has no labels"),
        (["finetune", "smoke-segment"], ["--augment.cutmix", "1"], "the class of every pixel"),
        (["pretrain", "smoke"], ["--data.repeats", "3"], "8 is no multiple of 3 repeats"),
        (["pretrain", "smoke"], ["--data.repeats", "0"], "data.repeats must be at least 1, not 0"),
        (["finetune", "smoke"], ["--augment.rand-augment", "11"], "must lie in 0..10, not 11"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(verb, flags, line, capsys, tmp_path: Path):
    assert main([*verb, *flags, "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_augmentation_reaches_the_batches(flat_folder: Path, tmp_path: Path, monkeypatch):
    seen = []

    def watched_batches(source, transform, **options):
        for one in train_batches(source, transform, **options):
            seen.append(one["pixel_values"].float().mean().item())
            yield one

    monkeypatch.setattr(fit, "train_batches", watched_batches)
    command = ["pretrain", "smoke", "--steps", "2", "--data.source", str(flat_folder)]
    for number, flags in enumerate(([], ["--augment.color-jitter", "0.9", "0", "0", "0"])):
        run = tmp_path / str(number)
        assert main([*command, *flags, "--output-dir", str(run)]) == 0
        assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert len(seen) == 4 and not np.allclose(seen[:2], seen[2:], atol=1)
