"""Trackers that show a run while it goes on, through Accelerate: TensorBoard, trackio and wandb.

metrics.jsonl stays the truth. A tracker that fails is left out from there on; it never ends a run.
A resumed run goes on in the same run of each tracker, where no value of a step stands twice:
TensorBoard hides what came after the checkpoint; the others take nothing back, so they keep what
they have of those steps and do not get it again.
"""

import importlib.util
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image
from torch import nn

from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.whole_or_absent import write_whole

PROJECT = "hf-vitmae"  # in trackers that have projects
SENT = "trackers.json"  # in the run's folder: what has been sent where nothing can be taken back
TENSORBOARD = "tensorboard"  # the tracker, and its folder in the run's

TrackerChoice = Literal["auto", "none", "tensorboard", "trackio", "wandb"]
Pictures = Callable[[nn.Module], Mapping[str, Image.Image]]
Record = Mapping[str, float | str | None]


def find_trackers(asked: Sequence[str]) -> tuple[str, ...]:
    """The trackers that a recipe's `tracker` stands for here; auto is TensorBoard, if it is there.

    Raises:
        ImportError: for one that is asked for and not installed.
    """
    if "none" in asked:
        return ()
    if "auto" in asked:
        return (TENSORBOARD,) if _is_installed(TENSORBOARD) else ()
    for name in asked:
        if not _is_installed(name):
            raise ImportError(
                f"`tracker` {name} is not installed; run: pip install 'hf-vitmae[track]', or leave "
                "it out."
            )
    return tuple(dict.fromkeys(asked))


