"""The benchmark of models measures what it says; how fast they are no test can say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitmae.benchmarks import measure as measuring
from hf_vitmae.benchmarks.clock import Clock
from hf_vitmae.benchmarks.measure import (
    Measured,
    count_flops,
    matmul_limit,
    measure,
    product_shapes,
    saved_bytes,
)
from hf_vitmae.benchmarks.models import ModelBenchmark, largest_batch, run
from hf_vitmae.benchmarks.report import Case, Report
from hf_vitmae.benchmarks.sides import Side, make_config, make_inputs, make_sides
from hf_vitmae.cli import main

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


class OneLayer(nn.Module):
    """A linear layer and a GELU, whose costs are known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 16)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return nn.functional.gelu(self.layer(pixel_values)).sum()


def one_layer(factor: float = 1.0) -> tuple[Side, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = OneLayer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = {"pixel_values": torch.randn(5, 8)}
    return Side("ours", model, lambda given: factor * model(**given), optimizer), inputs


def test_flops_products_and_saved_bytes_of_one_layer_by_hand() -> None:
    side, inputs = one_layer()
    precision = measuring._precision("fp32", CPU, is_training=True)
    # Forward, and the weight's gradient: the input asks for none.
    assert count_flops(side, inputs, precision) == 2 * (2 * 5 * 8 * 16)
    assert product_shapes(side, inputs) == [((5, 8, 16), 1), ((5, 16, 8), 1), ((16, 5, 8), 1)]
    # The input for the weight's gradient and the layer's output for the GELU's.
    assert saved_bytes(side, inputs, precision) == 4 * (5 * 8 + 5 * 16)
    assert matmul_limit(side, inputs, dtype="fp32", device=CPU) > 0


@pytest.mark.parametrize("task", ["mae", "finetune", "inference"])
def test_ours_and_theirs_are_one_function_until_a_weight_moves(task: str) -> None:
    config = make_config("smoke")
    sides, inputs = make_sides(task, config, ("recomputed",)), make_inputs(task, config, 2)
    assert [side.name for side in sides][:2] == ["ours", "transformers"]
    found = measure(sides, inputs, dtype="fp32", device=CPU, rounds=2)
    for side in sides:
        result = found[side.name]
        assert len(result.seconds["step"]) == 2 and result.flops > 0
        assert (result.saved_bytes is None) == (task == "inference")
        assert set(result.seconds) == (
            {"forward", "step"} if task == "inference" else {"step", *measuring.PHASES}
        )
    if task == "mae":
        kept = {name: result.saved_bytes or 0 for name, result in found.items()}
        assert kept["ours, recomputed"] < kept["ours"] <= kept["transformers"]
        assert found["ours"].flops < found["transformers"].flops
    with torch.no_grad():
        list(sides[1].model.parameters())[-1].add_(1.0)  # a bias of the outputs
    with pytest.raises(ValueError, match="transformers gives another result than ours"):
        measure(sides, inputs, dtype="fp32", device=CPU, rounds=2)


def test_a_result_that_is_not_finite_is_unequal() -> None:
    side, inputs = one_layer()
    other, _ = one_layer(factor=float("nan"))
    other.name = "theirs"
    with pytest.raises(ValueError, match="theirs gives another result"):
        measure([side, other], inputs, dtype="fp32", device=CPU, rounds=1)


def test_sides_take_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def fake_step(side: Side, *_: Any) -> dict[str, float]:
        order.append(side.name)
        return {"step": float(len(order))}

    monkeypatch.setattr(measuring, "step", fake_step)
    side, inputs = one_layer()
    other, _ = one_layer()
    other.name = "theirs"
    found = measure([side, other], inputs, dtype="fp32", device=CPU, rounds=3)
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert found["ours"].seconds["step"] == [3.0, 6.0, 7.0]  # without the warm-up


def case() -> Case:
    ours = Measured(
        {"step": [1.0, 2.0, 3.0], "forward": [0.5, 1.0, 1.0]}, flops=4e9, saved_bytes=2**20
    )
    theirs = Measured({"step": [3.0, 3.0, 3.0], "forward": [2.0, 2.0, 2.0]}, flops=6e9)
    return Case("mae", "ti", "fp32", 8, {"ours": ours, "theirs": theirs}, limit=4e9)


def test_ratios_rates_and_shares_are_those_of_medians() -> None:
    found = case()
    assert found.ratio("theirs") == 1.5 and found.ratio("theirs", "forward") == 2.0
    assert found.ratios("theirs") == [3.0, 1.5, 1.0]
    assert found.images_per_second("ours") == 4.0
    assert found.share_of_limit("ours") == 0.5 and found.share_of_limit("theirs") == 0.5


def test_json_and_table_say_the_same() -> None:
    report = Report(CPU, [case()])
    stored = json.loads(report.to_json())
    assert stored["cases"][0]["ratios"] == {"theirs": 1.5}
    assert stored["cases"][0]["sides"]["ours"]["seconds"]["step"] == [1.0, 2.0, 3.0]
    assert stored["machine"]["torch"] == torch.__version__
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.to_markdown().splitlines()
    )
    ours, theirs = (dict(zip(header, row, strict=True)) for row in rows)
    assert (ours["images/s"], ours["of the limit"], ours["saved"]) == ("4", "50%", "1 MiB")
    assert (theirs["step"], theirs["forward"]) == ("1.50 (1.00 to 3.00)", "2.00")


