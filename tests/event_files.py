"""What TensorBoard shows of a run's folder, read back from its event files."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FOLDER = "tensorboard"


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / FOLDER)).Reload()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> steps and values."""
    accumulator = events(run)
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def picture_steps(run: Path, tag: str) -> list[int]:
    return [event.step for event in events(run).Images(tag)]


def make_older(run: Path) -> None:
    """Let event files be of an earlier second than those to come: their names are their order, and
    of one second the tenth comes before the ninth.
    """
    for path in (run / FOLDER).iterdir():
        head, second, tail = path.name.split("tfevents.")[0], *path.name.split(".", 4)[3:]
        path.rename(path.with_name(f"{head}tfevents.{int(second) - 1000}.{tail}"))
