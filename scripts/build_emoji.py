"""Rebuild the embedded emoji data set, byte for byte, from the two npm packages it comes from.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    python scripts/build_emoji.py emoji-datasource-{google,twitter}-16.0.0.tgz

The images are the packages' own 64x64 PNG files, untouched: lossless WebP would be a sixth smaller
and take twice as long to decode. Skin-tone variants are left out: they double the size and add
colours, not shapes.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from datasets import ClassLabel, Features, Image, Value

OUTPUT = Path(__file__).parents[1] / "src" / "hf_vitmae" / "data" / "emoji"
SHA256 = {
    "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
VENDORS = {"google": "noto", "twitter": "twemoji"}  # npm package -> image set
NOT_PICTURES = "Component"  # the category of the bare skin-tone swatches
TEST_PERCENT = 15


def check_sha256(package: Path, expected: str) -> None:
    """Raise ValueError unless the file is the release that the shipped data was made from."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{package} has sha256 {found}, not {expected}: fetch release 16.0.0.")


def read_package(package: Path) -> dict[str, bytes]:
    """The catalogue and the 64-pixel images of an npm tarball, by path inside it."""
    with tarfile.open(package) as archive:
        wanted = [m for m in archive if m.name.endswith("/emoji.json") or "/64/" in m.name]
        contents = ((member.name, archive.extractfile(member)) for member in wanted)
        return {name.removeprefix("package/"): file.read() for name, file in contents if file}


def split_of(emoji: dict[str, Any]) -> str:
    """`train` or `test` by the code points alone: all drawings of an emoji stay together."""
    digest = hashlib.sha256(emoji["unified"].encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 100 < TEST_PERCENT else "train"


def to_row(emoji: dict[str, Any], vendor: str, encoded: bytes) -> dict[str, Any]:
    """One row of the data set, its category still by name."""
    return {
        "image": {"bytes": encoded, "path": f"{vendor}/{emoji['image']}"},
        "category": emoji["category"],
        "name": emoji["short_name"],
        "vendor": vendor,
    }


def records(packages: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of every drawing of every emoji, in the order of the Unicode charts.

    A drawing that repeats an earlier one exactly (the flags of Norway and Svalbard) is left out,
    so that no picture is in both splits under two names.
    """
    catalogue = json.loads(packages["google"]["emoji.json"])
    pictures = [emoji for emoji in catalogue if emoji["category"] != NOT_PICTURES]
    seen: set[bytes] = set()
    for emoji in sorted(pictures, key=lambda emoji: emoji["sort_order"]):
        for package, vendor in VENDORS.items():
            encoded = packages[package].get(f"img/{package}/64/{emoji['image']}")
            if encoded and encoded not in seen:
                seen.add(encoded)
                yield split_of(emoji), to_row(emoji, vendor, encoded)


def write_split(path: Path, rows: list[dict[str, Any]], class_names: list[str]) -> None:
    """Write rows as parquet that `datasets` opens with images and class names in place."""
    labels = ClassLabel(names=class_names)
    text = Value("string")
    features = Features(image=Image(), category=labels, name=text, vendor=text)
    numbered = [row | {"category": class_names.index(row["category"])} for row in rows]
    table = pa.Table.from_pylist(numbered, schema=features.arrow_schema)
    pq.write_table(table, path, compression="zstd", write_statistics=False)


def build(packages: dict[str, Path], output: Path) -> None:
    """Write `train.parquet` and `test.parquet` into `output` from tarballs by npm package."""
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for split, row in records({name: read_package(path) for name, path in packages.items()}):
        splits[split].append(row)
    class_names = sorted({row["category"] for rows in splits.values() for row in rows})
    for split, rows in splits.items():
        write_split(output / f"{split}.parquet", rows, class_names)


def main(
    google: tyro.conf.Positional[Path],
    twitter: tyro.conf.Positional[Path],
    output: Path = OUTPUT,
) -> None:
    """Rebuild the embedded emoji data set.

    Args:
        google: tarball of emoji-datasource-google 16.0.0 (Noto Emoji).
        twitter: tarball of emoji-datasource-twitter 16.0.0 (Twemoji).
        output: folder that receives train.parquet and test.parquet.
    """
    packages = {"google": google, "twitter": twitter}
    for name, path in packages.items():
        check_sha256(path, SHA256[name])
    build(packages, output)


if __name__ == "__main__":
    tyro.cli(main)
