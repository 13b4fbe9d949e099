"""Worker processes of torch's DataLoader that are replaced when they die.

Whoever serves a request keeps no state, so what was asked for and not yet delivered is asked for
once more: the answers are those of a run in which nothing happened.
"""

import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

MOST_DEATHS = 3  # without an answer in between
NAMES_SHOWN = 5
RAISED_IN_WORKER = "in DataLoader worker process"  # torch's words for errors of the server
WORKER_DIED = re.compile(r"DataLoader worker \(pid|Pin memory thread exited")


def serve(
    server: Dataset[Answer],
    requests: Iterator[Asked],
    num_workers: int,
    *,
    names: Callable[[Asked], Sequence[str]],
    pin_memory: bool = False,
) -> Generator[Answer, None, None]:
    """The answers to some requests, in their order; closing the iterator ends the workers.

    After a death the next answer comes from a single worker that is asked for nothing else: either
    all goes on, or it is known what cannot be answered.

    Args:
        names: what a request asks for, to say it of one at which workers die again and again.

    Raises:
        ValueError: if three workers died of one request.
    """
    pending = _Pending(requests)
    deaths = 0
    while True:
        asked = pending if not deaths else pending.first()
        answers = _open(server, asked, min(num_workers, 1) if deaths else num_workers, pin_memory)
        try:
            for answer in answers:
                pending.delivered()
                deaths = 0
                yield answer
            if asked is pending:
                return
        except (RuntimeError, OSError, EOFError) as error:
            if num_workers == 0 or pending.is_broken or not _is_death(error):
                raise
            deaths += 1
        finally:
            del answers  # ends the workers now rather than at the next garbage collection
        if deaths == MOST_DEATHS:
            raise ValueError(_died(names(pending.asked[0])))


class _Pending(Generic[Asked]):
    """Requests that were handed out and not answered yet, and then those that follow."""

    def __init__(self, requests: Iterator[Asked]) -> None:
        self.asked: deque[Asked] = deque()
        self.is_broken = False  # an error of the requests themselves
        self._requests = requests

    def __iter__(self) -> Iterator[Asked]:
        return chain(list(self.asked), self._new())

    def first(self) -> list[Asked]:
        """The one whose turn it is."""
        return [self.asked[0]]

    def delivered(self) -> None:
        """The first one is answered."""
        self.asked.popleft()

    def _new(self) -> Iterator[Asked]:
        self.is_broken = True
        for request in self._requests:
            self.is_broken = False
            self.asked.append(request)
            yield request
            self.is_broken = True
        self.is_broken = False


def _open(
    server: Dataset[Answer],
    asked: "_Pending[Asked] | list[Asked]",
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Answer]:
    loader = DataLoader(
        server,
        batch_size=None,  # a request is a whole batch
        sampler=asked,  # type: ignore[arg-type]
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # else opening a loader would draw from the global one
    )
    with _same_alarm():
        return iter(loader)


def _ignore_interrupts(_: int) -> None:
    """A terminal sends SIGINT to workers too; what follows is the main process's to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_death(error: Exception) -> bool:
    """Whether a worker died, or was about to when its answer was fetched."""
    if isinstance(error, RuntimeError):
        return WORKER_DIED.search(str(error)) is not None
    return RAISED_IN_WORKER not in str(error)


def _as_it_is(answer: Answer) -> Answer:
    return answer


@contextmanager
def _same_alarm() -> Iterator[None]:
    """Keep what happens when a child process ends.

    Torch would raise from a signal handler, in whatever line is running at that moment; waiting for
    the next answer finds a dead worker too, after five seconds.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "SIGCHLD"):  # torch sets none there
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        is_torchs = getattr(before, "__module__", "").startswith("torch.utils.data")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_torchs or before is None else before)


def _died(names: Sequence[str]) -> str:
    """What an error says of the images at which workers die."""
    shown = ", ".join(names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (
        f"{MOST_DEATHS} worker processes died while they read {shown}{more}; look at these files, "
        "and whether there is enough memory, or take a smaller batch or fewer --data.num-workers."
    )
