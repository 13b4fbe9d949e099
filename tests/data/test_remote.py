"""Parquet files and tars by their URL, from a server that answers, breaks off, or is gone."""

import io
import itertools
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets.config
import numpy as np
import pytest

from hf_vitmae.data import remote
from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.sources import open_images

from .shard_files import CLASS_NAMES, values_of, write_parquet, write_tars

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores

SIZES = (5, 3)
WAYS = [("parquet", False), ("parquet", True), ("tar", True)]
WRITE = {"parquet": write_parquet, "tar": write_tars}


class Answer(BaseHTTPRequestHandler):
    """One request, answered as the server is told to."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        content = self.server.files.get(self.path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if content is None:
            return self.send_error(404)
        if self.server.troubles and self.server.troubles[0] != "break":
            return self.send_error(int(self.server.troubles.pop(0)))
        if wanted is not None and self.server.has_ranges:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if self.server.says_no_ranges:
            self.send_header("Accept-Ranges", "none")
        self.end_headers()
        if self.command == "GET":
            self.send_content(content)

    def send_content(self, content: bytes) -> None:
        if self.server.troubles:
            self.server.troubles.pop(0)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed."""


class Server(ThreadingHTTPServer):
    """Files by their path; first its troubles, one a request: a status, or a break in between."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.troubles: list[str] = []
        self.has_ranges, self.says_no_ranges = True, False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """That a client went away is its own affair."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made, none of which takes time."""
    made: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", made.append)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # this computer is no network
    return made


