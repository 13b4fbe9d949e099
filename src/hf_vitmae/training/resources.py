"""Cores and memory that this process may really use: what its machine and its container allow."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that the system and the control groups of this process leave to it; at least 1.

    Args:
        root: where `proc` and `sys` lie.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    for folder in _control_groups("cpu", root):
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # else "max", -1 or absent
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take before the system or its control groups have none.

    Args:
        root: where `proc` and `sys` lie.
    """
    free = psutil.virtual_memory().available
    for folder in _control_groups("memory", root):
        most = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if most.isdecimal() and used.isdecimal():
            free = min(free, max(0, int(most) - int(used)))
    return free


@contextmanager
def within_free_memory(share: float = 1.0) -> Iterator[None]:
    """On Linux, refuse this process more than a share of the free memory, with an error.

    The system grants memory that it does not have and kills a process that uses it: what is tried
    out must not come to that.
    """
    try:
        import resource

        used = psutil.Process().memory_info().data
    except (ImportError, AttributeError):  # elsewhere there is no such limit
        yield
        return
    kept = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in kept if limit != resource.RLIM_INFINITY]
    most = min([used + int(share * free_memory()), *limits])
    resource.setrlimit(resource.RLIMIT_DATA, (most, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, kept)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups of this process, of version 1 or 2."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _read(path: Path) -> str:
    """The text of a file, empty if it cannot be read."""
    with suppress(OSError):
        return path.read_text().strip()
    return ""
