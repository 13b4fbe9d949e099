"""Push each checkpoint of a run while it goes on, from a process of its own.

A thread would share the interpreter's lock with the training step, and hold locks of network and
log where data workers are forked. So checkpoints are put, as hard links that take no room, into an
outbox in the run's folder, and a process of low priority pushes the newest that it finds there
until there is none. Whatever the Hub does, training only ever looks whether that process is alive.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.tasks.checkpoints import save_model
from hf_vitmae.training.checkpoint import MODEL
from hf_vitmae.training.run_folder import RunFolder

OUTBOX = ".outbox"  # in the run's folder; gone after the run
TROUBLE = "trouble.txt"  # in the outbox: why the newest push failed
BASE = "base"  # in the outbox: the model's other files
LOWEST_PRIORITY = 19


class Outbox:
    """What of a run is to be pushed, and the process that does it.

    Args:
        model, processor: as they are pushed; only their weights change from then on.
        say: prints a line above the progress bar.
    """

    def __init__(
        self,
        run: RunFolder,
        repo: str,
        model: VitMaePreTrainedModel,
        processor: VitMaeImageProcessor,
        say: Callable[[str], object] = print,
    ) -> None:
        self.run = run
        self.repo = repo
        self.say = say
        self.path = run.path / OUTBOX
        shutil.rmtree(self.path, ignore_errors=True)  # of a run that was killed
        self.path.mkdir()
        save_model(self.path / BASE, model, processor)
        for weights in (self.path / BASE).glob("*.safetensors*"):
            weights.unlink()
        self._process: subprocess.Popen | None = None
        self._told = ""

    def add(self, checkpoint: Path) -> None:
        """Have a checkpoint pushed: now, or once the push that is going on has ended."""
        self._tell_trouble()
        try:
            self._put(checkpoint)
            self._start()
        except OSError as error:  # such as a disk without room
            self._tell(str(error))

    def close(self, *, wait: bool) -> None:
        """End what is going on, or wait for it; checkpoints that wait for it are not pushed."""
        for parcel in parcels(self.path):
            if not (wait and _is_taken(parcel)):
                shutil.rmtree(parcel, ignore_errors=True)
        process = self._process
        if process is not None and process.poll() is None:
            if wait:
                self.say(f"Waiting for the push of a checkpoint to {self.repo}.")
            else:
                process.terminate()
                self.say(f"A push to {self.repo} was stopped; the same command pushes again.")
            process.wait()
        self._tell_trouble()
        shutil.rmtree(self.path, ignore_errors=True)

    def _put(self, checkpoint: Path) -> None:
        """A run's folder of links, under its own name when it is whole."""
        unfinished = self.path / f".{checkpoint.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(self.path / BASE, unfinished / "model", copy_function=_link)
        _link(checkpoint / MODEL, unfinished / "model" / MODEL)
        shutil.copytree(
            checkpoint, unfinished / "checkpoints" / checkpoint.name, copy_function=_link
        )
        for record in (self.run.recipe, self.run.metrics, self.run.path / "environment.json"):
            if record.exists():  # a copy: the run goes on writing it
                shutil.copy(record, unfinished / record.name)
        unfinished.rename(self.path / checkpoint.name)

    def _start(self) -> None:
        """The process, unless it is at work."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.path), self.repo],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what is typed at the terminal is for the training
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def _tell_trouble(self) -> None:
        """Why pushes fail, each reason once."""
        with contextlib.suppress(OSError):
            self._tell((self.path / TROUBLE).read_text(encoding="utf-8"))

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            self._told = trouble
            self.say(f"A checkpoint was not pushed, training goes on: {trouble}")


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for a file, or a copy where the disk knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def parcels(outbox: Path) -> list[Path]:
    """Folders of checkpoints to push, from the oldest to the newest."""
    return sorted(path for path in outbox.glob("step-*") if path.is_dir())


def _is_taken(parcel: Path) -> bool:
    return (parcel / ".taken").exists()


def push_newest(outbox: Path, push: Callable[[Path], object]) -> None:
    """Push until nothing is left: each time the newest, and those before it not at all."""
    while waiting := parcels(outbox):
        *outdated, newest = waiting
        for parcel in outdated:
            shutil.rmtree(parcel, ignore_errors=True)
        try:
            (newest / ".taken").touch()
            push(newest)
            (outbox / TROUBLE).unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):  # the disk may be full, or the run over
                (outbox / TROUBLE).write_text(" ".join(str(error).split()), encoding="utf-8")
        finally:
            shutil.rmtree(newest, ignore_errors=True)


@contextlib.contextmanager
def pushed_meanwhile(outbox: Outbox | None) -> Iterator[Callable[[Path], None] | None]:
    """What is to be called with each checkpoint while a run goes on; None where nothing is pushed.

    At the end a push that goes on is waited for, after an error or a signal it is ended.
    """
    if outbox is None:
        yield None
        return
    try:
        yield outbox.add
    except BaseException:
        outbox.close(wait=False)
        raise
    outbox.close(wait=True)


def main(outbox: str, repo: str) -> None:
    """The process: push what lies in the outbox."""
    if hasattr(os, "nice"):
        os.nice(LOWEST_PRIORITY)
    from hf_vitmae.tasks.push import PushRequest, run

    def push(parcel: Path) -> None:
        step = int(parcel.name.rpartition("-")[2])
        message = f"Checkpoint of step {step}"
        run(PushRequest(folder=parcel, repo=repo, checkpoint=True, message=message))

    push_newest(Path(outbox), push)


if __name__ == "__main__":
    main(*sys.argv[1:])
