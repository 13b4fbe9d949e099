"""Launchers that start all processes again when one dies, which finds the new ones and no others.

Run as a program, this file is a process that dies in its first three lives.
"""

import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from hf_vitmae.training.restarts import join_after_restart

from .test_launchers import BIN, CONFIGS, TORCHRUN, run

LIVES = 4

LAUNCHERS: dict[str, list[str]] = {
    "torchrun": [*TORCHRUN, "--nproc-per-node", "2", "--master-port", "PORT"],
    "accelerate": [
        *(str(BIN / "accelerate"), "launch", "--config_file", str(CONFIGS / "ddp.yaml")),
        *("--num_processes", "2", "--main_process_port", "PORT"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_process_killed_three_times_is_met_again(launcher: str, tmp_path: Path) -> None:
    flag = "--max_restarts" if launcher == "accelerate" else "--max-restarts"
    program = ["-m", "tests.distributed.test_restarts"]
    said = run([*LAUNCHERS[launcher], flag, str(LIVES - 1), *program])
    assert said.count(f"life {LIVES} is lived to its end") == 2


@pytest.mark.parametrize(
    "missing", [{"TORCHELASTIC_RESTART_COUNT": "0"}, {"GROUP_WORLD_SIZE": "2"}, {"WORLD_SIZE": "1"}]
)
def test_what_is_no_restart_is_left_alone(
    missing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no address of a store in the environment, anything else would be an error."""
    restart = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    restart |= {"GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "2", "RANK": "0"}
    for name, value in (restart | missing).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    join_after_restart()
    assert not torch.distributed.is_initialized()


def main() -> None:
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) + 1
    join_after_restart()
    accelerator = Accelerator(cpu=True)
    total = torch.tensor(float(accelerator.process_index))
    torch.distributed.all_reduce(total)
    assert total == 1.0 and accelerator.num_processes == 2
    if life < LIVES and accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    accelerator.wait_for_everyone()
    os.write(1, f"life {life} is lived to its end\n".encode())  # whole: the other writes too
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
