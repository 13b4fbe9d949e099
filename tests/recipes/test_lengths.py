"""What a recipe says of the length of a run and of a step is used, or refused in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_vitmae.cli import main
from hf_vitmae.data.config import DataConfig
from hf_vitmae.recipes import PRETRAIN
from hf_vitmae.tasks import pretrain
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.run_folder import RunFolder

from ..small import write_images

IMAGES = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"), IMAGES)


@pytest.fixture(scope="module")
def parquet(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a stream."""
    rows = [{"image": {"bytes": path.read_bytes(), "path": None}} for path in pictures.iterdir()]
    file = tmp_path_factory.mktemp("parquet") / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def recipe(**options: Any) -> TaskRecipe:
    return TaskRecipe(**({"epochs": 1.0, "batch_size": 8} | options))


@pytest.mark.parametrize(
    "options, processes, line",
    [
        ({"accumulation": 3}, 1, "`accumulation` 3 takes 24 images a step .* only 20 .* give 2"),
        ({"accumulation": 2}, 2, "`accumulation` 2 takes 32 images a step .* only 20 .* give 1"),
        ({"accumulation": 2}, 8, "`accumulation` 2 takes 128 images a step .* give 1"),
        ({"effective_batch": 24}, 1, "`effective_batch` 24 takes 24 images .* only 20 .* give 16"),
        ({"effective_batch": 4096}, 8, "`effective_batch` 4096 takes 4096 images .* give 64"),
        (
            {"accumulation": 6, "data": DataConfig(repeats=2)},
            1,
            "`accumulation` 6 takes 24 images a step .* only 20 .* give 5",
        ),
        (
            {"effective_batch": 48, "data": DataConfig(repeats=2)},
            1,
            "`effective_batch` 48 takes 24 images a step .* only 20 .* give 40",
        ),
    ],
)
def test_accumulation_over_more_images_than_there_are_is_refused(
    options: dict[str, Any], processes: int, line: str
) -> None:
    with pytest.raises(ValueError, match=line) as raised:
        recipe(**options).loop_config(IMAGES, processes)
    assert "\n" not in str(raised.value)
    field = next(name for name in ("accumulation", "effective_batch") if name in options)
    mend = int(str(raised.value).split("give ")[1].rstrip("."))
    recipe(**(options | {field: mend})).loop_config(IMAGES, processes)


@pytest.mark.parametrize(
    "options, steps",
    [
        ({"accumulation": 2}, 2),  # 16 and 4 more, with 12 of the next epoch
        ({"batch_size": 64}, 1),  # few labels: each image three times, with crops of its own
        ({"accumulation": 4, "data": DataConfig(repeats=2)}, 1),  # 16 images, twice each
        ({"accumulation": 2, "epochs": 40.0}, 50),
    ],
)
def test_a_step_that_an_epoch_fills_is_taken(options: dict[str, Any], steps: int) -> None:
    assert recipe(**options).loop_config(IMAGES, 1).steps == steps


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_command_says_what_to_accumulate(
    is_stream: bool, request: pytest.FixtureRequest, tmp_path: Path, capsys
) -> None:
    source = request.getfixturevalue("parquet" if is_stream else "pictures")
    flags = ["--data.streaming", "--data.stream-readers", "1"] if is_stream else []
    flags += ["--data.source", str(source), "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "smoke", "--accumulation", "3", *flags]) == 1
    assert capsys.readouterr().err == (
        "hf-vitmae pretrain: `accumulation` 3 takes 24 images a step and there are only 20 to "
        "train on; give 2.\n"
    )
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_steps_and_epochs_do_not_contradict_each_other_in_silence(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataConfig(source=str(pictures), num_workers=0)
    both = replace(
        PRETRAIN["smoke"](), data=data, steps=3, epochs=1.5, output_dir=tmp_path / "both"
    )
    pretrain.run(both)
    said = capsys.readouterr()
    assert "`steps` 3 takes the place of `epochs` 1.5, which are 4 steps." in said.out
    assert RunFolder(tmp_path / "both").read_metrics()[-1]["step"] == 3
    for one in ({"epochs": None}, {"steps": None}):
        pretrain.run(replace(both, **one, output_dir=tmp_path / str(*one)))
        assert "takes the place" not in capsys.readouterr().out
    assert RunFolder(tmp_path / "steps").read_metrics()[-1]["step"] == 4


def test_a_command_does_not_take_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "smoke", "--steps", "3", "--epochs=1"]) == 2
    assert "either --steps or --epochs" in capsys.readouterr().err
