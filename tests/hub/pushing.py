"""What the tests of pushes share: a small model's files, and what a push of them has to come to."""

import hashlib
from functools import partial
from pathlib import Path

from hf_vitmae.hub.push import Patience, PushResult

from .client import Hub

Push = partial[PushResult]
HASTY = Patience(attempts=5, first_wait=0.001, longest_wait=0.002)
NUM_BYTES = 50_000  # of the weights
FRAMING = 100  # bytes that xet adds to them at most
FILES = {
    "config.json": b'{"model_type": "vitmae"}',
    "modeling.py": b'CPU = "/proc/cpuinfo"\n',
    "README.md": b"---\nlicense: mit\n---\nA model.\n",
    "samples/a.png": b"\x89PNG",
}
EXPECTED = {*FILES, "model.safetensors", ".gitattributes"}
FOREIGN = "notes.txt"
WEIGHT_ROUTES = ("put", "part", "xorb", "direct")


def weight_bytes(hub: Hub) -> int:
    """How many bytes of weights the Hub was sent, by whichever route."""
    return sum(hub.received(route) for route in WEIGHT_ROUTES)


def assert_weights_were_sent(hub: Hub, times: int = 1) -> None:
    assert NUM_BYTES <= weight_bytes(hub) <= times * (NUM_BYTES + FRAMING)


def assert_one_whole_push(hub: Hub, name: str, folder: Path) -> None:
    """One commit is ours, and what a reader sees after each is all of it or nothing of it."""
    seen = [row["visible"] for row in hub.pushes(name)]
    (row,) = [row for row in hub.pushes(name) if row["message"] != "of somebody else"]
    assert set(row["visible"]) - {FOREIGN} == EXPECTED
    for visible in seen:
        assert set(visible) - {FOREIGN} in ({".gitattributes"}, EXPECTED)
    for path, etag in row["visible"].items():
        if path not in (FOREIGN, ".gitattributes"):
            assert etag in _hashes((folder / path).read_bytes()), path


def _hashes(content: bytes) -> tuple[str, str]:
    """As the Hub names content: what git says of it, or its SHA-256."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content)
    return git.hexdigest(), hashlib.sha256(content).hexdigest()
