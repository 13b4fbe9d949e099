"""The images of a run that could not be used: listed once each, and stopped at if they are many.

Every process notes what its own batches lack; `share` tells all of them, so that they stop alike.
The list belongs to the run's steps as its log does: what a resumed run meets again is dropped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from hf_vitmae.training.run_folder import whole_lines
from hf_vitmae.whole_or_absent import write_whole

Key = tuple[str, str]  # the split, and the image's name
Line = dict[str, Any]


class Skipped(Protocol):
    """What is noted of an image."""

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def epoch(self) -> int: ...


class Split(NamedTuple):
    """Images that a run reads: what they are called, and how many."""

    source: str
    num_images: int


@dataclass
class BadImages:
    """The bad images of a run.

    Args:
        path: the list, a line of JSON for each: name, reason, split and position.
        max_share: of all images of the run; more of them stop it, and so does all of one split.
        splits: `train`, and `eval` if there is one.
        position: how far the run is: the step that is being taken, or after which an evaluation
            runs, and the epoch.
        found: the lines of the list, by split and name.
        noted: those that only this process knows.
    """

    path: Path
    max_share: float
    splits: Mapping[str, Split]
    position: dict[str, int] = field(default_factory=dict)
    found: dict[Key, Line] = field(default_factory=dict)
    noted: dict[Key, Line] = field(default_factory=dict)

    def begin(self, **position: int) -> None:
        """What is noted from here on belongs to this position, such as `step=3`, `epoch=0`."""
        self.position = position

    def note(self, split: str, image: Skipped) -> None:
        """Remember a bad image of a split."""
        if (split, image.name) in self.found:
            return
        line = {"name": image.name, "reason": image.reason, "split": split, **self.position}
        if split == "train":  # a batch may reach into the next epoch
            line["epoch"] = image.epoch
        self.noted.setdefault((split, image.name), line)

    def share(self) -> None:
        """Tell all processes what each has noted, and add it to the list; all must call this.

        Raises:
            ValueError: on every process alike, if there are too many.
        """
        noted = gather_object(list(self.noted.values()))
        self.noted.clear()
        fresh: dict[Key, Line] = {}
        for line in noted:  # several processes may have met the same image
            fresh.setdefault((line["split"], line["name"]), line)
        self.found |= fresh
        if fresh and PartialState().is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(_as_json(line) for line in fresh.values())
        self._check()

    def resume(self, last: int, unit: str = "step") -> None:
        """Go on after a step: drop the lines of later ones, which come again; all must call this.

        Args:
            last: the step; -1 begins anew.
            unit: what `position` calls it.
        """
        kept = []
        if PartialState().is_main_process and self.path.exists():
            lines = whole_lines(self.path.read_text(encoding="utf-8"))
            kept = [line for line in lines if line[unit] <= last]
            if kept:
                write_whole(self.path, "".join(map(_as_json, kept)))
            else:
                self.path.unlink()
        (kept,) = broadcast_object_list([kept])
        self.found = {(line["split"], line["name"]): line for line in kept}

    def record(self) -> dict[str, int]:
        """What the log says of them: nothing as long as there are none."""
        return {"bad_images": len(self.found)} if self.found else {}

    def _check(self) -> None:
        bad, num_images = list(self.found.values()), sum(s.num_images for s in self.splits.values())
        if len(bad) > self.max_share * num_images:
            raise ValueError(
                f"{self._so_many(bad, num_images, *self.splits)}; mend them, or allow a larger "
                f"share than {self.max_share} with --data.max-bad."
            )
        for split, (_, num_images) in self.splits.items():
            of_split = [line for line in bad if line["split"] == split]
            if len(of_split) == num_images:
                raise ValueError(f"{self._so_many(of_split, num_images, split)}; mend them.")

    def _so_many(self, bad: Sequence[Line], num_images: int, *splits: str) -> str:
        sources = " and ".join(dict.fromkeys(self.splits[split].source for split in splits))
        reason = bad[0]["reason"].rstrip(".")
        return (
            f"{len(bad)} of the {num_images} images of {sources} cannot be used. The first is "
            f"{bad[0]['name']}: it {reason}. All are listed in {self.path}"
        )


def _as_json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