class FakeEvent:
    """A moment of a made-up device whose every piece of work takes 5 ms."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        FakeEvent.now += 5.0
        self.at = FakeEvent.now

    def elapsed_time(self, later: "FakeEvent") -> float:
        return later.at - self.at


def test_a_gpu_is_timed_by_its_events_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    side, inputs = one_layer()
    clock = Clock(torch.device("cuda"))
    precision = measuring._precision("fp32", CPU, is_training=True)
    seconds = measuring.step(side, inputs, clock, precision)
    assert seconds == pytest.approx(
        {"forward": 0.005, "backward": 0.005, "optimizer": 0.005, "step": 0.015}
    )
    assert waits == [torch.device("cuda")]


def test_a_gpus_peak_memory_is_that_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: said.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    clock = Clock(torch.device("cuda"))
    assert clock.peak_bytes(lambda: said.append("work")) == 7
    assert said == ["empty_cache", "reset_peak_memory_stats", "work", "synchronize"]
    assert Clock(CPU).peak_bytes(lambda: None) is None


def test_a_gpus_batch_is_what_fits_with_every_side(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(side: Side, inputs: dict[str, Tensor], *_: Any) -> dict[str, float]:
        if side.name == "transformers" and len(inputs["pixel_values"]) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"step": 1.0}

    monkeypatch.setattr("hf_vitmae.benchmarks.models.step", limited)
    assert largest_batch(ModelBenchmark(peers=()), "mae", "smoke", "fp32") == 32


def test_wrong_names_and_numbers_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sizes": ["xxl"]}, "`sizes` has 'xxl'; choose from ti, s, b, l"),
        ({"tasks": ["train"]}, "`tasks` has 'train'"),
        ({"dtypes": ["fp8"]}, "`dtypes` has 'fp8'"),
        ({"peers": ["jax"]}, "`peers` has 'jax'"),
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            ModelBenchmark(**options)


def test_a_run_writes_json_table_and_profile(tmp_path: Path) -> None:
    said: list[str] = []
    request = ModelBenchmark(
        tasks=["mae"], sizes=["smoke"], dtypes=["bf16"], rounds=2, output=tmp_path, profile=True
    )
    report = run(request, said.append)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "benchmark.json",
        "benchmark.md",
        "profile-mae-smoke-bf16-4.txt",
    ]
    assert (tmp_path / "benchmark.md").read_text() == report.to_markdown() + "\n"
    assert said[0].startswith("mae smoke bf16 batch 4:\n  ours ") and "ratio" in said[0]


def test_the_command_measures_models_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--sizes smoke --tasks inference --dtypes fp32 --batch-size 2 --rounds 2".split()
    assert main(["benchmark", "models", *flags, "--output", str(tmp_path)]) == 0
    assert "| inference | smoke | fp32 | 2 | transformers |" in capsys.readouterr().out
    assert (tmp_path / "benchmark.json").exists()
    assert main(["benchmark", "models", "photos"]) == 2
    assert "`benchmark models` takes no source, got 'photos'" in capsys.readouterr().err
    assert main(["benchmark", "data"]) == 2
    assert "`benchmark data` needs a source" in capsys.readouterr().err


BARE = """
import runpy
import sys
from importlib.machinery import PathFinder

ABSENT = {"tyro", "datasets", "accelerate", "evaluate", "matplotlib"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
flags = "models --sizes smoke --rounds 1 --tasks mae --dtypes fp32 --peers"
sys.argv = ["benchmark.py", *flags.split()]
runpy.run_path(SCRIPT, run_name="__main__")
"""


@pytest.mark.slow
def test_the_script_runs_where_only_torch_and_transformers_are() -> None:
    program = BARE.replace("SCRIPT", repr(str(ROOT / "scripts" / "benchmark.py")))
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "| mae | smoke | fp32 | 4 | transformers |" in result.stdout
