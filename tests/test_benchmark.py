"""The benchmarks measure what they say, on every kind of source; how fast it is no test can say."""

import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_vitmae.cli import main
from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.tasks.benchmark import BenchmarkRequest, run

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
SMALL: dict[str, Any] = {
    "image_size": 32,
    "num_images": 6,
    "batch_size": 4,
    "num_workers": 0,
    "rounds": 3,
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three JPEGs of several sizes."""
    generator = np.random.default_rng(0)
    for number in range(3):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((90 + 9 * number, 60), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{number}.jpg")
    return tmp_path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module scripts/benchmark.py; torch's threads are put back afterwards."""
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return module


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_every_stage_has_a_rate_for_every_round(
    photos: Path, capsys: pytest.CaptureFixture, three_threads: None
):
    rates = run(BenchmarkRequest(what="data", source=str(photos), **SMALL))
    assert list(rates)[:5] == [
        "read bytes",
        "decode",
        "crop, resize, flip",
        "decode to flip in one, as training",
        "make a batch",
    ]
    assert list(rates)[5].startswith("normalise on ") and list(rates)[6].endswith("0 workers")
    assert all(len(values) == 3 and min(values) > 0 for values in rates.values())
    assert torch.get_num_threads() == 3
    first, *lines = capsys.readouterr().out.splitlines()
    assert str(photos) in first and "3 rounds of 6 images" in first
    assert len(lines) == len(rates)
    for line, (name, values) in zip(lines, rates.items(), strict=True):
        assert line.strip().startswith(name)
        low, median, high = (f"{value:,.0f}" for value in np.percentile(values, [0, 50, 100]))
        assert median in line and f"({low}..{high})" in line


def test_the_rates_are_images_by_seconds(photos: Path, monkeypatch: pytest.MonkeyPatch):
    """With a clock that gains a second each time it is asked, every stage takes a second."""
    seconds = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    rates = list(run(BenchmarkRequest(what="data", source=str(photos), **SMALL)).values())
    assert rates[:4] == [[1.0] * 3] * 4  # one image a second
    assert rates[4] == [6.0] * 3  # a round's images
    assert rates[5] == [4.0] * 3  # a batch
    assert rates[6] == [8.0] * 3  # two batches hold a round's images


def test_a_stream_has_the_same_stages(photos: Path, tmp_path: Path):
    table = tmp_path / "photos.parquet"
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(photos.glob("*.jpg"))]
    Dataset.from_dict({"image": images}).to_parquet(table)
    stream = run(BenchmarkRequest(what="data", source=str(table), streaming=True, **SMALL))
    indexed = run(BenchmarkRequest(what="data", source=str(photos), **SMALL))
    assert list(stream) == list(indexed)


def test_with_workers_and_from_the_command_line(photos: Path, capsys: pytest.CaptureFixture):
    flags = "--image-size 32 --num-images 4 --batch-size 2 --num-workers 1 --rounds 1".split()
    assert main(["benchmark", "data", str(photos), *flags]) == 0
    assert "whole loader, 1 workers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["data", "no/such/folder"], 1, ["no/such/folder"]),
        (["data", "x", "--rounds", "0"], 2, ["rounds", "0"]),
        (["data", "x", "--num-workers", "-1"], 2, ["num_workers", "-1"]),
        (["speed", "x"], 2, ["speed", "data"]),
    ],
)
def test_mistakes_are_one_line(arguments, code, words, capsys: pytest.CaptureFixture):
    assert main(["benchmark", *arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words)


def test_a_bad_image_is_named(photos: Path, capsys: pytest.CaptureFixture):
    (photos / "1.jpg").write_bytes((photos / "1.jpg").read_bytes()[:300])
    assert main(["benchmark", "data", str(photos), "--num-workers", "0"]) == 1
    assert "1.jpg" in capsys.readouterr().err


def test_the_comparisons_print_medians_and_ratios(
    photos: Path, script: ModuleType, capsys: pytest.CaptureFixture, monkeypatch
):
    monkeypatch.setattr(script, "SHAPES", ((40, 60),))
    script.measure_decode(rounds=2, photos=photos)
    script.measure_processor(rounds=2, photos=photos)
    lines = capsys.readouterr().out.splitlines()
    ratios = [line for line in lines if "ratio" in line]
    assert len(ratios) == 5 and ratios[0].startswith("40x60 JPEG to 224x224 crop: ours ")
    differences = [float(line.split()[2].removesuffix("/255")) for line in lines if "diff" in line]
    assert len(differences) == 4 and max(differences) <= 1.0  # one level


def test_the_other_side_cuts_the_same_box(script: ModuleType):
    """Else the ratio would compare different work."""
    rows, columns = np.mgrid[:300, :400]
    pixels = np.stack([rows * 0.8, columns * 0.6, rows * 0], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    transform = TrainTransform(script.CROP)
    for seed in range(6):
        one = transform.read(buffer.getvalue(), np.random.default_rng(seed), "")
        generator = np.random.default_rng(seed)
        other = script.read_by_pillow(buffer.getvalue(), transform, generator)
        assert (one.int() - other.int()).abs().max() <= 2


def test_sides_take_turns_after_a_warm_up(script: ModuleType):
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    seconds = script.take_turns(sides, 3)
    assert calls == ["a", "b"] * 4 and [len(times) for times in seconds.values()] == [3, 3]


def test_without_photographs_it_says_so(script: ModuleType, tmp_path: Path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no \.jpg files"):
        script.find_photos(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match="--photos DIR"):
        script.find_photos(None)
