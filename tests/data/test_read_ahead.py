"""Reading ahead gives the same items and errors, starts when asked, and ends when closed."""

import subprocess
import sys
import threading
import time

import pytest

from hf_vitmae.data.read_ahead import ReadAhead


def numbers(log: list, count: int = 10**9, error: Exception | None = None):
    try:
        for number in range(count):
            log.append(number)
            yield number
        if error is not None:
            raise error
    finally:
        log.append("closed")


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "read-ahead"]


def test_items_come_in_order_and_the_thread_ends_with_them():
    log: list = []
    ahead = ReadAhead(numbers(log, 20), depth=2)
    assert not threads() and not log  # nothing runs before the first item is asked for
    assert list(ahead) == list(range(20))
    ahead.close()
    assert not threads() and log[-1] == "closed"


def test_so_many_items_are_read_ahead_and_no_more():
    log: list = []
    ahead = ReadAhead(numbers(log), depth=3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(log) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert log == [0, 1, 2, 3, 4]  # one taken, three that lie ready, one that waits for room
    ahead.close()
    assert log[-1] == "closed" and not threads()


def test_an_error_comes_in_its_turn_as_itself():
    error = KeyError("what was raised")
    ahead = ReadAhead(numbers([], 3, error), depth=5)
    assert list(ahead) == [0, 1, 2, None]
    assert ahead.error is error
    ahead.close()


@pytest.mark.parametrize("consume", [0, 1])
def test_closing_early_closes_the_generator_and_a_second_time_does_nothing(consume):
    log: list = []
    items = numbers(log)
    ahead = ReadAhead(items, depth=1)
    for _ in range(consume):
        next(ahead)
    ahead.close()
    ahead.close()
    assert not threads() and list(items) == []
    assert list(ahead) == []


PROGRAM = """
import itertools
from hf_vitmae.data.read_ahead import ReadAhead
ahead = ReadAhead((number for number in itertools.count()), depth=2)
print(next(ahead))  # and the program ends here with the thread still waiting
"""


def test_a_program_may_end_with_an_open_thread():
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
