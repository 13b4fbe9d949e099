"""Measure, as ratios within one run, since machines are shared and noisy.

python scripts/benchmark.py imports     # against `from transformers import PreTrainedModel`
"""

import statistics
import subprocess
import sys
import time
from typing import Literal

import tyro

OURS, THEIRS = "import hf_vitmae", "from transformers import PreTrainedModel"


def measure_imports(rounds: int) -> str:
    """Both imports in fresh processes, in turn, after a warm-up: medians and their ratio."""
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for number in range(rounds + 1):
        for statement, times in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if number:
                times.append(time.perf_counter() - start)
    ours, theirs = statistics.median(seconds[OURS]), statistics.median(seconds[THEIRS])
    return f"`{OURS}` {ours:.2f} s, `{THEIRS}` {theirs:.2f} s, ratio {ours / theirs:.2f}"


BENCHMARKS = {"imports": measure_imports}


def main(what: Literal["imports"], /, rounds: int = 7) -> None:
    """Run one benchmark and print its line.

    Args:
        what: which one.
        rounds: times that each side is measured.
    """
    print(BENCHMARKS[what](rounds))


if __name__ == "__main__":
    tyro.cli(main)
