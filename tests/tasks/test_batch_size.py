"""`--batch-size auto` takes what fits and trains as the same effective batch by hand does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from hf_vitmae.cli import main
from hf_vitmae.data.augmentation.augmented import train_transform
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.sources import open_images
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.recipes.finetune import smoke as finetune_smoke
from hf_vitmae.recipes.mae import smoke
from hf_vitmae.tasks.batch_size import find_batch_plan, memory_advice
from hf_vitmae.tasks.pretrain import PretrainRecipe
from hf_vitmae.tasks.recipe import BatchPlan
from hf_vitmae.training.loop import train
from hf_vitmae.training.memory import OutOfMemory
from hf_vitmae.training.optim import build_optimizer
from hf_vitmae.training.run_folder import RunFolder

from .test_command_line import fails

MOST = 5  # images that "fit"


def auto(effective_batch: int | None = 16, **fields: Any) -> PretrainRecipe:
    return replace(smoke(), batch_size="auto", effective_batch=effective_batch, **fields)


class SmallMemory(VitMaeForPreTraining):
    """Runs out of memory in the middle of a batch that is larger than MOST."""

    def forward(self, pixel_values: Tensor, **inputs: Any) -> Any:
        output = super().forward(pixel_values, **inputs)
        if len(pixel_values) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return output


@pytest.mark.parametrize(
    ("fields", "processes", "plan"),
    [
        ({"batch_size": 8, "accumulation": 3}, 2, (8, 3)),
        ({"batch_size": 8, "effective_batch": 64}, 1, (8, 8)),
        ({"batch_size": 8, "effective_batch": 64}, 4, (8, 2)),
        ({"batch_size": 8, "effective_batch": 8}, 1, (8, 1)),
    ],
)
def test_an_effective_batch_takes_the_place_of_accumulation(
    fields: dict, processes: int, plan: tuple[int, int]
):
    recipe = replace(smoke(), **fields)
    assert recipe.plan_batches(processes) == BatchPlan(*plan)
    loop = recipe.loop_config(1000, processes)
    assert (loop.batch_size, loop.accumulation) == plan
    whole = fields.get("effective_batch", 48)
    assert loop.effective_batch(processes) == whole
    epochs = replace(recipe, steps=None, epochs=3.0).loop_config(1000, processes)
    assert epochs.steps == -(-3000 // whole)


def test_what_was_found_makes_the_plan():
    recipe = auto(48)
    assert recipe.most_at_once(1) == 48 and recipe.most_at_once(3) == 16
    assert recipe.plan_batches(3, found=4) == BatchPlan(4, 4)
    loop = recipe.loop_config(1000, 3, BatchPlan(4, 4))
    assert loop.effective_batch(3) == 48
    with pytest.raises(ValueError, match="`batch_size` is auto and must be found first"):
        recipe.plan_batches(1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": "auto"}, "`batch_size` auto needs `effective_batch`"),
        ({"effective_batch": 0}, "`effective_batch` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"accumulation": 0}, "`accumulation` must be at least 1, got 0"),
        ({"effective_batch": 16, "accumulation": 2}, "`accumulation` 2 and `effective_batch` 16"),
        (
            {"batch_size": 12, "effective_batch": 50},
            "`effective_batch` 50 is no multiple of `batch_size` 12; give 48 or 60",
        ),
        (
            {"batch_size": 64, "effective_batch": 10},
            "`effective_batch` 10 is no multiple of `batch_size` 64; give 64 or 128",
        ),
        (
            {"batch_size": "auto", "effective_batch": 50, "data": DataConfig(repeats=4)},
            "50 is no multiple of 4 repeats",
        ),
        ({"batch_size": 6, "data": DataConfig(repeats=4)}, "6 is no multiple of 4 repeats"),
    ],
)
def test_what_does_not_come_out_even_is_refused(fields: dict, words: str):
    with pytest.raises(ValueError) as error:
        replace(smoke(), **fields)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_processes_must_share_the_effective_batch():
    recipe = replace(smoke(), batch_size=8, effective_batch=24)
    with pytest.raises(ValueError, match="24 is no multiple of `batch_size` 8 x 2 processes; give"):
        recipe.plan_batches(2)
    with pytest.raises(ValueError, match="16 is no multiple of 1 image x 3 processes; give 15"):
        auto(16).most_at_once(3)
    with pytest.raises(ValueError, match="4 is no multiple of 8 repeats"):
        auto(16, data=DataConfig(repeats=8)).most_at_once(4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "auto"], ["effective_batch"]),
        (["--batch-size", "few"], ["--batch-size", "few", "auto"]),
        (["--effective-batch", "50", "--batch-size", "12"], ["50", "12", "48 or 60"]),
    ],
)
def test_the_command_line_says_so(flags: list, words: list, capsys: pytest.CaptureFixture):
    fails(capsys, 2, ["pretrain", "smoke", *flags], *words)
    fails(capsys, 2, ["finetune", "smoke", *flags], *words)


class Run:
    """What a pretraining run is made of, built by hand."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.accelerator = Accelerator(cpu=True)
        self.source = open_images("emoji", "test", use_labels=False)
        self.config = recipe.model.to_config()
        torch.manual_seed(recipe.seed)
        self.model = SmallMemory(self.config)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        recipe, config = self.recipe, self.config
        statistics = (0.5,) * 3, (0.25,) * 3
        transform = train_transform(recipe.augment, config.image_pair, 3, *statistics, None)
        return train_batches(
            self.source,
            transform,
            seed=recipe.seed,
            batch_size=batch_size,
            start_step=start,
            num_noise=config.num_patches,
            num_workers=0,
            repeats=recipe.data.repeats,
        )

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"] / 255, "noise": batch["noise"]}

    def plan(self) -> BatchPlan:
        def example() -> dict[str, Tensor]:
            return next(self.batches(self.recipe.data.repeats))

        return find_batch_plan(self.recipe, self.accelerator, self.model, self.prepare, example)

    def losses(self, plan: BatchPlan, folder: Path) -> list[float]:
        """Train as planned: the loss of every step."""
        loop = self.recipe.loop_config(len(self.source), 1, plan)
        run = RunFolder.open(folder, self.recipe)
        train(
            self.model,
            build_optimizer(self.model, self.recipe.optim, loop.effective_batch()),
            lambda step: 1.0,
            accelerator=self.accelerator,
            batches=lambda start: self.batches(plan.batch_size, start),
            prepare=self.prepare,
            config=loop,
            run=run,
        )
        return [record["loss"] for record in run.read_metrics() if "loss" in record]


