"""A push arrives whole, in one commit, whatever goes wrong on the way."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hf_vitmae.hub.push import Patience, PushError, PushResult, push_folder

from .client import SENDING, TOKEN, Hub

pytestmark = pytest.mark.filterwarnings(SENDING)
Push = Callable[..., PushResult]
HASTY = Patience(attempts=5, first_wait=0.001, longest_wait=0.002)
FILES = {
    "config.json": b'{"model_type": "vitmae"}',
    "modeling.py": b'CPU = "/proc/cpuinfo"\n',
    "README.md": b"---\nlicense: mit\n---\nA model.\n",
    "samples/a.png": b"\x89PNG",
}
EXPECTED = {*FILES, "model.safetensors", ".gitattributes"}


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits whole seconds between its own tries."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a model's folder may hold, with weights that no other test has."""
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    (tmp_path / "model" / "model.safetensors").write_bytes(os.urandom(50_000))
    return tmp_path / "model"


@pytest.fixture
def name(hub: Hub) -> str:
    return hub.new_name()


@pytest.fixture
def push(hub: Hub, folder: Path, name: str) -> Push:
    """Pushes the folder, without a word and without waiting."""
    options: dict[str, Any] = {"report": lambda line: None, "patience": HASTY}
    return partial(push_folder, folder, name, endpoint=hub.endpoint, token=TOKEN, **options)


def assert_one_whole_push(hub: Hub, name: str, folder: Path) -> None:
    (row,) = [row for row in hub.pushes(name) if row["message"] != "of somebody else"]
    assert set(row["visible"]) - {"notes.txt"} == EXPECTED
    weights = (folder / "model.safetensors").stat().st_size
    assert hub.repo(name)["commits"][row["id"]]["files"]["model.safetensors"]["size"] == weights


def test_it_arrives_whole(hub: Hub, name: str, folder: Path, push: Push) -> None:
    result = push()
    assert_one_whole_push(hub, name, folder)
    assert result == PushResult(f"{hub.endpoint}/{name}", hub.pushes(name)[-1]["id"], False)
    assert hub.received("put") == 50_000


def test_again_does_nothing(hub: Hub, name: str, push: Push) -> None:
    first = push()
    counted = hub.requests("commit"), hub.received("put")
    again = push()
    assert again.already_there and again.commit == first.commit
    assert (hub.requests("commit"), hub.received("put")) == counted


def test_only_what_changed_is_sent(hub: Hub, name: str, folder: Path, push: Push) -> None:
    push()
    sent = hub.received("put"), hub.received("commit")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nBetter.\n")
    assert not push().already_there
    assert hub.received("put") == sent[0] and hub.received("commit") - sent[1] < 400
    assert [set(row["visible"]) for row in hub.pushes(name)] == [EXPECTED] * 2


# Every route that a push uses; the second fault of a pair meets what the first had repeated.
WRITING = ["create", "info", "validate", "preupload", "batch", "put", "verify", "commit"]
BREAKDOWNS = {
    "503": {"status": 503},
    "dropped": {"dropped": True},
    "lost": {"lost": True},
    **{str(status): {"status": status} for status in (429, 500, 502, 504)},
}
FEW = ("503", "dropped", "lost")
EACH = [
    pytest.param(fault, id=name, marks=() if name in FEW else pytest.mark.slow)
    for name, fault in BREAKDOWNS.items()
]


@pytest.mark.parametrize("fault", EACH)
@pytest.mark.parametrize("route", WRITING)
def test_two_faults_on_a_route(
    hub: Hub, name: str, folder: Path, push: Push, route: str, fault: dict[str, Any]
) -> None:
    hub.fault(route, fault, fault)
    push()
    landed_at_once = route in ("create", "commit") and "lost" in fault
    assert hub.requests(route) == 1 if landed_at_once else hub.requests(route) > 2
    assert_one_whole_push(hub, name, folder)
    assert hub.received("put") <= 3 * 50_000 if route == "put" else hub.received("put") == 50_000


@pytest.mark.parametrize("route", ["part", "complete"])
def test_two_faults_in_parts(hub: Hub, name: str, folder: Path, push: Push, route: str) -> None:
    hub.set_part_size(20_000)
    hub.fault(route, {"status": 502}, {"lost": True})
    push()
    assert_one_whole_push(hub, name, folder)


@pytest.mark.parametrize("fault", EACH)
def test_two_faults_at_a_pull_request(
    hub: Hub, name: str, push: Push, fault: dict[str, Any]
) -> None:
    hub.fault("commit", fault, fault)
    result = push(create_pr=True)
    assert list(hub.repo(name)["pulls"]) == ["refs/pr/1"]
    assert result.url == f"{hub.endpoint}/{name}/discussions/1"
    (row,) = hub.pushes(name)
    assert set(row["visible"]) == {".gitattributes"}
    assert set(hub.repo(name)["commits"][result.commit]["files"]) == EXPECTED


