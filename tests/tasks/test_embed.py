"""Features as parquet: the right rows in the right order, also after a kill, and plain refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_vitmae import VitMaeConfig, VitMaeForPreTraining, VitMaeImageProcessor, VitMaeModel
from hf_vitmae.cli import main
from hf_vitmae.tasks.embed import EmbedData, EmbedRequest, embed, run

from ..small import write_images
from .test_command_line import fails

NUM_IMAGES = 14
FAST = ["--batch-size", "2", "--images-per-part", "4", "--data.num-workers", "0"]


def make_model(folder: Path, seed: int = 0, **fields: Any) -> Path:
    """A saved model with image processor, of two narrow layers on 16x24 images (height x width)."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": (16, 24),
        "patch_size": (4, 8),
        "decoder_hidden_size": 8,
        "decoder_num_attention_heads": 2,
    }
    config = VitMaeConfig(**(sizes | fields))
    model = VitMaeModel(config) if config.is_causal else VitMaeForPreTraining(config)
    model.save_pretrained(folder)
    VitMaeImageProcessor.for_model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), NUM_IMAGES)


def read_rows(folder: Path) -> dict[str, list]:
    return pq.read_table(sorted(folder.glob("*.parquet"))).to_pydict()


def tokens_of(model: Path, image: Path) -> np.ndarray:
    """What a user computes by hand: (1 + N, D)."""
    processor = VitMaeImageProcessor.from_pretrained(model)
    with Image.open(image) as picture, torch.no_grad():
        inputs = processor(picture, return_tensors="pt")
        return VitMaeModel.from_pretrained(model)(**inputs).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("features", "select"),
    [
        ("cls", lambda tokens: tokens[0]),
        ("mean", lambda tokens: tokens[1:].mean(axis=0)),
        ("patches", lambda tokens: tokens[1:]),
    ],
)
def test_rows_are_the_features_of_the_images_in_order(
    features: str, select: Any, model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "test"  # a word that `datasets` takes for a split in names of files
    command = ["embed", str(model), str(photos), "-o", str(out), "--features", features, *FAST]
    assert main(command) == 0
    files = sorted(photos.iterdir())
    expected = np.stack([select(tokens_of(model, file)) for file in files])
    opened: Any = datasets.load_dataset("parquet", data_dir=str(out))
    rows = opened["train"].with_format("numpy")
    assert list(rows["name"]) == [str(file) for file in files]
    assert list(rows["label"]) == [None] * NUM_IMAGES
    got = rows[:]["features"]
    assert got.dtype == np.float32 and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # else any order would do


def test_lists_are_of_fixed_size_and_parts_are_written_a_batch_at_a_time(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    command = ["embed", str(model), str(photos), "--features", "patches", "-o", str(tmp_path / "a")]
    assert main([*command, "--batch-size", "3", "--images-per-part", "4"]) == 0
    parts = [pq.ParquetFile(path) for path in sorted((tmp_path / "a").glob("*.parquet"))]
    assert [part.metadata.num_rows for part in parts] == [6, 6, 2]  # 4 filled up to two batches
    assert [part.num_row_groups for part in parts] == [2, 2, 1]
    kind = parts[0].schema_arrow.field("features").type
    assert str(kind.value_type.value_type) == "float"
    assert (kind.list_size, kind.value_type.list_size) == (12, 16)


def test_labels_are_names_of_classes(
    model: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["embed", str(model), str(class_folder), "-o", str(tmp_path / "a"), *FAST]) == 0
    said = capsys.readouterr()
    assert "36 images" in said.out and str(tmp_path / "a") in said.out
    assert said.err.splitlines()[::8] == ["4 of 36 images", "36 of 36 images"]
    rows = read_rows(tmp_path / "a")
    assert rows["label"] == ["cats"] * 12 + ["dogs"] * 12 + ["owls"] * 12
    assert all(label in name for label, name in zip(rows["label"], rows["name"], strict=True))
    command = ["embed", str(model), str(class_folder), "-o", str(tmp_path / "b"), *FAST]
    assert main([*command, "--data.no-use-labels"]) == 0
    assert set(read_rows(tmp_path / "b")["label"]) == {None}


def test_workers_change_no_row(model: Path, photos: Path, tmp_path: Path) -> None:
    command = ["embed", str(model), str(photos), *FAST]
    assert main([*command, "-o", str(tmp_path / "none")]) == 0
    assert main([*command, "--data.num-workers", "2", "-o", str(tmp_path / "two")]) == 0
    assert read_rows(tmp_path / "two") == read_rows(tmp_path / "none")


def test_a_split_of_a_source_in_memory(model: Path, photos: Path, tmp_path: Path) -> None:
    pictures = [Image.open(path).copy() for path in sorted(photos.iterdir())[:3]]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.Value("string")})
    columns = {"photo": pictures, "kind": ["b", "a", "b"]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    source = datasets.DatasetDict({"train": dataset.select([0]), "test": dataset})
    request = EmbedRequest(
        model=str(model), source="mine", output=tmp_path / "a", split="test", batch_size=2
    )
    data = EmbedData(label_column="kind", num_workers=0)
    rows = read_rows(run(replace(request, data=data), source))
    assert rows["label"] == ["b", "a", "b"]
    assert len(set(rows["name"])) == 3


def test_the_model_is_left_as_it_was() -> None:
    config = VitMaeConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, hidden_dropout_prob=0.5
    )
    model = VitMaeModel(config).train()
    images = torch.randn(2, 3, 224, 224)
    first = embed(model, images, "mean")
    assert torch.equal(embed(model, images, "mean"), first)  # no dropout
    assert model.training and not first.requires_grad


