"""A picture that is served is written once, and whole at any time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
from hf_vitmae.app.files import served  # noqa: E402


def noise(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    return Image.fromarray(values)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_same_picture_is_one_file_that_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first = Path(served(noise(0)))
    written = first.stat()
    with Image.open(first) as picture:
        assert picture.tobytes() == noise(0).tobytes()
    assert served(noise(0)) == str(first) != served(noise(1))
    assert (first.stat().st_ino, first.stat().st_ctime_ns > written.st_ctime_ns) == (
        written.st_ino,
        True,  # touched, so that it is not removed while it is shown
    )
    assert len(files(tmp_path)) == 2


def test_visitors_at_the_same_time_get_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    def size_of(seed: int) -> tuple[int, int]:
        with Image.open(served(noise(seed % 3))) as picture:
            picture.load()
            return picture.size

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(size_of, range(60))) == {(300, 200)}
    assert len(files(tmp_path)) == 3