def test_a_run_with_auto_equals_one_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture):
    length = {"steps": 4, "epochs": None, "log_every": 1}
    found, by_hand = Run(auto(16, **length)), Run(replace(smoke(), batch_size=4, **length))
    state = torch.get_rng_state()
    plan = found.plan()
    assert plan == BatchPlan(4, 4) and torch.equal(torch.get_rng_state(), state)
    assert "batch size auto: 4 images at once, 4 times a step" in capsys.readouterr().out
    for one, other in zip(found.model.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.equal(one, other) and one.grad is None
    losses = found.losses(plan, tmp_path / "found")
    assert len(losses) == 4
    assert losses == by_hand.losses(BatchPlan(4, 4), tmp_path / "by hand")
    whole = Run(replace(smoke(), batch_size=2, effective_batch=16, **length))
    assert whole.plan() == BatchPlan(2, 8)  # nothing is tried
    assert whole.losses(BatchPlan(2, 8), tmp_path / "whole") == pytest.approx(losses, rel=1e-5)


def test_a_resumed_run_may_take_another_batch_size(tmp_path: Path):
    length = {"epochs": None, "log_every": 1, "checkpoint_every": 2}
    straight = Run(auto(16, steps=4, **length)).losses(BatchPlan(4, 4), tmp_path / "straight")
    first = Run(auto(16, steps=4, **length))
    first.prepare = _fail_after(first.prepare, 8)
    with pytest.raises(KeyError):
        first.losses(BatchPlan(4, 4), tmp_path / "broken")
    rest = Run(auto(16, steps=4, **length)).losses(BatchPlan(2, 8), tmp_path / "broken")
    assert rest == pytest.approx(straight, rel=1e-5)


def _fail_after(prepare: Any, times: int) -> Any:
    calls = iter(range(times))

    def prepare_or_fail(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if next(calls, None) is None:
            raise KeyError("stopped")
        return prepare(batch)

    return prepare_or_fail


def test_repeats_of_an_image_stay_together():
    run = Run(auto(12, data=DataConfig(source="emoji", repeats=3)))
    assert run.plan() == BatchPlan(3, 4)


def test_nothing_fits():
    run = Run(auto(6, data=DataConfig(source="emoji", repeats=6)))
    with pytest.raises(OutOfMemory, match="Not even a batch size of 6 fits into memory"):
        run.plan()


def log_of(run: Path, name: str) -> list[float]:
    return [record[name] for record in RunFolder(run).read_metrics() if name in record]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of more than MOST images runs out of memory, in every pretraining run."""
    forward = VitMaeForPreTraining.forward

    def limited(self: Any, pixel_values: Tensor, **inputs: Any) -> Any:
        output = forward(self, pixel_values, **inputs)
        if torch.is_grad_enabled() and len(pixel_values) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return output

    monkeypatch.setattr(VitMaeForPreTraining, "forward", limited)


@pytest.mark.usefixtures("small_memory")
def test_the_command_finds_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture):
    flags = ["pretrain", "smoke", "--steps", "3", "--log-every", "1", "--eval-images", "8"]
    auto_flags = ["--batch-size", "auto", "--effective-batch", "16"]
    assert main([*flags, *auto_flags, "--output-dir", str(tmp_path / "auto")]) == 0
    assert "batch size auto: 4 images at once, 4 times a step" in capsys.readouterr().out
    hand_flags = ["--batch-size", "4", "--accumulation", "4"]
    assert main([*flags, *hand_flags, "--output-dir", str(tmp_path / "hand")]) == 0
    for name in ("loss", "grad_norm", "effective_batch"):
        found = log_of(tmp_path / "auto", name)
        assert found and found == log_of(tmp_path / "hand", name)
    assert "batch_size: auto" in (tmp_path / "auto" / "recipe.yaml").read_text()


@pytest.mark.usefixtures("small_memory")
def test_the_command_says_what_to_lower(tmp_path: Path, capsys: pytest.CaptureFixture):
    command = ["pretrain", "smoke", "--steps", "2", "--output-dir", tmp_path / "run"]
    words = ["8 x 32x32", "--batch-size 4 --accumulation 2", "--precision bf16"]
    fails(capsys, 1, command, *words)


def test_the_advice_is_a_recipe_that_works():
    accelerator = Accelerator(cpu=True)
    recipe = replace(smoke(), batch_size=8, accumulation=2)
    line = memory_advice(recipe, recipe.plan_batches(1), (24, 32), accelerator)
    assert "8 x 24x32" in line and "--batch-size 4 --accumulation 4" in line
    lower = replace(recipe, batch_size=4, accumulation=4)
    assert lower.plan_batches(1).num_images == recipe.plan_batches(1).num_images
    line = memory_advice(auto(16), BatchPlan(4, 4), (24, 32), accelerator)
    assert "--batch-size 2, which keeps" in line and "--accumulation" not in line
    assert replace(auto(16), batch_size=2).plan_batches(1).num_images == 16


def test_fine_tuning_has_it_too():
    recipe = replace(finetune_smoke(), batch_size="auto", effective_batch=32)
    assert recipe.plan_batches(2, found=4) == BatchPlan(4, 4)
