"""The test Hub, started once, and a client in this process that may reach it."""

from collections.abc import Iterator

import pytest
from huggingface_hub import close_session

from .client import Hub


@pytest.fixture(scope="session")
def running_hub() -> Iterator[Hub]:
    """The process of the Hub."""
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub without faults that this process may reach."""
    running_hub.reach_from_here(monkeypatch)
    yield running_hub
    close_session()
