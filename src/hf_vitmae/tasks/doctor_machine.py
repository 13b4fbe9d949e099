"""What `hf-vitmae doctor` says of the machine: versions, devices, and what makes training fast."""

import os
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch

from hf_vitmae.tasks.recipe import default_precision
from hf_vitmae.training.resources import free_memory, usable_cores

State = Literal["ok", "missing", "warning", "in use", "damaged", "-"]
LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "pillow",
)
# Extra of this package -> the packages that it brings, and what they are good for.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "fast": (("simplejpeg",), "decodes JPEGs faster than Pillow"),
    "bands": (("tifffile",), "reads TIFFs of any number of bands"),
    "viz": (("matplotlib",), "draws the curves of a run"),
    "peft": (("peft",), "fine-tunes by LoRA"),
    "export": (("onnx", "onnxscript", "onnxruntime"), "exports to ONNX"),
    "quantize": (("torchao",), "makes int8 weights"),
}
LEAST_SHARED_MEMORY = 1 << 30  # bytes; containers often have 64 MiB
LEAST_DISK = 5 << 30  # bytes
FLASH_CAPABILITY = (8, 0)  # the first GPUs that torch has flash attention for


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    state: State
    words: str
    mend: str = ""
    """What to do about it."""
    is_fatal: bool = False
    """Whether the command ends with an error."""


def versions() -> Iterator[Finding]:
    """Python, the libraries that are needed, and those that are not."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for library in LIBRARIES:
        version = _version(library)
        mend = "" if version else f"pip install {library}"
        yield Finding(library, "ok" if version else "missing", version or "not installed", mend)
    for extra, (packages, use) in EXTRAS.items():
        found = {package: _version(package) for package in packages}
        absent = [package for package, version in found.items() if version is None]
        if absent:
            words = f"{', '.join(absent)}: {use}"
            yield Finding(extra, "missing", words, f"pip install 'hf-vitmae[{extra}]'")
        else:
            there = ", ".join(f"{package} {version}" for package, version in found.items())
            yield Finding(extra, "ok", f"{there}: {use}")


def devices() -> Iterator[Finding]:
    """Cores, memory and accelerators."""
    cores, all_cores = usable_cores(), os.cpu_count() or 1
    of_all = "" if cores == all_cores else f" usable of {all_cores}"
    threads = _count(torch.get_num_threads(), "thread")
    yield Finding("CPU", "ok", f"{_count(cores, 'core')}{of_all}, {threads} in torch")
    memory = psutil.virtual_memory().total
    yield Finding("memory", "ok", f"{amount(free_memory())} free of {amount(memory)}")
    if torch.cuda.is_available():
        yield from map(_gpu, range(torch.cuda.device_count()))
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "Apple's, by MPS")
    else:
        yield _no_gpu()


def speed(folder: Path) -> Iterator[Finding]:
    """What makes training fast.

    Args:
        folder: where a run would lie.
    """
    precision = default_precision()
    if precision == "bf16":
        yield Finding("precision", "ok", "bf16, by --precision auto")
    else:
        yield Finding("precision", "-", "fp32, by --precision auto: no GPU that computes in bf16")
    yield _attention()
    yield _compiler()
    yield _workers()
    if torch.cuda.is_available():
        yield Finding("pinned memory", "ok", "batches are copied to the GPU while it computes")
    else:
        yield Finding("pinned memory", "-", "of use with an NVIDIA or AMD GPU only")
    yield from _shared_memory(Path("/dev/shm"))
    yield _disk(folder)


def amount(num_bytes: int) -> str:
    """Bytes for people: 1536 -> `1.5 KiB`."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{num_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> Finding:
    free, total = torch.cuda.mem_get_info(index)
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    words = f"{torch.cuda.get_device_name(index)}, {amount(free)} free of {amount(total)}, {bf16}"
    return Finding(f"GPU {index}", "ok", f"{words}, capability {capability}")


def _no_gpu() -> Finding:
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if not has_driver:
        return Finding("GPU", "missing", "none found; training on the CPU is slow")
    if torch.version.cuda is None:
        words = "there is an NVIDIA driver, and this torch is built for the CPU"
        return Finding("GPU", "missing", words, "install torch for CUDA: https://pytorch.org")
    words = f"there is an NVIDIA driver that torch for CUDA {torch.version.cuda} cannot use"
    return Finding("GPU", "missing", words, "look at nvidia-smi; update the driver")


def _attention() -> Finding:
    if not torch.cuda.is_available():
        return Finding("attention", "ok", "sdpa, torch's fused attention")
    oldest = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
    if torch.version.hip is None and oldest < FLASH_CAPABILITY:
        words = f"sdpa without flash attention: capability {oldest[0]}.{oldest[1]} is below 8.0"
        return Finding("attention", "missing", words)
    return Finding("attention", "ok", "sdpa, with flash attention in bf16 and fp16")


def _compiler() -> Finding:
    """Whether --compile can work: torch writes C++ and, for GPUs, Triton."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    compiler = next((name for name in compilers if name and shutil.which(name)), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if compiler is None:
        mend = "install g++ (Debian: apt install g++)"
        return Finding("--compile", "missing", "torch.compile finds no C++ compiler", mend)
    if not header.exists():
        mend = "install Python's headers (Debian: apt install python3-dev)"
        return Finding("--compile", "missing", f"torch.compile finds no {header}", mend)
    if torch.cuda.is_available() and util.find_spec("triton") is None:
        return Finding(
            "--compile", "missing", "torch.compile finds no Triton", "pip install triton"
        )
    return Finding("--compile", "ok", f"torch.compile, with {compiler}")


def _workers() -> Finding:
    cores = usable_cores()
    processes = max(1, torch.cuda.device_count())
    most = max(0, cores // processes - 1)
    words = f"up to {most} for each process, as there are {_count(cores, 'core')}"
    if most:
        return Finding("workers", "ok", f"--data.num-workers {words}")
    mend = "give the job more cores, or store images smaller"
    return Finding("workers", "warning", "no core is left for --data.num-workers", mend)


def _shared_memory(folder: Path) -> Iterator[Finding]:
    """Through which worker processes pass batches, on Linux."""
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    words = f"{amount(usage.free)} free of {amount(usage.total)} in {folder}, for workers' batches"
    if usage.free >= LEAST_SHARED_MEMORY:
        yield Finding("shared memory", "ok", words)
    else:
        mend = "start the container with --shm-size=8g or --ipc=host, or use --data.num-workers 0"
        yield Finding("shared memory", "warning", words, mend)


def _disk(folder: Path) -> Finding:
    """Room where a run lies, or would lie."""
    folder = folder.expanduser().resolve()
    free = shutil.disk_usage(folder).free
    words = f"{amount(free)} free in {folder}"
    if free >= LEAST_DISK:
        return Finding("disk", "ok", words)
    return Finding("disk", "warning", words, "make room, or choose --output-dir on another disk")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
