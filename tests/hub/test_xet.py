"""Content goes to the test Hub by xet, and comes from there, as the real client does it."""

import array
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, constants, get_session
from huggingface_hub.errors import HfHubHTTPError

from .client import SENDING, Hub

pytestmark = pytest.mark.filterwarnings(SENDING)
FLOATS = array.array("f", (1 + number / 7e5 for number in range(150_000))).tobytes()


@pytest.fixture
def transport() -> str:
    return "xet"


@pytest.fixture
def name(hub: Hub) -> str:
    """Of a fresh repository."""
    name = hub.new_name()
    hub.api.create_repo(name)
    return name


def upload(hub: Hub, name: str, content: bytes, **options: Any) -> None:
    addition = CommitOperationAdd("w.safetensors", content)
    hub.api.create_commit(name, [addition], commit_message="weights", **options)


@pytest.mark.parametrize(
    "content",
    [os.urandom(300_000), b"ViT " * 100_000, FLOATS, bytes(200_000) + os.urandom(99_999)],
    ids=["chance", "repeated", "floats", "mixed"],
)
def test_content_comes_back(
    hub: Hub, name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, name, content)
    assert hub.requests("put") == 0 and 0 < hub.received("xorb") < len(content) + 1000
    path = hub.api.hf_hub_download(name, "w.safetensors", cache_dir=tmp_path / "xet")
    assert Path(path).read_bytes() == content
    assert hub.requests("range") > 0 and hub.requests("cdn") == 0
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    path = hub.api.hf_hub_download(name, "w.safetensors", cache_dir=tmp_path / "lfs")
    assert Path(path).read_bytes() == content
    assert hub.requests("cdn") == 1


def test_what_came_by_lfs_is_fetched_so(
    hub: Hub, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    content = os.urandom(1000)
    upload(hub, name, content)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    path = hub.api.hf_hub_download(name, "w.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert hub.requests("cdn") == 1 and hub.requests("read_token") == 0


def test_only_new_chunks_are_sent(hub: Hub, name: str) -> None:
    content = os.urandom(1_000_000)
    upload(hub, name, content)
    sent = hub.received("xorb")
    upload(hub, name, content[:-1000] + os.urandom(1000))
    assert 0 < hub.received("xorb") - sent < 300_000
    assert len(hub.pushes(name)) == 2


@pytest.mark.parametrize("fault", [{"status": 503}, {"torn": True}, {"dropped": True}], ids=str)
@pytest.mark.parametrize("route", ["read_token", "terms", "range"])
def test_a_download_survives_a_fault(
    hub: Hub,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
    fault: dict[str, Any],
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    content = os.urandom(300_000)
    upload(hub, name, content)
    hub.fault(route, fault)
    path = hub.api.hf_hub_download(name, "w.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert hub.requests(route) >= 2 or (route, fault) == ("read_token", {"torn": True})


def test_who_may_not_write_sends_nothing(hub: Hub, name: str) -> None:
    for token, status in (("hf_other", 403), ("hf_wrong", 401)):
        with pytest.raises(HfHubHTTPError, match=str(status)):
            upload(hub, name, os.urandom(1000), token=token)
        address = f"{hub.endpoint}/api/models/{name}/xet-write-token/main"
        answer = get_session().get(address, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status
    for token in ("", "Bearer hf_test", "Bearer xet-read"):
        answer = get_session().post(
            f"{hub.endpoint}/_xet/v1/shards", headers={"Authorization": token}
        )
        assert answer.status_code == 401
    assert hub.received("xorb") == 0 and not hub.pushes(name)
