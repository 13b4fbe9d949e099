"""Starting a program as several processes, as a launcher does but without one."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_ranks(arguments: Sequence[str], processes: int = 2) -> None:
    """Run `python ARGUMENTS` once per rank from the root of the repository; all must succeed."""
    environment = os.environ | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(processes)
    ]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0] * processes
    finally:
        for rank in ranks:
            rank.kill()
