"""Trackers get what metrics.jsonl gets, once, also of a run that was killed; one that fails is left
out.
"""

import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image

from hf_vitmae.training.progress import Progress
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.trackers import Trackers, find_trackers

from ..event_files import events, make_older, scalars

START = {"step": 0, "effective_batch": 8, "device": "cpu", "sharded": True}
PICTURE = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))


@dataclass(frozen=True)
class Inner:
    base_lr: float = 0.5
    warmup_steps: int | None = None


@dataclass(frozen=True)
class SomeRecipe:
    optim: Inner = Inner()
    betas: tuple[float, float] = (0.9, 0.95)
    compile: bool = False
    name: str = "mine"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    PartialState()  # which Accelerate's trackers ask whether this is the main process
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back after the test
    return RunFolder.open(tmp_path / "my run", SomeRecipe())


class Service:
    """Stands for a tracker's package: it keeps what it is given."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.settings: dict[str, Any] = {}
        self.finished = 0
        self.error: Exception | None = None

    def init(self, **options: Any) -> "Service":
        self.starts.append(options)
        if self.error:
            raise self.error
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.error:
            raise self.error
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def names(self) -> list[tuple[int, str]]:
        """Step and name of every value."""
        return [(step, name) for step, values in self.lines for name in values]


@pytest.fixture(params=["trackio", "wandb"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A package of that name which does what Accelerate and we need of it."""
    kept, module = Service(), ModuleType(request.param)
    config = SimpleNamespace(update=lambda values, **_: kept.settings.update(values))
    vars(module).update(
        init=kept.init, log=kept.log, config=config, Image=lambda picture: ("picture", picture)
    )
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    vars(kept)["name"] = request.param
    yield kept


def tell(run: RunFolder, steps: range, first: int = 0, names: tuple[str, ...] = ()) -> Progress:
    """What a run tells from step `first` on, its values told apart by `first`; it is not closed."""
    progress = Progress(run, first, 10, trackers=Trackers(names))
    run.cut_metrics(first if first else -1)
    progress.begin()
    if first == 0:
        progress.record(START)
    for step in steps:
        progress.record({"step": step, "epoch": step / 4, "loss": step + first, "lr": None})
    return progress


