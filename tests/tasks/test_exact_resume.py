"""The grid of exact resume: every task, source, number of workers and place to stop at.

A run that was stopped and started again has every tensor of the uninterrupted one, bit for bit:
weights, averages and optimiser state, and the lines of its log.
"""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.recipes import finetune as finetune_recipes
from hf_vitmae.recipes import mae as mae_recipes
from hf_vitmae.tasks import finetune, pretrain

from ..small import write_images
from .runs import Stopped, last_tensors, log_without_clock, stop_at

PER_CLASS = 16
BATCHES_PER_EPOCH = 8  # of 4 images; two of them make a step
STOPS = {
    "inside an epoch": [BATCHES_PER_EPOCH + 2],
    "at an epoch's end": [BATCHES_PER_EPOCH],
    "inside accumulation": [BATCHES_PER_EPOCH + 3],
    "twice in one epoch": [BATCHES_PER_EPOCH + 3, BATCHES_PER_EPOCH + 6],
}
TASKS = ("pretrain", "finetune", "lora")
SOURCES = ("folder", "stream")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same two classes as a folder and as parquet files of uneven lengths."""
    root = tmp_path_factory.mktemp("sources")
    rows = []
    for label, name in enumerate(("cats", "dogs")):
        for path in sorted(write_images(root / "folder" / name, PER_CLASS, seed=label).iterdir()):
            rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "label": label})
    (root / "stream").mkdir()
    for start, end in ((0, 5), (5, 18), (18, 32)):
        table = pa.Table.from_pylist(rows[start:end])
        pq.write_table(table, root / "stream" / f"train-{start:02d}.parquet", row_group_size=4)
    return {name: root / name for name in SOURCES}


@pytest.fixture(scope="module")
def start(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model whose configuration asks for dropout."""
    folder = shutil.copytree(pretrained, tmp_path_factory.mktemp("start") / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def whole(sources: dict[str, Path], start: Path, tmp_path_factory: pytest.TempPathFactory):
    """(task, source) -> the folder of an uninterrupted run without workers."""
    root = tmp_path_factory.mktemp("whole")

    @cache
    def folder(task: str, source: str) -> Path:
        train(task, root / f"{task}-{source}", sources[source], start, workers=0)
        return root / f"{task}-{source}"

    return folder


def train(task: str, run: Path, source: Path, model: Path, workers: int) -> None:
    data = DataConfig(
        source=str(source),
        streaming=source.name == "stream",
        num_workers=workers,
        stream_readers=2,
        shuffle_block=8,
    )
    augment = AugmentConfig(rand_augment=5, erasing=0.5)
    shared: dict[str, Any] = dict(
        data=data,
        output_dir=run,
        batch_size=4,
        accumulation=2,
        steps=10,
        log_every=1,
        checkpoint_every=1,
        ema_decay=0.9,
    )
    if task == "pretrain":
        recipe = mae_recipes.smoke()
        model_config = replace(recipe.model, drop_path_rate=0.2)
        pretrain.run(replace(recipe, model=model_config, augment=augment, **shared))
        return
    mixed = replace(augment, mixup=0.8, cutmix=1.0)
    lora = dict(lora_rank=4, lora_dropout=0.1) if task == "lora" else {}
    tuning = replace(finetune_recipes.smoke(), model=str(model), augment=mixed, **shared, **lora)
    finetune.run(replace(tuning, drop_path_rate=0.2, label_smoothing=0.1))


def is_in_every_run(task: str, source: str, workers: int, stop: str) -> bool:
    """Whether a cell of the grid belongs to the fast tests."""
    cells = {
        ("pretrain", "folder", 0, "inside accumulation"),
        ("finetune", "stream", 0, "twice in one epoch"),
        ("lora", "folder", 0, "at an epoch's end"),
    }
    return (task, source, workers, stop) in cells


GRID = [
    pytest.param(
        task,
        source,
        workers,
        stop,
        marks=() if is_in_every_run(task, source, workers, stop) else pytest.mark.slow,
    )
    for task in TASKS
    for source in SOURCES
    for workers in (0, 2)
    for stop in STOPS
]


@pytest.mark.parametrize(("task", "source", "workers", "stop"), GRID)
def test_a_resumed_run_is_the_uninterrupted_one(
    task: str,
    source: str,
    workers: int,
    stop: str,
    sources: dict[str, Path],
    start: Path,
    whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    expected = whole(task, source)
    run = tmp_path / "run"
    for number in STOPS[stop]:
        stop_at(monkeypatch, number)
        with pytest.raises(Stopped):
            train(task, run, sources[source], start, workers)
    stop_at(monkeypatch, None)
    train(task, run, sources[source], start, workers)

    tensors = last_tensors(run)
    assert {name.split("/")[1] for name in tensors} == {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
    }
    assert tensors == last_tensors(expected)
    assert log_without_clock(run) == log_without_clock(expected)


@pytest.mark.parametrize("source", SOURCES)
def test_the_grid_would_notice_another_order_or_another_draw(
    source: str, sources: dict[str, Path], start: Path, whole, tmp_path: Path, monkeypatch
):
    """One image less at the stop, and nothing is equal."""
    expected = whole("finetune", source)
    from hf_vitmae.data.loader import train_batches
    from hf_vitmae.tasks import fit

    def later(*arguments, **options):
        options["start_step"] += options["start_step"] > 0
        return train_batches(*arguments, **options)

    stop_at(monkeypatch, 6)
    with pytest.raises(Stopped):
        train("finetune", tmp_path / "run", sources[source], start, 0)
    monkeypatch.setattr(fit, "train_batches", later)
    train("finetune", tmp_path / "run", sources[source], start, 0)
    assert last_tensors(tmp_path / "run") != last_tensors(expected)
