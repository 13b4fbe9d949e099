"""The test Hub, as the real client sees it."""

from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .client import SENDING, Hub

pytestmark = pytest.mark.filterwarnings(SENDING)
WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture
def name(hub: Hub) -> str:
    """Of a fresh repository."""
    name = hub.new_name()
    hub.api.create_repo(name)
    return name


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_who_creates_and_deletes(hub: Hub) -> None:
    name = hub.new_name()
    assert hub.api.whoami()["name"] == "user"
    url = hub.api.create_repo(name.split("/")[1], private=True)
    assert url.repo_id == name and hub.api.model_info(name).private
    with pytest.raises(HfHubHTTPError, match="409"):
        hub.api.create_repo(name)
    hub.api.create_repo(name, exist_ok=True)
    hub.api.create_repo(name, repo_type="dataset")
    assert hub.api.repo_exists(name, repo_type="dataset")
    hub.api.delete_repo(name)
    assert not hub.api.repo_exists(name)
    with pytest.raises(RepositoryNotFoundError):
        hub.api.model_info(name, token=False)


@pytest.mark.parametrize("part_size", [0, 100_000], ids=["basic", "multipart"])
def test_files_come_back(hub: Hub, name: str, tmp_path: Path, part_size: int) -> None:
    hub.set_part_size(part_size)
    weights = WEIGHTS + bytes([part_size > 0])
    operations = [add("model.safetensors", weights), add("deep/er/a b.json", b"{}"), add("e", b"")]
    commit = hub.api.create_commit(name, operations, commit_message="all")
    assert hub.received("part" if part_size else "put") == len(weights)
    folder = Path(hub.api.snapshot_download(name, cache_dir=tmp_path / "cache"))
    assert folder.name == commit.oid
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "deep/er/a b.json").read_bytes() == b"{}"
    files = hub.api.list_repo_files(name)
    assert sorted(files) == [".gitattributes", "deep/er/a b.json", "e", "model.safetensors"]
    rows = {row.path: row for row in hub.api.get_paths_info(name, ["e", "model.safetensors", "no"])}
    assert set(rows) == {"e", "model.safetensors"}
    hub.api.create_commit(name, [CommitOperationDelete("deep/")], commit_message="less")
    assert sorted(hub.api.list_repo_files(name)) == [".gitattributes", "e", "model.safetensors"]
    titles = [commit.title for commit in hub.api.list_repo_commits(name)]
    assert titles == ["less", "all", "initial commit"]


def test_what_is_there_is_not_sent_again(hub: Hub, name: str) -> None:
    first = hub.api.create_commit(name, [add("w.safetensors", b"new" * 99)], commit_message="a")
    sent = hub.received("put")
    again = hub.api.create_commit(name, [add("w.safetensors", b"new" * 99)], commit_message="b")
    assert again.oid == first.oid and hub.received("put") == sent == 3 * 99
    assert len(hub.pushes(name)) == 1


def test_branches_tags_and_pull_requests(hub: Hub, name: str) -> None:
    head = hub.api.model_info(name).sha
    hub.api.create_branch(name, branch="dev/1")
    hub.api.create_commit(name, [add("a")], commit_message="a", revision="dev/1")
    hub.api.create_tag(name, tag="v1", revision="dev/1")
    pull = hub.api.create_commit(name, [add("b")], commit_message="b", create_pr=True)
    assert pull.pr_num == 1 and pull.pr_revision == "refs/pr/1"
    assert hub.api.model_info(name).sha == head
    assert hub.api.list_repo_files(name, revision="v1") == [".gitattributes", "a"]
    assert hub.api.list_repo_files(name, revision="refs/pr/1") == [".gitattributes", "b"]
    found = hub.api.list_repo_refs(name, include_pull_requests=True)
    assert [branch.name for branch in found.branches] == ["main", "dev/1"]
    assert [tag.name for tag in found.tags] == ["v1"] and len(found.pull_requests or ()) == 1
    assert all(set(row["visible"]) == {".gitattributes"} for row in hub.pushes(name))


def test_errors_are_told_apart(hub: Hub, name: str) -> None:
    with pytest.raises(EntryNotFoundError):
        hub.api.hf_hub_download(name, "absent")
    with pytest.raises(RevisionNotFoundError):
        hub.api.hf_hub_download(name, ".gitattributes", revision="absent")
    with pytest.raises(RepositoryNotFoundError):
        hub.api.hf_hub_download("user/absent", "config.json")
    with pytest.raises(HfHubHTTPError, match="403"):
        hub.api.create_commit(name, [add("a")], commit_message="a", token="hf_other")
    with pytest.raises(HfHubHTTPError, match="401"):
        hub.api.create_commit(name, [add("a")], commit_message="a", token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="412"):
        hub.api.create_commit(name, [add("a")], commit_message="a", parent_commit="0" * 40)
    assert not hub.pushes(name)


def test_a_cut_download_goes_on_where_it_was(hub: Hub, name: str, tmp_path: Path) -> None:
    hub.api.create_commit(name, [add("w.safetensors", WEIGHTS)], commit_message="a")
    hub.fault("cdn", {"cut": 1000})
    path = hub.api.hf_hub_download(name, "w.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert hub.requests("cdn") == 2


def test_faults_come_once_each(hub: Hub, name: str) -> None:
    hub.fault("commit", {"status": 503}, {"lost": True}, {"foreign": True})
    with pytest.raises(HfHubHTTPError, match="503"):
        hub.api.create_commit(name, [add("a")], commit_message="first")
    with pytest.raises(Exception, match="(?i)disconnect|connection|closed"):
        hub.api.create_commit(name, [add("a")], commit_message="second")
    hub.api.create_commit(name, [add("b")], commit_message="third")
    messages = [row["message"] for row in hub.pushes(name)]
    assert messages == ["second", "of somebody else", "third"]
