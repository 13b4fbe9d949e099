"""SIGTERM and SIGINT lose no step, wherever they come, and the run goes on as if nothing was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_vitmae.training import interrupts
from hf_vitmae.training.interrupts import Interrupted

from .test_loop import CONFIG, log, mean_logit, run_toy, tensor_bytes

EVALUATED = replace(CONFIG, eval_every=5, checkpoint_every=4)


def at_call(number: int, signum: int) -> Callable[[dict], dict]:
    """A `prepare` that sends this process a signal once."""
    calls = 0

    def prepare(batch: dict) -> dict:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signum)
        return batch

    return prepare


@pytest.mark.parametrize("signum", interrupts.SIGNALS)
@pytest.mark.parametrize("step", [1, 4, 5, 9, 12])
def test_a_signal_in_a_step_ends_the_run_after_it(tmp_path: Path, signum: int, step: int):
    run_toy(tmp_path / "whole", EVALUATED)
    handlers = [signal.getsignal(which) for which in interrupts.SIGNALS]
    call = step * CONFIG.accumulation  # the step's last batch
    with pytest.raises(Interrupted) as interruption:
        run_toy(tmp_path / "parts", EVALUATED, prepare=at_call(call, signum))
    assert interruption.value.exit_code == 128 + signum
    assert [signal.getsignal(which) for which in interrupts.SIGNALS] == handlers
    assert max(path.name for path in (tmp_path / "parts/checkpoints").iterdir()) == (
        f"step-{step:08d}"
    )
    run_toy(tmp_path / "parts", EVALUATED)
    assert tensor_bytes(tmp_path / "parts") == tensor_bytes(tmp_path / "whole")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


@pytest.mark.parametrize("step", [5, 12])
def test_a_signal_in_an_evaluation_ends_it(tmp_path: Path, step: int):
    run_toy(tmp_path / "whole", EVALUATED)
    evaluations = 0

    def evaluate(model: nn.Module) -> dict[str, float]:
        nonlocal evaluations
        evaluations += 1
        if evaluations == {5: 1, 12: 3}[step]:
            os.kill(os.getpid(), signal.SIGTERM)
        if interrupts.asked():
            raise Interrupted(interrupts.asked())
        return mean_logit(model)

    with pytest.raises(Interrupted):
        run_toy(tmp_path / "parts", EVALUATED, evaluators=[evaluate])
    for _ in range(2):  # the second time all is done
        metrics, _ = run_toy(tmp_path / "parts", EVALUATED)
        assert "eval_logit" in metrics
    assert tensor_bytes(tmp_path / "parts") == tensor_bytes(tmp_path / "whole")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_a_signal_in_a_save_waits_for_the_next_step(tmp_path: Path, monkeypatch):
    run_toy(tmp_path / "whole")
    calls = 0

    def flush(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", flush)
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "parts")
    monkeypatch.undo()
    assert max(path.name[-1] for path in (tmp_path / "parts" / "checkpoints").iterdir()) <= "5"
    run_toy(tmp_path / "parts")
    assert tensor_bytes(tmp_path / "parts") == tensor_bytes(tmp_path / "whole")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_outside_of_a_run_sigterm_raises():
    with pytest.raises(Interrupted, match="SIGTERM") as interruption, interrupts.raised():
        os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.value.exit_code == 143


def test_threads_other_than_the_main_one_are_left_alone():
    from concurrent.futures import ThreadPoolExecutor

    def deferred() -> int:
        with interrupts.deferred():
            return interrupts.asked()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(deferred).result() == 0


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_second_sigint_leaves_at_once(first: str):
    script = (
        "import os, signal, time; from hf_vitmae.training import interrupts\n"
        "with interrupts.deferred():\n"
        f"    os.kill(os.getpid(), signal.{first}); print('one', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('two', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('three', flush=True)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (130, "one\ntwo\n")
    assert run.stderr == f"{first}: stopping after this step; Ctrl-C leaves at once.\n"


def test_a_half_taken_step_has_no_share_in_the_average(tmp_path: Path):
    """The averaged weights, too, are those of the uninterrupted run."""
    config = replace(EVALUATED, ema_decay=0.9)
    _, whole = run_toy(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "parts", config, prepare=at_call(13, signal.SIGTERM))
    _, parts = run_toy(tmp_path / "parts", config)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)
