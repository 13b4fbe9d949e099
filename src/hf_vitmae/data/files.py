"""Image and parquet files on disk, grouped into splits and classes by the folders that they lie in.

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

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm".split()
    + ".png .pnm .ppm .tga .tif .tiff .webp".split()
)
TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("validation", "val", "valid", "dev", "test", "testing")  # in order of preference
_SPLIT_NAMES = TRAIN_NAMES + EVAL_NAMES
_SPLIT_WORD = re.compile(rf"({'|'.join(_SPLIT_NAMES)})(?![a-z0-9])", re.IGNORECASE)


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


def parquet_splits(folder: Path, files: list[str]) -> dict[str, list[str]]:
    """Group parquet files into splits by the first word of a folder or of the file: {split: files}.

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


def find_parquet(source: str) -> tuple[Path, list[str]]:
    """Parquet files of a file name or glob: their folder, and sorted paths from it.

    Raises:
        FileNotFoundError: if the glob matches no parquet file.
    """
    path = Path(source)
    if path.is_file():
        return path.parent, [path.name]
    found = glob.glob(source, recursive=True)
    found = sorted(file for file in found if file.lower().endswith(".parquet"))
    if not found:
        raise FileNotFoundError(f"{source!r} matches no .parquet file; check the pattern.")
    folder = Path(os.path.commonpath([Path(file).parent for file in found]))
    return folder, [Path(file).relative_to(folder).as_posix() for file in found]


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


def _group(folder: Path, files: list[str], keys: list[str | None]) -> dict[str, list[int]] | None:
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
