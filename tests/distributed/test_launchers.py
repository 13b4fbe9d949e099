"""One command under every launcher: however many processes, it is one run with the same losses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..data.shard_files import write_parquet
from .launch import ROOT, free_port

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
CONFIGS = ROOT / "scripts" / "accelerate"
SCRIPT = str(ROOT / "scripts" / "pretrain.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

LAUNCHERS: dict[str, list[str]] = {
    "torchrun": [*TORCHRUN, "--nproc-per-node", "2", "--master-port", "PORT", SCRIPT],
    "torchrun of the module": [
        *(*TORCHRUN, "--nproc-per-node", "2", "--master-port", "PORT"),
        *("-m", "hf_vitmae.cli", "pretrain"),
    ],
    "accelerate ddp.yaml": [
        *(str(BIN / "accelerate"), "launch", "--config_file", str(CONFIGS / "ddp.yaml")),
        *("--num_processes", "2", "--main_process_port", "PORT", SCRIPT),
    ],
    "accelerate fsdp.yaml": [
        *(str(BIN / "accelerate"), "launch", "--config_file", str(CONFIGS / "fsdp.yaml")),
        *("--num_processes", "2", "--main_process_port", "PORT", SCRIPT),
    ],
}


STREAM = ["--data.streaming", "--data.stream-readers", "2", "--data.shuffle-block", "32"]
NAMESPACES = ["unshare", "--user", "--map-root-user", "--net"]


def training(source: Path | str, output: Path, batch_size: int, *flags: str) -> list[str]:
    """The arguments of a run of ten steps of eight images, whatever the number of processes."""
    flags = (*flags, "--data.source", str(source), "--output-dir", str(output))
    return ["smoke", "--batch-size", str(batch_size), "--log-every", "1", *flags]


def run(command: list[str]) -> str:
    """What a command that succeeds prints."""
    port = free_port()
    done = subprocess.run(
        [port if part == "PORT" else part for part in command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_alone(source: Path | str, output: Path, *flags: str) -> list[dict]:
    command = [sys.executable, "-m", "hf_vitmae.cli", "pretrain"]
    run([*command, *training(source, output, 8, *flags)])
    return read_log(output)


def read_log(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(log: list[dict], expected: list[dict], processes: int = 2) -> None:
    assert log[0]["num_processes"] == processes and expected[0]["num_processes"] == 1
    assert log[0]["effective_batch"] == expected[0]["effective_batch"] == 8
    assert len(log) == len(expected) > 10
    for record, wanted in zip(log, expected, strict=True):
        for name in ("step", "epoch", "loss", "eval_loss"):
            assert record.get(name) == pytest.approx(wanted.get(name), abs=1e-6), name
        if "grad_norm" in wanted:
            assert record["grad_norm"] == pytest.approx(wanted["grad_norm"], abs=1e-5)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More images than the run sees, in files of uneven sizes."""
    return write_parquet(tmp_path_factory.mktemp("stream"), (21, 40, 35, 30))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run_alone("emoji", tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_of_a_launcher_train_as_one(
    launcher: str, alone: list[dict], tmp_path: Path
) -> None:
    run([*LAUNCHERS[launcher], *training("emoji", tmp_path / "run", 4)])
    assert_same_run(read_log(tmp_path / "run"), alone)
    assert read_log(tmp_path / "run")[0].get("sharded", False) is ("fsdp" in launcher)


def test_two_processes_read_a_stream_as_one(stream: Path, tmp_path: Path) -> None:
    expected = run_alone(stream, tmp_path / "alone", *STREAM)
    run([*LAUNCHERS["torchrun"], *training(stream, tmp_path / "run", 4, *STREAM)])
    assert_same_run(read_log(tmp_path / "run"), expected)


def why_no_namespaces() -> str | None:
    """What keeps two network namespaces from being made here, in a few words."""
    tools = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if tools:
        return f"no program named {tools[0]}"
    command = [*NAMESPACES, "ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1"]
    tried = subprocess.run(command, capture_output=True, text=True)
    return None if tried.returncode == 0 else f"namespaces are not allowed: {tried.stderr.strip()}"


def test_two_machines_train_as_one(alone: list[dict], tmp_path: Path) -> None:
    """Two network namespaces with a cable between them, which the gradients go over."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    script = str(Path(__file__).with_name("two_machines.sh"))
    command = [*NAMESPACES, "bash", script, sys.executable, SCRIPT]
    said = run([*command, *training("emoji", tmp_path / "run", 4)])
    assert_same_run(read_log(tmp_path / "run"), alone)
    over_the_cable = re.search(r"bytes over the cable: (\d+)", said)
    weights = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    assert over_the_cable is not None and int(over_the_cable[1]) > 10 * weights  # ten steps
