"""Nearest neighbours from the command line."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from hf_vitmae.cli import main
from hf_vitmae.data import DataConfig, open_source
from hf_vitmae.tasks.encoders import NetworkEncoder, trained_encoder
from hf_vitmae.tasks.features import cached_features
from hf_vitmae.tasks.labelled import open_labelled

from .small_models import save_small_model
from .test_command_line import fails


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models") / "model")


def command(folder: Path, model: Path, source: Path, *flags: str) -> list[str]:
    command = ["knn", "--model", str(model), "--data.source", str(source)]
    command += ["--data.num-workers", "0", "--features-dir", str(folder / "features")]
    return [*command, "--output", str(folder / "knn.json"), *flags]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_held_out_images_are_classified_as_scikit_learn_does(
    metric: str, pooling, model: Path, class_folder: Path, tmp_path: Path, capsys
):
    flags = ["--k", "5", "--metric", metric, "--temperature", "none", "--pooling", pooling]
    asked = command(
        tmp_path, model, class_folder, *flags, "--data.eval-share", "0.3", "--seed", "3"
    )
    assert main(asked) == 0
    results = json.loads((tmp_path / "knn.json").read_text())
    data = DataConfig(source=str(class_folder), eval_share=0.3)
    encoder = trained_encoder(str(model), pooling)
    known, asked_for = (
        cached_features(tmp_path / "other", encoder, images)
        for images in open_labelled(data, 3)
        if images is not None
    )
    theirs = KNeighborsClassifier(5, metric=metric, algorithm="brute")
    theirs.fit(known.values.astype(np.float64), known.labels)
    expected = theirs.score(asked_for.values.astype(np.float64), asked_for.labels)
    assert results["accuracy"] == pytest.approx(expected)
    assert results["top_5_accuracy"] == 1.0  # of three classes
    assert (results["images"], results["neighbors_among"]) == (11, 25)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"accuracy {expected:.4f}, top-5 1.0000 on 11 images" in line


def test_one_split_is_classified_by_leaving_each_out(model, class_folder, tmp_path, capsys):
    assert main(command(tmp_path, model, class_folder, "--k", "1", "--temperature", "none")) == 0
    assert "each by all others" in capsys.readouterr().out
    features = cached_features(
        tmp_path / "other", trained_encoder(str(model)), open_source(class_folder)
    )
    values = features.values / np.linalg.norm(features.values, axis=1, keepdims=True)
    similarity = values @ values.T
    np.fill_diagonal(similarity, -2)
    expected = (features.labels[similarity.argmax(axis=1)] == features.labels).mean()
    results = json.loads((tmp_path / "knn.json").read_text())
    assert results["accuracy"] == pytest.approx(expected)
    assert results["accuracy"] < 1
    assert results["images"] == results["neighbors_among"] == 36


def test_the_same_images_are_embedded_once(model, class_folder, tmp_path, monkeypatch):
    assert main(command(tmp_path, model, class_folder)) == 0
    monkeypatch.setattr(NetworkEncoder, "embed", None)
    assert main(command(tmp_path, model, class_folder, "--k", "3")) == 0


def test_mistakes_are_one_line(model, class_folder, flat_folder, tmp_path, capsys):
    for code, flags, words in [
        (2, ["--k", "0"], ["`k` must be at least 1, got 0"]),
        (2, ["--temperature", "0"], ["`temperature`", "above 0, or none"]),
        (2, ["--metric", "manhattan"], ["manhattan"]),
        (2, ["--output", "knn.txt"], [".json", "knn.txt"]),
        (2, ["--data.stats", "auto"], ["data.stats is auto"]),
        (1, ["--k", "36"], ["k is 36", "35 labelled images"]),
        (1, ["--data.source", str(flat_folder)], ["no labels"]),
        (1, ["--model", str(flat_folder)], ["holds no model"]),
    ]:
        fails(capsys, code, command(tmp_path, model, class_folder, *flags), *words)
    assert not (tmp_path / "knn.json").exists()


def test_the_script_does_what_the_command_does(model, class_folder, tmp_path, monkeypatch):
    (_, *flags) = command(tmp_path, model, class_folder)
    script = Path(__file__).parents[2] / "scripts" / "knn.py"
    monkeypatch.setattr(sys, "argv", [str(script), *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert json.loads((tmp_path / "knn.json").read_text())["images"] == 36