@pytest.mark.parametrize("route", ["branch", "commit", "info"])
def test_two_faults_at_a_branch(hub: Hub, name: str, push: Push, route: str) -> None:
    hub.fault(route, {"status": 503}, {"lost": True})
    result = push(revision="dev")
    assert hub.repo(name)["branches"]["dev"] == result.commit
    assert set(hub.pushes(name)[-1]["visible"]) == {".gitattributes"}


def test_somebody_else_pushes_at_the_same_time(
    hub: Hub, name: str, folder: Path, push: Push
) -> None:
    hub.fault("commit", {"foreign": True}, {"foreign": True})
    push()
    assert_one_whole_push(hub, name, folder)
    assert "notes.txt" in hub.pushes(name)[-1]["visible"]
    assert hub.requests("commit") == 3  # two were for a branch that had moved on
    assert hub.received("put") == 50_000


@pytest.mark.parametrize("status", [401, 403, 412, 500])
@pytest.mark.parametrize("route", ["create", "preupload", "commit"])
def test_what_does_not_pass_is_one_line(
    hub: Hub, name: str, folder: Path, push: Push, route: str, status: int
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.fault(route, *[{"status": status}] * 60)
    with pytest.raises(PushError) as caught:
        push()
    said = str(caught.value)
    assert name in said and "run the same command again" in said and "\n" not in said
    assert TOKEN not in said and (status == 412 or str(status) in said)
    patient = status in (412, 500)
    assert hub.requests(route) >= HASTY.attempts if patient else hub.requests(route) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    hub.clear()
    push()
    assert_one_whole_push(hub, name, folder)


def test_a_repository_of_somebody_else(hub: Hub, name: str, folder: Path, push: Push) -> None:
    push()
    with pytest.raises(PushError, match=f"{name} was not pushed: the Hub answers 403"):
        (folder / "README.md").write_text("Mine.\n")
        push(token="hf_other")
    with pytest.raises(PushError, match="401.*log in"):
        push(token="hf_wrong")


def test_a_hub_out_of_reach_is_one_line(folder: Path, hub: Hub) -> None:
    said: list[str] = []
    with pytest.raises(PushError, match="user/x was not pushed: the Hub cannot be reached"):
        push_folder(
            folder, "user/x", endpoint="http://127.0.0.1:9", report=said.append, patience=HASTY
        )
    assert len(said) == HASTY.attempts - 1 and "trying again" in said[0]


def test_old_weights_go_with_the_commit(hub: Hub, name: str, folder: Path, push: Push) -> None:
    push()
    hub.api.upload_file(path_or_fileobj=b"kept", path_in_repo="more/notes.bin", repo_id=name)
    (folder / "model.safetensors").unlink()
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard in shards:
        (folder / shard).write_bytes(os.urandom(100))
    index = folder / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{"a": "{shards[0]}", "b": "{shards[1]}"}}}}')
    push()
    seen = set(hub.pushes(name)[-1]["visible"])
    single = {"model.safetensors"}
    assert seen == (EXPECTED - single) | {*shards, index.name, "more/notes.bin"}
    (folder / shards[1]).unlink()
    with pytest.raises(ValueError, match=f"names {shards[1]}, which is not there"):
        push()


def test_private_stays_private(hub: Hub, name: str, push: Push) -> None:
    push(private=True)
    assert hub.repo(name)["private"]
    other = hub.new_name()
    hub.api.create_repo(other)
    with pytest.raises(ValueError, match=f"{other} is there and public"):
        push_folder(
            push.args[0],  # type: ignore[attr-defined]
            other,
            private=True,
            endpoint=hub.endpoint,
            token=TOKEN,
            patience=HASTY,
        )
    assert not hub.pushes(other)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"a": "hf_' + "a" * 30 + '"}'),
        ("modeling.py", "TOKEN = 'hf_" + "a" * 30 + "'"),
        ("README.md", "See /home/bob/photos."),
        ("modeling.py", f"PLACE = '{Path.cwd()}/x'"),
    ],
)
def test_what_tells_too_much_is_refused(
    hub: Hub, name: str, folder: Path, push: Push, file: str, text: str
) -> None:
    (folder / file).write_text(text)
    with pytest.raises(
        ValueError, match=f"{file} is not pushed, it holds a (token|path)"
    ) as caught:
        push()
    assert "aaaaaaaa" not in str(caught.value)
    assert not hub.api.repo_exists(name)


def test_what_is_no_part_of_a_model_stays(hub: Hub, name: str, folder: Path, push: Push) -> None:
    for left_out in ("training_args.bin", ".env", "checkpoints/model.safetensors", "x.pt"):
        (folder / left_out).parent.mkdir(exist_ok=True)
        (folder / left_out).write_bytes(b"secret")
    said: list[str] = []
    push(report=said.append)
    assert_one_whole_push(hub, name, folder)
    assert ".env, checkpoints/model.safetensors, training_args.bin, x.pt" in said[0]


def test_links_out_of_the_folder_are_refused(
    hub: Hub, name: str, folder: Path, push: Push, tmp_path: Path
) -> None:
    (tmp_path / "outside.json").write_text("{}")
    (folder / "results.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ValueError, match="results.json is no file of its folder"):
        push()
    (folder / "results.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        push()
    assert not hub.api.repo_exists(name)
