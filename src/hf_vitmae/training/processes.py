"""What one process does for all of them, and how the others hear that it failed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


@contextmanager
def shared_errors(accelerator: Accelerator) -> Iterator[None]:
    """A `ValueError` or `OSError` of the main process within is raised on every process.

    All must enter; without it the others would wait for a process that is gone.
    """
    error = None
    try:
        yield
    except (ValueError, OSError) as raised:
        error = raised
    if accelerator.num_processes > 1:
        (first,) = broadcast_object_list([error])
        error = first or error
    if error is not None:
        raise error


def on_main(accelerator: Accelerator, do: Callable[[], Result]) -> Result:
    """What `do` returns on the main process, on every process; its errors too, see above."""
    result = None
    with shared_errors(accelerator):
        if accelerator.is_main_process:
            result = do()
    if accelerator.num_processes > 1:
        (result,) = broadcast_object_list([result])
    return cast(Result, result)
