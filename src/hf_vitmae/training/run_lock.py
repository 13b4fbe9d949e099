"""One process at a time in a run's folder.

The kernel frees the lock when its process ends, however it ends; workers that it forked do not
hold it (filelock closes it in them).
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

LOCK, HOLDER = ".lock", ".lock.json"
LOCK_FILES = frozenset({LOCK, HOLDER})
PATIENCE = 0.5  # seconds: `lock_holder` takes the lock for an instant
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of file systems that have none


class Holder(NamedTuple):
    """Who has a lock, as far as it is known."""

    pid: int | None = None
    host: str | None = None
    since: str | None = None
    """Date and time in UTC."""

    def __str__(self) -> str:
        if self.pid is None:
            return "another process"
        return f"process {self.pid} on {self.host} since {self.since} UTC"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made if it is not there; one process of a run does.

    At the end nothing of the lock is left, nor of folders that were made for it and stayed empty.

    Raises:
        ValueError: if another process has the lock, or the folder cannot have one.
    """
    folder = folder.expanduser().resolve()
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, timeout=PATIENCE, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is in use by {_read_holder(folder)}; wait for it, stop it, or choose "
            "another --output-dir."
        ) from None
    except OSError as error:
        raise ValueError(_explain(folder, error)) from error
    try:
        _write_holder(folder)
        yield
    finally:
        # Before the release: who opened the file meanwhile sees that its name is gone, and fails.
        for name in (HOLDER, LOCK):
            with suppress(OSError):
                (folder / name).unlink()
        lock.release()
        for path in new_folders:
            with suppress(OSError):  # the run is in it
                path.rmdir()


def lock_holder(folder: Path) -> Holder | None:
    """Who has the lock of a folder, if someone has; writes nothing."""
    try:
        import fcntl
    except ImportError:  # not on Windows: after a crash this is who had it
        return _read_holder(folder) if (folder / HOLDER).exists() else None
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(folder)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _write_holder(folder: Path) -> None:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    holder = Holder(os.getpid(), socket.gethostname(), now)
    with suppress(OSError):  # it only serves messages
        (folder / HOLDER).write_text(json.dumps(holder._asdict()) + "\n", encoding="utf-8")


def _read_holder(folder: Path) -> Holder:
    """What the holder said of itself, if that can be read."""
    try:
        return Holder(**json.loads((folder / HOLDER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Holder()


def _explain(folder: Path, error: OSError) -> str:
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{folder} is not a folder; choose another --output-dir."
    if error.errno in NO_LOCKS:
        return (
            f"{folder} is on a file system without file locks ({error.strerror}), where a second "
            "start of a run could not be told; choose another --output-dir, or have it mounted "
            "with them (Lustre: -o flock)."
        )
    return (
        f"{folder} cannot be written ({error.strerror}); mend that, or choose another --output-dir."
    )
