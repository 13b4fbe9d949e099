"""timm's plain Vision Transformer with our weights, where timm is installed.

timm imports torchvision, which its models do not need and which does not load beside every build of
torch. Where it does not, placeholders stand in while timm is imported; if they stayed, transformers
would believe that torchvision is there.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from hf_vitmae.convert import to_timm
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaePreTrainedModel

TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


class Placeholder(type):
    """A class with any attribute, each a class like itself."""

    def __getattr__(cls, name: str) -> "Placeholder":
        return _placeholder(name)


class PlaceholderModule(ModuleType):
    """A module with any name in it."""

    def __getattr__(self, name: str) -> Placeholder:
        return _placeholder(name)


def _placeholder(name: str) -> Placeholder:
    """An empty class, unless Python itself asks what kind of thing this is."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Placeholder(name, (), {})


@contextmanager
def _without_torchvision() -> Iterator[None]:
    before = {name: sys.modules[name] for name in TORCHVISION if name in sys.modules}
    sys.modules.update({name: PlaceholderModule(name) for name in TORCHVISION})
    try:
        yield
    finally:
        for name in TORCHVISION:
            del sys.modules[name]
        sys.modules.update(before)


@cache
def import_timm() -> ModuleType:
    """timm, whose models work, with torchvision or without.

    Raises:
        ValueError: if it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise ValueError(
            "timm is not installed; install it, put its folder on PYTHONPATH, or leave `timm` out "
            "of the peers."
        )
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        with _without_torchvision():
            return importlib.import_module("timm")
    return importlib.import_module("timm")


def timm_counterpart(model: VitMaePreTrainedModel) -> nn.Module:
    """timm's model of the same geometry and weights; without a classifier, of an encoder.

    Raises:
        ValueError: if timm is not installed.
    """
    config = model.config
    is_classifier = isinstance(model, VitMaeForImageClassification)
    arguments: dict[str, Any] = to_timm.model_arguments(config)
    theirs = import_timm().create_model(
        to_timm.architecture(config),
        num_classes=config.num_labels if is_classifier else 0,
        **arguments,
    )
    theirs.load_state_dict(to_timm.write(model))
    return theirs
