"""The one training loop: fetch, forward, backward, step, log, evaluate, save.

It optimises any model whose output has `.loss`, on whatever Accelerate was launched on. Everything
random in a step is a function of (seed, step, process), so a checkpoint holds no random state, and
a run that was stopped and resumed on a CPU is bit for bit the uninterrupted one.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.models.modes import evaluating
from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.checkpoint import (
    latest_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from hf_vitmae.training.optim import REFERENCE_BATCH
from hf_vitmae.training.progress import Progress
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.schedule import set_learning_rate
from hf_vitmae.training.state import RunState

Batch = dict[str, Tensor]
Evaluator = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how much at once, and how often to log, evaluate and save.

    Args:
        steps: optimiser steps of the whole run.
        batch_size: images of one forward pass in one process.
        accumulation: forward passes whose gradients make one step.
        log_every: steps between lines of the log.
        eval_every: steps between evaluations; 0 evaluates at the end only.
        checkpoint_every: steps between checkpoints; 0 saves at the end only.
        keep_checkpoints: how many stay on the disk.
        compile: run forward and backward through `torch.compile`.

    Raises:
        ValueError: naming the field that is out of range.
    """

    steps: int
    batch_size: int
    seed: int = 0
    accumulation: int = 1
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    compile: bool = False

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "accumulation": 1, "log_every": 1}
        least |= {"eval_every": 0, "checkpoint_every": 0, "keep_checkpoints": 1}
        for field, smallest in least.items():
            if getattr(self, field) < smallest:
                raise ValueError(
                    f"{field} is {getattr(self, field)}; it must be {smallest} or more."
                )

    def effective_batch(self, num_processes: int = 1) -> int:
        """Images of one optimiser step, over all processes."""
        return self.batch_size * self.accumulation * num_processes


def train(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Callable[[int], float],
    *,
    accelerator: Accelerator,
    batches: Callable[[int], Iterator[Batch]],
    prepare: Callable[[Batch], Mapping[str, Any]],
    config: LoopConfig,
    run: RunFolder,
    evaluators: Sequence[Evaluator] = (),
    num_samples: int | None = None,
    clip_grad_norm: float | None = None,
    bad_images: BadImages | None = None,
) -> dict[str, float | str]:
    """Train `model` in place to `config.steps`, going on from the newest checkpoint in `run`.

    The gradient of a step is the mean over all its batches of each batch's own mean, whatever their
    sizes: an image in a batch that lacks some bad ones weighs a little more than others. A batch
    of which nothing is left, one without a `valid` image, adds nothing to it.

    Args:
        schedule: step -> factor on each group's learning rate.
        batches: micro-batch number -> this process's endless batches from that one on.
        prepare: a batch -> keyword arguments of the model, on its device.
        evaluators: called with the model in evaluation mode, on every process; they return the same
            everywhere.
        num_samples: images of an epoch; the log then has `epoch`.
        bad_images: what the batches lack is noted there; the log then says how many.

    Returns:
        The newest value of everything logged.

    Raises:
        ValueError: if the run cannot go on as it began, the model gives no loss, or too many images
            are bad.
        FloatingPointError: if loss or gradient is not finite; the weights are those of the step
            before.
    """
    _check_accumulation(accelerator)
    fresh = RunState(
        effective_batch=config.effective_batch(accelerator.num_processes), num_samples=num_samples
    )
    with _prepared(accelerator, model, optimizer) as (wrapped, stepper):
        state = _resume(accelerator, model, optimizer, run, fresh, bad_images)
        progress = Progress(run, state.step, config.steps, silent=not accelerator.is_main_process)
        if state.step >= config.steps:
            progress.say(f"{run.path} is finished: {state.step} steps are done.")
            return state.metrics

        _announce(accelerator, optimizer, state, progress)
        forward = torch.compile(wrapped) if config.compile else wrapped
        model.train()
        stream = batches(state.step * config.accumulation)
        while state.step < config.steps:
            started = time.perf_counter()
            torch.manual_seed(step_seed(config.seed, state.step, accelerator.process_index))
            lr = set_learning_rate(optimizer, schedule(state.step))
            if bad_images is not None:
                bad_images.begin(step=state.step + 1, epoch=state.epoch)

            loss, waited, counting = torch.zeros((), device=accelerator.device), 0.0, 0
            for micro_step in range(config.accumulation):
                batch, seconds = _timed_next(stream)
                waited += seconds
                counts = _counts(batch)
                counting += counts
                inputs = prepare(batch)
                last = micro_step == config.accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                    micro_loss = _loss(forward(**inputs), inputs) / config.accumulation
                    accelerator.backward(micro_loss if counts else micro_loss * 0.0)
                loss += micro_loss.detach() if counts else 0.0

            grad_norm = accelerator.clip_grad_norm_(model.parameters(), clip_grad_norm or math.inf)
            share = counting / config.accumulation
            loss_value, share = _mean_over_processes(accelerator, loss, share, bad_images)
            norm_value = cast(Tensor, grad_norm).item()
            _check_finite(accelerator, state.step, loss_value, norm_value)
            stepper.step()
            stepper.zero_grad()
            state.add_step(loss_value, norm_value, time.perf_counter() - started, waited, share)
            progress.advance()

            if _is_due(state.step, config.log_every, config.steps):
                progress.record(state.step_record(lr, _so_far(bad_images)))
            if evaluators and _is_due(state.step, config.eval_every, config.steps):
                results = _evaluate(model, evaluators)
                progress.record(state.record({**results, **_so_far(bad_images)}))
            if _is_due(state.step, config.checkpoint_every, config.steps):
                _save(accelerator, model, optimizer, run, config, state)
        progress.close()
        _look_back(progress, state, bad_images)
    return state.metrics


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of everything random in one step on one process, such as dropout and masks."""
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits


@contextlib.contextmanager
def _prepared(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> Iterator[tuple[nn.Module, Optimizer]]:
    """Model and optimiser as Accelerate wraps them; its precision wrapper comes off afterwards."""
    wrapped, stepper = accelerator.prepare(model, optimizer)
    try:
        yield wrapped, stepper
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)


def _check_accumulation(accelerator: Accelerator) -> None:
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Accelerate accumulates {accelerator.gradient_accumulation_steps} batches a step and "
            "the loop accumulates by itself; leave that at 1 and set `accumulation`."
        )


def _resume(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    run: RunFolder,
    fresh: RunState,
    bad_images: BadImages | None,
) -> RunState:
    """Load the newest good checkpoint and cut the logs back to it; without one, begin `fresh`."""
    checkpoint = latest_good_checkpoint(run.checkpoints)
    state = fresh
    if checkpoint is not None:
        saved = load_checkpoint(checkpoint, model, optimizer)
        state = RunState(**saved["run"])
        state.check_goes_on_as(fresh)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
    if accelerator.is_main_process:
        run.cut_metrics(state.step if checkpoint else -1)
    if bad_images is not None:
        bad_images.resume(state.step if checkpoint else -1)
    return state


def _announce(
    accelerator: Accelerator, optimizer: Optimizer, state: RunState, progress: Progress
) -> None:
    """Say what the steps will be; a fresh run's log starts with it."""
    lr = set_learning_rate(optimizer, 1.0)
    setting = state.record(
        {
            "effective_batch": state.effective_batch,
            "base_lr": lr * REFERENCE_BATCH / state.effective_batch,
            "effective_lr": lr,
            "num_processes": accelerator.num_processes,
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision.replace("no", "fp32"),
        }
    )
    if state.step == 0:
        progress.record(setting)
    else:
        progress.say(f"{progress.run.path} resumes at step {state.step}.")
        progress.show(setting)


