"""`hf-vitmae <verb>`: the command line, derived by tyro from the recipes and request dataclasses.

Exit codes: 0; 2 for a wrong command line or recipe; 1 for an error, said in one line; 130 after
SIGINT, 143 after SIGTERM. Set HF_VITMAE_TRACEBACK=1 to see where an error came from.
"""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_vitmae.command_line.output import SWITCHES, run_so, take_switches
from hf_vitmae.training import interrupts

PROGRAM = "hf-vitmae"
VERBS = {
    "pretrain": "pretrain a model on images without labels",
    "finetune": "fine-tune a pretrained model for classification or segmentation",
    "linear-probe": "train a linear classifier on the features of a model that stays as it is",
    "knn": "classify by the nearest neighbours among a model's features, without training",
    "evaluate": "measure a classifier or a segmentation model on labelled images",
    "compare": "find out whether pretraining helped: models side by side, with few labels",
    "reconstruct": "draw what a model makes of images with hidden patches",
    "look": "draw attention, features, nearest images, anomalies, positions of a model",
    "report": "write one HTML file of a run, or of several side by side: curves, pictures, recipe",
    "app": "open a page in the browser to try a model on: drop an image, hide parts of it",
    "embed": "write features of images to parquet, a data set that can be opened anywhere",
    "convert": "turn checkpoints of transformers, timm, MAE and big_vision into ours, and back",
    "export": "write a model as an ONNX graph or a program of torch.export",
    "push": "share what a run made on the Hub: model, card, metrics and pictures in one commit",
    "stats": "look through images: sizes, bad files, duplicates, classes, mean and deviation",
    "benchmark": "measure how many images per second each stage of the data pipeline gives",
    "doctor": "look at this machine and at a run: what is missing, what would be resumed and why",
    "demo": "pretrain, look, fine-tune and load again on the embedded emoji, in minutes",
}
RECIPE_TABLES = {
    "pretrain": ("PRETRAIN",),
    "finetune": ("FINETUNE", "SEGMENT"),
    "linear-probe": ("LINEAR_PROBE",),
}
COLORS = re.compile(r"\x1b\[[0-9;]*m")
USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError, MemoryError)


class CommandLineError(Exception):
    """The command line or the recipe is wrong."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    verb, *rest = arguments
    try:
        if verb == "completion":
            print(_completion(*rest[:1]))
            return 0
        _check_verb(verb)
        if _is_help(rest):
            print(_help(verb, rest))
            return 0
        with interrupts.raised():
            _run_verb(verb, rest)
    except CommandLineError as error:
        return _report(verb, error, code=2)
    except USER_ERRORS as error:
        if os.environ.get("HF_VITMAE_TRACEBACK"):
            raise
        return _report(verb, error, code=1)
    except (KeyboardInterrupt, interrupts.Interrupted) as interruption:
        code = getattr(interruption, "exit_code", 128 + signal.SIGINT)
        return _report(verb, "interrupted; the same command goes on from the last checkpoint", code)
    return 0


def run_script(path: str) -> int:
    """Run the verb that a file of scripts/ is named for; returns the exit code.

    Python searches a script's own folder for packages first, where `evaluate.py` would be found
    for the package `evaluate`: it is left out.
    """
    script = Path(path).resolve()
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != script.parent]
    return main([script.stem.replace("_", "-"), *sys.argv[1:]])


def _run_verb(verb: str, rest: list[str]) -> None:
    """Parse the arguments of one verb and run its task; only what the verb needs is imported."""
    with _one_line_errors(verb):
        manner, rest = take_switches(rest)
        rest = ["--help" if argument == "--help-all" else argument for argument in rest]
        request = PARSERS[verb](f"{PROGRAM} {verb}", rest)
    task = importlib.import_module(type(request).__module__)  # a recipe lies beside its task

    def run() -> Any:
        result = task.run(request)
        if getattr(request, "push_to_hub", None):
            importlib.import_module("hf_vitmae.tasks.push").push_result(request)
        return result

    if getattr(request, "dry_run", False):
        _tell_plan(run)
    else:
        run_so(manner, run)


def _tell_plan(run: Callable[[], Any]) -> None:
    from hf_vitmae.tasks.plan import DryRun

    try:
        run()
    except DryRun as plan:
        print(plan)


def _is_help(rest: Sequence[str]) -> bool:
    """Whether the short page is asked for: of a verb, or of a recipe by its name."""
    return bool(rest) and rest[-1] in ("-h", "--help") and len(rest) <= 2


def _help(verb: str, rest: Sequence[str]) -> str:
    from hf_vitmae.command_line.short_help import page, recipe_page

    recipes = _recipes(verb)
    if len(rest) == 2 and rest[0] in recipes:
        return recipe_page(PROGRAM, verb, rest[0], recipes[rest[0]])
    return page(PROGRAM, verb, VERBS[verb], _command(verb, recipes), recipes)


def _recipes(verb: str) -> dict[str, Callable[[], Any]]:
    """Those of a verb, by name."""
    from hf_vitmae import recipes

    tables = RECIPE_TABLES.get(verb, ())
    return {name: make for table in tables for name, make in getattr(recipes, table).items()}


def _command(verb: str, recipes: Mapping[str, Callable[[], Any]]) -> Any:
    """What has a verb's flags: one of its recipes, or the class of its request."""
    if recipes:
        return next(iter(recipes.values()))()
    if verb == "demo":
        from hf_vitmae.recipes.demo import demo

        return demo()
    return _request_class(verb)


