"""Few labels, many images: does masked pretraining help on the three data sets of the package?

    python scripts/experiments/low_labels.py                       # all of it: an hour of a core
    python scripts/experiments/low_labels.py --sources defects     # one of them
    python scripts/experiments/low_labels.py --report-only         # write docs/low_labels.* again

For each data set: pretrain on all training images without their labels, then compare the result
with random weights and plain pixels, with a few labels of each class and the same draws for all.
The same command again goes on where it stopped, and changes nothing that is there.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image, ImageDraw, ImageFont

from hf_vitmae import VitMaeForImageClassification, VitMaeForPreTraining
from hf_vitmae.recipes.small import finetune_small_data, mae_small_data
from hf_vitmae.tasks import compare, pretrain
from hf_vitmae.tasks.compare import CompareRequest
from hf_vitmae.tasks.compute import step_flops
from hf_vitmae.tasks.pretrain import PretrainRecipe
from hf_vitmae.visualize.comparison import comparison_plot
from hf_vitmae.whole_or_absent import whole_or_absent, write_whole

DOCS = Path(__file__).parents[2] / "docs"
METHODS = {"knn": "kNN", "linear-probe": "linear probe", "finetune": "fine-tuning"}
TITLE_HEIGHT = 40  # pixels above each plot


@dataclass(frozen=True)
class Images:
    """What one of the data sets needs of the recipes.

    Args:
        about: what is seen, in the report.
        geometry: fields of the model that differ from the recipe's.
        has_up: pictures are not turned, since up is up in them.
    """

    about: str
    geometry: Mapping[str, int]
    has_up: bool = False


SOURCES = {
    "emoji": Images("32x32, colour", {}, has_up=True),
    "defects": Images("48x48, gray", {"image_size": 48, "patch_size": 8, "num_channels": 1}),
    "bands": Images("32x32, 8 channels", {"num_channels": 8}),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pretrain on each data set and compare."""

    sources: tuple[str, ...] = tuple(SOURCES)
    """Of emoji, defects and bands."""
    output_dir: Path = Path("runs/low-labels")
    """Folder of all runs."""
    pretrain_steps: int = 2000
    """Steps of 32 images of each pretraining."""
    finetune_steps: int = 60
    """Steps of 32 images of each fine-tuning."""
    labels_per_class: int = 5
    """Labelled images of each class."""
    seeds: int = 5
    """Draws of labelled images."""
    base_lrs: tuple[float, ...] = (8e-3, 3.2e-2)
    """Of fine-tuning; every model gets its own best one."""
    pretrain_only: bool = False
    """Leave the comparisons to a later call."""
    report_only: bool = False
    """Write the report of what is there, and run nothing."""

    def __post_init__(self) -> None:
        if unknown := set(self.sources) - set(SOURCES):
            raise ValueError(f"`sources` are of {', '.join(SOURCES)}, not {min(unknown)}.")

    def pretraining(self, source: str) -> PretrainRecipe:
        """The recipe for small data, on all training images."""
        images, recipe = SOURCES[source], mae_small_data()
        return replace(
            recipe,
            model=replace(recipe.model, **images.geometry),
            data=replace(recipe.data, source=source),
            augment=replace(recipe.augment, **_turns(images)),
            steps=self.pretrain_steps,
            output_dir=self.output_dir / source / "mae",
        )

    def comparison(self, source: str) -> CompareRequest:
        """The pretrained model, random weights and pixels: the same grid and labels for all."""
        recipe = finetune_small_data()
        return CompareRequest(
            source=source,
            models=(str(self.pretraining(source).output_dir / "model"), "random", "pixels"),
            output_dir=self.output_dir / source / "compare",
            labels_per_class=self.labels_per_class,
            seeds=self.seeds,
            base_lrs=self.base_lrs,
            finetune=replace(
                recipe,
                augment=replace(recipe.augment, **_turns(SOURCES[source])),
                steps=self.finetune_steps,
            ),
        )

    def flops(self, source: str) -> float:
        """What pretraining and all fine-tuning on a data set take."""
        recipe = self.pretraining(source)
        config = recipe.model.to_config()
        spent = self.pretrain_steps * step_flops(VitMaeForPreTraining(config), 32)
        tuning = self.finetune_steps * step_flops(VitMaeForImageClassification(config), 32)
        runs = self.seeds + len(self.base_lrs)
        # Fine-tuning of the pretrained model, of random weights, and of these for all the compute.
        return spent + runs * (3 * tuning + spent)


def _turns(images: Images) -> dict[str, Any]:
    return {} if images.has_up else {"vertical_flip": 0.5, "rotate_quarters": True}


def main(request: Request) -> None:
    """Run what is missing, and write the report."""
    if not request.report_only:
        print(estimate(request), flush=True)
        for source in request.sources:
            recipe = request.pretraining(source)
            if not (recipe.output_dir / "model").is_dir():
                pretrain.run(recipe)
        for source in () if request.pretrain_only else request.sources:
            compare.run(request.comparison(source))
    found = dict(finished(request))
    if found:
        write_whole(DOCS / "low_labels.md", report(request, found))
        with whole_or_absent(DOCS / "low_labels.png") as unfinished:
            picture(found).save(unfinished, format="PNG", optimize=True)
        print(f"Written: {DOCS / 'low_labels.md'} and .png, of {', '.join(found)}.")


