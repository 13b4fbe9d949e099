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
        metrics: the newest value of everything logged.
    """

    effective_batch: int
    num_samples: int | None = None
    step: int = 0
    seconds: float = 0.0
    metrics: dict[str, float | str] = field(default_factory=dict)
    unlogged_steps: int = 0
    loss_sum: float = 0.0
    grad_norm_sum: float = 0.0
    seconds_sum: float = 0.0

    def add_step(self, loss: float, grad_norm: float, seconds: float) -> None:
        """Count one step."""
        self.step += 1
        self.seconds += seconds
        self.unlogged_steps += 1
        self.loss_sum += loss
        self.grad_norm_sum += grad_norm
        self.seconds_sum += seconds

    def step_record(self, lr: float) -> dict[str, float | str]:
        """A line of the log: means since the last one. The next starts from here."""
        steps = self.unlogged_steps
        values = {
            "loss": self.loss_sum / steps,
            "lr": lr,
            "grad_norm": self.grad_norm_sum / steps,
            "images_per_second": steps * self.effective_batch / self.seconds_sum,
            "seconds": self.seconds,
        }
        self.unlogged_steps, self.loss_sum, self.grad_norm_sum, self.seconds_sum = 0, 0.0, 0.0, 0.0
        return self.record(values)

    def record(self, values: Mapping[str, float | str]) -> dict[str, float | str]:
        """A line of the log: `values`, led by the step and, if it is known, the epoch."""
        record: dict[str, float | str] = {"step": self.step}
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
