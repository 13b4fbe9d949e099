"""Figures of a model against those worked out by hand from the model and image processor alone."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from hf_vitmae import (
    VitMaeConfig,
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeImageProcessor,
)
from hf_vitmae.cli import main
from hf_vitmae.data.shapes import SHAPE_SPLITS, draw_shapes
from hf_vitmae.tasks import evaluate_files
from hf_vitmae.tasks.evaluate import EvaluateData, EvaluateRequest, run
from hf_vitmae.tasks.evaluate_report import classification_lines
from hf_vitmae.training.calibration import calibration_error
from hf_vitmae.training.metrics import confusion_matrix, iou_from_confusion

from ..small import write_images
from .test_command_line import fails

# The model's order is not that of the folders, and bees are no folder at all.
CLASSES = ["owls", "bees", "cats", "dogs"]
TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": (16, 24),
    "patch_size": (4, 8),
    "segmentation_hidden_size": 8,
}


def make_model(folder: Path, kind: Any, classes: list[str], **fields: Any) -> Path:
    """A saved model of random weights, whose answers differ from image to image."""
    torch.manual_seed(0)
    names = {
        "id2label": dict(enumerate(classes)),
        "label2id": {n: i for i, n in enumerate(classes)},
    }
    config = VitMaeConfig(**(TINY | names | fields))
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    VitMaeImageProcessor.for_model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    return make_model(folder, VitMaeForImageClassification, CLASSES)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "mae", VitMaeForPreTraining, ["a", "b"])


def command(model: Path, source: Path, *flags: object) -> list[str]:
    words = ["evaluate", "--model", model, "--data.source", source, "--data.split", "train"]
    return [str(word) for word in [*words, "--data.num-workers", 0, *flags]]


def evaluated(model: Path, source: Path, out: Path, *flags: object) -> dict[str, Any]:
    """What evaluation.json holds, read so that NaN would be an error."""
    assert main(command(model, source, "--output-dir", out, *flags)) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((out / "evaluation.json").read_text(), parse_constant=refuse)


def by_hand(model: Path, source: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Files of the class folders, logits (n, classes) and the model's numbers of their classes."""
    processor = VitMaeImageProcessor.from_pretrained(model)
    classifier = VitMaeForImageClassification.from_pretrained(model)
    files = sorted(source.glob("*/*.PNG"))
    logits = []
    for file in files:
        with Image.open(file) as picture, torch.no_grad():
            logits.append(classifier(**processor(picture, return_tensors="pt")).logits[0])
    labels = [CLASSES.index(file.parent.name) for file in files]
    return [str(file) for file in files], torch.stack(logits).numpy(), np.array(labels)


def test_a_classifiers_figures_are_those_of_scikit_learn(
    classifier: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found = evaluated(classifier, class_folder, tmp_path / "out")
    _, logits, labels = by_hand(classifier, class_folder)
    predicted = logits.argmax(axis=1)
    probabilities = torch.tensor(logits).double().softmax(dim=1).numpy()
    assert 0 < (predicted == labels).mean() < 1 and len(set(predicted)) > 1
    accuracy = sklearn.metrics.accuracy_score(labels, predicted)
    assert found["num_images"] == 36 and found["accuracy"] == pytest.approx(accuracy)
    error = np.sqrt(accuracy * (1 - accuracy) / 36)
    assert found["accuracy_standard_error"] == pytest.approx(error)
    assert found["accuracy_interval"][0] < accuracy < found["accuracy_interval"][1]
    assert found["top_5_accuracy"] == 1.0
    loss = sklearn.metrics.log_loss(labels, probabilities, labels=range(4))
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["calibration_error"] == pytest.approx(calibration_error(logits, labels), abs=1e-4)
    assert sum(one["images"] for one in found["calibration_bins"]) == 36
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(4))
    assert found["confusion_matrix"] == matrix.tolist()
    theirs: Any = sklearn.metrics.precision_recall_fscore_support(
        labels,
        predicted,
        labels=range(4),
        zero_division=np.nan,  # type: ignore[arg-type]
    )
    precision, recall, f1, support = theirs
    rows = found["per_class"]
    assert [row["class"] for row in rows] == CLASSES
    assert [row["support"] for row in rows] == list(support) == [12, 0, 12, 12]
    for name, expected in {"precision": precision, "recall": recall, "f1": f1}.items():
        values = [np.nan if row[name] is None else row[name] for row in rows]
        assert values == pytest.approx(list(expected), nan_ok=True), name
    assert found["balanced_accuracy"] == pytest.approx(np.nanmean(recall))
    assert found["macro_f1"] == pytest.approx(np.nanmean(f1))
    said = capsys.readouterr().out
    assert f"{accuracy:.2%}" in said and "standard error" in said and "top-5" not in said
    assert all(f"  {name} " in said for name in CLASSES)


