"""Training normalises with what `data.stats` says, and deep images keep their depth in it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae import VitMaeForPreTraining, VitMaeImageProcessor
from hf_vitmae.cli import main
from hf_vitmae.data.augmentation.augmented import train_transform
from hf_vitmae.data.augmentation.config import AugmentConfig

from ..small import FAST, write_images
from .test_command_line import fails
from .test_stats import stats, write, write_deep


def pretrain(source: Path, output: Path, *flags: object) -> Path:
    """A short run in this process: the folder of its model."""
    words = ["pretrain", "smoke", *FAST, "--data.source", source, "--output-dir", output, *flags]
    assert main([str(word) for word in words]) == 0
    return output / "model"


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return VitMaeForPreTraining.from_pretrained(model).state_dict()


def test_measured_and_read_statistics_train_alike(tmp_path: Path) -> None:
    photos, file = write_images(tmp_path / "photos", 16), tmp_path / "stats.json"
    found = stats(photos, file)
    models = [
        pretrain(photos, tmp_path / "auto", "--data.stats", "auto"),
        pretrain(photos, tmp_path / "file", "--data.stats", file),
        pretrain(photos, tmp_path / "none"),
    ]
    for model in models[:2]:
        processor = VitMaeImageProcessor.from_pretrained(model)
        config = VitMaeForPreTraining.from_pretrained(model).config
        assert tuple(processor.image_mean) == tuple(config.image_mean) == found.mean
        assert tuple(processor.image_std) == tuple(config.image_std) == found.std
    auto, read, plain = map(weights_of, models)
    assert all(torch.equal(auto[name], read[name]) for name in auto)
    assert not all(torch.equal(auto[name], plain[name]) for name in auto)
    assert VitMaeImageProcessor.from_pretrained(models[2]).image_mean == [0.5, 0.5, 0.5]


def test_only_the_training_images_are_measured(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split, value in (("train", 51), ("test", 204)):
        for number in range(4):
            write(photos / split / f"{number}.png", np.full((40, 40), value + number, np.uint8))
    model = pretrain(photos, tmp_path / "run", "--data.stats", "auto")
    mean = VitMaeImageProcessor.from_pretrained(model).image_mean
    assert mean == [pytest.approx(52.5 / 255)] * 3


def test_a_run_that_goes_on_has_the_same_statistics(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", 9)
    flags = ["--data.stats", "auto", "--data.num-workers", 1]
    whole = weights_of(pretrain(photos, tmp_path / "whole", *flags))
    model = pretrain(photos, tmp_path / "again", *flags)
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000004")  # as if killed before it
    shutil.rmtree(model)
    again = weights_of(pretrain(photos, tmp_path / "again", *flags))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_imagenet_statistics(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", 8)
    model = pretrain(photos, tmp_path / "run", "--data.stats", "imagenet")
    processor = VitMaeImageProcessor.from_pretrained(model)
    assert processor.image_mean == [0.485, 0.456, 0.406]
    assert processor.image_std == [0.229, 0.224, 0.225]


def test_fine_tuning_measures_for_fresh_weights_alone(
    class_folder: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--data.source", class_folder, "--model", pretrained, "--data.stats", "auto"]
    command = [*map(str, ["finetune", "smoke", *FAST, *flags, "--output-dir", tmp_path / "run"])]
    fails(capsys, 1, command, "data.stats=auto", "--from-scratch")
    assert not (tmp_path / "run").exists()
    assert main([*command, "--from-scratch"]) == 0
    expected = stats(class_folder, tmp_path / "stats.json")
    processor = VitMaeImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert tuple(processor.image_mean) == expected.mean


def test_statistics_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos, run = write_images(tmp_path / "photos", 8), tmp_path / "run"
    command = ["pretrain", "smoke", *FAST, "--data.source", photos, "--output-dir", run]
    stats(photos, tmp_path / "3.json")
    gray = [*command, "--model.num-channels", "1", "--data.stats"]
    fails(capsys, 1, [*gray, tmp_path / "3.json"], "3.json", "3 channels", "--num-channels 1")
    fails(capsys, 1, [*gray, "imagenet"], "imagenet", "3 channels")
    fails(capsys, 1, [*command, "--data.stats", tmp_path / "no.json"], "no.json", "hf-vitmae stats")
    fails(capsys, 1, [*command, "--data.stats", photos / "000.jpg"], "000.jpg", "hf-vitmae stats")
    assert not run.exists()


def reconstructed(model: Path, images: list[np.ndarray]) -> np.ndarray:
    """What a model makes of 16-bit gray images, in all patches: (B, C, H, W) in 0..1."""
    processor = VitMaeImageProcessor.from_pretrained(model)
    inputs = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    trained = VitMaeForPreTraining.from_pretrained(model)
    noise = torch.linspace(0, 1, trained.config.num_patches).expand(len(images), -1)
    with torch.no_grad():
        patches = trained(**inputs, noise=noise).logits
    pictures = processor.patches_to_images(patches, trained.config.grid)
    return processor.denormalize(pictures).numpy()


def test_training_on_deep_gray_shows_no_tint(tmp_path: Path) -> None:
    images = write_deep(tmp_path / "cells")
    found = stats(tmp_path / "cells", tmp_path / "stats.json")
    tints = {}
    for name in (tmp_path / "stats.json", "auto", "imagenet"):
        flags = ["--data.stats", name, "--steps", 40, "--model.num-channels", 3]
        model = pretrain(tmp_path / "cells", tmp_path / Path(name).name.replace(".", "-"), *flags)
        channels = reconstructed(model, images).mean(axis=(0, 2, 3))
        tints[str(name)] = np.ptp(channels)
        processor = VitMaeImageProcessor.from_pretrained(model)
        if name != "imagenet":
            assert processor.value_range == list(found.value_range or ())
            assert tuple(processor.image_mean) == found.mean * 3
    assert tints["auto"] == tints[str(tmp_path / "stats.json")] < 0.02
    assert tints["imagenet"] > 0.04  # so a tint would be seen


def test_channels_of_deep_gray_agree_in_every_pixel(tmp_path: Path) -> None:
    images = write_deep(tmp_path / "cells")
    flags = ["--data.stats", "auto", "--steps", 150, "--optim.base-lr", 0.1]
    model = pretrain(tmp_path / "cells", tmp_path / "run", *flags, "--model.num-channels", 3)
    is_hidden = np.kron(np.arange(16).reshape(4, 4) >= 4, np.ones((8, 8), bool))  # by `noise`
    pixels = reconstructed(model, images)[:, :, is_hidden]  # (B, C, n)
    assert np.ptp(pixels, axis=1).mean() < 0.04  # 0.14 after 40 steps of a tenth of this rate


def test_the_panel_of_deep_images_shows_them_in_their_range(tmp_path: Path) -> None:
    """Neither black, as 12 of 16 bits are without a range, nor mapped twice, which is white."""
    write_deep(tmp_path / "cells", 8)
    found = stats(tmp_path / "cells", tmp_path / "stats.json")
    flags = ["--data.stats", tmp_path / "stats.json", "--model.num-channels", 1]
    model = pretrain(tmp_path / "cells", tmp_path / "run", *flags)
    panel = np.asarray(Image.open(model.parent / "samples" / "reconstruction.png").convert("L"))
    again = tmp_path / "panel.png"
    picture = tmp_path / "cells" / "00.png"
    assert main(["reconstruct", str(model), str(picture), "-o", str(again)]) == 0
    for page in (panel, np.asarray(Image.open(again).convert("L"))):
        shown = page[40:70, 10:40]  # inside the first input
        assert abs(shown.mean() / 255 - found.mean[0]) < 0.25, shown.mean()
        assert shown.std() > 5


@pytest.mark.parametrize("augment", ["--augment.rand-augment", "--augment.color-jitter"])
def test_deep_images_can_be_augmented(tmp_path: Path, augment: str) -> None:
    write_deep(tmp_path / "cells", 8)
    values = [9] if "rand" in augment else [0.4, 0.4, 0.4, 0.1]
    flags = ["--data.stats", "auto", augment, *values, "--augment.erasing", 0.5]
    encoded = (tmp_path / "cells" / "00.png").read_bytes()
    config = AugmentConfig(gaussian_blur=1.0)
    for channels in (1, 3):
        transform = train_transform(config, (32, 32), channels, 0.5, 0.5, (300.0, 4100.0))
        image = transform.read(encoded, np.random.default_rng(0), "an image")
        assert image.dtype == torch.float32 and 50 < image.mean() < 200
        run = tmp_path / f"{channels}"
        pretrain(tmp_path / "cells", run, *flags, "--model.num-channels", channels)
