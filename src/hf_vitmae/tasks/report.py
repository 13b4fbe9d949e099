"""Tell of runs in one HTML file: how they went, what they see, what they are made of."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from PIL import Image

from hf_vitmae.hub.card import Result, Value, shown
from hf_vitmae.hub.card_results import loss_baselines, own_results
from hf_vitmae.hub.card_run import (
    TASKS,
    Record,
    data_table,
    duration,
    machine_table,
    recipe_table,
)
from hf_vitmae.hub.privacy import mask_tokens
from hf_vitmae.tasks.card import read_record
from hf_vitmae.tasks.doctor_run import open_run
from hf_vitmae.training.advice import advise
from hf_vitmae.training.run_folder import STEPS, RunFolder, leaves
from hf_vitmae.visualize import loss_curve, metric_curves
from hf_vitmae.whole_or_absent import write_whole

TEMPLATE = Path(__file__).with_name("report_template.html")
MOST_STEPS = 8  # panels of one kind that are shown, spread over the run
MOST_BAD = 50  # images that could not be used
WIDEST = 1200  # pixels of a picture in the file
CURVES: Mapping[str, Sequence[str]] = {
    "accuracy": ("eval_accuracy", "eval_top_5_accuracy", "knn_accuracy"),
    "IoU and pixel accuracy": ("eval_mean_iou", "eval_pixel_accuracy"),
    "gradient norm": ("grad_norm",),
    "images per second": ("images_per_second",),
    "share of the time that waits for images": ("data_wait",),
    "health: loss and baselines": (
        "health_loss",
        "health_loss_interpolation",
        "health_loss_mean_visible",
    ),
    "health: rank of the features": ("health_feature_rank",),
    "health: spread of the features": (
        "health_feature_spread_images",
        "health_feature_spread_patches",
    ),
    "health: spread of predictions": (
        "health_prediction_spread_images",
        "health_prediction_spread_patches",
    ),
    "health: use of positions": ("health_position_use",),
}
BESIDES = ("attention", "features")  # `pictures` of a recipe
BY_LAYER = {"health: attention distance (pixels), by layer": "health_attention_distance_"}
COMPARED = ("loss", "eval_loss", "eval_accuracy", "eval_mean_iou", "images_per_second")


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """Write one HTML file with everything that a run recorded; of several runs, side by side.

    Raises:
        ValueError: if no run is named, or the file would take a folder's place.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of runs, finished or not."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where the file goes; report.html in the run's folder, or here for several runs."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("No run given; name the --output-dir of one or more.")
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name the file: {self.path / 'report.html'}")

    @property
    def path(self) -> Path:
        """Where the file goes."""
        only = self.runs[0] if len(self.runs) == 1 else Path()
        return self.output or only / "report.html"


class Shown(NamedTuple):
    """A picture in the page."""

    caption: str
    data: str  # URI


@dataclass(frozen=True)
class RunPage:
    """What the page says of one run.

    Args:
        name: that no other run of the page has.
    """

    name: str
    run: RunFolder
    record: Record

    @property
    def title(self) -> str:
        return TASKS.get(self.record.task, self.record.task or "run")

    @property
    def status(self) -> str:
        record = self.record
        if record.steps is None and not self.run.model.is_dir():
            return "Nothing is logged yet"
        end = "Finished" if self.run.model.is_dir() else "Not finished"
        steps = f" after {record.steps:,} steps" if record.steps is not None else ""
        seconds = record.newest("seconds")
        return f"{end}{steps}{f', {duration(seconds)} in steps' if seconds else ''}"

    @property
    def verdict(self) -> str | None:
        """What the log says of a masked autoencoder's pretraining."""
        if self.record.recipe.get("objective") != "mae" or self.record.steps is None:
            return None
        advice = advise(self.record.lines)
        return f"{advice.verdict.capitalize()}. {advice.sentence[:1].upper()}{advice.sentence[1:]}"

    @property
    def tables(self) -> dict[str, dict[str, str]]:
        record = self.record
        found = {
            "Images": data_table(record),
            "Training": recipe_table(record),
            "Machine and versions": machine_table(record),
        }
        return {
            title: {label: _text(value) for label, value in rows.items()}
            for title, rows in found.items()
            if rows
        }

    @cached_property
    def results(self) -> tuple[Result, ...]:
        return own_results(self.record)

    @property
    def baselines(self) -> dict[str, float]:
        return loss_baselines(self.record)

    @property
    def recipe_text(self) -> str:
        return self.run.recipe.read_text(encoding="utf-8")

    @property
    def bad_images(self) -> list[Mapping[str, Any]]:
        return list(self.record.bad_images[:MOST_BAD])

    @property
    def bad_reasons(self) -> list[tuple[str, int]]:
        reasons = (str(bad.get("reason", "")).split(":")[0] for bad in self.record.bad_images)
        return Counter(reasons).most_common()

    @property
    def curves(self) -> list[Shown]:
        return list(_curves({self.name: self.record.lines}, self.baselines))

    @property
    def pictures(self) -> list[Shown]:
        """Those of the end of the run, but for curves, which are drawn anew."""
        paths = sorted(self.run.samples.glob("*.png"), key=_rank)
        return list(_pictures({path.stem: path for path in paths if path.stem != "loss_curve"}))

    @property
    def over_time(self) -> dict[str, list[Shown]]:
        """Pictures of evaluations by their names, oldest first."""
        found: dict[str, dict[str, Path]] = {}
        for path in sorted((self.run.samples / STEPS).glob("*.png"), key=_rank):
            name, _, step = path.stem.rpartition("-")
            if name and step.isdigit():
                found.setdefault(name, {})[f"step {int(step):,}"] = path
        return {name: list(_pictures(_spread(paths))) for name, paths in found.items()}


