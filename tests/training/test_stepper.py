"""Where a device leaves out steps by itself, the run is the one that waits for each of them.

No GPU is needed: torch's fused AdamW takes `found_inf` on a CPU too, so a CPU plays the device.
"""

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.tasks.objectives import MaskedAutoencoding
from hf_vitmae.training import stepper as stepper_module
from hf_vitmae.training.gradients import Gradients
from hf_vitmae.training.interrupts import Interrupted
from hf_vitmae.training.optim import OptimConfig, build_optimizer
from hf_vitmae.training.sharding import clip_gradients
from hf_vitmae.training.stepper import Stepper, leaves_out_on_device

from .test_faults import poisoned
from .test_loop import CONFIG, fresh_accelerate, log, run_toy, tensor_bytes, toy_batches

__all__ = ["fresh_accelerate"]  # a fixture

MICRO: dict[str, Any] = dict(
    image_size=16,
    patch_size=4,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    decoder_hidden_size=12,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=24,
)
RARELY = replace(CONFIG, log_every=6, checkpoint_every=12)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as a device that computes while the host goes on."""
    monkeypatch.setattr(stepper_module, "computes_apart", lambda _: True)


@pytest.mark.parametrize("bad", [(), (1,), (4, 5), (7, 12)])
@pytest.mark.parametrize("config", [CONFIG, RARELY, replace(CONFIG, eval_every=3)])
def test_running_ahead_changes_nothing(tmp_path: Path, monkeypatch, config, bad: tuple[int, ...]):
    batches = poisoned(math.nan, *bad)
    run_toy(tmp_path / "waits", config, batches=batches)
    monkeypatch.setattr(stepper_module, "computes_apart", lambda _: True)
    ahead = count_unsettled(monkeypatch)
    run_toy(tmp_path / "ahead", config, batches=batches)
    assert max(ahead) == 2
    assert log(tmp_path / "ahead") == log(tmp_path / "waits")
    assert tensor_bytes(tmp_path / "ahead") == tensor_bytes(tmp_path / "waits")


def count_unsettled(monkeypatch) -> list[int]:
    """How many steps are out after each one."""
    counts = []
    step = Stepper.step

    def counting(self: Stepper, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        counts.append(self.num_unsettled)

    monkeypatch.setattr(Stepper, "step", counting)
    return counts


@pytest.mark.parametrize("step", [2, 6, 7])
def test_a_signal_leaves_a_checkpoint_of_every_step_that_was_taken(
    tmp_path: Path, apart, monkeypatch, step: int
):
    def batches(micro_step: int) -> Iterator[dict]:
        for number, batch in enumerate(toy_batches(RARELY, 0, 1, micro_step), micro_step):
            if number == step * RARELY.accumulation:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    taken = count_unsettled(monkeypatch)
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "stopped", RARELY, batches=batches)
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [
        f"step-{len(taken):08d}"
    ]
    run_toy(tmp_path / "stopped", RARELY)
    run_toy(tmp_path / "whole", RARELY)
    assert tensor_bytes(tmp_path / "stopped") == tensor_bytes(tmp_path / "whole")
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")


def test_too_many_in_a_row_stop_the_run(tmp_path: Path, apart):
    config = replace(RARELY, max_skipped=3)
    with pytest.raises(FloatingPointError, match="Step 5: the loss is nan .* 3 steps in a row"):
        run_toy(tmp_path, config, batches=poisoned(math.nan, 3, 4, 5))
    assert [line["skipped_steps"] for line in log(tmp_path)[1:]] == [1, 2, 3]


class CountReads(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: values, and shapes that depend on values."""

    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        self.count += func.name() in self.waits
        return func(*args, **(kwargs or {}))


def test_a_step_of_pretraining_asks_the_device_for_no_number(apart):
    config = VitMaeConfig(**MICRO, drop_path_rate=0.1, norm_pix_loss=True)
    model = VitMaeForPreTraining(config).train()
    accelerator = Accelerator(cpu=True)
    optimizer = build_optimizer(model, OptimConfig(clip_grad_norm=1.0), effective_batch=2)
    stepper = Stepper(accelerator, optimizer, accelerator.prepare(optimizer), may_run_ahead=True)
    objective = MaskedAutoencoding(config)
    batch = {"pixel_values": torch.rand(2, 3, *config.image_pair)}

    def prepare(batch: dict) -> dict:
        return objective.inputs(batch["pixel_values"], torch.rand(2, config.num_patches))

    gradients = Gradients(accelerator, model, iter([batch] * 4), prepare, RARELY)
    with CountReads() as reads:
        for _ in range(2):
            loss, share, _ = gradients()
            norm = clip_gradients(model, 1.0)
            stepper.step(loss, norm, share, num_bad=0, asked=False)
    assert reads.count == 0
    assert stepper.num_unsettled == 2
    assert [stepper.outcome()[0].is_finite for _ in range(2)] == [True, True]


def test_only_an_optimiser_that_leaves_out_by_itself_runs_ahead(apart):
    linear = nn.Linear(2, 2)
    assert leaves_out_on_device(torch.optim.AdamW(linear.parameters(), fused=True))
    others = (torch.optim.AdamW(linear.parameters()), torch.optim.SGD(linear.parameters()))
    assert not any(map(leaves_out_on_device, others))
    accelerator = Accelerator(cpu=True)
    assert not any(
        Stepper(accelerator, other, other, may_run_ahead=True).runs_ahead for other in others
    )


def test_averaged_weights_wait_for_each_step(tmp_path: Path, apart, monkeypatch):
    ahead = count_unsettled(monkeypatch)
    config = replace(RARELY, ema_decay=0.9)
    run_toy(tmp_path, config, batches=poisoned(math.nan, 4))
    assert set(ahead) == {1}


def test_cuda_graphs_are_for_compiled_steps():
    with pytest.raises(ValueError, match="cuda_graphs is for compiled steps"):
        replace(CONFIG, cuda_graphs=True)
