"""The benchmark of models measures what it says; how fast they are no test can say."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitmae.benchmarks import measure as measuring
from hf_vitmae.benchmarks.clock import Clock
from hf_vitmae.benchmarks.count import count_flops, layer_products, own_bytes, saved_bytes
from hf_vitmae.benchmarks.limit import Products
from hf_vitmae.benchmarks.measure import (
    PHASES,
    Measured,
    make_precision,
    measure,
    take_turns,
    time_steps,
)
from hf_vitmae.benchmarks.models import ModelBenchmark, largest_batch, run
from hf_vitmae.benchmarks.report import Case, Report
from hf_vitmae.benchmarks.sides import TASKS, Side, make_config, make_inputs, make_sides
from hf_vitmae.benchmarks.timm_vit import import_timm
from hf_vitmae.cli import main
from hf_vitmae.models import onednn_linear

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).parents[2]
TIMM = Path(sys.prefix) / "timm"  # `make venv` installs it there


class OneLayer(nn.Module):
    """A linear layer and a GELU, whose costs are known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 16)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return nn.functional.gelu(self.layer(pixel_values)).sum()


def one_layer(
    factor: float = 1.0, name: str = "ours", rows: int = 5
) -> tuple[Side, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = OneLayer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = {"pixel_values": torch.randn(rows, 8)}
    return Side(name, model, lambda given: factor * model(**given), optimizer), inputs


def attending() -> tuple[Side, dict[str, Tensor]]:
    """Attention alone, in training: (2, 3, 5, 4) queries, keys and values."""
    model = nn.Linear(1, 1)

    def compute(given: Any) -> Tensor:
        tokens = given["pixel_values"] * model.weight
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Side("ours", model, compute, optimizer), {"pixel_values": torch.randn(2, 3, 5, 4)}


def test_flops_and_products_of_one_layer_by_hand() -> None:
    side, inputs = one_layer()
    # Forward, and the weight's gradient: the input asks for none.
    assert count_flops(side, inputs, nullcontext) == 2 * (2 * 5 * 8 * 16)
    assert layer_products(side, inputs) == {(5, 8, 16): 1}
    compiled = Side("compiled", nn.Module(), lambda _: torch.zeros(()), eager=side)
    assert count_flops(compiled, inputs, nullcontext) == 2 * (2 * 5 * 8 * 16)


def test_flops_of_attention_by_hand() -> None:
    side, inputs = attending()
    product = 2 * (2 * 3) * 5 * 5 * 4  # two of them forward, five backward
    assert count_flops(side, inputs, nullcontext) == 7 * product


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_flops_of_a_classifier_by_hand(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever attends and multiplies."""
    config = make_config("smoke")
    sides, inputs = make_sides("finetune", config, ()), make_inputs("finetune", config, 3)
    batch, tokens, width, layers, labels = 3, 1 + config.num_patches, 32, 2, config.num_labels or 0
    linear = batch * tokens * width * (4 * width + 2 * 4 * width)
    attention = 2 * batch * tokens * tokens * width
    patches, classifier = batch * (tokens - 1) * 768 * width, batch * labels * width
    forward = layers * (linear + attention) + patches + classifier
    # Backward: twice as much, one of attention's products again, and none for the images.
    backward = layers * (2 * linear + 2.5 * attention) + patches + 2 * classifier
    for onednn in (False, True):
        monkeypatch.setattr(onednn_linear, "is_faster", lambda _, onednn=onednn: onednn)
        ours, theirs = (
            count_flops(side, inputs, make_precision(dtype, CPU, is_training=True))
            for side in sides
        )
        assert theirs == 2 * (forward + backward)
        assert ours < theirs  # the last block has one query


def test_saved_bytes_of_one_layer_by_hand() -> None:
    side, inputs = one_layer()
    # The input for the weight's gradient and the layer's output for the GELU's.
    assert saved_bytes(side, inputs, nullcontext) == 4 * (5 * 8 + 5 * 16)
    autocast = make_precision("bf16", CPU, is_training=True)
    assert saved_bytes(side, inputs, autocast) == 2 * (5 * 8 + 5 * 16)
    # As many rows as the layer has outputs: what is kept has the weight's shape.
    side, inputs = one_layer(rows=16)
    assert saved_bytes(side, inputs, nullcontext) == 4 * (16 * 8 + 16 * 16)
    # For the gradient of what comes in, the layer keeps its weight too, or autocast's cast of it.
    side, inputs = one_layer()
    inputs["pixel_values"].requires_grad_()
    assert saved_bytes(side, inputs, nullcontext) == 4 * (5 * 8 + 5 * 16)
    assert saved_bytes(side, inputs, autocast) == 2 * (5 * 8 + 5 * 16)
    weight: Any = side.model.layer
    bias = Side("", side.model, lambda given: given["tokens"] * weight.bias)
    bias.optimizer = side.optimizer
    tokens = torch.randn(5, 16, requires_grad=True)
    assert saved_bytes(bias, {"tokens": tokens}, nullcontext) == 4 * 5 * 16
    compiled = Side("compiled", side.model, side.compute, side.optimizer, eager=side)
    assert saved_bytes(compiled, inputs, nullcontext) is None


def test_own_bytes_are_weights_and_the_optimizers_state() -> None:
    side, inputs = one_layer()
    assert own_bytes(side) == 4 * (8 * 16 + 16)
    side.optimizer = torch.optim.SGD(side.model.parameters(), lr=0.0, momentum=0.9)
    time_steps(side, inputs, Clock(CPU), nullcontext)
    assert own_bytes(side) == 2 * 4 * (8 * 16 + 16)


def test_the_limit_multiplies_what_a_step_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "is_faster", lambda _: True)
    layers = {(5, 8, 16): 2, (3, 4, 4): 1}
    options: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
    inference = Products(layers, is_training=False, **options)
    training = Products(layers, is_training=True, **options)
    assert inference.flops == 2 * (2 * 5 * 8 * 16) + 2 * 3 * 4 * 4
    assert training.flops == 3 * inference.flops
    shapes = [[choice().shape for choice in choices] for choices in training._products(5, 8, 16)]
    assert shapes == [[(5, 16)] * 2, [(5, 8)] * 2, [(16, 8)]]
    for choices in training._products(5, 8, 16)[:2]:
        by_torch, by_onednn = (choice() for choice in choices)
        torch.testing.assert_close(by_torch, by_onednn)
    monkeypatch.setattr("time.perf_counter", iter(range(1000)).__next__)
    assert inference.turn(Clock(CPU)) == {"step": 3.0}  # a second for each product


@pytest.mark.parametrize("task", TASKS)
def test_ours_and_theirs_are_one_function_until_a_weight_moves(task: str) -> None:
    config = make_config("smoke")
    sides, inputs = make_sides(task, config, ("recomputed",)), make_inputs(task, config, 2)
    assert [side.name for side in sides][:2] == ["ours", "transformers"]
    is_training = task in ("mae", "finetune")
    found = measure(sides, inputs, dtype="fp32", device=CPU, rounds=2)
    assert list(found.sides) == [side.name for side in sides] and found.cube is None
    for result in found.sides.values():
        assert len(result.seconds["step"]) == 2 and result.flops > 0
        assert (result.saved_bytes is None) == (not is_training)
        assert set(result.seconds) == ({"step", *PHASES} if is_training else {"step", "forward"})
    assert len(found.products.seconds["step"]) == 2
    if task == "mae":
        kept = {name: result.saved_bytes or 0 for name, result in found.sides.items()}
        assert kept["ours, recomputed"] < kept["ours"] <= kept["transformers"]
        assert found.sides["ours"].flops < found.sides["transformers"].flops
    with torch.no_grad():
        list(sides[1].model.parameters())[-1].add_(1.0)  # a bias of the outputs, or of a norm
    with pytest.raises(ValueError, match="transformers gives another result than ours"):
        measure(sides, inputs, dtype="fp32", device=CPU, rounds=2)


def test_a_result_that_is_not_finite_is_unequal() -> None:
    side, inputs = one_layer()
    other, _ = one_layer(factor=float("nan"), name="theirs")
    with pytest.raises(ValueError, match="theirs gives another result"):
        measure([side, other], inputs, dtype="fp32", device=CPU, rounds=1)


@pytest.mark.parametrize(
    ("dtype", "is_training", "equal", "unequal"),
    [
        ("fp32", True, 1 + 5e-6, 1 + 5e-5),
        ("bf16", True, 1.005, 1.02),
        ("bf16", False, 1.02, 1.05),
    ],
)
def test_how_unequal_a_side_may_be(
    dtype: str, is_training: bool, equal: float, unequal: float
) -> None:
    side, inputs = one_layer()
    for factor in (equal, unequal):
        other, _ = one_layer(factor, name="theirs")
        if not is_training:
            side.optimizer = other.optimizer = None
        if factor == equal:
            measuring.check_equal([side, other], inputs, dtype, nullcontext)
            continue
        with pytest.raises(ValueError, match="theirs gives another result"):
            measuring.check_equal([side, other], inputs, dtype, nullcontext)


def test_turns_change_their_order_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def turn(name: str) -> Callable[[], dict[str, float]]:
        def take() -> dict[str, float]:
            order.append(name)
            return {"step": float(len(order))}

        return take

    found = take_turns({name: turn(name) for name in "ab"}, rounds=3)
    assert "".join(order) == "ab" + "ba" + "ba" + "ab"
    assert found == {"a": {"step": [4.0, 6.0, 7.0]}, "b": {"step": [3.0, 5.0, 8.0]}}
    order.clear()
    take_turns({name: turn(name) for name in "abc"}, rounds=5)
    assert "".join(order) == "abc" + "bca" + "cab" + "cba" + "acb" + "bac"


def test_a_short_step_is_taken_often_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    side, inputs = one_layer()
    for seconds, device, expected in ((0.05, CPU, 4), (9.0, CPU, 1), (9.0, CUDA, 3), (0, CPU, 20)):
        monkeypatch.setattr(measuring, "time_steps", lambda *_, s=seconds: {"step": s})
        assert measuring._num_steps(side, inputs, Clock(device), nullcontext) == expected


def case(cube: Measured | None = None) -> Case:
    ours = Measured(
        {"step": [1.0, 2.0, 3.0], **{phase: [0.5, 1.0, 1.0] for phase in PHASES}},
        flops=4e9,
        saved_bytes=2**20,
    )
    theirs = Measured(
        {"step": [3.0, 3.0, 3.0], **{phase: [2.0, 2.0, 2.0] for phase in PHASES}}, flops=6e9
    )
    products = Measured({"step": [0.25, 0.5, 4.0]}, flops=2e9)
    return Case("mae", "ti", "fp32", 8, {"ours": ours, "theirs": theirs}, products, cube)


def test_ratios_rates_and_shares_are_those_of_medians() -> None:
    found = case()
    assert found.ratio("theirs") == 1.5 and found.ratio("theirs", "forward") == 2.0
    assert found.ratios("theirs") == [3.0, 1.5, 1.0]
    assert found.images_per_second("ours") == 4.0
    assert found.share("ours", found.products) == found.share("theirs", found.products) == 0.5


def table_of(report: Report) -> list[dict[str, str]]:
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.to_markdown().splitlines()
        if line.startswith("|")
    )
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_json_and_table_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Made-up GPU")
    report = Report(CPU, 3, [case()])
    stored = json.loads(report.to_json())
    assert stored["cases"][0]["ratios"]["theirs"] == {"median": 1.5, "rounds": [3.0, 1.5, 1.0]}
    assert stored["cases"][0]["sides"]["ours"]["seconds"]["step"] == [1.0, 2.0, 3.0]
    assert stored["machine"]["torch"] == torch.__version__ and stored["rounds"] == 3
    ours, theirs = table_of(report)
    assert (ours["images/s"], ours["of the products"], ours["saved"]) == ("4", "50%", "1 MiB")
    assert (theirs["ms"], theirs["step"]) == ("3,000", "1.50 (1.00 to 3.00)")
    assert (theirs["forward"], theirs["optimizer"]) == ("2.00", "2.00")
    assert "peak" not in ours and "of 8192 cube" not in ours
    ours, _ = table_of(Report(CUDA, 3, [case(Measured({"step": [1.0]}, flops=4e9))]))
    assert ours["of 8192 cube"] == "50%"


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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Enough of torch.cuda for work that is done on the CPU; what was asked of it."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 107)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Made-up GPU")
    return asked


def test_a_gpu_is_timed_by_its_events_and_waited_for_once(gpu: list[str]) -> None:
    side, inputs = one_layer()
    seconds = time_steps(side, inputs, Clock(CUDA), nullcontext, num_steps=4)
    expected = {"forward": 0.005, "backward": 0.005, "optimizer": 0.005, "step": 0.015}
    assert seconds == pytest.approx(expected)
    assert gpu == ["synchronize"]


def test_a_gpus_added_memory_is_that_of_the_work(gpu: list[str]) -> None:
    assert Clock(CUDA).added_bytes(lambda: gpu.append("work")) == 7
    assert gpu == ["synchronize", "reset_peak_memory_stats", "work", "synchronize"]
    assert Clock(CPU).added_bytes(lambda: None) is None


def test_on_a_gpu_a_case_has_a_cube_and_each_sides_own_memory(gpu: list[str]) -> None:
    side, inputs = one_layer()
    other, _ = one_layer(name="theirs")
    other.model.register_buffer("table", torch.zeros(100))
    found = measure([side, other], inputs, dtype="fp32", device=CUDA, rounds=2, cube_length=16)
    ours, theirs = found.sides["ours"].peak_bytes, found.sides["theirs"].peak_bytes
    assert (ours, theirs) == (7 + own_bytes(side), 7 + own_bytes(side) + 400)
    assert found.sides["ours"].seconds["step"] == pytest.approx([0.015, 0.015])
    assert found.cube is not None and found.cube.rate() == pytest.approx(2 * 16**3 / 0.005)
    assert found.products.seconds["step"] == pytest.approx([0.015, 0.015])
    report = Report(CUDA, 2, [Case("mae", "b", "fp32", 5, found.sides, found.products, found.cube)])
    assert report.to_markdown().startswith("Made-up GPU, ")
    assert "peak" in table_of(report)[0]


def test_a_gpus_batch_is_what_fits_with_every_side(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(side: Side, inputs: dict[str, Tensor], *_: Any) -> dict[str, float]:
        assert "compiled" not in side.name  # a graph for each batch would take minutes
        if side.name == "transformers" and len(inputs["pixel_values"]) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"step": 1.0}

    monkeypatch.setattr("hf_vitmae.benchmarks.models.time_steps", limited)
    request = ModelBenchmark(peers=("compiled",))
    assert largest_batch(request, "mae", "smoke", "fp32") == 32


def test_each_compiled_case_begins_anew_with_the_sizes_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    monkeypatch.setattr(
        torch, "compile", lambda compute, **options: calls.append(options) or compute
    )
    sides = make_sides("mae", make_config("smoke"), ("compiled",))
    assert calls == ["reset", {"dynamic": False}, {"dynamic": False}]
    names = ["ours", "transformers", "ours, compiled", "transformers, compiled"]
    assert [side.name for side in sides] == names
    assert sides[2].eager is sides[0] and sides[2].optimizer is sides[0].optimizer


def test_both_sides_decay_the_same_weights() -> None:
    ours, theirs = make_sides("mae", make_config("smoke"), ())
    assert ours.optimizer is not None and theirs.optimizer is not None
    for one, other in zip(ours.optimizer.param_groups, theirs.optimizer.param_groups, strict=True):
        sizes = [sum(weight.numel() for weight in group["params"]) for group in (one, other)]
        assert sizes[0] == sizes[1] > 0 and one["weight_decay"] == other["weight_decay"]
        assert one["fused"] and other["fused"]
    assert [group["weight_decay"] for group in ours.optimizer.param_groups] == [0.05, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["finetune", "inference", "features"])
def test_timm_is_a_side(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TIMM))
    config = make_config("smoke")
    sides, inputs = make_sides(task, config, ("timm",)), make_inputs(task, config, 2)
    assert [side.name for side in sides] == ["ours", "transformers", "timm"]
    measuring.check_equal(sides, inputs, "fp32", nullcontext)
    assert [side.name for side in make_sides("mae", config, ("timm",))] == ["ours", "transformers"]


def test_without_timm_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import_timm.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="timm is not installed; install it"):
        import_timm()


def test_wrong_names_and_numbers_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sizes": ["xxl"]}, "`sizes` has 'xxl'; choose from ti, s, b, l"),
        ({"tasks": ["train"]}, "`tasks` has 'train'"),
        ({"dtypes": ["fp32,fp8"]}, "`dtypes` has 'fp8'"),
        ({"peers": ["jax"]}, "`peers` has 'jax'"),
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
        ({"image_size": 0}, "`image_size` must be at least 1, got 0"),
        ({"profile": True}, "give `output` too"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            ModelBenchmark(**options)


def test_names_may_be_joined_by_commas() -> None:
    request = ModelBenchmark(sizes=["ti,s", "b"], image_size=64)
    assert request.sizes == ("ti", "s", "b")
    assert request.make_config("ti").image_pair == (64, 64)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="There is no device 'cuda' here"):
        run(ModelBenchmark(device="cuda"))


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
    assert "Self CPU" in (tmp_path / "profile-mae-smoke-bf16-4.txt").read_text()
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
