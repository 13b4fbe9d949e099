"""SIGTERM and SIGINT: heard at once, obeyed where nothing is lost.

Inside `deferred` a signal is a wish that `asked` reports and that the loop fulfils after the step;
every process of a run hears of it by `check`. A second SIGINT leaves at once. Outside of it,
`raised` turns a signal into an exception, so that files which are being written are tidied up.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A signal ended the work; like `KeyboardInterrupt` it is no error to be caught by accident.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that a signal ended."""
        return 128 + self.signum


_asked = 0  # signals come to the process, not to an object


def asked() -> int:
    """The signal that came since `deferred` began; 0 if none did."""
    return _asked


@contextmanager
def deferred() -> Iterator[None]:
    """Only remember SIGTERM and SIGINT meanwhile; SIGINT after one ends the process at once.

    Signals can be handled in the main thread only; in another one this does nothing.
    """
    global _asked
    _asked = 0
    with _handling(_remember):
        yield


@contextmanager
def raised() -> Iterator[None]:
    """Let SIGTERM raise `Interrupted`, as SIGINT raises `KeyboardInterrupt`."""

    def leave(signum: int, _: object) -> None:
        raise Interrupted(signum)

    with _handling(leave, [signal.SIGTERM]):
        yield


def check(accelerator: Accelerator) -> None:
    """Raise on every process if any of them was asked to stop; all must call this.

    Raises:
        Interrupted: with this process's own signal, or SIGTERM where only others had one.
    """
    if any_asked(accelerator):
        raise Interrupted(_asked or signal.SIGTERM)


def any_asked(accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop; all must call this."""
    if accelerator.num_processes == 1:
        return _asked > 0
    count = torch.tensor(float(_asked > 0), device=accelerator.device)
    return bool(cast(Any, accelerator.reduce(count, reduction="sum")).item())


def _remember(signum: int, _: object) -> None:
    global _asked
    if _asked:
        if signum == signal.SIGINT:  # a person; launchers send SIGTERM more than once
            os._exit(128 + signum)
        return
    _asked = signum
    name = signal.Signals(signum).name
    # Not print: the signal may have come in the middle of one.
    os.write(2, f"{name}: stopping after this step; Ctrl-C leaves at once.\n".encode())


@contextmanager
def _handling(
    handler: Callable[[int, object], None], signums: tuple[int, ...] | list[int] = SIGNALS
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, handler_before in before.items():
            signal.signal(signum, signal.SIG_DFL if handler_before is None else handler_before)
