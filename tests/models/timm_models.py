"""timm's models, imported without torchvision, and their stems' weights under our names.

timm imports torchvision, which does not load beside the CPU build of torch; its models need none of
it. Placeholders stand in while timm is imported and are gone afterwards: if they stayed,
transformers would believe that torchvision is there.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .tiny import stir

TIMM = Path(sys.prefix) / "timm"  # `make venv` installs it there

TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)

# The hybrids of arXiv:2010.11929 that timm has, by the blocks of their stems' stages.
HYBRIDS = {"vit_base_r50_s16_224": (3, 4, 9), "vit_small_r26_s32_224": (2, 2, 2, 2)}

STEM_NAMES = {
    "stem.conv.": "convolution.",
    "stem.norm.": "norm.",
    ".blocks.": ".",
    ".downsample.conv.": ".shortcut.convolution.",
    ".downsample.norm.": ".shortcut.norm.",
}


class Placeholder(type):
    """A class with any attribute, each a class like itself: enough to be imported and named."""

    def __getattr__(cls, name: str) -> "Placeholder":
        return placeholder(name)


class PlaceholderModule(ModuleType):
    """A module with any name in it."""

    def __getattr__(self, name: str) -> Placeholder:
        return placeholder(name)


def placeholder(name: str) -> Placeholder:
    """An empty class, unless Python itself asks what kind of thing this is."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Placeholder(name, (), {})


@cache
def import_timm() -> ModuleType:
    """timm, whose models work and whose transforms and data sets do not."""
    before = {name: sys.modules[name] for name in TORCHVISION if name in sys.modules}
    sys.modules.update({name: PlaceholderModule(name) for name in TORCHVISION})
    sys.path.append(str(TIMM))
    try:
        return importlib.import_module("timm")
    finally:
        sys.path.remove(str(TIMM))
        for name in TORCHVISION:
            del sys.modules[name]
        sys.modules.update(before)


def timm_model(name: str, **overrides: Any) -> Any:
    """A model in evaluation mode, always the same one; every parameter is off its start.

    Not by far, so that float32 has room below a tolerance of 1e-5.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = import_timm().create_model(name, **overrides).eval()
    stir(model, scale=0.03)
    return model


def stem_weights(backbone: dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's state dict under the names of `HybridStem`."""
    weights = {}
    for name, value in backbone.items():
        for theirs, ours in STEM_NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    return weights
