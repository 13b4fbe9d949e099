"""A model, its optimiser and its averaged weights after some steps, and checkpoints of them."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.training.checkpoint import save_checkpoint

FILES = (
    "MANIFEST.json",
    "ema.safetensors",
    "model.safetensors",
    "optimizer.json",
    "optimizer.safetensors",
    "state.json",
)


def build(seed: int, optimizer_class=torch.optim.AdamW, **options) -> tuple[nn.Module, Optimizer]:
    """A small model of several kinds of tensors and its optimiser before the first step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    return model, optimizer_class(model.parameters(), lr=0.1, **options)


def train_step(model: nn.Module, optimizer: Optimizer) -> None:
    model(torch.randn(6, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(
    seed: int = 0, optimizer_class=torch.optim.AdamW, **options
) -> tuple[nn.Module, Optimizer]:
    """The same after two steps."""
    model, optimizer = build(seed, optimizer_class, **options)
    for _ in range(2):
        train_step(model, optimizer)
    return model, optimizer


def average_of(model: nn.Module) -> dict[str, Tensor]:
    """Stands for averaged weights: other values, under the parameters' names."""
    return {name: parameter.detach() * 0.5 for name, parameter in model.named_parameters()}


def save(folder: Path, step: int, keep: int = 2, protect: tuple[int, ...] = ()) -> Path:
    """A checkpoint with all its files, of weights that differ from step to step."""
    model, optimizer = trained(step)
    state = {"step": step}
    ema = average_of(model)
    return save_checkpoint(folder, step, model, optimizer, state, keep, ema=ema, protect=protect)


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def flip_a_bit(file: Path, place: int | None = None, bit: int = 0) -> None:
    """Change one bit of the byte at `place`; of that in the middle if it is not said."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1 << bit
    file.write_bytes(content)