def estimate(request: Request) -> str:
    """How long it takes from the start, by how fast a step of fine-tuning is here now."""
    model = VitMaeForImageClassification(mae_small_data().model.to_config())
    pixels, labels = torch.zeros(32, 3, 32, 32), torch.zeros(32, dtype=torch.long)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        model(pixels, labels=labels).loss.backward()
        seconds.append(time.perf_counter() - started)
    flops = sum(request.flops(source) for source in request.sources)
    hours = flops * min(seconds) / step_flops(model, 32) / 3600
    return (
        f"{', '.join(request.sources)}: {flops / 1e12:.0f} TFLOPs in all, about {60 * hours:.0f} "
        f"minutes with {torch.get_num_threads()} thread(s), and some more for data and evaluation."
    )


def finished(request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """The comparisons that are there, of earlier calls too: source and comparison.json."""
    for source in SOURCES:
        path = request.comparison(source).output_dir / "comparison.json"
        if path.exists():
            yield source, json.loads(path.read_text(encoding="utf-8"))


def report(request: Request, found: Mapping[str, dict[str, Any]]) -> str:
    """The page: a table of all data sets, what it says about each, and how it was done."""
    header = [f"{source} ({SOURCES[source].about})" for source in found]
    first = next(iter(found.values()))["settings"]
    lines = [
        "# Few labels, many images",
        "",
        f"Accuracy with {first['labels_per_class']} labelled images of each class, mean ± sample "
        f"standard deviation of {first['seeds']} draws of the labels; the same draws for every "
        "model. All training images were there without labels for pretraining. Written by "
        "`python scripts/experiments/low_labels.py`.",
        "",
        f"| method | model | {' | '.join(header)} |",
        f"|---|---|{'---|' * len(found)}",
        *table_rows(found),
        "",
        "![Each draw and the means, by data set and method](low_labels.png)",
    ]
    for source, comparison in found.items():
        settings = comparison["settings"]
        lines += [
            "",
            f"## {source}",
            "",
            f"{settings['classes']} classes, {settings['train_images']:,} training images, "
            f"{settings['labels']} of them with labels, and {settings['eval_images']:,} to "
            "evaluate on.",
            "",
            *(f"- {line}" for line in comparison["conclusion"]),
            *(f"- {line}" for line in costs(settings)),
        ]
    return "\n".join([*lines, "", "## How it was done", "", *how(request), ""])


def table_rows(found: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """A row for each method and model, in the order of the first comparison."""
    values = {
        source: {(row["method"], row["model"]): row for row in comparison["rows"]}
        for source, comparison in found.items()
    }
    for method, model in next(iter(values.values())):
        rows = [of_source.get((method, model)) for of_source in values.values()]
        yield f"| {METHODS[method]} | {model} | {' | '.join(map(_cell, rows))} |"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    return f"{row['mean']:.3f}{spread}"


def costs(settings: Mapping[str, Any]) -> Iterator[str]:
    """What each fine-tuned model was given, a line each."""
    for model in settings["models"]:
        if "steps" in model:
            yield (
                f"{model['name']}: {model['steps']:,} steps of fine-tuning, "
                f"{model['total_flops'] / 1e12:.2f} TFLOPs in all, base learning rate "
                f"{model['base_lr']:g}."
            )


def how(request: Request) -> list[str]:
    """The settings that all data sets share."""
    grid = ", ".join(f"{lr:g}" for lr in request.base_lrs)
    return [
        f"- Pretraining: `mae-small-data`, {request.pretrain_steps:,} steps of 32 images.",
        f"- Fine-tuning: `finetune-small-data`, {request.finetune_steps} steps of 32 images for "
        "every model; random weights also with the compute of pretraining as more steps. Every "
        f"model has its own best base learning rate of {grid}, chosen on images held out of the "
        "training split, with the labels of a draw of its own. Layer-wise decay of 0.75 is for "
        "pretrained weights alone: from scratch it would hold back layers that know nothing yet.",
        "- Linear probe: strength by cross-validation on the labelled images alone. kNN: nothing "
        "is tuned.",
        "- Turned and flipped up and down in training: `defects` and `bands`, for all models.",
        "- Nothing was chosen on the images that are evaluated on.",
    ]


def picture(found: Mapping[str, dict[str, Any]]) -> Image.Image:
    """The plots of all data sets below each other, each with its name."""
    plots = []
    for comparison in found.values():
        methods: dict[str, dict[str, list[float]]] = {}
        for row in comparison["rows"]:
            methods.setdefault(METHODS[row["method"]], {})[row["model"]] = row["accuracies"]
        models = dict.fromkeys(row["model"] for row in comparison["rows"])
        order = [m["name"] for m in comparison["settings"]["models"] if m["name"] in models]
        plots.append(comparison_plot(methods, order))
    width = max(plot.width for plot in plots)
    height = sum(plot.height + TITLE_HEIGHT for plot in plots)
    canvas, top = Image.new("RGB", (width, height), "white"), 0
    for source, plot in zip(found, plots, strict=True):
        font = ImageFont.load_default(size=26)
        ImageDraw.Draw(canvas).text((16, top + 6), source, fill="black", font=font)
        canvas.paste(plot, (0, top + TITLE_HEIGHT))
        top += plot.height + TITLE_HEIGHT
    return canvas


if __name__ == "__main__":
    main(tyro.cli(Request, description=__doc__))