def _completion(shell: str = "bash") -> str:
    from hf_vitmae.command_line.completion import script
    from hf_vitmae.command_line.flags import flags_of

    recipes = {verb: _recipes(verb) for verb in VERBS}
    flags = {verb: flags_of(_command(verb, recipes[verb])) for verb in VERBS}
    choices = {
        verb: {flag.name: flag.choices for flag in known.values()} | dict.fromkeys(SWITCHES, ())
        for verb, known in flags.items()
    }
    try:
        return script(
            PROGRAM, {verb: list(names) for verb, names in recipes.items()}, choices, shell
        )
    except ValueError as error:
        raise CommandLineError(str(error)) from error


def _parse_recipe_of(verb: str, program: str, rest: list[str]) -> Any:
    recipes = _recipes(verb)
    name = next((argument for argument in rest if not argument.startswith("-")), None)
    if name is not None and rest[0] == name and name not in recipes:
        close = difflib.get_close_matches(name, recipes, n=1)
        mend = f"did you mean {close[0]}?" if close else f"the recipes are {', '.join(recipes)}."
        raise CommandLineError(f"there is no recipe {name!r}; {mend}")
    return _parse_recipe(recipes, program, rest)


def _parse_request(verb: str, program: str, rest: list[str]) -> Any:
    """The request of a verb that has no recipes."""
    import tyro

    return tyro.cli(_request_class(verb), prog=program, args=rest)


def _request_class(verb: str) -> type:
    """It lies beside its task and is named for the verb."""
    return getattr(importlib.import_module(f"hf_vitmae.tasks.{verb}"), f"{verb.title()}Request")


def _parse_demo(program: str, rest: list[str]) -> Any:
    import tyro

    from hf_vitmae.recipes.demo import demo
    from hf_vitmae.tasks.demo import DemoRecipe

    return tyro.cli(DemoRecipe, prog=program, args=rest, default=demo())


PARSERS = {
    "pretrain": partial(_parse_recipe_of, "pretrain"),
    "finetune": partial(_parse_recipe_of, "finetune"),
    "linear-probe": partial(_parse_recipe_of, "linear-probe"),
    "knn": partial(_parse_request, "knn"),
    "evaluate": partial(_parse_request, "evaluate"),
    "compare": partial(_parse_request, "compare"),
    "reconstruct": partial(_parse_request, "reconstruct"),
    "look": partial(_parse_request, "look"),
    "report": partial(_parse_request, "report"),
    "app": partial(_parse_request, "app"),
    "embed": partial(_parse_request, "embed"),
    "convert": partial(_parse_request, "convert"),
    "export": partial(_parse_request, "export"),
    "push": partial(_parse_request, "push"),
    "stats": partial(_parse_request, "stats"),
    "benchmark": partial(_parse_request, "benchmark"),
    "doctor": partial(_parse_request, "doctor"),
    "demo": _parse_demo,
}


