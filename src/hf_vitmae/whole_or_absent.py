"""Write a file or a folder whole or not at all: it gets its name when nothing is missing in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_or_absent(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A place beside `path` to write a file or folder at; at the end it is renamed to `path`.

    Nothing is at the place at first, its parents are. After an error or an interruption nothing of
    it is left, nor of the parents that were made for it, and what is at `path` stays as it was.

    Args:
        replace: a folder at `path` goes when the new one is whole; else only an empty one does.

    Raises:
        OSError: if `path` is a folder that is in use, and not to be replaced.
    """
    path = path.expanduser().resolve()
    new_parents = [parent for parent in path.parents if not parent.exists()]
    unfinished = unfinished_path(path)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)  # of a process that was killed
        yield unfinished
        if replace:
            _remove(path)
        unfinished.replace(path)
    except BaseException:
        _remove(unfinished)
        for parent in new_parents:
            with suppress(OSError):  # someone else wrote in it meanwhile
                parent.rmdir()
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is flushed to the disk before it takes its name: old text or new."""
    with whole_or_absent(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def unfinished_path(path: Path) -> Path:
    """Where `whole_or_absent` writes: hidden, and always the same."""
    return path.with_name(f".{path.name.lstrip('.')}.unfinished")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
