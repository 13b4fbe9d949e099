"""`hf-vitmae VERB --help`: a screen with examples and the flags that are used most.

`--help-all` is tyro's own page, with every flag.
"""

import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hf_vitmae.command_line.flags import Flag, first_sentence, flags_of

WIDEST = 100  # columns

DATA = ("--data.source", "--data.eval-share", "--data.num-workers")
LENGTH = ("--output-dir", "--epochs", "--batch-size", "--optim.base-lr", "--precision")


class Page(NamedTuple):
    """What a verb's page shows beside its recipes."""

    usage: str
    examples: tuple[str, ...]
    flags: tuple[str, ...]


PAGES = {
    "pretrain": Page(
        "RECIPE [FLAGS]",
        (
            "hf-vitmae pretrain mae-cpu --data.source emoji",
            "hf-vitmae pretrain mae-small-data --data.source ./photos --output-dir runs/a",
            "accelerate launch scripts/pretrain.py mae-base --data.source user/dataset",
        ),
        (*DATA, *LENGTH, "--model.image-size", "--model.num-channels", "--dry-run"),
    ),
    "finetune": Page(
        "RECIPE [FLAGS]",
        (
            "hf-vitmae finetune finetune-small-data --model runs/a/model --data.source ./labelled",
            "hf-vitmae finetune segment-cpu --model runs/a/model --data.source defects",
        ),
        ("--model", *DATA, *LENGTH, "--dry-run"),
    ),
    "linear-probe": Page(
        "RECIPE [FLAGS]",
        ("hf-vitmae linear-probe linear-probe-few --model runs/a/model --data.source ./labelled",),
        ("--model", *DATA, "--output-dir"),
    ),
    "knn": Page(
        "MODEL [FLAGS]",
        ("hf-vitmae knn --model runs/a/model --data.source ./labelled",),
        ("--model", *DATA, "--k", "--output"),
    ),
    "evaluate": Page(
        "[FLAGS]",
        ("hf-vitmae evaluate --model runs/b/model --data.source ./labelled",),
        ("--model", "--data.source", "--data.split", "--output-dir", "--batch-size"),
    ),
    "compare": Page(
        "SOURCE [FLAGS]",
        ("hf-vitmae compare ./labelled --models runs/a/model random --output-dir runs/compare",),
        ("--models", "--methods", "--labels-per-class", "--seeds", "--output-dir"),
    ),
    "reconstruct": Page(
        "MODEL IMAGES... [FLAGS]",
        (
            "hf-vitmae reconstruct runs/a/model photo.jpg",
            "hf-vitmae reconstruct user/repo ./photos --mask-ratio 0.5 --output panel.png",
            "hf-vitmae reconstruct runs/a/model photo.jpg --mask drawn.png",
        ),
        ("--output", "--mask-ratio", "--mask-pattern", "--mask", "--statistics", "--seed"),
    ),
    "look": Page(
        "MODEL IMAGES... [FLAGS]",
        (
            "hf-vitmae look runs/a/model photo.jpg",
            "hf-vitmae look runs/a/model ./photos --kind anomaly --output anomaly.png",
            "hf-vitmae look runs/a/model photo.jpg --kind neighbors --gallery ./photos",
            "hf-vitmae look runs/a/model --kind positions",
        ),
        ("--kind", "--output", "--num-images", "--layer", "--gallery", "--mask-ratios"),
    ),
    "report": Page(
        "RUN... [FLAGS]",
        ("hf-vitmae report runs/a", "hf-vitmae report runs/a runs/b --output compared.html"),
        ("--output",),
    ),
    "app": Page(
        "MODEL [FLAGS]",
        ("hf-vitmae app runs/a/model", "hf-vitmae app user/name --gallery ./photos"),
        ("--port", "--host", "--gallery", "--gallery-images"),
    ),
    "embed": Page(
        "MODEL SOURCE [FLAGS]",
        ("hf-vitmae embed runs/a/model ./photos --output features",),
        ("--output", "--features", "--split", "--batch-size"),
    ),
    "convert": Page(
        "SOURCE DESTINATION [FLAGS]",
        (
            "hf-vitmae convert facebook/vit-mae-base vit-mae-base",
            "hf-vitmae convert runs/a/model plain --to transformers",
        ),
        ("--to", "--encoder-only", "--image"),
    ),
    "export": Page(
        "MODEL OUTPUT [FLAGS]",
        ("hf-vitmae export runs/b/model model.onnx",),
        ("--format", "--what"),
    ),
    "push": Page(
        "RUN_OR_MODEL REPO [FLAGS]",
        (
            "hf-vitmae push runs/a user/my-mae --license apache-2.0",
            "hf-vitmae push runs/a my-mae --organization lab --private",
        ),
        ("--private", "--organization", "--revision", "--create-pr", "--license", "--with-space"),
    ),
    "stats": Page(
        "SOURCE [FLAGS]",
        ("hf-vitmae stats ./photos", "hf-vitmae stats ./photos --sheet views.png"),
        ("--output", "--split", "--sample", "--num-channels", "--sheet", "--num-workers"),
    ),
    "benchmark": Page(
        "data SOURCE | models [FLAGS]",
        ("hf-vitmae benchmark data ./photos", "hf-vitmae benchmark models --sizes b"),
        ("--batch-size", "--num-workers", "--rounds", "--sizes", "--dtypes", "--device"),
    ),
    "doctor": Page(
        "[RUN]",
        ("hf-vitmae doctor", "hf-vitmae doctor runs/a"),
        (),
    ),
    "demo": Page("[FLAGS]", ("hf-vitmae demo",), ("--output-dir",)),
}