def text(run: RunFolder, name: str) -> str:
    (event,) = events(run.path).Tensors(f"{name}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_tensorboard_gets_what_the_log_gets(run: RunFolder) -> None:
    tell(run, range(2, 11, 2), names=("tensorboard",)).close()
    logged = run.read_metrics()
    shown = scalars(run.path)
    assert shown["loss"] == [(r["step"], r["loss"]) for r in logged if "loss" in r]
    assert shown["effective_batch"] == [(0, 8)] and shown["sharded"] == [(0, 1)]
    assert text(run, "device") == "cpu"
    assert "lr" not in shown  # there was none


def test_tensorboard_gets_the_recipe_and_pictures(run: RunFolder) -> None:
    trackers = Trackers(("tensorboard",))
    trackers.start(run, 0, print)
    trackers.show({"colour": PICTURE, "gray": PICTURE.convert("L")}, step=7)
    trackers.finish()
    accumulator = events(run.path)
    (shown,) = accumulator.Images("colour")
    assert (shown.step, shown.width, shown.height) == (7, 4, 2)
    assert [event.step for event in accumulator.Images("gray")] == [7]
    settings = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for name in (b"optim.base_lr", b"optim.warmup_steps", b"betas", b"task", b"SomeRecipe"):
        assert name in settings
    assert [path.name for path in run.path.glob("tensorboard/*") if path.is_dir()] == []


@pytest.mark.parametrize("first", [0, 4])
def test_tensorboard_shows_no_value_twice_after_a_kill(run: RunFolder, first: int) -> None:
    tell(run, range(2, 9, 2), names=("tensorboard",))  # killed after step 8, closes nothing
    make_older(run.path)
    killed = threading.excepthook
    tell(run, range(first + 2, 11, 2), first, names=("tensorboard",)).close()
    loss = scalars(run.path)["loss"]
    assert [step for step, _ in loss] == [2, 4, 6, 8, 10]
    assert loss[-3:] == [(step, step + first) for step in (6, 8, 10)]
    assert threading.excepthook == killed


def test_another_line_of_a_step_does_not_repeat_its_epoch(run: RunFolder) -> None:
    progress = tell(run, range(2, 3), names=("tensorboard",))
    progress.record({"step": 2, "epoch": 0.5, "eval_loss": 1.0})
    progress.close()
    shown = scalars(run.path)
    assert shown["epoch"] == [(2, 0.5)] and shown["eval_loss"] == [(2, 1.0)]


def test_a_service_gets_the_log_the_recipe_and_pictures(run: RunFolder, service: Any) -> None:
    progress = tell(run, range(2, 5, 2), names=(service.name,))
    progress.trackers.show({"panel": PICTURE}, step=4)
    progress.close()
    values = {step: line for step, line in service.lines[:3]}
    assert values == {
        0: {"effective_batch": 8, "device": "cpu", "sharded": True},
        2: {"epoch": 0.5, "loss": 2},
        4: {"epoch": 1.0, "loss": 4},
    }
    picture = ("picture", PICTURE)
    shown = picture if service.name == "trackio" else [picture]
    assert service.lines[3:] == [(4, {"panel": shown})]
    assert service.settings == {
        "task": "SomeRecipe",
        "optim.base_lr": 0.5,
        "optim.warmup_steps": "None",
        "betas": "[0.9, 0.95]",
        "compile": False,
        "name": "mine",
    }
    assert service.finished == 1


def test_a_resumed_run_goes_on_in_the_same_run_of_a_service(
    run: RunFolder, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(run, range(2, 9, 2), names=(service.name,))  # killed after step 8
    tell(run, range(6, 7, 2), 4, names=(service.name,))  # killed again, before it came so far
    assert f"{service.name} keeps its values up to step 8" in capsys.readouterr().err
    progress = tell(run, range(6, 9, 2), 4, names=(service.name,))
    progress.record({"step": 8, "epoch": 2.0, "eval_loss": 1.0})  # which was not reached before
    progress.record({"step": 10, "loss": 10.0})
    progress.close()
    assert all(options["resume"] == "allow" for options in service.starts)
    assert {options["project"] for options in service.starts} == {"hf-vitmae"}
    key = "name" if service.name == "trackio" else "id"
    (name,) = {options[key] for options in service.starts}
    assert name.startswith("my-run-")
    steps = [step for step, _ in service.lines]
    assert steps == sorted(steps) and max(Counter(service.names()).values()) == 1
    assert [step for step, name in service.names() if name == "loss"] == [2, 4, 6, 8, 10]
    assert service.lines[-2:] == [(8, {"eval_loss": 1.0}), (10, {"loss": 10.0})]


def test_another_folder_is_another_run_of_a_service(tmp_path: Path, service: Any) -> None:
    PartialState()
    for place in ("a", "b"):
        run = RunFolder.open(tmp_path / place / "same", SomeRecipe())
        tell(run, range(2, 5, 2), names=(service.name,)).close()
    key = "name" if service.name == "trackio" else "id"
    assert len({options[key] for options in service.starts}) == 2
    assert Counter(step for step, _ in service.lines) == {0: 2, 2: 2, 4: 2}


def test_wandb_takes_the_project_from_its_variable(
    run: RunFolder, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "birds")
    tell(run, range(0), names=(service.name,)).close()
    project = {"wandb": "birds", "trackio": "hf-vitmae"}[service.name]
    assert service.starts[0]["project"] == project


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    run: RunFolder, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = tell(run, range(2, 3), names=("tensorboard", service.name))
    service.error = ConnectionError("no way\nout")
    progress.record({"step": 4, "loss": 4.0})
    service.error = None
    progress.record({"step": 6, "loss": 6.0})
    progress.close()
    errors = capsys.readouterr().err.splitlines()
    (line,) = [line for line in errors if "fails" in line]
    assert line == (
        f"The tracker {service.name} fails and is left out from here on (ConnectionError: no way "
        "out); metrics.jsonl has everything."
    )
    assert [step for step, _ in service.lines] == [0, 2] and service.finished == 0
    assert [step for step, _ in scalars(run.path)["loss"]] == [2, 4, 6]
    assert [record["step"] for record in run.read_metrics()] == [0, 2, 4, 6]


def test_a_tracker_that_cannot_start_is_left_out(
    run: RunFolder, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.error = RuntimeError("not logged in")
    tell(run, range(2, 5, 2), names=(service.name,)).close()
    assert capsys.readouterr().err.count("not logged in") == 1
    assert service.lines == []
    assert [record["step"] for record in run.read_metrics()] == [0, 2, 4]


def test_a_folder_of_tensorboard_that_is_gone_costs_one_line(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = tell(run, range(2, 3), names=("tensorboard",))
    shutil.rmtree(run.path / "tensorboard")
    for step in (4, 6):
        progress.record({"step": step, "loss": 1.0})
    progress.close()
    errors = capsys.readouterr().err
    assert errors.count("fails") == 1 and "Traceback" not in errors
    assert [record["step"] for record in run.read_metrics()] == [0, 2, 4, 6]


def test_another_thread_still_tells_of_its_error(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    progress = tell(run, range(0), names=("tensorboard",))
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    progress.close()
    assert [arguments.exc_type for arguments in heard] == [ZeroDivisionError]


def test_only_the_main_process_starts_trackers(run: RunFolder, service: Any) -> None:
    progress = Progress(run, 0, 10, silent=True, trackers=Trackers((service.name,)))
    progress.begin()
    progress.record({"step": 2, "loss": 1.0})
    progress.close()
    assert service.starts == [] and not run.metrics.exists()


def test_no_trackers_leave_nothing(run: RunFolder) -> None:
    tell(run, range(2, 5, 2)).close()
    assert sorted(path.name for path in run.path.iterdir()) == ["metrics.jsonl", "recipe.yaml"]


def test_pictures_of_evaluations_lie_in_the_run_also_without_trackers(run: RunFolder) -> None:
    progress = tell(run, range(2, 5, 2))
    progress.show_pictures({"panel": PICTURE}, 4)
    progress.show_pictures({"panel": PICTURE}, 12)
    progress.close()
    names = sorted(path.name for path in run.samples.joinpath("steps").iterdir())
    assert names == ["panel-00000004.png", "panel-00000012.png"]
    Progress(run, 0, 10, silent=True).show_pictures({"other": PICTURE}, 4)
    assert len(list(run.samples.rglob("*.png"))) == 2


def test_a_picture_that_cannot_be_written_does_not_end_the_run(
    run: RunFolder, capsys: pytest.CaptureFixture
) -> None:
    run.samples.write_text("in its place")
    Progress(run, 0, 10).show_pictures({"panel": PICTURE}, 4)
    assert "pictures of step 4 could not be written" in capsys.readouterr().err


def test_a_name_stands_for_the_trackers_that_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_trackers(("auto",)) == find_trackers(("tensorboard",) * 2) == ("tensorboard",)
    assert find_trackers(("none",)) == ()
    for package in [name for name in sys.modules if name.startswith("tensorboard")]:
        monkeypatch.delitem(sys.modules, package)
    for folder in ("wandb", "tensorboard"):  # as their runs are called, where there is no package
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_trackers(("auto",)) == ()
    for name in ("tensorboard", "wandb", "trackio"):
        with pytest.raises(ImportError, match=rf"`tracker` {name} .*'hf-vitmae\[track\]'"):
            find_trackers((name,))
