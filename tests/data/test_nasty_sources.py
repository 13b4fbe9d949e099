"""Bad files among good ones, from every kind of source: an epoch ends, and nobody else is hurt.

Pillow's own test images are mixed in where PILLOW_IMAGES names their folder, see
`decoding/test_nasty_files.py`; `-s` then shows the figures.
"""

import io
import itertools
import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.reader import Skipped
from hf_vitmae.data.sources import open_images
from hf_vitmae.data.streams.stream import StreamSource

from .nasty_files import BOMBS, MEGABYTE, SOUND, resident
from .shard_files import write_tar

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the cores

TRANSFORM = TrainTransform((32, 48), num_channels=3)
KINDS = ("folder", "parquet", "parquet stream", "tar")


class family_memory:
    """The most memory that this process and its workers took beyond what they had, in megabytes.

    The sum of what each took at its own worst: never less than all had at once.
    """

    def __enter__(self) -> "family_memory":
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        self.first: dict[int, int] = {os.getpid(): resident("VmRSS") or 0}
        self.most: dict[int, int] = {}
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.is_over.wait(0.01):
            for pid in [
                os.getpid(),
                *(child.pid or 0 for child in multiprocessing.active_children()),
            ]:
                self.first.setdefault(pid, resident("VmRSS", pid) or 0)
                self.most[pid] = max(self.most.get(pid, 0), resident("VmHWM", pid) or 0)

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join()

    @property
    def megabytes(self) -> float:
        taken = (most - self.first[pid] for pid, most in self.most.items() if most)
        return sum(taken) / MEGABYTE


def good_image(number: int) -> bytes:
    """A JPEG, as most are."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def open_kind(kind: str, root: Path, files: list[bytes]) -> AnySource:
    """Files under names that tell nothing; the label of each is its number."""
    if kind == "folder":
        for number, encoded in enumerate(files):
            (root / f"{number:04d}").mkdir()
            (root / f"{number:04d}/x.jpg").write_bytes(encoded)
    elif kind == "tar":
        pairs = [(f"{n:04d}.cls", f"{n:04d}.jpg", encoded) for n, encoded in enumerate(files)]
        members = [((c, str(int(c[:4])).encode()), (name, encoded)) for c, name, encoded in pairs]
        write_tar(root / "x.tar", dict(itertools.chain(*members)))
    else:
        table = pa.table({"image": files, "label": list(range(len(files)))})
        pq.write_table(table, root / "x.parquet", row_group_size=100)
    return open_images(root, streaming=kind == "parquet stream")


def number_of(name: str) -> int:
    """Which file it is, by what it is called in a folder, a table or a tar."""
    found = re.search(r"train\[(\d+)\]$|/(\d+)(/x)?\.jpg$", name)
    assert found is not None, name
    return int(found[1] or found[2])


def one_epoch(source: AnySource, num_workers: int) -> tuple[list[int], list[Skipped]]:
    """The numbers of the images seen, and what was left out."""
    skipped: list[Skipped] = []
    batch_size = max(size for size in range(1, 17) if len(source) % size == 0)
    batches = train_batches(
        source,
        TRANSFORM,
        seed=0,
        batch_size=batch_size,
        num_workers=num_workers,
        skip=skipped.append,
    )
    seen = []
    for batch in itertools.islice(batches, len(source) // batch_size):
        seen += batch["labels"].tolist() if "valid" not in batch else []
    batches.close()
    return seen, skipped


def check_epoch(source: AnySource, num_workers: int, bad: set[int]) -> None:
    """Every good image is seen once, every bad one is listed once."""
    seen, skipped = one_epoch(source, num_workers)
    assert Counter(seen) == Counter(set(range(len(source))) - bad)
    assert Counter(number_of(image.name) for image in skipped) == Counter(bad)
    assert all("\n" not in image.reason and image.epoch == 0 for image in skipped)
    assert not any("takes more than" in image.reason for image in skipped)


def is_good(encoded: bytes) -> bool:
    try:
        TRANSFORM.read(encoded, np.random.default_rng(0), "a")
    except BadImage:
        return False
    return True


# A small set


def nasty_files() -> list[bytes]:
    """Half a file of each format, a bomb of each kind, and what is no image."""
    halves = [encoded[: len(encoded) // 2] for encoded in SOUND.values()]
    bombs = [bomb(9_500, 9_500) for bomb in BOMBS.values()]
    return [*halves, *bombs, b"", bytes(3000), b"a text, not an image\n", b"\xff\xd8", b"II*\0"]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_among_good_ones(tmp_path, kind, num_workers):
    good, nasty = [good_image(number) for number in range(14)], nasty_files()
    source = open_kind(kind, tmp_path, nasty[:20] + good + nasty[20:])
    assert isinstance(source, StreamSource) == (kind in ("parquet stream", "tar"))
    bad = set(range(len(source))) - set(range(20, 34))
    check_epoch(source, num_workers, bad)


# Pillow's own images


@pytest.fixture(scope="module")
def pillow_files() -> tuple[list[bytes], set[int]]:
    """Pillow's images with 200 good ones among them, and the numbers of those that are bad."""
    folder = Path(os.environ["PILLOW_IMAGES"])
    files = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 1000
    files[500:500] = [good_image(number) for number in range(200)]
    longest, bad = 0.0, set()
    for number, encoded in enumerate(files):
        start = time.monotonic()
        if not is_good(encoded):
            bad.add(number)
        longest = max(longest, time.monotonic() - start)
    print(f"\n{len(files)} files, {len(bad)} bad, the slowest takes {longest:.2f} s")
    assert longest < 10 and bad.isdisjoint(range(500, 700)) and 100 < len(bad) < 300
    return files, bad


@pytest.mark.slow
@pytest.mark.skipif("PILLOW_IMAGES" not in os.environ, reason="PILLOW_IMAGES names no folder")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is not told here")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_pillows_own_images_among_good_ones(pillow_files, tmp_path, kind, num_workers):
    files, bad = pillow_files
    source, start = open_kind(kind, tmp_path, files), time.monotonic()
    with family_memory() as memory:
        check_epoch(source, num_workers, bad)
    seconds = time.monotonic() - start
    print(f"\n{kind}, {num_workers} workers: {seconds:.0f} s, {memory.megabytes:.0f} MB more")
    assert memory.megabytes < 1024