def page(
    program: str, verb: str, what: str, command: Any, recipes: Mapping[str, Callable[[], Any]]
) -> str:
    """The page of a verb.

    Args:
        what: the verb in one line.
        command: a recipe, whose values are the defaults shown, or a request's class.
        recipes: by name; empty for a verb that has none.
    """
    content = PAGES[verb]
    sections = [f"usage: {program} {verb} {content.usage}", _sentence(what)]
    if recipes:
        sections.append(
            _section("recipes", [(name, _recipe(make)) for name, make in recipes.items()])
        )
    sections.append("\n".join(["examples", *(f"  {example}" for example in content.examples)]))
    if content.flags:
        flags = flags_of(command)
        rows = [_row(flags[name], with_default=not recipes) for name in content.flags]
        sections.append(_section("flags used most", rows))
    recipe = " RECIPE" if recipes else ""
    sections.append(f"{program} {verb}{recipe} --help-all shows every flag.")
    return "\n\n".join(sections)


def recipe_page(program: str, verb: str, name: str, make: Callable[[], Any]) -> str:
    """The page of one recipe: what it is, and the values of the flags that are used most."""
    flags = flags_of(make())
    rows = [_row(flags[flag], with_default=True) for flag in PAGES[verb].flags]
    about = inspect.getdoc(make) or ""
    return "\n\n".join(
        [
            f"usage: {program} {verb} {name} [FLAGS]",
            about,
            _section("flags used most", rows),
            f"{program} {verb} {name} --help-all shows all {len(flags)} flags.",
        ]
    )


def _row(flag: Flag, with_default: bool) -> tuple[str, str]:
    is_said = with_default and flag.default not in (None, "", ())
    default = f" ({_value(flag.default)})" if is_said else ""
    return flag.name, flag.what + default


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _recipe(make: Callable[[], Any]) -> str:
    return first_sentence(inspect.getdoc(make) or "")


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A title above names and what they are, in two columns, each on one line."""
    width = max(len(name) for name, _ in rows)
    room = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns) - width - 4
    lines = [
        f"  {name:{width}}  {textwrap.shorten(what, max(room, 20), placeholder=' ...')}"
        for name, what in rows
    ]
    return "\n".join([title, *lines])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
