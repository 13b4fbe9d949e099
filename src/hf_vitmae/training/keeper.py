"""What a run keeps: its checkpoints, the averaged weights, and which evaluation was the best."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.checkpoint import (
    checkpoints,
    find_damage,
    latest_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from hf_vitmae.training.ema import Ema
from hf_vitmae.training.loop_config import LoopConfig
from hf_vitmae.training.processes import on_main, shared_errors
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.state import RunState


class Keeper:
    """Saves and loads what the loop changes; every process calls its methods alike."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        run: RunFolder,
        config: LoopConfig,
        saved: Callable[[Path], object] | None = None,
    ) -> None:
        """`saved` is called with each checkpoint, on the main process."""
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.run = run
        self.config = config
        self.saved = saved
        self.ema = Ema(model, config.ema_decay) if config.ema_decay else None
        self._saved = (-1, 0)  # step, and the step of the evaluation that is known then

    def resume(self, fresh: RunState, bad_images: BadImages | None) -> RunState:
        """Load the newest good checkpoint and cut the logs back to it; without one, begin `fresh`.

        Raises:
            ValueError: if it is of another run, or all checkpoints are damaged.
        """
        # The other processes may not see the main one's disk yet.
        checkpoint = on_main(self.accelerator, lambda: latest_good_checkpoint(self.run.checkpoints))
        state = fresh
        if checkpoint is not None:
            saved = self._load(checkpoint)
            state = RunState(**saved["run"])
            state.check_goes_on_as(fresh)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            self._saved = (state.step, state.evaluated_step)
        if self.accelerator.is_main_process:
            self.run.cut_metrics(self._saved[0])
        if bad_images is not None:
            bad_images.resume(self._saved[0])
            bad_images.begin(step=state.step, epoch=state.epoch)  # an evaluation may come first
        return state

    def save(self, state: RunState) -> None:
        """Write a checkpoint, if there is none of this very state, while other processes wait.

        Raises:
            OSError: on every process, if the main one cannot write it.
        """
        if self._saved == (state.step, state.evaluated_step):
            return
        scaler = self.accelerator.scaler
        with shared_errors(self.accelerator):  # the main process alone writes
            path = save_checkpoint(
                self.run.checkpoints,
                state.step,
                self.model,
                self.optimizer,
                {"run": asdict(state), "scaler": None if scaler is None else scaler.state_dict()},
                self.config.keep_checkpoints,
                ema=None if self.ema is None else self.ema.tensors,
                protect=() if state.best_step is None else (state.best_step,),
                is_main=self.accelerator.is_main_process,
            )
        self._saved = (state.step, state.evaluated_step)
        if self.saved is not None and self.accelerator.is_main_process:
            self.saved(path)

    def average(self, step: int) -> None:
        """Take the weights of a step into the average."""
        if self.ema is not None:
            self.ema.update(step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile, if there are such."""
        if self.ema is None:
            yield
        else:
            with self.ema.in_place():
                yield

    def note(self, results: Mapping[str, float], state: RunState) -> None:
        """Remember the best evaluation, with a checkpoint of it."""
        best = self.config.best
        if best is None or best.name not in results:
            return
        if best.is_better(results[best.name], state.best_value):
            state.best_step, state.best_value = state.step, results[best.name]
            self.save(state)

    def hand_back(self, state: RunState) -> None:
        """Give the model the weights that the run ends with.

        Raises:
            ValueError: if the checkpoint of the best evaluation is wanted, and gone or damaged.
        """
        if self.config.hand_back_best and state.best_step not in (None, state.step):
            self._load(self._best(state.best_step or 0))
        if self.ema is not None:
            self.ema.hand_over()

    def _best(self, step: int) -> Path:
        path = checkpoints(self.run.checkpoints).get(step)
        damage = "it is missing" if path is None else find_damage(path)
        if path is None or damage is not None:
            raise ValueError(
                f"The best evaluation was that of step {step}, whose checkpoint in "
                f"{self.run.checkpoints} cannot be used ({damage}); leave --best-model out to take "
                "the last weights."
            )
        return path

    def _load(self, checkpoint: Path) -> dict:
        tensors = None if self.ema is None else self.ema.tensors
        return load_checkpoint(checkpoint, self.model, self.optimizer, ema=tensors)
