"""Fine-tuning for segmentation by the command line: sources, names, geometry, mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline

from hf_vitmae import VitMaeImageProcessor
from hf_vitmae.cli import main
from hf_vitmae.data.shapes import draw_shapes

from ..small import FAST

NAMES = ["background", "circle", "square", "triangle"]


def last_record(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def map_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in `images/` and their label maps in `annotations/`."""
    root = tmp_path_factory.mktemp("maps")
    for folder in ("images", "annotations"):
        (root / folder).mkdir()
    for number in range(12):
        picture, label_map = draw_shapes(number, seed=3)
        picture.save(root / "images" / f"{number}.jpg")
        label_map.save(root / "annotations" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def segmented(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a short segmentation of the drawn shapes."""
    run = tmp_path_factory.mktemp("segment") / "run"
    flags = ["--model", str(pretrained), "--output-dir", str(run)]
    assert main(["finetune", "smoke-segment", *FAST, *flags]) == 0
    return run


def test_drawn_shapes_need_no_names_and_leave_a_model_and_a_picture(segmented: Path) -> None:
    record = last_record(segmented)
    assert record["eval_images"] == 16
    assert 0 < record["eval_mean_iou"] < record["eval_pixel_accuracy"] <= 1
    model = AutoModelForSemanticSegmentation.from_pretrained(segmented / "model")
    assert list(model.config.id2label.values()) == NAMES
    with Image.open(segmented / "samples" / "segmentation.png") as picture:
        assert picture.width > 300


def test_the_pipeline_gives_masks_of_the_pictures_size(segmented: Path, map_folder: Path) -> None:
    with Image.open(map_folder / "images" / "0.jpg") as picture:
        wide = picture.resize((100, 50))
    answers = pipeline("image-segmentation", model=str(segmented / "model"))(wide)
    assert {answer["label"] for answer in answers} <= set(NAMES)
    assert all(answer["mask"].size == (100, 50) for answer in answers)
    covered = np.sum([np.asarray(answer["mask"]) > 0 for answer in answers], axis=0)
    assert (covered == 1).all()


def test_a_folder_of_images_and_annotations(
    pretrained: Path, map_folder: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(pretrained), "--data.source", str(map_folder)]
    flags += ["--data.eval-share", "0.25", "--head", "linear", "--output-dir", str(tmp_path / "a")]
    assert main(["finetune", "smoke-segment", *FAST, *flags, "--class-names", *NAMES]) == 0
    assert last_record(tmp_path / "a")["eval_images"] == 3


def test_weights_are_adapted_to_the_geometry_asked_for(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    flags = ["--model", str(pretrained), "--image-size", "48", "64", "--patch-size", "4"]
    flags += ["--num-channels", "1", "--output-dir", str(run)]
    assert main(["finetune", "smoke-segment", *FAST, *flags]) == 0
    said = capsys.readouterr().out
    assert "4x4 -> 12x16" in said and "8x8 -> 4x4" in said and "3 -> 1 channels" in said
    processor = VitMaeImageProcessor.from_pretrained(run / "model")
    assert processor.size == {"height": 48, "width": 64}
    assert (processor.patch_size, processor.num_channels) == (4, 1)
    assert not processor.do_center_crop


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["does not say", "--class-names"]),
        (["--class-names", "a", "b"], ["class", "names for 2 classes", "--class-names"]),
        (["--data.source", "emoji"], ["emoji", "label map"]),
        (["--class-names", *NAMES, "--patch-size", "6"], ["image_size", "32x32", "6x6"]),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str],
    words: list[str],
    pretrained: Path,
    map_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    command = ["finetune", "smoke-segment", *FAST, "--model", str(pretrained)]
    command += ["--data.source", str(map_folder), *flags, "--output-dir", str(tmp_path / "run")]
    assert main(command) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith("step ")]  # progress
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines


def test_a_head_for_other_classes_is_replaced_on_purpose_only(
    segmented: Path, map_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["finetune", "smoke-segment", *FAST, "--model", str(segmented / "model")]
    command += ["--data.source", str(map_folder), "--class-names", *NAMES, "star"]
    command += ["--output-dir", str(tmp_path / "run")]
    assert main(command) == 1
    assert "--new-head" in capsys.readouterr().err
    assert main([*command, "--new-head"]) == 0


@pytest.mark.slow
def test_shapes_are_segmented_in_minutes(tmp_path: Path) -> None:
    flags = ["--steps", "300", "--log-every", "100"]
    assert main(["pretrain", "mae-cpu", *flags, "--output-dir", str(tmp_path / "mae")]) == 0
    command = ["finetune", "segment-cpu", "--model", str(tmp_path / "mae" / "model")]
    assert main([*command, "--output-dir", str(tmp_path / "run")]) == 0
    record = last_record(tmp_path / "run")
    assert record["eval_images"] == 200
    assert record["eval_mean_iou"] > 0.8
