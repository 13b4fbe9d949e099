"""A push that cannot arrive says so in one line and loses nothing; the same command works later."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_vitmae.cli import main
from hf_vitmae.hub.push import PushError, _reason, reported

from .client import SENDING, TOKEN, Hub
from .pushing import HASTY, Push, assert_one_whole_push, assert_weights_were_sent
from .server import ROUTES

pytestmark = pytest.mark.filterwarnings(SENDING)
Command = Callable[[], tuple[int, str]]
READ_ONLY = {"status": 403, "message": "This Hub is read-only."}
TRIES = 60  # more than any patience


@pytest.fixture(params=["lfs", pytest.param("xet", marks=pytest.mark.slow)])
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def command(push: Push, folder: Path, name: str, capsys: pytest.CaptureFixture) -> Command:
    """The command line, in this process and without waiting: its exit code and its last line."""

    def run() -> tuple[int, str]:
        code = main(["push", str(folder), name])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, (captured.err if code else captured.out).strip().splitlines()[-1]

    return run


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "status",
    [403, 412, *(pytest.param(status, marks=pytest.mark.slow) for status in (401, 404, 500))],
)
@pytest.mark.parametrize("route", ["create", "preupload", "commit"])
def test_what_does_not_pass_is_one_line(
    hub: Hub, name: str, folder: Path, command: Command, route: str, status: int
) -> None:
    before = content(folder)
    hub.fault(route, *[{"status": status}] * TRIES)
    code, line = command()
    assert code == 1 and line.startswith(f"hf-vitmae push: {name} was not pushed: ")
    assert "nothing is lost" in line and line.endswith("run the same command again later.") == (
        status in (412, 500)
    )
    assert TOKEN not in line and (status == 412 or f"answers {status}" in line)
    assert hub.requests(route) > 4 if status in (412, 500) else hub.requests(route) == 1
    assert content(folder) == before
    hub.clear()
    assert command()[0] == 0
    assert_one_whole_push(hub, name, folder)


def test_a_read_only_hub(hub: Hub, name: str, folder: Path, command: Command) -> None:
    assert command()[0] == 0
    (folder / "README.md").write_text("Better.\n")
    for route, verb, *_ in ROUTES:
        if verb != "GET":
            hub.fault(route, READ_ONLY, every=1)
    code, line = command()
    assert code == 1 and "the Hub answers 403 (This Hub is read-only.)" in line
    assert len(hub.pushes(name)) == 1
    hub.clear()
    assert command()[0] == 0
    assert len(hub.pushes(name)) == 2 and hub.received("xorb") + hub.received("put") == 0


def test_a_repository_of_somebody_else(hub: Hub, name: str, folder: Path, push: Push) -> None:
    push()
    (folder / "README.md").write_text("Mine.\n")
    with pytest.raises(PushError, match=f"{name} was not pushed: the Hub answers 403"):
        push(token="hf_other")
    with pytest.raises(PushError, match=r"401.*log in"):
        push(token="hf_wrong")


def test_a_hub_out_of_reach_is_one_line(push: Push) -> None:
    said: list[str] = []
    with pytest.raises(PushError, match="user/x was not pushed: the Hub cannot be reached"):
        push(repo_id="user/x", endpoint="http://127.0.0.1:9", report=said.append)
    assert len(said) == HASTY.attempts - 1 and "trying again" in said[0]


@pytest.mark.parametrize("transport", ["xet"], indirect=True)
@pytest.mark.parametrize("route", ["write_token", "grant", "kept", "shard_events", "shard"])
@pytest.mark.parametrize("status", [pytest.param(401, marks=pytest.mark.slow), 403])
def test_a_storage_that_refuses(
    hub: Hub, name: str, folder: Path, command: Command, route: str, status: int
) -> None:
    hub.fault(route, *[{"status": status}] * TRIES)
    code, line = command()
    assert code == 1 and f"{name} was not pushed: the Hub answers {status} (" in line
    assert hub.requests(route) == 1
    hub.clear()
    assert command()[0] == 0
    assert_one_whole_push(hub, name, folder)


def test_what_is_reported_stays_as_it_is() -> None:
    """A step within another says once what went wrong."""
    with pytest.raises(PushError) as caught, reported("user/outer"), reported("user/inner"):
        raise ConnectionError("gone")
    assert str(caught.value).startswith("user/inner was not pushed") and "outer" not in str(
        caught.value
    )
    with pytest.raises(FileNotFoundError, match="absent"), reported("user/outer"):
        raise FileNotFoundError("absent")


def test_a_signed_address_is_not_told() -> None:
    error = ConnectionError("error sending request for url (https://store/a/b?Sig=abc&c=1) at once")
    assert _reason(error) == (
        "the Hub cannot be reached (error sending request for url (https://store/a/b) at once)"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full disk that Linux has")
@pytest.mark.parametrize("transport", ["lfs"], indirect=True)
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_under_the_copies(
    hub: Hub,
    name: str,
    folder: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    """What names a place on this machine is pushed as a copy: the n-th of them finds no room."""
    for record in ("config.json", "metrics.jsonl", "results.json"):
        (folder / record).write_text('{"made_in": "/home/bob/there"}')
    before, copies, opened = content(folder), list[Path](), Path.open

    def open_on_a_full_disk(path: Path, mode: str = "r", *options: Any, **more: Any) -> Any:
        if "w" in mode and "hf-vitmae-push-" in str(path):
            copies.append(path)
            path = Path("/dev/full") if len(copies) == failing else path
        return opened(path, mode, *options, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_a_full_disk)
        code, line = command()
    assert code == 1 and "No space left on device" in line
    assert len(copies) == failing and not copies[0].parent.exists()
    assert content(folder) == before and not hub.api.repo_exists(name)
    assert command()[0] == 0
    assert len(hub.pushes(name)) == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"needs `mount`: {error}")
    if done.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("transport", ["xet"], indirect=True)
def test_a_full_disk_under_the_cache(
    hub: Hub, name: str, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    """By xet, a list of what was sent is kept on the disk."""
    monkeypatch.setenv("HF_XET_CACHE", str(disk))
    (disk / "filler").write_bytes(bytes(400 * 1024))
    before = content(folder)
    code, line = command()
    assert code == 1 and "is full (" in line and "No space left on device" in line
    assert "make room" in line and content(folder) == before and not hub.pushes(name)
    (disk / "filler").unlink()
    assert command()[0] == 0
    assert_one_whole_push(hub, name, folder)
    assert_weights_were_sent(hub, times=2)