# Interrupted and started again


def start(arguments: list[str]) -> subprocess.Popen:
    """The command in a process of its own, which leads its workers."""
    return subprocess.Popen(
        [sys.executable, "-m", "hf_vitmae.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if time.monotonic() > deadline or process.poll() is not None:
            pytest.fail(f"{path.name} did not come; exit code {process.poll()}")
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_half_way_and_started_again_gives_the_same_rows(
    workers: int, model: Path, photos: Path, tmp_path: Path
) -> None:
    source, whole, broken = tmp_path / "photos", tmp_path / "whole", tmp_path / "broken"
    shutil.copytree(photos, source)
    command = ["embed", str(model), str(source), *FAST, "--data.num-workers", str(workers), "-o"]
    assert main([*command, str(whole)]) == 0
    (source / "010.jpg").rename(tmp_path / "010.jpg")
    os.mkfifo(source / "010.jpg")  # whoever reads it waits: the run stands still in part 2
    process = start([*command, str(broken)])
    wait_for(broken / ".part-000002.parquet.unfinished", process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    (tmp_path / "010.jpg").replace(source / "010.jpg")
    kept = {path.name: path.stat().st_mtime_ns for path in broken.glob("*.parquet")}
    assert sorted(kept) == ["part-000000.parquet", "part-000001.parquet"]
    opened: Any = datasets.load_dataset("parquet", data_dir=str(broken))
    assert len(opened["train"]) == 8  # what is there can be used

    assert main([*command, str(broken)]) == 0
    assert all((broken / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert not list(broken.glob(".*.unfinished"))
    names = sorted(path.name for path in whole.iterdir())
    assert len(names) == 5 and sorted(path.name for path in broken.iterdir()) == names
    for name in names:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_is_complete_stays(model: Path, photos: Path, tmp_path: Path) -> None:
    command = ["embed", str(model), str(photos), "-o", str(tmp_path / "a"), *FAST]
    assert main(command) == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.parquet")}
    assert main([*command, "--data.num-workers", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_changed_request_is_refused_by_name(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, other = tmp_path / "a", make_model(tmp_path / "other", seed=1)
    source = shutil.copytree(photos, tmp_path / "photos")
    mine = shutil.copytree(model, tmp_path / "mine")
    base = ["embed", mine, source, "-o", out, *FAST]
    assert main([str(part) for part in base]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    changed = "another request"
    fails(capsys, 1, ["embed", other, *base[2:]], changed, "model was", str(mine), str(other))
    fails(capsys, 1, ["embed", mine, photos, *base[3:]], changed, "source was", str(photos))
    fails(capsys, 1, [*base, "--features", "mean"], changed, "features was cls and is now mean")
    fails(capsys, 1, [*base, "--batch-size", "4"], changed, "batch_size was 2 and is now 4")
    shutil.copyfile(other / "model.safetensors", mine / "model.safetensors")
    fails(capsys, 1, base, changed, "model_digest was")
    shutil.copyfile(model / "model.safetensors", mine / "model.safetensors")
    config = json.loads((mine / "preprocessor_config.json").read_text())
    (mine / "preprocessor_config.json").write_text(json.dumps(config | {"do_center_crop": False}))
    fails(capsys, 1, base, changed, "model_digest was")
    (mine / "preprocessor_config.json").write_text(json.dumps(config))
    (source / "zzz.jpg").write_bytes((source / "000.jpg").read_bytes())
    fails(capsys, 1, base, changed, "num_images was 14 and is now 15")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


# Bad input


def test_a_wrong_command_line_is_code_2(photos: Path, capsys: pytest.CaptureFixture) -> None:
    fails(capsys, 2, ["embed"], "MODEL")
    for flag, value, name in [
        ("--batch-size", 0, "batch_size"),
        ("--images-per-part", -1, "images_per_part"),
        ("--data.num-workers", -2, "num_workers"),
        ("--features", "max", "patches"),
    ]:
        fails(capsys, 2, ["embed", "model", photos, flag, value], name, str(value))


def test_what_cannot_be_embedded_is_one_line_and_leaves_nothing(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "a"
    (tmp_path / "empty").mkdir()
    fails(capsys, 1, ["embed", model, tmp_path / "empty", "-o", out], "empty", "no images")
    fails(capsys, 1, ["embed", model, photos, "--split", "dev", "-o", out], "dev", "train")
    fails(capsys, 1, ["embed", "no/such/model", photos, "-o", out], "no/such/model")
    causal = make_model(tmp_path / "causal", is_causal=True, mask_ratio=0.0, pooling="mean")
    fails(capsys, 1, ["embed", causal, photos, "-o", out], str(causal), "causal", "--features mean")
    damaged = shutil.copytree(model, tmp_path / "damaged")
    shutil.copyfile(drop_layers(model, tmp_path), damaged / "model.safetensors")
    fails(capsys, 1, ["embed", damaged, photos, "-o", out], str(damaged), "layers", "damaged")
    assert not out.exists()
    assert main(["embed", str(causal), str(photos), "-o", str(out), "--features", "mean"]) == 0


def drop_layers(model: Path, folder: Path) -> Path:
    """The weights of a model without its blocks, as a file in `folder`."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "kept.safetensors", metadata={"format": "pt"})
    return folder / "kept.safetensors"


def test_a_source_without_rows(model: Path, tmp_path: Path) -> None:
    empty = datasets.Dataset.from_dict(
        {"image": []}, features=datasets.Features({"image": datasets.Image()})
    )
    request = EmbedRequest(model=str(model), source="empty", output=tmp_path / "a")
    with pytest.raises(ValueError, match="holds no images; choose another split"):
        run(request, empty)
    assert not (tmp_path / "a").exists()


def test_a_folder_of_something_else_is_left_alone(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for output in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        fails(capsys, 1, ["embed", model, photos, "-o", output], str(output), "--output")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_an_unreadable_image_is_named_and_can_be_mended(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = shutil.copytree(photos, tmp_path / "photos")
    (source / "001.jpg").write_bytes(b"no image")
    command = ["embed", model, source, "-o", tmp_path / "a", "--data.num-workers", "0"]
    fails(capsys, 1, command, "001.jpg", "remove it")
    assert not list((tmp_path / "a").glob("*.parquet"))
    (source / "001.jpg").unlink()
    assert main([str(part) for part in command]) == 0  # another number of images, and no part yet
    assert len(read_rows(tmp_path / "a")["name"]) == NUM_IMAGES - 1
