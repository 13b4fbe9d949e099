"""Evaluation mode for a while: every module gets its own training flag back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model.eval()` without gradients; afterwards each module trains, or does not, as before.

    Module by module, since a frozen encoder stays in evaluation mode below a head that trains.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, flag in training.items():
            module.training = flag
