"""Time and memory of a device: its own clock on a GPU, so that nothing waits between two phases."""

import time
from collections.abc import Callable

import torch


class Clock:
    """Marks moments of the work that a device is given.

    On CUDA a mark is an event in the stream, read when all is done; else it is the time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"

    def mark(self) -> object:
        """Now, in the order of the work."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: list) -> list[float]:
        """Between each mark and the next, when all work is done."""
        self.synchronize()
        pairs = zip(marks, marks[1:], strict=False)
        if not self.is_cuda:
            return [later - earlier for earlier, later in pairs]
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def added_bytes(self, work: Callable[[], object]) -> int | None:
        """Most memory that the device had allocated during some work, beyond what it had before;
        None where it cannot say.
        """
        if not self.is_cuda:
            return None
        self.synchronize()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        return device.type
    facts = {name.strip(): value.strip() for name, value in lines}
    family = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{facts.get('model name', device.type)} ({family})"
