"""What holds for every test: no network, nothing written outside temporary folders, one thread.

Set here, before any library is imported, so that the processes which tests start inherit it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .hub.client import Hub

CACHES = tempfile.mkdtemp(prefix="hf-vitmae-tests-")

os.environ["HF_HOME"] = CACHES  # models, data sets, metrics and remote code
os.environ["HF_DATASETS_CACHE"] = os.path.join(CACHES, "datasets")  # would outrank HF_HOME
os.environ["MPLCONFIGDIR"] = os.path.join(CACHES, "matplotlib")
os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("HF_VITMAE_ONEDNN", "0")  # else a trial of this machine would choose
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # HF_HUB_OFFLINE=0 for tests marked network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads would only wait


@pytest.fixture(scope="session")
def running_hub() -> "Iterator[Hub]":
    """The process of the test Hub, for all that push to it or load from it."""
    from .hub.client import Hub

    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> "Iterator[Hub]":
    """A Hub without faults that this process may reach."""
    from huggingface_hub import close_session

    running_hub.reach_from_here(monkeypatch)
    # transformers keeps the Hub of its first question.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    yield running_hub
    close_session()


def pytest_unconfigure() -> None:
    """Remove the caches of this run."""
    shutil.rmtree(CACHES, ignore_errors=True)
