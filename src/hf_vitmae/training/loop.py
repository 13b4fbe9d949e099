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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.models.modes import evaluating
from hf_vitmae.training import interrupts
from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.faults import RunningStatistics, refuse_to_go_on
from hf_vitmae.training.gradients import Gradients
from hf_vitmae.training.keeper import Keeper
from hf_vitmae.training.loop_config import LoopConfig
from hf_vitmae.training.optim import REFERENCE_BATCH
from hf_vitmae.training.progress import Progress
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.schedule import set_learning_rate
from hf_vitmae.training.sharding import clip_gradients, is_sharded
from hf_vitmae.training.state import RunState
from hf_vitmae.training.stepper import Outcome, Stepper
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
    saved: Callable[[Path], object] | None = None,
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
        saved: called on the main process with the folder of each new checkpoint.

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
    with _prepared(accelerator, model, optimizer) as (wrapped, prepared), interrupts.deferred():
        keeper = Keeper(accelerator, model, optimizer, run, config, saved)
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
        alone = keeper.ema is None and not statistics and not is_sharded(model)
        stepper = Stepper(accelerator, optimizer, prepared, may_run_ahead=alone)
        books = _Books(stepper, state, config, statistics, keeper, progress, bad_images)
        stream = batches(state.step * config.accumulation)
        take_gradients = Gradients(accelerator, wrapped, stream, prepare, config)
        model.train()
        try:
            examine(state)  # if a signal came before that was done
            books.start_clock()
            while state.step < config.steps:
                step = state.step + stepper.num_unsettled
                _begin_step(accelerator, config, state, step, bad_images)
                lr = set_learning_rate(optimizer, schedule(step))
                statistics.remember()
                loss, share, waited = take_gradients()
                norm = clip_gradients(model, clip_grad_norm or math.inf)
                num_bad = 0 if bad_images is None else len(bad_images.noted)
                asked = interrupts.asked() > 0
                note = (lr, waited)
                stepper.step(loss, norm, share, num_bad=num_bad, asked=asked, note=note)
                if books.settle(most=int(stepper.runs_ahead and not examine.halts_at(step + 1))):
                    interrupts.check(accelerator)
                if not stepper.num_unsettled:
                    examine(state)
                    if _is_due(state.step, config.checkpoint_every, config.steps):
                        keeper.save(state)
                    books.start_clock()
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
        self.progress.show_pictures(pictures, state.step)
        if due:
            self.progress.record(state.record({**results, **_so_far(self.bad_images)}))
            self.keeper.note(results, state)

    def is_due(self, state: RunState) -> bool:
        """Whether something belongs to this step and has not run."""
        draws = self.progress.trackers.pictures is not None and self._is_evaluation(state)
        is_due = state.step > 0 and (draws or bool(self._due(state)))
        return is_due and state.evaluated_step < state.step

    def halts_at(self, step: int) -> bool:
        """Whether a step's outcome is needed at once: something may come after it."""
        config = self.config
        periods = {config.log_every, config.checkpoint_every, config.eval_every}
        periods.update(*(getattr(evaluate, "periods", ()) for evaluate in self.evaluators))
        return any(_is_due(step, every, config.steps) for every in periods)

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
        """Pictures of what it sees; the parts of a sharded model can only draw together."""
        draw = self.progress.trackers.pictures
        has_to = self.keeper.accelerator.is_main_process or is_sharded(self.model)
        return draw(model) if draw is not None and has_to else {}


@dataclass
class _Books:
    """Takes steps into account, in order, once it is known how each went."""

    stepper: Stepper
    state: RunState
    config: LoopConfig
    statistics: RunningStatistics
    keeper: Keeper
    progress: Progress
    bad_images: BadImages | None
    since: float = 0.0
    compiles: bool = field(init=False)
    """Whether the next step is the one that does."""

    def __post_init__(self) -> None:
        self.compiles = self.config.compile

    def start_clock(self) -> None:
        """The time from here on is that of steps."""
        self.since = time.perf_counter()

    def settle(self, most: int) -> bool:
        """Settle steps until at most so many are left: -> whether a process was asked to stop, and
        then none is left.
        """
        asked = False
        while self.stepper.num_unsettled > (0 if asked else most):
            asked |= self._settle_one()
        return asked

    def _settle_one(self) -> bool:
        state, config = self.state, self.config
        outcome, (lr, waited) = self.stepper.outcome()
        seconds = time.perf_counter() - self.since
        if self.compiles:
            self.compiles = False
            self.progress.say(
                f"The first step took {seconds:.0f} s, most of it compiling; the next start here "
                "finds the result in torch's cache (TORCHINDUCTOR_CACHE_DIR)."
            )
        if self.bad_images is not None and outcome.has_bad_images:
            self.bad_images.share()
        if outcome.is_finite:
            state.add_step(outcome.loss, outcome.grad_norm, seconds, waited, outcome.share)
            self.keeper.average(state.step)
        else:
            self.statistics.restore()
            state.skip_step(seconds, waited, is_fault=not outcome.is_overflow)
            _tell_skipped(state, config, self.progress, outcome, lr)
        self.progress.advance()
        if _is_due(state.step, config.log_every, config.steps):
            self.progress.record(state.step_record(lr, _so_far(self.bad_images)))
        self.start_clock()
        return outcome.is_asked_to_stop


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


def _begin_step(
    accelerator: Accelerator,
    config: LoopConfig,
    state: RunState,
    step: int,
    bad_images: BadImages | None,
) -> None:
    """Seed what is random after so many steps, and say which is next to who notes bad images."""
    torch.manual_seed(step_seed(config.seed, step, accelerator.process_index))
    if bad_images is not None:
        bad_images.begin(step=step + 1, epoch=state.epoch_of(step))


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


def _tell_skipped(
    state: RunState, config: LoopConfig, progress: Progress, outcome: Outcome, lr: float
) -> None:
    """Log a step that was not finite, with its true values; raise if there were too many."""
    values = {"loss": outcome.loss, "lr": lr, "grad_norm": outcome.grad_norm, **state.faults()}
    progress.record(state.record(values))
    if state.skipped_in_a_row >= config.max_skipped:
        raise refuse_to_go_on(state.step, state.skipped_in_a_row, outcome.loss, outcome.grad_norm)


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
