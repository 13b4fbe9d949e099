"""Image files, parquet files and tars, grouped into splits and classes by where they lie.

`datasets` has a folder reader of its own; it is not used, because it guesses splits from file and
folder names (a flat folder holding `scan_test_1.png` keeps only that file; classes called
`training` and `test_images` become splits and the other classes vanish) and takes a millisecond a
file for a listing that it then keeps in a cache.
"""

import glob
import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .remote import is_remote, remote_glob

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm".split()
    + ".png .pnm .ppm .tga .tif .tiff .webp".split()
)
ARRAY_SUFFIX = ".npy"  # an image only where there is none of those: beside one it holds features
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("validation", "val", "valid", "dev", "test", "testing")  # in order of preference
_SPLIT_NAMES = TRAIN_NAMES + EVAL_NAMES
_SPLIT_WORD = re.compile(rf"({'|'.join(_SPLIT_NAMES)})(?![a-z0-9])", re.IGNORECASE)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ImageFile(NamedTuple):
    """A file that holds an image, or the label map of one (see `label_maps`)."""

    path: str  # from the folder that was listed
    place: str  # where below its split, with `images`, `annotations` and the like left out
    is_label_map: bool = False


def list_files(folder: Path, suffixes: frozenset[str]) -> list[str]:
    """Files with one of the suffixes, of any case, at any depth: sorted paths from the folder.

    Hidden files and folders (`.DS_Store`, `._x.jpg`, `__MACOSX`) are passed over; links are
    followed.
    """
    found = []
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not _hidden(f) and not _leads_back(path, f)]
        names = [n for n in names if not _hidden(n) and Path(n).suffix.lower() in suffixes]
        found.extend(Path(path, name).relative_to(folder).as_posix() for name in names)
    return sorted(found)


def is_array(file: str) -> bool:
    """Whether a file is an array of numpy by its name."""
    return file.lower().endswith(ARRAY_SUFFIX)


def image_splits(folder: Path, files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Group a folder's images by the sub-folders that are splits, which their places then lack.

    The sub-folders are splits if one is called `train`, or if all have names of splits; else all is
    `train`.

    Raises:
        ValueError: if there are splits and also an image in none of them.
    """
    keys = [_first_folder(file.place) for file in files]
    splits = _group(folder, [file.path for file in files], keys)
    if splits is None:
        return {TRAIN_NAMES[0]: files}
    return {name: [_below_split(files[i]) for i in inside] for name, inside in splits.items()}


def shard_splits(folder: Path | str, files: list[str]) -> dict[str, list[str]]:
    """Group parquet files or tars into splits by the first word of a folder or of the file.

    Raises:
        ValueError: if there are splits and also a file in none of them.
    """
    splits = _group(folder, files, [_split_word(file) for file in files])
    if splits is None:
        return {TRAIN_NAMES[0]: files}
    return {name: [files[i] for i in inside] for name, inside in splits.items()}


def class_folders(files: list[str]) -> list[str] | None:
    """The class of each image, its first folder; None for all if an image lies in no folder."""
    classes = [folder for file in files if (folder := _first_folder(file)) is not None]
    return classes if len(classes) == len(files) else None


def is_parquet(file: str) -> bool:
    """Whether a file is parquet by its name."""
    return file.lower().endswith(".parquet")


def is_tar(file: str) -> bool:
    """Whether a file is a tar, which may be compressed, by its name."""
    return file.lower().endswith(TAR_ENDINGS)


def find_shards(source: str) -> tuple[str, list[str]]:
    """Parquet files or tars of a file name, a URL or a pattern: their folder, sorted paths from it.

    A pattern has *, ?, [0-9] or {000..099}; a URL only the first and the last.

    Raises:
        FileNotFoundError: if the pattern matches neither.
    """
    found = [file for pattern in _expand_braces(source) for file in _match(pattern)]
    found = sorted(filter(is_parquet, found)) or sorted(filter(is_tar, found))
    if not found:
        raise FileNotFoundError(f"{source!r} matches no .parquet or .tar file; check the pattern.")
    folder = os.path.commonprefix([file.rpartition("/")[0] + "/" for file in found])
    folder = folder.rpartition("/")[0]
    return folder, [file[len(folder) + 1 :] if folder else file for file in found]


def is_pattern(source: str) -> bool:
    """Whether a source may stand for several files."""
    return glob.has_magic(source) or _BRACES.search(source) is not None


def _expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` is three files."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [file for number in numbers for file in _expand_braces(before + number + after)]


def _match(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    if "*" not in pattern:
        return [pattern]
    return remote_glob(pattern)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _leads_back(parent: str, name: str) -> bool:
    """Whether a folder is a link to one that holds it: following it would never end."""
    path = Path(parent, name)
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _below_split(file: ImageFile) -> ImageFile:
    return file._replace(place=file.place.partition("/")[2])


def _first_folder(file: str) -> str | None:
    parts = PurePosixPath(file).parts
    return parts[0] if len(parts) > 1 else None


def _split_word(file: str) -> str | None:
    """The split that a folder or the file is named for: `data/train-0.parquet` is train."""
    matches = map(_SPLIT_WORD.match, PurePosixPath(file).parts)
    return next((match[1].lower() for match in matches if match), None)


def _group(
    folder: Path | str, files: list[str], keys: list[str | None]
) -> dict[str, list[int]] | None:
    """Positions of the files by key, if the keys are names of splits; None if they are not."""
    names = {key.lower() for key in keys if key is not None}
    all_are_splits = bool(names) and None not in keys and names <= set(_SPLIT_NAMES)
    if names.isdisjoint(TRAIN_NAMES) and not all_are_splits:
        return None
    splits: dict[str, list[int]] = {}
    for position, (file, key) in enumerate(zip(files, keys, strict=True)):
        if key is None:
            raise ValueError(
                f"{folder} has the splits {', '.join(sorted(names))} and also {file!r}, which is "
                "in none of them; move it into one, or name one split's folder as the source."
            )
        splits.setdefault(key, []).append(position)
    return splits
