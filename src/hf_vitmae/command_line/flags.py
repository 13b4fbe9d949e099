"""The flags of a recipe or a request, with what their docstrings say of them.

tyro parses the command line from the same dataclasses; this is what the short help and completion
need without building its parsers.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from tyro.conf import Positional


class Flag(NamedTuple):
    """One flag, such as `--data.source`."""

    name: str
    default: Any
    what: str
    """The first sentence of its docstring."""
    choices: tuple[str, ...] = ()
    """The values that it takes, where these are a few words."""


def flags_of(command: Any) -> dict[str, Flag]:
    """Every flag by its name: of a recipe, with its values, or of a request's class."""
    return {flag.name: flag for flag in _flags(command, "--")}


def _flags(command: Any, prefix: str) -> Iterator[Flag]:
    owner: Any = command if inspect.isclass(command) else type(command)
    kinds = _kinds(owner)
    for field in dataclasses.fields(owner):
        kind = kinds[field.name]
        if _is_positional(kind):
            continue
        default = _default(field) if inspect.isclass(command) else getattr(command, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(default):
            yield from _flags(default, f"{name}.")
        else:
            what = first_sentence(_texts(owner).get(field.name, ""))
            yield Flag(name, default, what, tuple(dict.fromkeys(_words(kind))))


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


@cache
def _kinds(owner: type) -> dict[str, Any]:
    """The annotations of a dataclass by field, with what `Annotated` adds to them."""
    return get_type_hints(owner, include_extras=True)


def _is_positional(kind: Any) -> bool:
    """Whether tyro takes a field by its place and not by a name."""
    return any(mark is Positional for mark in getattr(kind, "__metadata__", ()))


def _words(kind: Any) -> Iterator[str]:
    """The texts of every `Literal` in an annotation."""
    if get_origin(kind) is Literal:
        yield from (word for word in get_args(kind) if isinstance(word, str))
    else:
        for part in get_args(kind):
            yield from _words(part)


@cache
def _texts(owner: type) -> dict[str, str]:
    """What a dataclass and those it extends say of their fields."""
    texts: dict[str, str] = {}
    for part in reversed(owner.__mro__[:-1]):
        texts |= _arguments(inspect.getdoc(part) or "") | _field_texts(part)
    return texts


def _field_texts(owner: type) -> dict[str, str]:
    """The strings that stand below fields."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(str(text.value.value))
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _arguments(docstring: str) -> dict[str, str]:
    """What the section `Args:` of a docstring says."""
    _, _, section = docstring.partition("Args:\n")
    section = section.split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def first_sentence(text: str) -> str:
    """Up to the first full stop or semicolon that ends a clause, on one line."""
    return re.split(r"(?<=\w|\)|`)[.;](?:\s|$)", " ".join(text.split()))[0]
