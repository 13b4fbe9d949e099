"""Running out of memory: how much fits, found by trying, and what to change where it does not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from hf_vitmae.training.faults import RunningStatistics

Batch = dict[str, Tensor]
# What Accelerate does not know: errors of the runtimes, as when a library asks for its workspace.
SIGNS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",  # oneDNN on the CPU
)
OPTIMIZER_COPIES = 2  # of the weights, that AdamW keeps


class OutOfMemory(MemoryError):
    """Something does not fit into memory; says which settings to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(sign in str(error) for sign in SIGNS)


@contextmanager
def explaining_out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """Turn a want of memory into an error of one line.

    Args:
        explain: gives the line, as `settings_to_lower` does.

    Raises:
        OutOfMemory: in place of what was raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(explain()) from error


def settings_to_lower(
    batch_size: int,
    accumulation: int | None,
    image_size: tuple[int, int],
    mixed_precision: str,
    multiple_of: int = 1,
) -> str:
    """The line that says what to change after memory ran out.

    Args:
        accumulation: None where it follows from an effective batch.
        image_size: height and width.
        mixed_precision: as the accelerator calls it, `no` for fp32.
        multiple_of: what divides every batch size: the repeats of an image.
    """
    mends = ["a smaller image size or model"]
    if mixed_precision == "no":
        mends.insert(0, "--precision bf16")
    smaller = list(smaller_sizes(batch_size, multiple_of))[1:]
    if smaller:
        flags = f"--batch-size {smaller[0]}"
        if accumulation is not None:
            flags += f" --accumulation {accumulation * batch_size // smaller[0]}"
        mends.insert(0, f"{flags}, which keeps the images of a step")
    height, width = image_size
    return (
        f"A batch of {batch_size} x {height}x{width} (images, height, width) does not fit into "
        f"memory; take {', or '.join(mends)}."
    )


def smaller_sizes(most: int, multiple_of: int = 1) -> Iterator[int]:
    """`most`, and then each time its largest divisor that is at most half of the one before.

    Args:
        multiple_of: divides `most`, and everything that comes.
    """
    size = most
    while size:
        yield size
        halves = range(size // 2, 0, -1)
        size = next((n for n in halves if most % n == 0 and n % multiple_of == 0), 0)


def find_batch_size(try_step: Callable[[int], None], most: int, multiple_of: int = 1) -> int:
    """The first of `smaller_sizes` at which a step does not run out of memory; all divide `most`.

    Args:
        try_step: takes a training step of so many images.

    Raises:
        OutOfMemory: if the smallest does not fit either.
    """
    size = most
    for size in smaller_sizes(most, multiple_of):
        if _fits(try_step, size):
            return size
    raise OutOfMemory(
        f"Not even a batch size of {size} fits into memory; take a smaller image size, a smaller "
        "model, or --precision bf16."
    )


def agree_on_batch_size(find: Callable[[], int]) -> int:
    """The batch size of all processes, the smallest that any of them finds; all must call this.

    Raises:
        OutOfMemory: on every process, if one finds none.
    """
    try:
        found: int | OutOfMemory = find()
    except OutOfMemory as error:
        found = error
    return smallest_of(gather_object([found]))


def smallest_of(found: Sequence[int | OutOfMemory]) -> int:
    """The batch size that fits everywhere: the smallest of what processes found.

    Raises:
        OutOfMemory: the first of those that are among them.
    """
    for item in found:
        if isinstance(item, OutOfMemory):
            raise item
    return min(size for size in found if isinstance(size, int))


def training_trial(
    model: nn.Module,
    accelerator: Accelerator,
    prepare: Callable[[Batch], Mapping[str, Any]],
    example: Batch,
    num_copies: int = OPTIMIZER_COPIES,
) -> Callable[[int], None]:
    """A step of training for `find_batch_size`, which leaves the weights as they were.

    Args:
        model: not wrapped; it goes to the accelerator's device and into training mode.
        prepare: a batch of the loader -> keyword arguments of the model, on its device.
        example: a batch of the loader; its first image is taken as often as there are images.
        num_copies: of the trainable weights, that training keeps beside them and the gradients: two
            for AdamW, one more for an average.
    """
    model.to(accelerator.device).train()
    statistics = RunningStatistics(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if accelerator.num_processes > 1:
        num_copies += 1  # the gradients once more, on their way to the others

    def try_step(size: int) -> None:
        batch = {
            name: values[:1].repeat_interleave(size, dim=0) for name, values in example.items()
        }
        kept = [torch.empty_like(parameter) for parameter in parameters * num_copies]
        statistics.remember()
        try:
            for _ in range(2):  # a second forward pass finds the first one's gradients there
                with accelerator.autocast():
                    loss = model(**prepare(batch)).loss
                loss.backward()
        finally:
            kept.clear()
            model.zero_grad(set_to_none=True)
            statistics.restore()

    return try_step


def _fits(try_step: Callable[[int], None], size: int) -> bool:
    try:
        try_step(size)
        fits = True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    clear_device_cache(garbage_collection=True)  # here, where the error holds no tensors any more
    return fits