def serve_shards(server: Server, root: Path, kind: str) -> list[str]:
    """Put images 0, 1, ... on the server, in two shards: their URLs."""
    folder = WRITE[kind](root / kind, SIZES)
    server.files = {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return [f"{server.url}{path}" for path in sorted(server.files)]


# What is there


@pytest.mark.parametrize(("kind", "streaming"), WAYS)
def test_a_url_gives_what_the_file_gives(server, tmp_path, kind, streaming):
    first, second = serve_shards(server, tmp_path, kind)
    source = open_images(first, streaming=streaming)
    assert values_of(source.records()) == [0, 1, 2, 3, 4]
    classes = CLASS_NAMES if kind == "parquet" else ("0", "1", "2")
    assert source.class_names == classes and [r.label for r in source.records()] == [0, 1, 2, 0, 1]
    assert all(record.name.startswith(server.url) for record in source.records())
    assert values_of(open_images([first, second], streaming=streaming).records()) == [*range(8)]
    both = f"{server.url}/{{0000..0001}}.{kind}"
    assert values_of(open_images(both, streaming=streaming).records()) == [*range(8)]


@pytest.mark.parametrize(("kind", "streaming"), WAYS)
def test_workers_train_on_urls(server, tmp_path, kind, streaming):
    first, _ = serve_shards(server, tmp_path, kind)
    source = open_images(first, streaming=streaming)
    transform = TrainTransform((4, 4), num_channels=1)
    batches = train_batches(source, transform, seed=0, batch_size=5, num_workers=1)
    taken = [sorted(b["pixel_values"][:, 0, 0, 0].tolist()) for b in itertools.islice(batches, 2)]
    batches.close()
    assert taken == [[0, 1, 2, 3, 4]] * 2


def test_a_file_of_the_network_is_read_at_any_place(server, pauses):
    content = np.random.default_rng(0).bytes(100_000)
    server.files = {"/a.bin": content}
    with remote.open_remote(f"{server.url}/a.bin") as file:
        assert file.readable() and file.seekable()
        for start, size in ((0, 10), (50_000, 7), (99_990, 100), (3, 0), (100_000, 5)):
            assert file.seek(start) == start
            assert file.read(size) == content[start : start + size]
        assert file.seek(-5, 2) == 99_995 and file.read() == content[-5:]
        assert file.tell() == 100_000
    assert file.closed and pauses == []


# What goes wrong and passes


@pytest.mark.parametrize("trouble", ["break", "503", "429"])
@pytest.mark.parametrize(("kind", "streaming"), WAYS)
def test_a_read_that_fails_is_repeated(server, tmp_path, pauses, kind, streaming, trouble):
    first, _ = serve_shards(server, tmp_path, kind)
    server.troubles = [trouble] * 3
    source = open_images(first, streaming=streaming)
    assert values_of(source.records()) == [0, 1, 2, 3, 4]
    assert server.troubles == [] and len(pauses) >= 1


@pytest.mark.parametrize("kind", WRITE)
def test_a_connection_that_breaks_in_the_middle_of_an_epoch_changes_nothing(
    server, tmp_path, pauses, kind
):
    first, _ = serve_shards(server, tmp_path, kind)
    source = open_images(first, streaming=True)
    records, whole = source.records(), list(source.records())
    begun = [next(records)]
    server.troubles = ["break", "500"]
    assert begun + list(records) == whole
    again = list(source.records())
    assert again == whole and server.troubles == [] and pauses == [1.0, 4.0]


def test_a_read_goes_on_where_it_was(server, pauses):
    content = np.random.default_rng(0).bytes(100_000)
    server.files = {"/a.bin": content}
    with remote.open_remote(f"{server.url}/a.bin") as file:
        file.seek(60_000)
        server.troubles = ["break", "break"]
        assert file.read(1000) == content[60_000:61_000]
        assert file.read(1000) == content[61_000:62_000]
    assert pauses == [1.0, 4.0] and server.troubles == []


class Stumbling(io.BytesIO):
    """Fails at first, half way through what was asked for."""

    has_failed = False

    def read(self, size: int | None = -1) -> bytes:
        if self.has_failed:
            return super().read(size)
        self.has_failed = True
        super().read((size or 0) // 2)
        raise OSError("the line was cut")


def test_a_file_system_that_lost_its_place_is_set_right(pauses, monkeypatch):
    content = np.random.default_rng(0).bytes(100)
    memory = remote.fsspec.filesystem("memory")
    monkeypatch.setattr(memory, "open", lambda path, mode: Stumbling(content))
    with remote.open_remote("memory://a.bin") as file:
        file.seek(10)
        assert file.read(50) == content[10:60] and file.read() == content[60:]
    assert pauses == [1.0]


# What goes wrong and stays


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("kind", "streaming"), WAYS)
def test_what_always_fails_is_said_in_one_line(server, tmp_path, pauses, kind, streaming):
    first, _ = serve_shards(server, tmp_path, kind)
    server.troubles = ["break"] * 99
    with pytest.raises(OSError, match="cannot be read, tried 5 times: .*check the address") as e:
        open_images(first, streaming=streaming)
    assert one_line(e).startswith(f"{first} cannot be read") and pauses == list(remote.PAUSES)


@pytest.mark.parametrize(("kind", "streaming"), WAYS)
def test_what_is_not_there_is_said_in_one_line_at_once(server, pauses, kind, streaming):
    url = f"{server.url}/lost.{kind}"
    with pytest.raises(FileNotFoundError) as caught:
        open_images(url, streaming=streaming)
    assert one_line(caught) == f"There is nothing at {url}; check the address." and pauses == []


@pytest.mark.parametrize(("kind", "streaming"), WAYS)
def test_of_several_files_the_one_that_is_not_there_is_named(server, tmp_path, kind, streaming):
    serve_shards(server, tmp_path, kind)
    both = f"{server.url}/{{0001..0002}}.{kind}"
    with pytest.raises(FileNotFoundError, match=f"There is nothing at .*/0002.{kind}; check the"):
        open_images(both, streaming=streaming)


@pytest.mark.parametrize("kind", WRITE)
def test_a_file_that_vanished_from_the_server_is_named(server, tmp_path, pauses, kind):
    first, _ = serve_shards(server, tmp_path, kind)
    source = open_images(first, streaming=True)
    server.files.clear()
    with pytest.raises(FileNotFoundError, match=f"There is nothing at {first}; check the"):
        list(source.records())
    assert pauses == []


@pytest.mark.parametrize("kind", WRITE)
def test_a_refusal_is_not_asked_again(server, tmp_path, pauses, kind):
    first, _ = serve_shards(server, tmp_path, kind)
    server.troubles = ["403"] * 99
    with pytest.raises(OSError, match=f"^{first} cannot be read: 403") as caught:
        open_images(first, streaming=True)
    assert "Forbidden" in one_line(caught) and pauses == []


def test_a_server_that_is_not_there_is_waited_for_and_named(pauses):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.tar"
    with pytest.raises(OSError, match="^http.*a.tar cannot be read, tried 5 times: Cannot connect"):
        open_images(url)
    assert pauses == list(remote.PAUSES)


@pytest.mark.parametrize("is_said", [True, False])
def test_a_server_that_gives_only_whole_files_is_refused(server, pauses, is_said):
    server.files = {"/a.bin": bytes(1000)}
    server.has_ranges, server.says_no_ranges = False, is_said
    with pytest.raises(ValueError, match="gives only whole files, .*; download it and") as caught:
        with remote.open_remote(f"{server.url}/a.bin") as file:
            file.seek(100)
            file.read(5)
    assert one_line(caught).startswith(f"{server.url}/a.bin") and pauses == []


def test_a_damaged_file_is_damaged_wherever_it_lies(server, pauses):
    for kind in WRITE:
        server.files[f"/a.{kind}"] = b"junk" * 300
        with pytest.raises(ValueError, match=rf"/a.{kind} cannot be read as {kind}: ") as caught:
            open_images(f"{server.url}/a.{kind}", streaming=True)
        assert one_line(caught).endswith("mend it or leave it out.") and pauses == []


def test_a_url_that_nothing_reads_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="^ours://a/b.tar cannot be opened: Protocol not known"):
        open_images("ours://a/b.tar")

    def fail(url: str) -> None:
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(remote.fsspec.core, "url_to_fs", fail)
    with pytest.raises(ValueError, match='^http://a/b.tar cannot be opened: .*"aiohttp" to be ins'):
        open_images("http://a/b.tar")


def test_offline_nothing_is_waited_for(server, tmp_path, pauses, monkeypatch):
    first, _ = serve_shards(server, tmp_path, "parquet")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"^{first} cannot be read: .*[Oo]ffline"):
        open_images(first)
    assert pauses == []


def test_a_bug_is_no_fault_of_the_network(pauses):
    with pytest.raises(AttributeError):
        remote.patiently("http://a", lambda: open_images.nothing)  # type: ignore[attr-defined]
    assert pauses == []