class Trackers:
    """What shows a run elsewhere: it gets all that metrics.jsonl gets, and pictures.

    Only the main process starts it; before that, and without names, nothing happens.

    Args:
        names: as `find_trackers` gives them.
        pictures: draws by name what the model sees; called at each evaluation, in its mode, also
            without names: the run's folder gets the pictures too.
    """

    def __init__(self, names: Sequence[str] = (), pictures: Pictures | None = None) -> None:
        self.names = tuple(names)
        self.pictures = pictures
        self._open: dict[str, GeneralTracker] = {}
        self._sent: dict[str, _Sent] = {}
        self._sent_file = Path(SENT)
        self._say: Callable[[str], None] = print

    def start(self, run: RunFolder, step: int, say: Callable[[str], None]) -> None:
        """Begin, or go on after `step`; what cannot start is said and left out.

        Args:
            say: shows a line to the user.
        """
        if not self.names:
            return
        self._say = say
        self._sent_file = run.path / SENT
        self._sent = _read_sent(self._sent_file, self.names, run)
        self._sent[TENSORBOARD] = _Sent(TENSORBOARD)  # it has been taken back
        # TensorBoard writes in a thread of its own.
        self._excepthook, threading.excepthook = threading.excepthook, self._unless_told
        self._open = {name: _make(name, run, step, self._sent[name]) for name in self.names}
        self._with_each(lambda _, tracker: tracker.start())
        settings = _flat(run.read_recipe())
        self._with_each(lambda _, tracker: _store_settings(tracker, settings))
        for name in self._open:
            if (newest := self._sent[name].step) > step:
                say(f"{name} keeps its values up to step {newest} and goes on after it.")

    def log(self, record: Record) -> None:
        """A line of metrics.jsonl: its values under their names, at its step."""
        values = {name: value for name, value in record.items() if value is not None}
        step = int(values.pop("step"))

        def send(name: str, tracker: GeneralTracker) -> None:
            if new := self._mark_sent(name, step, values):
                tracker.log(new, step=step)

        self._with_each(send)

    def show(self, pictures: Mapping[str, Image.Image], step: int) -> None:
        """Pictures by name, at a step."""

        def send(name: str, tracker: GeneralTracker) -> None:
            if new := self._mark_sent(name, step, pictures):
                _show(tracker, new, step)

        self._with_each(send)

    def finish(self) -> None:
        """End all of them, with everything written."""
        self._with_each(lambda _, tracker: tracker.finish())
        self._open = {}
        if threading.excepthook == self._unless_told:
            threading.excepthook = self._excepthook

    def _with_each(self, do: Callable[[str, GeneralTracker], None]) -> None:
        """Do something with each tracker, and leave out from here on one that fails."""
        for name, tracker in list(self._open.items()):
            try:
                do(name, tracker)
            except Exception as error:  # of a network, a full disk: nothing that is worth the run
                del self._open[name]
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._say(
                    f"The tracker {name} fails and is left out from here on ({reason}); "
                    "metrics.jsonl has everything."
                )

    def _mark_sent(self, name: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those values that the tracker shall get now.

        They are noted before they are sent: after a kill in between, one line is missing there and
        none stands twice.
        """
        new = self._sent[name].add(step, values)
        if new and name != TENSORBOARD:
            notes = {key: asdict(sent) for key, sent in self._sent.items() if key != TENSORBOARD}
            write_whole(self._sent_file, json.dumps(notes) + "\n")
        return new

    def _unless_told(self, arguments: Any) -> None:
        """Leave to `_with_each` what ends TensorBoard's thread: there it is raised once more."""
        if not type(arguments.thread).__module__.startswith("tensorboard"):
            self._excepthook(arguments)


@dataclass
class _Sent:
    """What a tracker has got, as trackers.json holds it.

    Args:
        run: the run's name there.
        step: the newest step of which it has values.
        names: those values.
    """

    run: str
    step: int = -1
    names: list[str] = field(default_factory=list)

    def add(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Note a step's values: -> those that were not there before."""
        if step < self.step:
            return {}
        known = self.names if step == self.step else []
        new = {name: value for name, value in values.items() if name not in known}
        self.step, self.names = step, [*known, *new]
        return new


def _read_sent(file: Path, names: Sequence[str], run: RunFolder) -> dict[str, _Sent]:
    """What trackers have got before; a note that cannot be read is one of nothing."""
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        sent = {name: _Sent(**fields) for name, fields in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        sent = {}
    plain_name = re.sub(r"[^\w.-]", "-", run.path.resolve().name)
    for name in names:
        sent.setdefault(name, _Sent(f"{plain_name}-{secrets.token_hex(4)}"))
    return sent


def _make(name: str, run: RunFolder, step: int, sent: _Sent) -> GeneralTracker:
    """A tracker that goes on after `step` where there is something to go on with."""
    if name == TENSORBOARD:
        # It hides what it has of this step and later ones; a run without a checkpoint has none.
        return TensorBoardTracker(TENSORBOARD, run.path, purge_step=step + 1 if step else 0)
    if name == "trackio":
        return TrackioTracker(PROJECT, name=sent.run, resume="allow")
    folder = run.path.resolve()
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        id=sent.run,
        name=folder.name,
        resume="allow",
        dir=str(folder),
    )


def _store_settings(tracker: GeneralTracker, settings: dict[str, Any]) -> None:
    """The recipe as hyper-parameters."""
    if not isinstance(tracker, TensorBoardTracker):
        tracker.store_init_configuration(settings)
        return
    from torch.utils.tensorboard.summary import hparams

    # Accelerate's own way makes two more folders, which TensorBoard shows as runs, at every start.
    writer: Any = tracker.writer.file_writer
    for summary in hparams(settings, {}):
        writer.add_summary(summary)
    writer.flush()


def _show(tracker: GeneralTracker, pictures: Mapping[str, Image.Image], step: int) -> None:
    if isinstance(tracker, TensorBoardTracker):
        images = {n: np.asarray(picture.convert("RGB"))[None] for n, picture in pictures.items()}
        tracker.log_images(images, step=step, dataformats="NHWC")
        tracker.writer.flush()
    elif isinstance(tracker, TrackioTracker):  # Accelerate's cannot show pictures
        image = importlib.import_module("trackio").Image
        tracker.log({name: image(picture) for name, picture in pictures.items()}, step=step)
    elif isinstance(tracker, WandBTracker):
        tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A recipe by dotted names, as every tracker takes it: lists and None as text."""
    settings: dict[str, bool | int | float | str] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            settings |= _flat(item, f"{prefix}{name}.")
        else:
            is_plain = isinstance(item, (bool, int, float, str))
            settings[f"{prefix}{name}"] = item if is_plain else str(item)
    return settings


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # not a folder of runs with that name
