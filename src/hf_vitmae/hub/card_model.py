"""What a saved model says of itself for its card: its class, its sizes, its parameters."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_vitmae.hub.card import Value
from hf_vitmae.hub.card_kinds import KINDS
from hf_vitmae.hub.privacy import find_private

ENCODER = "vit."  # what the names of its parameters begin with, beside a head or decoder
SIZES = {
    "image_size": "images (height x width)",
    "patch_size": "patches (height x width)",
    "num_channels": "channels",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "width of the MLP",
    "position_embedding": "position embedding",
}
DECODER = {
    "decoder_hidden_size": "decoder: width",
    "decoder_num_hidden_layers": "decoder: layers",
    "decoder_num_attention_heads": "decoder: heads",
}


def read_class(config: Mapping[str, Any]) -> str:
    """The name of the class that was saved.

    Raises:
        ValueError: for a model of another package.
    """
    name = next(iter(config.get("architectures") or ()), None)
    if name not in KINDS:
        raise ValueError(
            f"config.json names the class {name!r}, and cards are for {', '.join(KINDS)}; save the "
            "model with this package, or bring it over with hf-vitmae convert."
        )
    return name


def architecture(folder: Path, config: Mapping[str, Any]) -> dict[str, Value]:
    """A table of the model in a folder."""
    rows = {"class": read_class(config), **dict(_sizes(config)), **_parameters(folder)}
    return {name: value for name, value in rows.items() if value is not None}


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, Value | None]]:
    for name, label in SIZES.items():
        value = config.get(name)
        if name in ("image_size", "patch_size") and value is not None:
            height, width = value if isinstance(value, list) else (value, value)
            value = f"{height} x {width}"
        yield label, value
    if depths := config.get("stem_depths"):
        yield "ResNet stem (blocks of each stage)", tuple(depths)
    if read_class(config) == "VitMaeForPreTraining":
        yield from ((label, config.get(name)) for name, label in DECODER.items())
    if read_class(config) in ("VitMaeForImageClassification", "VitMaeForSemanticSegmentation"):
        names = list((config.get("id2label") or {}).values())
        listed = ", ".join(map(str, names))
        yield "classes", len(names) or None
        if listed and not find_private(listed):  # some sets have classes like /m/01yrx
            yield "names of the classes", listed
        yield "pooling", config.get("pooling")


def _parameters(folder: Path) -> dict[str, Value]:
    """Counted in the weights' files; nothing where there are none that can be read."""
    sizes: dict[str, int] = {}
    try:
        for path in _weight_files(folder):
            with safe_open(path, framework="numpy") as file:
                names = file.keys()
                sizes |= {name: math.prod(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError):  # that is for who loads it to say
        return {}
    encoder = sum(size for name, size in sizes.items() if name.startswith(ENCODER))
    table: dict[str, Value] = {"parameters": sum(sizes.values())} if sizes else {}
    return table | ({"parameters of the encoder": encoder} if encoder else {})


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return [path for path in [folder / "model.safetensors"] if path.is_file()]
