"""A push arrives whole, in one commit, by LFS and by xet alike, and comes back as it was."""

import os
from pathlib import Path

import pytest

from hf_vitmae.hub.push import PushResult

from .client import SENDING, Hub
from .pushing import (
    EXPECTED,
    Push,
    assert_one_whole_push,
    assert_weights_were_sent,
    weight_bytes,
)

pytestmark = pytest.mark.filterwarnings(SENDING)


@pytest.fixture(params=["lfs", "xet"])
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


def pull(hub: Hub, name: str, cache: Path) -> dict[str, bytes]:
    """What a reader gets who never asked before."""
    folder = Path(hub.api.snapshot_download(name, cache_dir=cache))
    paths = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    del found[".gitattributes"]
    return found


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_it_arrives_whole(
    hub: Hub, name: str, folder: Path, push: Push, transport: str, tmp_path: Path
) -> None:
    result = push()
    assert_one_whole_push(hub, name, folder)
    assert result == PushResult(f"{hub.endpoint}/{name}", hub.pushes(name)[-1]["id"], False)
    assert_weights_were_sent(hub)
    assert hub.received("xorb" if transport == "xet" else "put") == weight_bytes(hub)
    assert pull(hub, name, tmp_path / "cache") == content(folder)
    assert bool(hub.requests("terms")) == (transport == "xet")


def test_again_does_nothing(hub: Hub, name: str, push: Push) -> None:
    first = push()
    counted = hub.requests("commit"), weight_bytes(hub)
    again = push()
    assert again.already_there and again.commit == first.commit
    assert (hub.requests("commit"), weight_bytes(hub)) == counted


def test_only_what_changed_is_sent(hub: Hub, name: str, folder: Path, push: Push) -> None:
    push()
    sent = weight_bytes(hub), hub.received("commit")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nBetter.\n")
    assert not push().already_there
    assert weight_bytes(hub) == sent[0] and hub.received("commit") - sent[1] < 400
    assert [set(row["visible"]) for row in hub.pushes(name)] == [EXPECTED] * 2


def test_weights_that_the_hub_has_are_not_sent_elsewhere(hub: Hub, name: str, push: Push) -> None:
    push()
    push(revision="dev")
    push(create_pr=True, commit_message="No change", revision="dev")
    other = hub.new_name()
    push(repo_id=other)
    assert set(hub.pushes(other)[-1]["visible"]) == EXPECTED
    assert_weights_were_sent(hub)


def test_many_files(hub: Hub, name: str, folder: Path, push: Push, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    shards = [f"model-{number:05d}-of-00012.safetensors" for number in range(1, 13)]
    for shard in shards:
        (folder / shard).write_bytes(os.urandom(1000))
    rows = ", ".join(f'"{number}": "{shard}"' for number, shard in enumerate(shards))
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{rows}}}}}')
    for number in range(100):
        (folder / f"samples/{number}.png").write_bytes(os.urandom(100))
    push()
    assert len(hub.pushes(name)) == 1 and len(content(folder)) > 115
    assert pull(hub, name, tmp_path / "cache") == content(folder)


def test_weights_in_parts(
    hub: Hub, name: str, folder: Path, push: Push, transport: str, tmp_path: Path
) -> None:
    """Parts by LFS where the Hub asks for them, and many chunks by xet."""
    hub.set_part_size(100_000)
    (folder / "model.safetensors").write_bytes(os.urandom(550_000))
    push()
    assert hub.requests("part") == (6 if transport == "lfs" else 0)
    assert_one_whole_push(hub, name, folder)
    assert pull(hub, name, tmp_path / "cache") == content(folder)


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
        push(repo_id=other, private=True)
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
