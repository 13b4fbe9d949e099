"""Reading ahead in a background thread, so that a slow read does not stall whoever consumes."""

import atexit
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from queue import Empty, Queue
from typing import Generic, TypeVar

T = TypeVar("T")
PATIENCE = 5.0  # seconds that closing waits for a read that is under way


class ReadAhead(Generic[T]):
    """Items of a generator, read a few ahead; the thread starts with the first one asked for.

    After an error of the generator there is one item None, in its turn; the error is in `error`.

    Args:
        depth: items that lie ready at most, beside the one that is being read.
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self.error: BaseException | None = None
        self._items = items
        self._ready: Queue[tuple[T | None] | None] = Queue()
        self._free = threading.Semaphore(depth)
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[T | None]:
        return self

    def __next__(self) -> T | None:
        if self._is_closed:
            raise StopIteration
        if self._thread is None:
            self._start()
        item = self._ready.get()
        self._free.release()
        if item is None:
            self._is_closed = True
            raise StopIteration
        return item[0]

    def close(self) -> None:
        """End the thread and the generator."""
        self._is_closed = True
        self._free.release()  # the thread may be waiting for room
        atexit.unregister(self.close)
        if self._thread is None:
            self._items.close()
        else:
            self._thread.join(PATIENCE)
        while not self._ready.empty():  # what it held is large
            try:
                self._ready.get_nowait()
            except Empty:
                break

    def _start(self) -> None:
        # A daemon, since a read of the network may never end; but ended before the interpreter is.
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def _read(self) -> None:
        with closing(self._items):
            try:
                for item in self._items:
                    self._free.acquire()
                    if self._is_closed:
                        return
                    self._ready.put((item,))
            except BaseException as error:  # whatever it is, it belongs to the consumer
                self.error = error
                self._ready.put((None,))
            self._ready.put(None)