def test_every_image_has_a_row_in_the_predictions_and_mistakes_have_a_picture(
    classifier: Path, class_folder: Path, tmp_path: Path
) -> None:
    found = evaluated(classifier, class_folder, tmp_path / "out", "--batch-size", 7)
    files, logits, labels = by_hand(classifier, class_folder)
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    assert list(rows) == ["name", "label", "predicted", "probability"]
    assert rows["name"] == files
    assert rows["label"] == [CLASSES[label] for label in labels]
    assert rows["predicted"] == [CLASSES[label] for label in logits.argmax(axis=1)]
    probabilities = torch.tensor(logits).softmax(dim=1).max(dim=1).values
    assert rows["probability"] == pytest.approx(probabilities.tolist(), abs=1e-4)
    worst = found["most_confused"][0]
    pairs = list(zip(rows["label"], rows["predicted"], strict=True))
    assert worst["count"] == pairs.count((worst["true"], worst["predicted"])) > 0
    assert worst["count"] == max(pairs.count(pair) for pair in pairs if pair[0] != pair[1])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["confusion.png", "evaluation.json", "predictions.parquet", "wrong.png"]
    for name in ("confusion.png", "wrong.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 200


def test_the_most_confidently_wrong_images_come_first(
    classifier: Path, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    draw = evaluate_files.mistake_sheet
    monkeypatch.setattr(
        evaluate_files, "mistake_sheet", lambda *sheet: drawn.extend(sheet) or draw(*sheet)
    )
    evaluated(classifier, class_folder, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    wrong.sort(key=lambda row: -row["probability"])
    assert len(drawn[0]) == len(drawn[1]) == min(24, len(wrong))
    processor = VitMaeImageProcessor.from_pretrained(classifier)
    for row, picture, caption in zip(wrong, *drawn, strict=False):
        words = [f"is {row['label']}", f"taken for {row['predicted']}"]
        assert caption == [*words, f"with {row['probability']:.1%}", Path(row["name"]).name]
        with Image.open(row["name"]) as image:
            shown = processor.to_pil(processor(image, return_tensors="pt")["pixel_values"])[0]
        assert np.abs(np.asarray(shown, int) - np.asarray(picture, int)).max() <= 1


def test_workers_change_no_figure_and_batches_none_that_matters(
    classifier: Path, class_folder: Path, tmp_path: Path
) -> None:
    first = evaluated(classifier, class_folder, tmp_path / "a", "--batch-size", 7)
    workers = ["--batch-size", 7, "--data.num-workers", 2]
    evaluated(classifier, class_folder, tmp_path / "b", *workers)
    for name in ("evaluation.json", "predictions.parquet", "confusion.png", "wrong.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    other = evaluated(classifier, class_folder, tmp_path / "c")
    assert other["confusion_matrix"] == first["confusion_matrix"]
    assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_nothing_is_written_unless_asked_for(
    classifier: Path,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command(classifier, class_folder)) == 0
    assert not list(tmp_path.iterdir())


def test_bad_images_are_not_counted_but_listed(
    classifier: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, out = shutil.copytree(class_folder, tmp_path / "photos"), tmp_path / "out"
    whole = evaluated(classifier, source, out)
    for name in ("cats/003.PNG", "owls/011.PNG"):
        (source / name).write_bytes(b"no image")
    fails(capsys, 1, command(classifier, source, "--output-dir", out), "2 of the 36", "max-bad")
    found = evaluated(classifier, source, out, "--data.max-bad", 0.1)
    assert (found["num_images"], found["num_bad_images"], whole["num_bad_images"]) == (34, 2, 0)
    names = [name for name in pq.read_table(out / "predictions.parquet")["name"].to_pylist()]
    assert len(names) == 34 and not any("003" in name and "cats" in name for name in names)
    listed = [json.loads(line) for line in (out / "bad_images.jsonl").read_text().splitlines()]
    assert [Path(line["name"]).name for line in listed] == ["003.PNG", "011.PNG"]
    assert "2 bad images are not counted" in capsys.readouterr().out
    shutil.rmtree(source)
    shutil.copytree(class_folder, source)
    assert evaluated(classifier, source, out) == whole
    assert not (out / "bad_images.jsonl").exists()


def test_where_all_is_right_no_picture_of_mistakes_is_left(
    classifier: Path, class_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluated(classifier, class_folder, out)
    assert (out / "wrong.png").exists()
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    for row in rows:
        if row["label"] == row["predicted"]:
            (tmp_path / "right" / row["label"]).mkdir(parents=True, exist_ok=True)
            shutil.copy(row["name"], tmp_path / "right" / row["label"])
    found = evaluated(classifier, tmp_path / "right", out)
    assert found["accuracy"] == 1.0 and found["most_confused"] == []
    assert found["accuracy_interval"][0] < 1.0
    assert not (out / "wrong.png").exists()


# Classes


def test_classes_that_the_model_lacks_are_one_line(
    classifier: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = shutil.copytree(class_folder, tmp_path / "photos")
    (source / "owls").rename(source / "zebras")
    words = ("1 classes", "zebras", "owls, bees, cats, dogs", "--match order", str(classifier))
    fails(capsys, 1, command(classifier, source, "--output-dir", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()
    found = evaluated(classifier, source, tmp_path / "out", "--match", "order")
    assert [row["support"] for row in found["per_class"]] == [12, 12, 12, 0]
    for name in ("bees", "ants"):
        write_images(source / name, 1)
    fails(capsys, 1, command(classifier, source, "--match", "order"), "5 classes", "has 4")


def test_names_that_the_model_has_twice_match_only_where_all_names_do(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["cats", "cats", "dogs", "owls"]
    twice = make_model(tmp_path / "twice", VitMaeForImageClassification, names)
    fails(capsys, 1, command(twice, class_folder), "not once", "cats", "--match order")


def test_what_cannot_be_evaluated_is_one_line_and_leaves_nothing(
    classifier: Path,
    pretraining: Path,
    class_folder: Path,
    flat_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = ["--output-dir", tmp_path / "out"]
    fails(capsys, 1, command(pretraining, class_folder, *out), "no head", "fine-tune", "knn")
    fails(capsys, 1, command(classifier, flat_folder, *out), "no labels")
    fails(capsys, 1, command(classifier, class_folder, *out, "--data.split", "dev"), "dev", "train")
    fails(capsys, 1, command(tmp_path / "none", class_folder, *out), "none")
    multi = make_model(
        tmp_path / "multi",
        VitMaeForImageClassification,
        CLASSES,
        problem_type="multi_label_classification",
    )
    fails(capsys, 1, command(multi, class_folder, *out), "multi_label_classification", "one class")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("mine")
    fails(capsys, 1, command(classifier, class_folder, *out), "is a file", "--output-dir")
    assert (tmp_path / "out").read_text() == "mine"


def test_damaged_weights_are_one_line(
    classifier: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    damaged = shutil.copytree(classifier, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    broken = weights | {"classifier.bias": torch.full_like(weights["classifier.bias"], torch.nan)}
    save_file(broken, damaged / "model.safetensors", metadata={"format": "pt"})
    fails(capsys, 1, command(damaged, class_folder), "not finite", "36 images", "000.PNG")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, damaged / "model.safetensors", metadata={"format": "pt"})
    fails(capsys, 1, command(damaged, class_folder), "classifier", "damaged")


def test_a_wrong_command_line_is_code_2(capsys: pytest.CaptureFixture) -> None:
    fails(capsys, 2, ["evaluate"], "--model")
    for flag, value, name in [
        ("--batch-size", 0, "batch_size"),
        ("--data.num-workers", -1, "num_workers"),
        ("--data.max-bad", 2, "max_bad"),
        ("--match", "size", "order"),
    ]:
        fails(capsys, 2, ["evaluate", "--model", "a", flag, value], name, str(value))


def test_the_script_does_what_the_verb_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script = Path(__file__).parents[2] / "scripts" / "evaluate.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--no-such-flag"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(script), run_name="__main__")
    assert exit_info.value.code == 2
    assert "hf-vitmae evaluate:" in capsys.readouterr().err


def test_a_classifier_of_transformers_is_evaluated_too(class_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    names = dict(enumerate(["dogs", "owls", "cats"]))
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label=names,
        label2id={name: number for number, name in names.items()},
        initializer_range=0.5,
    )
    theirs = ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "vit")
    request = EvaluateRequest(
        model=str(tmp_path / "vit"),
        data=EvaluateData(source=str(class_folder), split="train", num_workers=0),
        output_dir=tmp_path / "out",
    )
    found = run(request)
    processor = VitMaeImageProcessor(size={"height": 16, "width": 16}, patch_size=8)
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    for row in rows[::5]:
        with Image.open(row["name"]) as picture, torch.no_grad():
            logits = theirs(processor(picture, return_tensors="pt")["pixel_values"]).logits[0]
        assert row["predicted"] == names[int(logits.argmax())]
        assert row["probability"] == pytest.approx(logits.softmax(dim=0).max().item(), abs=1e-4)
    assert len({row["predicted"] for row in rows}) > 1 and found["num_images"] == 36


def test_of_many_classes_the_worst_are_listed() -> None:
    rows = [
        {"class": f"class {i}", "precision": 0.5, "recall": 0.5, "f1": i / 100, "support": i}
        for i in range(80)
    ]
    rows[3] |= {"f1": float("nan")}
    numbers = "accuracy", "accuracy_standard_error", "top_5_accuracy", "balanced_accuracy"
    results: dict[str, Any] = dict.fromkeys(
        (*numbers, "macro_f1", "loss", "calibration_error"), 0.5
    )
    results |= {"model": "m", "source": "s", "num_images": 1, "accuracy_interval": (0, 1)}
    results |= {"temperature": None, "per_class": rows, "most_confused": []}
    lines = list(classification_lines(results))
    assert any("50 worst of 80" in line for line in lines) and any("top-5" in x for x in lines)
    listed = [line.split()[1] for line in lines if line.startswith("  class ") and "F1" not in line]
    assert listed == [str(i) for i in range(51) if i != 3]


# Segmentation

SHAPES = ["triangle", "square", "circle", "background"]  # the data's, the other way round


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "segmenter"
    return make_model(folder, VitMaeForSemanticSegmentation, SHAPES)


def pixels_by_hand(model: Path, pictures: list[tuple[Any, Any]]) -> torch.Tensor:
    """The confusion matrix of pictures and their maps, of the model's numbers."""
    processor = VitMaeImageProcessor.from_pretrained(model)
    network = VitMaeForSemanticSegmentation.from_pretrained(model)
    matrix = torch.zeros(4, 4, dtype=torch.int64)
    for picture, label_map in pictures:
        inputs = processor(picture, segmentation_maps=label_map, return_tensors="pt")
        with torch.no_grad():
            predicted = network(inputs["pixel_values"]).logits.argmax(dim=1)
        matrix += confusion_matrix(predicted, inputs["labels"], 4)
    return matrix


def test_classes_of_pixels_are_matched_by_name(
    segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPE_SPLITS, "test", range(1000, 1020))  # enough of them
    out = tmp_path / "out"
    flags = ["--model", segmenter, "--data.source", "shapes", "--output-dir", out]
    assert main([str(word) for word in ["evaluate", *flags, "--data.num-workers", 0]]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    pictures = [draw_shapes(number) for number in range(1000, 1020)]
    reversed_maps = [(p, Image.fromarray(3 - np.asarray(m))) for p, m in pictures]
    matrix = pixels_by_hand(segmenter, reversed_maps)
    scores = iou_from_confusion(matrix)
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["mean_iou"] == pytest.approx(scores["mean_iou"])
    assert found["pixel_accuracy"] == pytest.approx(scores["pixel_accuracy"])
    assert [row["class"] for row in found["per_class"]] == SHAPES
    assert [row["iou"] for row in found["per_class"]] == pytest.approx(scores["per_class_iou"])
    assert found["num_images"] == 20 and found["num_pixels"] == 20 * 16 * 24
    rows = pq.read_table(out / "predictions.parquet").to_pydict()
    assert np.mean(rows["pixel_accuracy"]) == pytest.approx(scores["pixel_accuracy"])
    for name in ("worst.png", "confusion.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300


def test_maps_without_names_hold_the_models_numbers_and_255_does_not_count(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pairs = []
    for number in range(6):
        picture, label_map = draw_shapes(number, seed=3)
        ids = np.asarray(label_map).copy()
        ids[:20] = 255
        pairs.append((picture, Image.fromarray(ids)))
        for folder, one in zip(("images", "annotations"), pairs[-1], strict=True):
            (tmp_path / "maps" / folder).mkdir(parents=True, exist_ok=True)
            one.save(tmp_path / "maps" / folder / f"{number}.png")
    found = evaluated(segmenter, tmp_path / "maps", tmp_path / "out")
    matrix = pixels_by_hand(segmenter, pairs)
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["num_pixels"] == matrix.sum() < 6 * 16 * 24
    said = capsys.readouterr().out
    assert "does not name the classes" in said and "mean IoU" in said
    Image.new("L", (64, 64), 9).save(tmp_path / "maps" / "annotations" / "0.png")
    fails(capsys, 1, command(segmenter, tmp_path / "maps"), "class 9", "4 classes")
