"""A client in this process that may reach the test Hub, by LFS or by xet, and pushes to it."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session

from hf_vitmae.hub.push import push_folder

from .client import TOKEN, Hub

pytest.register_assert_rewrite(f"{__package__}.pushing")
from .pushing import FILES, HASTY, NUM_BYTES, Push  # noqa: E402


@pytest.fixture
def transport() -> str:
    """How weights go to the Hub and come from it: `lfs`, or `xet` where a test asks for it."""
    return "lfs"


@pytest.fixture
def hub(running_hub: Hub, monkeypatch: pytest.MonkeyPatch, transport: str) -> Iterator[Hub]:
    """A Hub without faults that this process may reach."""
    if transport == "xet":
        pytest.importorskip("hf_xet")
    running_hub.reach_from_here(monkeypatch, xet=transport == "xet")
    yield running_hub
    close_session()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a model's folder may hold, with weights that no other test has."""
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    (tmp_path / "model" / "model.safetensors").write_bytes(os.urandom(NUM_BYTES))
    return tmp_path / "model"


@pytest.fixture
def name(hub: Hub) -> str:
    """Of a repository that is not there yet."""
    return hub.new_name()


@pytest.fixture
def push(hub: Hub, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Push:
    """Pushes the folder, without a word and without waiting."""
    # The client waits whole seconds between its own tries.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    options: dict[str, Any] = {"report": lambda line: None, "patience": HASTY, "repo_id": name}
    return partial(push_folder, folder, endpoint=hub.endpoint, token=TOKEN, **options)
