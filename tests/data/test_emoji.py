"""The embedded emoji data set: what it holds, that its splits are apart, and how it is built."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hf_vitmae.data

REPOSITORY = Path(__file__).parents[2]
FOLDER = Path(hf_vitmae.data.__path__[0]) / "emoji"
BUILDER = REPOSITORY / "scripts" / "build_emoji.py"
SPLITS = ("train", "test")
CLASS_NAMES = [
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
]


@pytest.fixture(scope="module")
def emoji() -> datasets.DatasetDict:
    """Both splits, images as encoded bytes."""
    files = {split: str(FOLDER / f"{split}.parquet") for split in SPLITS}
    splits = datasets.load_dataset("parquet", data_files=files)
    assert isinstance(splits, datasets.DatasetDict)
    return splits.cast_column("image", datasets.Image(decode=False))


def code_points(row: dict) -> str:
    return Path(row["image"]["path"]).stem


def test_features_come_with_the_file():
    features = datasets.Features.from_arrow_schema(pq.read_schema(FOLDER / "test.parquet"))
    assert features == {
        "image": datasets.Image(),
        "category": datasets.ClassLabel(names=CLASS_NAMES),
        "name": datasets.Value("string"),
        "vendor": datasets.Value("string"),
    }


def test_sizes(emoji):
    assert {split: len(emoji[split]) for split in SPLITS} == {"train": 3210, "test": 555}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12e6


def test_every_split_has_every_class_and_both_vendors(emoji):
    for split in SPLITS:
        pairs = Counter(zip(emoji[split]["category"], emoji[split]["vendor"], strict=True))
        assert len(pairs) == len(CLASS_NAMES) * 2
        assert min(pairs.values()) >= 10


def test_no_emoji_and_no_picture_is_in_both_splits(emoji):
    train, test = (list(emoji[split]) for split in SPLITS)
    assert not {code_points(row) for row in train} & {code_points(row) for row in test}
    assert not {row["name"] for row in train} & {row["name"] for row in test}
    pictures = [row["image"]["bytes"] for row in train + test]
    assert len(set(pictures)) == len(pictures)


def test_every_image_opens_at_64_pixels(emoji):
    for split in SPLITS:
        for image in emoji[split]["image"]:
            with Image.open(io.BytesIO(image["bytes"])) as opened:
                opened.load()
                assert opened.size == (64, 64)


def test_pixels_of_the_japanese_flag(emoji):
    rows = [row for split in SPLITS for row in emoji[split] if row["name"] == "jp"]
    assert sorted(row["vendor"] for row in rows) == ["noto", "twemoji"]
    assert {CLASS_NAMES[row["category"]] for row in rows} == {"Flags"}
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA"))
        assert pixels[0, 0, 3] == 0  # clear above the flag
        red, green, blue, alpha = pixels[32, 32]
        assert red > 180 and green < 60 and blue < 80 and alpha == 255  # the disc
        assert pixels[32, 10].min() > 225  # white, opaque


def test_licences_are_named_beside_the_data():
    text = (FOLDER / "LICENSE.md").read_text()
    for named in ("Apache License 2.0", "CC-BY 4.0", "Twitter, Inc", "Google", "Changes:"):
        assert named in text


def png(*color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_package(path: Path, name: str, catalogue: list[dict], images: dict[str, bytes]) -> Path:
    """An npm tarball like the published ones."""
    members = {f"package/img/{name}/64/{file}": content for file, content in images.items()}
    members["package/emoji.json"] = json.dumps(catalogue).encode()
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def builder(monkeypatch):
    """The build script as a module."""
    monkeypatch.syspath_prepend(BUILDER.parent)
    import build_emoji  # pyright: ignore[reportMissingImports]

    yield build_emoji
    del sys.modules["build_emoji"]


@pytest.fixture
def packages(tmp_path) -> dict[str, Path]:
    """Two tiny packages with a repeated picture, a swatch and a picture that one vendor lacks."""
    described = [("smile", "1F600", "Smileys"), ("no", "1F1F3", "Flags"), ("sj", "1F1F8", "Flags")]
    described += [("swatch", "1F3FB", "Component"), ("new", "1FAE9", "Smileys")]
    catalogue = [
        {"short_name": name, "unified": code, "category": category, "sort_order": -order}
        | {"image": f"{code.lower()}.png"}
        for order, (name, code, category) in enumerate(described)
    ]
    google = {"1f600.png": png(255, 200, 0, 255), "1f3fb.png": png(250, 220, 190, 255)}
    google |= dict.fromkeys(["1f1f3.png", "1f1f8.png"], png(200, 0, 40, 255))
    twitter = dict(google) | {"1f600.png": png(255, 210, 0, 0), "1fae9.png": png(1, 2, 3, 4)}
    return {
        "google": write_package(tmp_path / "google.tgz", "google", catalogue, google),
        "twitter": write_package(tmp_path / "twitter.tgz", "twitter", catalogue, twitter),
    }


def test_builder_keeps_each_picture_once_and_its_bytes(builder, packages, tmp_path):
    builder.build(packages, tmp_path)
    rows = [row for s in SPLITS for row in pq.read_table(tmp_path / f"{s}.parquet").to_pylist()]
    kept = {(row["name"], row["vendor"]): row["image"] for row in rows}
    assert set(kept) == {
        ("new", "twemoji"),
        ("sj", "noto"),
        ("smile", "noto"),
        ("smile", "twemoji"),
    }
    assert kept["new", "twemoji"] == {"bytes": png(1, 2, 3, 4), "path": "twemoji/1fae9.png"}
    assert kept["smile", "twemoji"]["bytes"] == png(255, 210, 0, 0)  # hidden colour kept


def test_builder_writes_the_same_bytes_again(builder, packages, tmp_path):
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        builder.build(packages, tmp_path / name)
        written.append([(tmp_path / name / f"{split}.parquet").read_bytes() for split in SPLITS])
    assert written[0] == written[1]


def test_builder_refuses_another_release(builder, packages, tmp_path):
    with pytest.raises(ValueError, match=r"google\.tgz has sha256 .* fetch release 16\.0\.0"):
        builder.main(**packages, output=tmp_path)


@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_builder_reproduces_the_shipped_data(builder, tmp_path):
    names = [f"emoji-datasource-{package}" for package in builder.VENDORS]
    packed = [f"{name}@16.0.0" for name in names]
    subprocess.run(["npm", "pack", "--silent", *packed], cwd=tmp_path, check=True)
    builder.main(*(tmp_path / f"{name}-16.0.0.tgz" for name in names), output=tmp_path)
    for split in SPLITS:
        rebuilt, shipped = (pq.read_table(f / f"{split}.parquet") for f in (tmp_path, FOLDER))
        assert rebuilt.equals(shipped)
