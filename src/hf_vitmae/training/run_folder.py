"""The folder of one run: its recipe, its log, and where everything else lies.

recipe.yaml (resolved), metrics.jsonl (one line a logged step), bad_images.jsonl (if there are any),
checkpoints/, model/, samples/ (pictures of the end, and in steps/ of evaluations), tensorboard/ and
trackers.json (what trackers have). The same command again finds the folder and resumes; a changed
recipe is refused, field by field.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from hf_vitmae.training.run_lock import LOCK_FILES
from hf_vitmae.whole_or_absent import unfinished_path, whole_or_absent, write_whole

STEPS = "steps"  # in `samples`: what evaluations drew
FREE_FIELDS = frozenset(
    {
        "output_dir",
        "num_workers",
        "batch_size",  # the images of a step, which decide, are in the run's state
        "accumulation",
        "effective_batch",
        "max_bad",
        "log_every",
        "eval_every",
        "health_every",
        "knn_every",
        "pictures",
        "checkpoint_every",
        "keep_checkpoints",
        "best_model",
        "max_skipped",
        "cuda_graphs",
        "shard",
        "allow_change",
        "progress",
        "tracker",
        "push_to_hub",
        "push_checkpoints",
        "resume_from",
    }
)
"""Last names of fields that may change when a run is resumed: they do not alter its weights."""

NOT_FINITE = ("nan", "inf", "-inf")  # as metrics.jsonl says it


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on disk; made by `RunFolder.open`."""

    path: Path

    @classmethod
    def open(
        cls, path: str | Path, recipe: Any, free_fields: Collection[str] = FREE_FIELDS
    ) -> "RunFolder":
        """Create the folder, or reopen it for the same recipe; the main process first.

        Args:
            recipe: a dataclass; its class name is the task, and its fields go into recipe.yaml.
            free_fields: names or last names of fields that may differ; the new ones are written.

        Raises:
            ValueError: if the folder belongs to something else, another task or another recipe.
        """
        run = cls(Path(path))
        fresh = {"task": type(recipe).__name__, **as_plain(recipe)}
        if _is_in_use(run.path):
            refuse_changes(run.path, run.read_recipe(), fresh, free_fields)
        run.path.mkdir(parents=True, exist_ok=True)
        write_whole(run.recipe, yaml.safe_dump(fresh, sort_keys=False, allow_unicode=True))
        return run

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def bad_images(self) -> Path:
        return self.path / "bad_images.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def save_samples(self, pictures: Mapping[str, Image.Image]) -> list[Path]:
        """Write pictures as PNG into `samples`, under their names, and return where."""
        if pictures:
            self.samples.mkdir(exist_ok=True)
        paths = [self.samples / f"{name}.png" for name in pictures]
        for path, picture in zip(paths, pictures.values(), strict=True):
            picture.save(path)
        return paths

    def save_step_samples(self, pictures: Mapping[str, Image.Image], step: int) -> None:
        """Write pictures as PNG into `samples/steps`, under their names and the step's."""
        for name, picture in pictures.items():
            place = self.samples / STEPS / f"{name}-{step:08d}.png"
            with whole_or_absent(place) as unfinished:
                picture.save(unfinished, format="PNG")

    def read_recipe(self) -> dict[str, Any]:
        """recipe.yaml as a dict, with the task's name under `task`.

        Raises:
            ValueError: if this is no run folder.
        """
        try:
            recipe = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            recipe = None
        if not isinstance(recipe, dict) or "task" not in recipe:
            raise ValueError(
                f"{self.path} exists and is not the folder of a run (no readable recipe.yaml); "
                "choose another --output-dir."
            )
        return recipe

    def append_metrics(self, record: Mapping[str, float | int | str | None]) -> None:
        """Add one line to metrics.jsonl and flush it; what is not finite is the text nan or inf,
        as JSON has no number for it.
        """
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(_as_json(record))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a killed run left half-written is passed over."""
        if not self.metrics.exists():
            return []
        lines = whole_lines(self.metrics.read_text(encoding="utf-8"))
        return [{key: _number(value) for key, value in line.items()} for line in lines]

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of steps after `step`, atomically: a resumed run writes them again."""
        if self.metrics.exists():
            kept = [record for record in self.read_metrics() if record["step"] <= step]
            write_whole(self.metrics, "".join(map(_as_json, kept)))


def as_plain(value: Any, name: str = "recipe") -> Any:
    """A recipe as YAML can hold it: dataclasses as dicts, sequences as lists, paths as text."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {f.name: as_plain(getattr(value, f.name), f"{name}.{f.name}") for f in fields}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_plain(item, name) for item in value]
    if isinstance(value, Enum):
        return as_plain(value.value, name)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"{name} is a {type(value).__name__}, which recipe.yaml cannot hold; use plain values."
    )


def _is_in_use(path: Path) -> bool:
    """Whether `path` is a file or holds anything but a lock and a recipe that is half written."""
    if not path.is_dir():
        return path.exists()
    ignored = LOCK_FILES | {unfinished_path(Path("recipe.yaml")).name}
    return any(entry.name not in ignored for entry in path.iterdir())


def refuse_changes(path: Path, old: dict, new: dict, free_fields: Collection[str]) -> None:
    """Raise `ValueError` if the run at `path` would go on with another recipe; both plain dicts."""
    if old["task"] != new["task"]:
        raise ValueError(
            f"{path} is the folder of a {old['task']} and this is a {new['task']}; "
            "choose another --output-dir."
        )
    before, now = dict(leaves(old)), dict(leaves(new))
    changes = [
        f"{name} was {before.get(name, 'not set')} and is now {now.get(name, 'not set')}"
        for name in [*now, *(before.keys() - now.keys())]
        if before.get(name, "not set") != now.get(name, "not set")
        and not {name, name.split(".")[-1]} & set(free_fields)
    ]
    if changes:
        raise ValueError(
            f"{path} was started with another recipe: {', '.join(changes)}; "
            "start with the old values to resume, choose another --output-dir, or name what may "
            "change by --allow-change."
        )


def leaves(value: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is not a non-empty dict."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def whole_lines(text: str) -> Iterator[dict[str, Any]]:
    """The lines of JSON in a text; one that is half written is passed over."""
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _as_json(record: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl."""
    values = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(values, allow_nan=False) + "\n"


def _number(value: Any) -> Any:
    return float(value) if value in NOT_FINITE else value
