"""Which files of a folder belong to a shared model, and that none of them tells too much."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open

from hf_vitmae.hub.privacy import find_private

CONVERSION = "conversion.json"  # beside the weights: where they were converted from
LAST_CHECKPOINT = "last-checkpoint"  # what a run needs to go on elsewhere
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TEXTS = (
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "*config.json",
    CONVERSION,
    "evaluation.json",
    "results.json",
    "comparison.json",
    "metrics.jsonl",
    "recipe.yaml",
)
CODE = ("*.py",)
BINARIES = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
PICTURES = ("samples/*.png",)
CHECKPOINT = (f"{LAST_CHECKPOINT}/*.safetensors", f"{LAST_CHECKPOINT}/*.json")
BELONGS = (*WEIGHTS, *BINARIES, *TEXTS, *CODE, *PICTURES, *CHECKPOINT)
BLOCK = 2**20


@dataclass(frozen=True)
class LocalFile:
    """A file to push, with the two hashes that the Hub knows files by."""

    path: Path

    @cached_property
    def sha256(self) -> str:
        return self._hash(hashlib.sha256())

    @cached_property
    def git_hash(self) -> str:
        return self._hash(hashlib.sha1(b"blob %d\0" % self.path.stat().st_size))

    def _hash(self, running: "hashlib._Hash") -> str:
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                running.update(block)
        return running.hexdigest()


def belongs(name: str, kinds: Collection[str] = BELONGS) -> bool:
    """Whether a file of that name, relative and with slashes, is of one of the kinds."""
    return any(name.count("/") == kind.count("/") and fnmatchcase(name, kind) for kind in kinds)


def list_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """What is pushed of a folder, by name, and the names of what is not: another kind of file.

    Raises:
        FileNotFoundError: if it is no folder with a config.json. ValueError: for a link that leads
        out of it.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model (no config.json); name another folder.")
    found, left_out = {}, []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if not belongs(name):
            left_out.append(name)
        elif not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{path} is no file of its folder but leads elsewhere; put a copy there."
            )
        else:
            found[name] = path
    return found, left_out


def check_private(files: Mapping[str, Path], allowed: Collection[str] = ()) -> None:
    """Refuse texts that would give away a token, a path of this machine, or a name.

    Raises:
        ValueError: naming the file and what is in it.
    """
    for name, path in files.items():
        if belongs(name, PICTURES):
            text = _written_in_picture(path)
        elif belongs(name, (*BINARIES, *CHECKPOINT[:1])):
            text = _written_in_weights(path)
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
        found = find_private(text, allowed)
        if belongs(name, CODE):
            found = [what for what in found if _is_own(what)]
        if found:
            raise ValueError(
                f"{path} is not pushed, it holds {', '.join(found)}; take that out first."
            )


def _written_in_picture(path: Path) -> str:
    """The texts that a picture carries beside its pixels; nothing of one that cannot be read."""
    try:
        with Image.open(path) as picture:
            picture.load()  # what stands behind the pixels too
            values = [*picture.info.values(), *picture.getexif().values()]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    texts = [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]
    return "\n".join(text for text in texts if isinstance(text, str))


def _written_in_weights(path: Path) -> str:
    """The notes in a file of safetensors; nothing of one that cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return "\n".join((file.metadata() or {}).values())
    except (SafetensorError, OSError):
        return ""


def _is_own(what: str) -> bool:
    """Whether a finding in code says something of this user: code may name paths of any system."""
    own = [str(folder) for folder in (Path.home(), Path.cwd()) if folder != Path(folder.anchor)]
    return not what.startswith("a path (") or any(folder in what for folder in own)


def check_complete(files: Mapping[str, Path]) -> None:
    """Refuse a model whose weights are not all there.

    Raises:
        ValueError: if there are none, or an index names a shard that is missing.
    """
    if not any(belongs(name, BINARIES) for name in files):
        folder = files["config.json"].parent
        raise ValueError(f"{folder} has no weights (*.safetensors); only those are pushed.")
    if index := files.get("model.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shards - set(files)):
            raise ValueError(
                f"{index} names {missing[0]}, which is not there; save the model again."
            )


def replaced_weights(remote: Collection[str], local: Collection[str]) -> list[str]:
    """Weights on the Hub that a push takes away: a reader would load them in place of the new."""
    if not any(belongs(name, WEIGHTS) for name in local):
        return []
    return sorted(name for name in remote if belongs(name, WEIGHTS) and name not in local)


def clean(text: str, allowed: Collection[str] = ()) -> str:
    """A text of JSON or YAML with each private value replaced by its last part, or taken out."""

    def replace(match: "re.Match[str]") -> str:
        value = match[0]
        if not find_private(value, allowed):
            return value
        last = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        return "removed" if not last or find_private(last, allowed) else last

    return re.sub(r"[^\s\"',\[\]{}]+", replace, text)
