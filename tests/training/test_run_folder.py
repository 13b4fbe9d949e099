"""A run folder knows its recipe, refuses another by field, and keeps each logged step once."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hf_vitmae.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Optim:
    base_lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    optim: Optim = Optim()
    source: Path = Path("photos")
    label_column: str | None = None
    steps: int = 10
    log_every: int = 5
    extra: object = None


@dataclass(frozen=True, kw_only=True)
class OtherRecipe(Recipe):
    pass


def test_the_recipe_is_plain_yaml(tmp_path: Path):
    run = RunFolder.open(tmp_path / "deep" / "run", Recipe())
    assert yaml.safe_load((run.path / "recipe.yaml").read_text()) == {
        "task": "Recipe",
        "optim": {"base_lr": 1e-5, "betas": [0.9, 0.95]},
        "source": "photos",
        "label_column": None,
        "steps": 10,
        "log_every": 5,
        "extra": None,
    }


def test_the_same_recipe_opens_again(tmp_path: Path):
    run = RunFolder.open(tmp_path / "run", Recipe())
    run.append_metrics({"step": 1})
    assert RunFolder.open(str(tmp_path / "run"), Recipe()) == run
    assert run.read_metrics() == [{"step": 1}]


def test_a_changed_recipe_is_refused_field_by_field(tmp_path: Path):
    RunFolder.open(tmp_path / "run", Recipe())
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    changed = Recipe(optim=Optim(base_lr=0.2), label_column="label")
    with pytest.raises(ValueError) as error:
        RunFolder.open(tmp_path / "run", changed)
    message = str(error.value)
    assert "optim.base_lr was 1e-05 and is now 0.2" in message
    assert "label_column was None and is now label" in message
    assert "steps" not in message
    assert "--output-dir" in message
    assert "\n" not in message
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before


def test_a_dict_of_options_is_compared_key_by_key(tmp_path: Path):
    RunFolder.open(tmp_path, Recipe(extra={"a": 1, "b": 2}))
    with pytest.raises(
        ValueError, match=r"recipe: extra.c was not set and is now 3, extra.b was 2"
    ):
        RunFolder.open(tmp_path, Recipe(extra={"a": 1, "c": 3}))


def test_a_field_that_does_not_alter_the_result_may_change(tmp_path: Path):
    run = RunFolder.open(tmp_path, Recipe())
    RunFolder.open(tmp_path, Recipe(log_every=7))
    assert run.read_recipe()["log_every"] == 7
    with pytest.raises(ValueError, match="log_every was 7 and is now 8"):
        RunFolder.open(tmp_path, Recipe(log_every=8), free_fields=())


def test_the_folder_of_another_task_is_refused(tmp_path: Path):
    RunFolder.open(tmp_path, Recipe())
    with pytest.raises(ValueError, match="folder of a Recipe and this is a OtherRecipe"):
        RunFolder.open(tmp_path, OtherRecipe())


@pytest.mark.parametrize("content", [None, "", "[1]", "a: [", "a: 1"])
def test_what_is_no_run_folder_is_refused_and_left_alone(tmp_path: Path, content: str | None):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    if content is not None:
        (tmp_path / "recipe.yaml").write_text(content)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="not the folder of a run"):
        RunFolder.open(tmp_path, Recipe())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not the folder of a run"):
        RunFolder.open(tmp_path / "file", Recipe())


def test_an_empty_folder_or_an_interrupted_start_is_taken(tmp_path: Path):
    (tmp_path / ".recipe.yaml.unfinished").write_text("tas")
    run = RunFolder.open(tmp_path, Recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    assert run.read_recipe()["task"] == "Recipe"


def test_a_value_that_yaml_cannot_hold_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="recipe.extra is a function"):
        RunFolder.open(tmp_path / "run", Recipe(extra=lambda: None))
    assert not (tmp_path / "run").exists()


def test_metrics_are_json_even_when_a_number_is_not(tmp_path: Path):
    run = RunFolder.open(tmp_path, Recipe())
    run.append_metrics({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    run.append_metrics({"step": 2, "loss": -math.inf})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": "nan", "grad_norm": "inf", "lr": 0.1},
        {"step": 2, "loss": "-inf"},
    ]
    run.cut_metrics(1)
    (record,) = run.read_metrics()
    assert math.isnan(record.pop("loss"))
    assert record == {"step": 1, "grad_norm": math.inf, "lr": 0.1}


def test_a_resumed_log_is_cut_to_the_resumed_step(tmp_path: Path):
    run = RunFolder.open(tmp_path, Recipe())
    for step in (0, 2, 4, 4, 6):
        run.append_metrics({"step": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    run.cut_metrics(4)
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2, 4, 4]
    run.append_metrics({"step": 6})
    assert [record["step"] for record in run.read_metrics()] == [0, 2, 4, 4, 6]
    run.cut_metrics(-1)
    assert run.metrics.read_text() == ""