def _parse_recipe(recipes: Mapping[str, Callable[[], Any]], program: str, rest: list[str]) -> Any:
    """A recipe by name, with flags over its fields.

    Raises:
        CommandLineError: for both `--steps` and `--epochs`; one alone takes the place of what the
        recipe has.
    """
    import tyro

    flags = {argument.split("=")[0] for argument in rest}
    if {"--steps", "--epochs"} <= flags:
        raise CommandLineError("give either --steps or --epochs, not both.")
    defaults = {name: (inspect.getdoc(make) or "", make()) for name, make in recipes.items()}
    if "--epochs" in flags:
        defaults = {name: (text, _by_epochs(recipe)) for name, (text, recipe) in defaults.items()}
    return tyro.extras.overridable_config_cli(defaults, prog=program, args=rest)


def _by_epochs(recipe: Any) -> Any:
    """The recipe with its length in epochs, so that `--epochs` replaces all that it says of it."""
    if getattr(recipe, "steps", None) is None:
        return recipe
    return dataclasses.replace(recipe, steps=None, epochs=recipe.epochs or 1.0)


@contextlib.contextmanager
def _one_line_errors(verb: str) -> Iterator[None]:
    """Turn tyro's framed message, or a recipe's `ValueError`, into one `CommandLineError`.

    tyro colours what it says wherever stdout is a terminal; with NO_COLOR (https://no-color.org) it
    writes its help where there is none.
    """
    message, page = io.StringIO(), io.StringIO()
    no_color = bool(os.environ.get("NO_COLOR"))
    plain = contextlib.redirect_stdout(page) if no_color else contextlib.nullcontext()
    try:
        with contextlib.redirect_stderr(message), plain:
            yield
    except SystemExit as error:
        if not error.code:
            print(page.getvalue(), end="")
            raise
        raise CommandLineError(_unframe(message.getvalue(), verb)) from None
    except ValueError as error:
        raise CommandLineError(str(error)) from error


def _unframe(text: str, verb: str) -> str:
    """What tyro's frame says, what it suggests, and a pointer to the help, on one line."""
    sections: list[list[str]] = [[]]
    for line in COLORS.sub("", text).splitlines()[1:]:  # the first has the frame's title
        words = line.strip("│╰╯|+ ")
        if words.strip("─-"):
            sections[-1].append(words)
        else:
            sections.append([])
    said, *others = [" ".join(section) for section in sections if section]
    said = re.sub(r"^Error parsing \w+: ", "", said.split(" Got errors:")[0].rstrip(".") + ".")
    if perhaps := re.search(r"Perhaps you meant:\s+(--\S+)", " ".join(others)):
        said += f" Did you mean {perhaps[1]}?"
    choices = [section for section in others if section.startswith("Available subcommands")]
    return " ".join([said, *choices, f"({PROGRAM} {verb} --help shows all flags)"])


def _check_verb(verb: str) -> None:
    if verb in VERBS:
        return
    close = difflib.get_close_matches(verb, VERBS, n=1)
    mend = f"did you mean {close[0]}?" if close else f"the verbs are {', '.join(VERBS)}."
    raise CommandLineError(f"there is no verb {verb!r}; {mend}")


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    return f"""usage: {PROGRAM} VERB ...   ({PROGRAM} VERB --help shows examples and flags)

{verbs}

Every verb takes --quiet, --verbose and --json (the result alone, for programs; what people read
goes to stderr). Completion of verbs, recipes and flags: {PROGRAM} completion bash >> ~/.bashrc
New here? `{PROGRAM} demo` takes some minutes; `{PROGRAM} doctor` looks at this machine."""


def _report(verb: str, error: object, code: int) -> int:
    line = " ".join(str(error).split()) or type(error).__name__
    print(f"{PROGRAM} {verb}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
