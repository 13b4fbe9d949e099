"""Where a run stands, as a checkpoint's state.json holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class RunState:
    """Steps done, and sums over the steps since the last logged one.

    The sums are saved so that a log line which spans an interruption says what it would have said
    without it.

    Args:
        effective_batch: images of one step over all processes.
        num_samples: images of an epoch, if that is known.
        seconds: time spent in steps, evaluations and saving left out.
        waited: the part of it in which the loop waited for batches.
        loss_weight: the sum of the shares of the steps' forward passes that have a loss.
        metrics: the newest value of everything logged.
        skipped_steps: steps that were not finite.
        skipped_in_a_row: those since the last that was.
        evaluated_step: after which the newest evaluation ran.
        best_step, best_value: the best evaluation.
    """

    effective_batch: int
    num_samples: int | None = None
    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    metrics: dict[str, float | str | None] = field(default_factory=dict)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    evaluated_step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    unlogged_steps: int = 0
    unlogged_skipped: int = 0
    loss_sum: float = 0.0
    grad_norm_sum: float = 0.0
    loss_weight: float = 0.0
    seconds_sum: float = 0.0
    waited_sum: float = 0.0

    @property
    def epoch(self) -> int:
        """Whole epochs done, 0 where their length is not known."""
        return self.epoch_of(self.step)

    def epoch_of(self, step: int) -> int:
        """Whole epochs done after so many steps."""
        return step * self.effective_batch // self.num_samples if self.num_samples else 0

    def add_step(
        self, loss: float, grad_norm: float, seconds: float, waited: float, weight: float = 1.0
    ) -> None:
        """Count one step.

        Args:
            loss: sum of the losses, each divided by the number of forward passes.
            waited: seconds of the step until its batches were there.
            weight: share of the forward passes that have a loss.
        """
        self._count(seconds, waited)
        self.skipped_in_a_row = 0
        self.loss_sum += loss
        self.loss_weight += weight
        self.grad_norm_sum += grad_norm

    def skip_step(self, seconds: float, waited: float, *, is_fault: bool = True) -> None:
        """Count a step that left the weights as they were.

        Args:
            is_fault: False for one that fp16's scaler skips to find its scale.
        """
        self._count(seconds, waited)
        self.unlogged_skipped += 1
        if is_fault:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1

    def _count(self, seconds: float, waited: float) -> None:
        self.step += 1
        self.seconds += seconds
        self.waited += waited
        self.unlogged_steps += 1
        self.seconds_sum += seconds
        self.waited_sum += waited

    def step_record(
        self, lr: float, more: Mapping[str, float | str | None] | None = None
    ) -> dict[str, float | str | None]:
        """A line of the log: means since the last one, or None of nothing. The next starts here.

        Args:
            more: values to log beside them.
        """
        steps, seconds = self.unlogged_steps, self.seconds_sum
        taken = steps - self.unlogged_skipped
        values = {
            "loss": self.loss_sum / self.loss_weight if self.loss_weight else None,
            "lr": lr,
            "grad_norm": self.grad_norm_sum / taken if taken else None,
            "images_per_second": steps * self.effective_batch / seconds,
            "data_wait": self.waited_sum / seconds,
            "seconds": self.seconds,
        }
        self.unlogged_steps, self.loss_sum, self.grad_norm_sum = 0, 0.0, 0.0
        self.loss_weight, self.seconds_sum, self.waited_sum = 0.0, 0.0, 0.0
        self.unlogged_skipped = 0
        return self.record({**values, **self.faults(), **(more or {})})

    def faults(self) -> dict[str, float | str | None]:
        """What the log says of steps that were not finite: nothing as long as there are none."""
        return {"skipped_steps": self.skipped_steps} if self.skipped_steps else {}

    def record(self, values: Mapping[str, float | str | None]) -> dict[str, float | str | None]:
        """A line of the log: `values`, led by the step and, if it is known, the epoch."""
        record: dict[str, float | str | None] = {"step": self.step}
        if self.num_samples:
            record["epoch"] = self.step * self.effective_batch / self.num_samples
        record.update(values)
        self.metrics.update(record)
        return record

    def check_goes_on_as(self, fresh: "RunState") -> None:
        """Refuse to resume with another effective batch or another number of images.

        Raises:
            ValueError: naming both numbers.
        """
        if self.effective_batch != fresh.effective_batch:
            raise ValueError(
                f"The run took {self.effective_batch} images a step and would go on with "
                f"{fresh.effective_batch}; keep processes x batch_size x accumulation as it was."
            )
        if self.num_samples != fresh.num_samples:
            raise ValueError(
                f"The run began with {self.num_samples} images and would go on with "
                f"{fresh.num_samples}; restore the data, or choose another --output-dir."
            )
