"""What a run tells while it goes on: lines in metrics.jsonl and trackers, a bar or lines on the
screen.
"""

import sys
from collections.abc import Mapping

from PIL import Image
from tqdm import tqdm

from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.trackers import Trackers


class Progress:
    """Tells of steps and results: by a bar in a terminal, by plain lines elsewhere.

    Args:
        first, total: the step that the run starts at, and its number of steps.
        silent: True for every process but the main one; it then does nothing.
        trackers: what shows the run elsewhere.
    """

    def __init__(
        self,
        run: RunFolder,
        first: int,
        total: int,
        silent: bool = False,
        trackers: Trackers | None = None,
    ) -> None:
        self.run = run
        self.first = first
        self.total = total
        self.silent = silent
        self.trackers = trackers or Trackers()
        has_bar = not silent and first < total and sys.stderr.isatty()
        self.bar = tqdm(initial=first, total=total, unit="step") if has_bar else None

    def say(self, line: str) -> None:
        """One line on the screen, above the bar if there is one."""
        if not self.silent:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()

    def begin(self) -> None:
        """The run begins, or goes on: trackers start."""
        if not self.silent:
            self.trackers.start(self.run, self.first, self.say)

    def advance(self) -> None:
        """One step is done."""
        if self.bar is not None:
            self.bar.update()

    def record(self, record: Mapping[str, float | str | None]) -> None:
        """The numbers of a step or of an evaluation: to metrics.jsonl, trackers and the screen."""
        if not self.silent:
            self.run.append_metrics(record)
            self.trackers.log(record)
            self.show(record)

    def show_pictures(self, pictures: Mapping[str, Image.Image], step: int) -> None:
        """What the model sees at an evaluation: to the run's folder and trackers."""
        if self.silent:
            return
        try:
            self.run.save_step_samples(pictures, step)
        except OSError as error:  # a full disk: no picture is worth the run
            self.say(f"The pictures of step {step} could not be written: {error.strerror}.")
        self.trackers.show(pictures, step)

    def show(self, record: Mapping[str, float | str | None]) -> None:
        """A record on the screen: beside the bar if it is a step's, else as a line."""
        texts = {key: _short(value) for key, value in record.items() if _is_shown(key)}
        if self.bar is not None and "loss" in texts:
            self.bar.set_postfix(loss=texts["loss"], lr=texts["lr"])
        else:
            values = [f"{key} {text}" for key, text in texts.items() if key != "step"]
            self.say(f"step {texts['step']}/{self.total}  {'  '.join(values)}")

    def close(self) -> None:
        """End the bar and the trackers."""
        self.trackers.finish()
        if self.bar is not None:
            self.bar.close()


def _is_shown(key: str) -> bool:
    """Whether a screen needs it: most of a health report is for the log and for curves."""
    return not key.startswith("health_") or key in ("health_loss", "health_verdict")


def _short(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
