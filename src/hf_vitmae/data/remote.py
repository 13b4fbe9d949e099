"""Files of the network by their URL: what fails is tried again, and in the end said in one line.

Read through fsspec. Connections break in days of training: a read that fails for that is repeated
after a pause, from the same place; what no repetition mends is an error at once.
"""

import io
import time
from asyncio import TimeoutError as AsyncTimeout  # before Python 3.11 a type of its own
from collections.abc import Callable
from typing import BinaryIO, TypeVar, cast

import fsspec
from huggingface_hub.errors import OfflineModeIsEnabled

PAUSES = (1.0, 4.0, 15.0, 30.0)  # seconds before each further try
MAY_PASS = (408, 425, 429)  # HTTP: took too long, too early, too many; and all from 500 on
HTTP_LIBRARIES = {"aiohttp", "httpx", "httpx2"}  # whose errors need not be of the system's kinds

T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def open_remote(url: str) -> BinaryIO:
    """Open a URL to be read at any place.

    Raises:
        FileNotFoundError: if there is nothing.
        OSError: if it cannot be read, also after several tries.
        ValueError: if its server gives only whole files, or another package is needed.
    """
    filesystem, inside = file_system(url)
    file = cast(BinaryIO, patiently(url, lambda: filesystem.open(inside, "rb")))
    try:
        file.seek(0, io.SEEK_END)  # reads nothing; `seekable` is true of all
    except ValueError as error:
        file.close()
        raise ValueError(_only_whole(url)) from error
    file.seek(0)
    return io.BufferedReader(_PatientFile(url, file))


def remote_stamp(url: str) -> str:
    """The size of a file and when it was changed, as far as its place tells."""
    filesystem, inside = file_system(url)
    info = patiently(url, lambda: filesystem.info(inside))
    known = ("size", "etag", "ETag", "mtime", "last_modified", "LastModified", "created")
    return " ".join(str(info[word]) for word in known if info.get(word) is not None)


def remote_glob(pattern: str) -> list[str]:
    """The URLs that match a pattern with `*`."""
    filesystem, inside = file_system(pattern)
    found = patiently(pattern, lambda: filesystem.glob(inside))
    return [filesystem.unstrip_protocol(str(file)) for file in found]


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """What reads a URL, and how it calls what lies there.

    Raises:
        ValueError: if nothing reads such URLs, or it needs another package (HTTP: aiohttp).
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be opened: {_one_line(error)}; install what it needs, or download it "
            "and name the copy."
        ) from error


def patiently(url: str, call: Callable[[], T]) -> T:
    """What `call` gives, which reads from a URL; repeated where the network may be at fault.

    Raises:
        FileNotFoundError: if there is nothing at the URL.
        OSError: if it fails each time, or for a reason that stays.
    """
    for pause in (*PAUSES, None):
        try:
            return call()
        except Exception as error:
            reason = _reason(error)
            if not _is_of_the_network(reason):
                raise
            if isinstance(reason, FileNotFoundError) or _status(reason) in (404, 410):
                raise FileNotFoundError(f"There is nothing at {url}; check the address.") from None
            if pause is None or _stays(reason):
                tries = "" if _stays(reason) else f", tried {len(PAUSES) + 1} times"
                raise OSError(
                    f"{url} cannot be read{tries}: {_one_line(reason)}; check the address and the "
                    "connection, or download it and name the copy."
                ) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


class _PatientFile(io.RawIOBase):
    """A file of the network, each read of which is repeated where it fails."""

    def __init__(self, url: str, file: BinaryIO) -> None:
        self._url, self._file = url, file

    def readinto(self, buffer: memoryview) -> int:
        start = self._file.tell()
        found = patiently(self._url, lambda: self._read_at(start, len(buffer)))
        buffer[: len(found)] = found
        return len(found)

    def _read_at(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        try:
            return self._file.read(size)
        except ValueError as error:  # that of fsspec where a server ignores the range asked for
            raise ValueError(_only_whole(self._url)) from error

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _reason(error: Exception) -> Exception:
    """What went wrong where fsspec says of every failure that the file is not there."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return cause if _is_of_the_network(cause) else error
    return error


def _is_of_the_network(error: Exception) -> bool:
    """Whether an error is one of reading: of the system, or of a library that speaks HTTP."""
    defined_in = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError | AsyncTimeout) or not defined_in.isdisjoint(HTTP_LIBRARIES)


def _stays(error: Exception) -> bool:
    """Whether another try would fail too: a refusal by the server, or by the system."""
    status = _status(error)
    if status is not None:
        return status < 500 and status not in MAY_PASS
    return isinstance(error, PermissionError | IsADirectoryError | OfflineModeIsEnabled)


def _status(error: Exception) -> int | None:
    """The number of an answer by HTTP that is an error."""
    response = getattr(error, "response", None)  # where httpx keeps it
    status = getattr(error, "status", getattr(response, "status_code", None))
    return status if isinstance(status, int) else None


def _only_whole(url: str) -> str:
    return (
        f"{url} comes from a server that gives only whole files, from the beginning; download it "
        "and name the copy."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
