"""What the main process does for all: its result and its errors reach every process."""

from typing import Any

import pytest
from accelerate import Accelerator

from hf_vitmae.training import processes
from hf_vitmae.training.processes import on_main, shared_errors


class Rank:
    """An accelerator of one of two processes, as far as these functions ask."""

    num_processes = 2

    def __init__(self, is_main_process: bool) -> None:
        self.is_main_process = is_main_process


def run_both(monkeypatch: pytest.MonkeyPatch, work: Any) -> list[Any]:
    """What `work(rank)` gives or raises on the main process, then on the other one."""
    sent: list[list] = []

    def send(values: list) -> list:
        sent.append(values)
        return values

    monkeypatch.setattr(processes, "broadcast_object_list", send)
    outcomes = [outcome(work, Rank(True))]
    waiting = iter(sent)
    monkeypatch.setattr(processes, "broadcast_object_list", lambda values: next(waiting))
    return [*outcomes, outcome(work, Rank(False))]


def outcome(work: Any, rank: Rank) -> Any:
    try:
        return work(rank)
    except (ValueError, OSError, TypeError) as error:
        return repr(error)


def test_all_get_what_the_main_process_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def find() -> int:
        asked.append(1)
        return 7

    assert run_both(monkeypatch, lambda rank: on_main(rank, find)) == [7, 7]
    assert len(asked) == 1


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("full")])
def test_all_raise_what_the_main_process_raised(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    outcomes = run_both(monkeypatch, lambda rank: on_main(rank, fail))
    assert outcomes == [repr(error), repr(error)]


def test_an_error_of_another_process_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(rank: Any) -> str:
        with shared_errors(rank):
            if not rank.is_main_process:
                raise OSError("no space")
        return "done"

    assert run_both(monkeypatch, work) == ["done", repr(OSError("no space"))]


def test_one_process_alone_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "broadcast_object_list", None)
    accelerator = Accelerator(cpu=True)
    assert on_main(accelerator, lambda: "found") == "found"
    with pytest.raises(ValueError, match="bad"), shared_errors(accelerator):
        raise ValueError("bad")
