"""The one training loop: fetch, forward, backward, step, log, evaluate, save.

It optimises any model whose output has `.loss`, on whatever Accelerate was launched on. Everything
random in a step is a function of (seed, step, process), so a checkpoint holds no random state, and
a run that was stopped and resumed on a CPU is bit for bit the uninterrupted one. A signal ends it
after the step with a checkpoint; a step that is not finite leaves the weights as they were.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.models.modes import evaluating
from hf_vitmae.training import interrupts
from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.faults import RunningStatistics, refuse_to_go_on
from hf_vitmae.training.keeper import Keeper
from hf_vitmae.training.loop_config import LoopConfig
from hf_vitmae.training.optim import REFERENCE_BATCH
from hf_vitmae.training.progress import Progress
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.schedule import set_learning_rate
from hf_vitmae.training.sharding import clip_gradients, gradient_sync, is_sharded
from hf_vitmae.training.state import RunState
from hf_vitmae.training.trackers import Trackers

__all__ = ["LoopConfig", "step_seed", "train"]

Batch = dict[str, Tensor]
Evaluator = Callable[[nn.Module], Mapping[str, float]]
"""One with `periods`, numbers of steps, is called after each of these and at the end; any other
where the loop evaluates."""


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
    trackers: Trackers | None = None,
) -> dict[str, float | str | None]:
    """Train `model` in place to `config.steps`, going on from the newest checkpoint in `run`.

    The gradient of a step is the mean over all its batches of each batch's own mean, whatever their
    sizes. At the end the model has the weights that `config` asks for: the last ones, their
    average, or those of the best evaluation.

    Args:
        schedule: step -> factor on each group's learning rate.
        batches: micro-batch number -> this process's endless batches from that one on.
        prepare: a batch -> keyword arguments of the model, on its device.
        evaluators: called in evaluation mode on every process; they return the same everywhere.
        num_samples: images of an epoch; the log then has `epoch`.
        bad_images: what the batches lack is noted there; the log then says how many.
        trackers: what gets the log too, and pictures at each evaluation.

    Returns:
        The newest value of everything logged.

    Raises:
        ValueError: if the run cannot go on as it began, there is no loss, or too many bad images.
        FloatingPointError: if loss or gradient were not finite for `config.max_skipped` steps in a
            row; the weights are those before.
        Interrupted: after SIGTERM or SIGINT on any process; the checkpoint is that of the last
            whole step.
    """
    _check_accumulation(accelerator)
    effective_batch = config.effective_batch(accelerator.num_processes)
    fresh = RunState(effective_batch=effective_batch, num_samples=num_samples)
    with _prepared(accelerator, model, optimizer) as (wrapped, stepper), interrupts.deferred():
        keeper = Keeper(accelerator, model, optimizer, run, config)
        state = keeper.resume(fresh, bad_images)
        silent = not accelerator.is_main_process
        progress = Progress(run, state.step, config.steps, silent, trackers)
        examine = _Examination(model, evaluators, config, keeper, progress, bad_images)
        if state.step >= config.steps and not examine.is_due(state):
            progress.say(f"{run.path} is finished: {state.step} steps are done.")
            keeper.hand_back(state)
            return state.metrics

        _announce(accelerator, model, optimizer, state, progress)
        statistics = RunningStatistics(model)
        stream = batches(state.step * config.accumulation)
        take_gradients = _Gradients(accelerator, wrapped, stream, prepare, config)
        model.train()
        try:
            examine(state)  # if a signal came before that was done
            while state.step < config.steps:
                started = time.perf_counter()
                _begin_step(accelerator, config, state, bad_images)
                lr = set_learning_rate(optimizer, schedule(state.step))
                statistics.remember()
                loss, share, waited = take_gradients()
                norm = clip_gradients(model, clip_grad_norm or math.inf)
                found = _agree(accelerator, loss, share, norm, bad_images)
                if found.is_finite or accelerator.scaler is not None:  # fp16's skips by itself
                    stepper.step()
                stepper.zero_grad()
                seconds = time.perf_counter() - started
                if found.is_finite:
                    state.add_step(found.loss, found.grad_norm, seconds, waited, found.share)
                    keeper.average(state.step)
                else:
                    statistics.restore()
                    state.skip_step(seconds, waited, is_fault=not found.is_overflow)
                    _tell_skipped(state, config, progress, found, lr)
                progress.advance()
                if _is_due(state.step, config.log_every, config.steps):
                    progress.record(state.step_record(lr, _so_far(bad_images)))
                if found.is_asked_to_stop:
                    interrupts.check(accelerator)
                examine(state)
                if _is_due(state.step, config.checkpoint_every, config.steps):
                    keeper.save(state)
            keeper.save(state)
            interrupts.check(accelerator)
        except interrupts.Interrupted:
            keeper.save(state)
            progress.say(f"{run.path} stops at step {state.step}, with a checkpoint.")
            raise
        finally:
            progress.close()
        keeper.hand_back(state)
        _look_back(progress, state, bad_images)
    return state.metrics


@dataclass(frozen=True)
class _Gradients:
    """Forward and backward passes of a step.

    Batches weigh the same: an image in one that lacks some bad ones weighs a little more than
    others. One of which nothing is left, without a `valid` image, adds nothing.

    Args:
        model: as Accelerate wraps it.
        stream: this process's batches.
    """

    accelerator: Accelerator
    model: nn.Module
    stream: Iterator[Batch]
    prepare: Callable[[Batch], Mapping[str, Any]]
    config: LoopConfig

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """The model, compiled if it shall be."""
        return torch.compile(self.model) if self.config.compile else self.model

    def __call__(self) -> tuple[Tensor, float, float]:
        """-> the loss, the share of the batches that have one, seconds of waiting for them."""
        num_batches = self.config.accumulation
        loss, waited, counting = torch.zeros((), device=self.accelerator.device), 0.0, 0
        for micro_step in range(num_batches):
            started = time.perf_counter()
            batch = next(self.stream)
            waited += time.perf_counter() - started
            counts = _counts(batch)
            counting += counts
            inputs = self.prepare(batch)
            is_last = micro_step == num_batches - 1
            with gradient_sync(self.model, self.accelerator, is_last):
                with self.accelerator.autocast():
                    micro_loss = _loss(self.forward(**inputs), inputs) / num_batches
                self.accelerator.backward(micro_loss if counts else micro_loss * 0.0)
            loss += micro_loss.detach() if counts else 0.0
        self.accelerator.unscale_gradients()
        return loss, counting / num_batches, waited


@dataclass(frozen=True)
class _Examination:
    """Evaluation and pictures where they are due, with the averaged weights if there are such."""

    model: nn.Module
    evaluators: Sequence[Evaluator]
    config: LoopConfig
    keeper: Keeper
    progress: Progress
    bad_images: BadImages | None

    def __call__(self, state: RunState) -> None:
        """Evaluate after a step, once."""
        if not self.is_due(state):
            return
        # What is not sharded has the precision of its forward pass from Accelerate.
        precision = self.keeper.accelerator.autocast() if is_sharded(self.model) else nullcontext()
        with self.keeper.averaged(), evaluating(self.model) as model, precision:
            due = self._due(state)
            results = {k: v for evaluate in due for k, v in evaluate(model).items()}
            pictures = self._draw(model) if self._is_evaluation(state) else {}
        state.evaluated_step = state.step
        self.progress.trackers.show(pictures, state.step)
        if due:
            self.progress.record(state.record({**results, **_so_far(self.bad_images)}))
            self.keeper.note(results, state)

    def is_due(self, state: RunState) -> bool:
        """Whether something belongs to this step and has not run."""
        draws = self.progress.trackers.pictures is not None and self._is_evaluation(state)
        is_due = state.step > 0 and (draws or bool(self._due(state)))
        return is_due and state.evaluated_step < state.step

    def _is_evaluation(self, state: RunState) -> bool:
        return _is_due(state.step, self.config.eval_every, self.config.steps)

    def _due(self, state: RunState) -> list[Evaluator]:
        """The evaluators of this step: where one has `periods`, it is they that say when."""
        usual = (self.config.eval_every,)
        return [
            evaluate
            for evaluate in self.evaluators
            for periods in [getattr(evaluate, "periods", usual)]
            if any(_is_due(state.step, every, self.config.steps) for every in periods)
        ]

    def _draw(self, model: nn.Module) -> Mapping[str, Image.Image]:
        """Pictures for the trackers; the parts of a sharded model can only draw together."""
        draw = self.progress.trackers.pictures
        has_to = self.keeper.accelerator.is_main_process or is_sharded(self.model)
        return draw(model) if draw is not None and has_to else {}


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of everything random in one step on one process, such as dropout and masks."""
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits


