"""How much a command prints: as usual, next to nothing, more, or its result alone as JSON."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SWITCHES = ("--json", "--quiet", "--verbose")


class Manner(NamedTuple):
    """What of the switches was given."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


def take_switches(arguments: Sequence[str]) -> tuple[Manner, list[str]]:
    """The switches, wherever they stand, and the arguments without them.

    Raises:
        ValueError: for quiet and verbose at once.
    """
    given = {switch for switch in SWITCHES if switch in arguments}
    if {"--quiet", "--verbose"} <= given:
        raise ValueError("give either --quiet or --verbose, not both.")
    rest = [argument for argument in arguments if argument not in SWITCHES]
    return Manner(*(switch in given for switch in SWITCHES)), rest


def run_so(manner: Manner, run: Callable[[], Any]) -> Any:
    """Run a task and print in that manner; returns what it returns."""
    if manner.verbose:
        _tell_more()
    with contextlib.ExitStack() as stack:
        if manner.quiet:
            stack.enter_context(_silence())
        elif manner.json:  # what a person reads goes where errors go
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        result = run()
    if manner.json:
        print(json.dumps(plain(result), ensure_ascii=False, allow_nan=False))
    return result


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on the screen, bars and warnings of libraries included; errors are raised."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def _tell_more() -> None:
    """What libraries say of their work."""
    import datasets
    import transformers

    logging.basicConfig(level=logging.INFO)
    transformers.logging.set_verbosity_info()
    datasets.logging.set_verbosity_info()


def plain(value: Any) -> Any:
    """A result as JSON has it: what is not finite is text, as in metrics.jsonl; paths are text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if as_dict := getattr(value, "_asdict", None):
        return plain(as_dict())
    if to_list := getattr(value, "tolist", None):  # of numpy and torch
        return plain(to_list())
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