def _timed_next(stream: Iterator[Batch]) -> tuple[Batch, float]:
    """The next batch and the seconds until it was there."""
    started = time.perf_counter()
    return next(stream), time.perf_counter() - started


def _counts(batch: Batch) -> bool:
    """Whether any image of the batch is good."""
    return "valid" not in batch or bool(batch["valid"].any())


def _mean_over_processes(
    accelerator: Accelerator, loss: Tensor, share: float, bad_images: BadImages | None
) -> tuple[float, float]:
    """Loss, and share of the batches that have one, which waits for the step to be computed; on the
    way the processes hear of each other's bad images.
    """
    noted = 0 if bad_images is None else len(bad_images.noted)
    values = torch.stack([loss, loss.new_tensor(share), loss.new_tensor(noted)])
    values = cast(Tensor, accelerator.reduce(values, reduction="mean"))
    loss_value, share, noted = values.tolist()
    if bad_images is not None and noted:
        bad_images.share()
    return loss_value, share


def _so_far(bad_images: BadImages | None) -> dict[str, int]:
    """What a line of the log says of bad images."""
    return bad_images.record() if bad_images is not None else {}


def _look_back(progress: Progress, state: RunState, bad_images: BadImages | None) -> None:
    """Say at the end of a run what its user should know of its data."""
    if bad_images is not None and bad_images.found:
        progress.say(f"{len(bad_images.found)} bad images were left out: {bad_images.path}.")
    if state.waited > state.seconds / 2:
        progress.say(
            f"{state.waited / state.seconds:.0%} of the time went by waiting for data, so data is "
            "the limit: give more --data.num-workers while there are free cores, store the images "
            "smaller, or set --data.repeats."
        )


def _loss(output: Any, inputs: Mapping[str, Any]) -> Tensor:
    if output.loss is None:
        raise ValueError(
            f"The model gave no loss for inputs {sorted(inputs)}; does the data have labels?"
        )
    return output.loss


def _check_finite(accelerator: Accelerator, step: int, loss: float, grad_norm: float) -> None:
    """Stop before the weights are touched.

    Under fp16 a gradient may overflow: the scaler then skips the step and lowers its scale.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    scaler = accelerator.scaler
    if scaler is not None and math.isfinite(loss) and scaler.get_scale() > 1:
        return
    raise FloatingPointError(
        f"Step {step + 1}: the loss is {loss} and the gradient's norm {grad_norm}; stopped "
        "before the weights changed. Look for broken images, lower base_lr, clip the gradient, or "
        "use bf16 in place of fp16."
    )


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _evaluate(model: nn.Module, evaluators: Sequence[Evaluator]) -> dict[str, float]:
    with evaluating(model):
        return {key: value for evaluate in evaluators for key, value in evaluate(model).items()}


def _save(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    run: RunFolder,
    config: LoopConfig,
    state: RunState,
) -> None:
    """Write a checkpoint from the main process while the others wait."""
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        saved = {"run": asdict(state), "scaler": scaler}
        save_checkpoint(
            run.checkpoints, state.step, model, optimizer, saved, config.keep_checkpoints
        )
    accelerator.wait_for_everyone()