@contextmanager
def _prepared(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> Iterator[tuple[nn.Module, Optimizer]]:
    """Model and optimiser as Accelerate wraps them; its precision wrapper comes off afterwards."""
    if is_sharded(model):
        yield model, optimizer
        return
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


def _announce(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    state: RunState,
    progress: Progress,
) -> None:
    """Begin to tell, with what the steps will be; a fresh run's log starts with it."""
    progress.begin()
    lr = set_learning_rate(optimizer, 1.0)
    setting = state.record(
        {
            "effective_batch": state.effective_batch,
            "base_lr": lr * REFERENCE_BATCH / state.effective_batch,
            "effective_lr": lr,
            "num_processes": accelerator.num_processes,
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision.replace("no", "fp32"),
            **({"sharded": True} if is_sharded(model) else {}),
        }
    )
    if state.step == 0:
        progress.record(setting)
    else:
        progress.say(f"{progress.run.path} resumes at step {state.step}.")
        progress.show(setting)


def _counts(batch: Batch) -> bool:
    """Whether any image of the batch is good."""
    return "valid" not in batch or bool(batch["valid"].any())


def _begin_step(
    accelerator: Accelerator, config: LoopConfig, state: RunState, bad_images: BadImages | None
) -> None:
    """Seed what is random in the step, and say which it is to who notes bad images."""
    torch.manual_seed(step_seed(config.seed, state.step, accelerator.process_index))
    if bad_images is not None:
        bad_images.begin(step=state.step + 1, epoch=state.epoch)


class _Found(NamedTuple):
    """What all processes agree on after the backward passes of a step."""

    loss: float
    grad_norm: float
    share: float
    """Of the batches that have a loss."""
    is_asked_to_stop: bool
    is_overflow: bool
    """Whether it is fp16's gradient that is not finite, whose scaler then lowers its scale."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def _agree(
    accelerator: Accelerator,
    loss: Tensor,
    share: float,
    grad_norm: Tensor,
    bad_images: BadImages | None,
) -> _Found:
    """Means over the processes, which waits for the step to be computed; on the way they hear of
    each other's bad images and signals.
    """
    noted = 0 if bad_images is None else len(bad_images.noted)
    own = [loss.new_tensor(float(value)) for value in (share, noted, interrupts.asked() > 0)]
    values = torch.stack([loss, *own])
    values = cast(Tensor, accelerator.reduce(values, reduction="mean"))
    loss_value, share, noted, asked = values.tolist()
    if bad_images is not None and noted:
        bad_images.share()
    scaler = accelerator.scaler
    is_overflow = scaler is not None and math.isfinite(loss_value) and scaler.get_scale() > 1
    return _Found(loss_value, grad_norm.item(), share, asked > 0, is_overflow)


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


def _tell_skipped(
    state: RunState, config: LoopConfig, progress: Progress, found: _Found, lr: float
) -> None:
    """Log a step that was not finite, with its true values; raise if there were too many."""
    values = {"loss": found.loss, "lr": lr, "grad_norm": found.grad_norm, **state.faults()}
    progress.record(state.record(values))
    if state.skipped_in_a_row >= config.max_skipped:
        raise refuse_to_go_on(state.step, state.skipped_in_a_row, found.loss, found.grad_norm)


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