def run(request: ReportRequest) -> Path:
    """Write the page and return where it is; of a run that goes on, what there is so far.

    Raises:
        ValueError: if a folder is not that of a run.
        ImportError: without Jinja2 or matplotlib.
    """
    pages = [
        RunPage(name, folder, read_record(folder, folder.model))
        for name, folder in _named([open_run(path) for path in request.runs])
    ]
    write_whole(request.path, render(pages))
    print(f"The report is {request.path}.")
    return request.path


def render(pages: Sequence[RunPage]) -> str:
    """The page's HTML, in which nothing is fetched from elsewhere.

    Raises:
        ImportError: without Jinja2 or matplotlib.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("Reports need Jinja2: pip install jinja2") from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _text
    several = len(pages) > 1
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        pages=pages,
        differences=_differences(pages) if several else {},
        compared=_compared(pages) if several else {},
        curves=list(_curves({page.name: page.record.lines for page in pages})) if several else [],
        most_bad=MOST_BAD,
    )
    return mask_tokens(html)


def _named(folders: Sequence[RunFolder]) -> Iterator[tuple[str, RunFolder]]:
    """As much of each path's end as tells the runs apart, and a number for one that is repeated."""
    parts = [folder.path.resolve().parts for folder in folders]
    length = next(
        (
            n
            for n in range(1, 1 + max(map(len, parts)))
            if len({p[-n:] for p in parts}) == len(parts)
        ),
        1,
    )
    seen: Counter[str] = Counter()
    for found, folder in zip(parts, folders, strict=True):
        name = "/".join(found[-length:])
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name} ({seen[name]})"), folder


def _curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], baselines: Mapping[str, float] | None = None
) -> Iterator[Shown]:
    """The loss, and everything else that was logged, over steps."""
    with suppress(ValueError):  # nothing was logged yet
        losses = next(iter(runs.values())) if len(runs) == 1 else dict(runs)
        yield Shown("loss and learning rate", _uri(loss_curve(losses, baselines=baselines)))
    if (curves := metric_curves(runs, {**CURVES, **_by_layer(runs)})) is not None:
        yield Shown("what else was logged", _uri(curves))


def _by_layer(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """The metrics that each layer has, the first layer first."""
    known = {key for lines in runs.values() for line in lines for key in line}
    return {
        title: sorted((key for key in known if key.startswith(start)), key=_layer)
        for title, start in BY_LAYER.items()
    }


def _layer(key: str) -> int:
    return int(key.rpartition("_")[2])


def _differences(pages: Sequence[RunPage]) -> dict[str, list[str]]:
    """Fields of the recipes that are not the same in all: by name, a text for each run."""
    recipes = [dict(leaves(dict(page.record.recipe))) for page in pages]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    table = {name: [_field(recipe.get(name, "not set")) for recipe in recipes] for name in names}
    return {
        name: values
        for name, values in table.items()
        if len(set(values)) > 1 and name != "output_dir"
    }


def _compared(pages: Sequence[RunPage]) -> dict[str, list[str]]:
    """The newest figures: by name, a text for each run."""
    table = {name: [page.record.newest(name) for page in pages] for name in COMPARED}
    table = {"steps": [page.record.steps for page in pages], **table}
    return {
        name.replace("_", " "): ["" if value is None else _text(value) for value in values]
        for name, values in table.items()
        if any(value is not None for value in values)
    }


def _rank(path: Path) -> tuple[bool, str]:
    """By name, what the task is about before what was asked for besides."""
    return path.stem.split("-")[0] in BESIDES, path.name


def _spread(paths: Mapping[str, Path]) -> dict[str, Path]:
    """At most so many, the first and the last among them."""
    items, most = list(paths.items()), MOST_STEPS
    if len(items) <= most:
        return dict(items)
    return dict(items[i * (len(items) - 1) // (most - 1)] for i in range(most))


def _pictures(paths: Mapping[str, Path]) -> Iterator[Shown]:
    """Those that can be read; a run that goes on may be writing one."""
    for caption, path in paths.items():
        with suppress(OSError), Image.open(path) as picture:
            yield Shown(caption, _uri(picture))


def _field(value: Any) -> str:
    """A field of a recipe, as recipe.yaml has it."""
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _text(value: Value) -> str:
    """A value as the page writes it: as a card does, but that text stays as it is."""
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else shown(value)


def _uri(picture: Image.Image) -> str:
    """A picture as part of a page, not wider than needed."""
    picture = picture.convert("RGB")
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
