"""What is compared: our models and other libraries' with the same weights, in the same task.

A side is a model and one call of it. All sides of a case get the same images, masks and labels.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification, ViTMAEForPreTraining
from transformers.utils import logging

from hf_vitmae.convert.from_transformers import write
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaePreTrainedModel,
)

TASKS = ("mae", "finetune", "inference")
SIZES: Mapping[str, dict[str, int]] = {
    "ti": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3},
    "s": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "l": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    # One for tests: the whole path in a second.
    "smoke": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}
SMOKE = {
    "image_size": 32,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
NUM_CLASSES = 1000
ADAMW = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.05, "fused": True}


@dataclass
class Side:
    """One library's model in a task.

    Args:
        compute: inputs -> loss () in training, logits or the like in inference.
    """

    name: str
    model: nn.Module
    compute: Callable[[Mapping[str, Tensor]], Tensor]
    optimizer: torch.optim.Optimizer | None = None


def make_config(size: str, **overrides: Any) -> VitMaeConfig:
    """Of a standard size, with the paper's decoder.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"There is no size {size!r}; choose from {', '.join(SIZES)}.")
    fields: dict[str, Any] = {**SIZES[size], **(SMOKE if size == "smoke" else {})}
    fields["intermediate_size"] = 4 * fields["hidden_size"]
    return VitMaeConfig(**{**fields, "num_labels": NUM_CLASSES, **overrides})


def make_sides(task: str, config: VitMaeConfig, peers: tuple[str, ...]) -> list[Side]:
    """Ours first, then transformers'; each compiled too where `peers` has "compiled".

    Ours pretrains as our recipes do, for the loss alone; "recomputed" keeps fewer activations.

    Raises:
        ValueError: if there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose from {', '.join(TASKS)}.")
    torch.manual_seed(0)
    kind = VitMaeForPreTraining if task == "mae" else VitMaeForImageClassification
    ours = kind(config)
    theirs = counterpart(ours)
    sides = [_side("ours", ours, task), _side("transformers", theirs, task)]
    if task == "mae" and "recomputed" in peers:
        thrifty = kind(config.with_fields(recompute_activations=True))
        thrifty.load_state_dict(ours.state_dict())
        sides.append(_side("ours, recomputed", thrifty, task))
    if "compiled" in peers:
        sides += [_compiled(side) for side in sides[:2]]
    return sides


def counterpart(model: VitMaePreTrainedModel) -> nn.Module:
    """transformers' model with our weights, position tables included."""
    kind = ViTMAEForPreTraining
    if isinstance(model, VitMaeForImageClassification):
        kind = ViTForImageClassification
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="hf_vitmae_benchmark_") as folder:
        write(model, None, folder)
        return kind.from_pretrained(folder)


def make_inputs(task: str, config: VitMaeConfig, batch_size: int) -> dict[str, Tensor]:
    """The same for every side: images, and masking noise or labels."""
    generator = torch.Generator().manual_seed(0)
    height, width = config.image_pair
    images = torch.randn(batch_size, config.num_channels, height, width, generator=generator)
    if task == "mae":
        noise = torch.rand(batch_size, config.num_patches, generator=generator)
        return {"pixel_values": images, "noise": noise}
    if task == "finetune":
        labels = torch.randint(config.num_labels or 1, (batch_size,), generator=generator)
        return {"pixel_values": images, "labels": labels}
    return {"pixel_values": images}


def _side(name: str, model: nn.Module, task: str) -> Side:
    model.train(task != "inference")
    options = {}
    if task == "mae" and isinstance(model, VitMaeForPreTraining):
        options["predict_visible_patches"] = False
    wanted = "logits" if task == "inference" else "loss"
    side = Side(name, model, lambda inputs: getattr(model(**inputs, **options), wanted))
    if task != "inference":
        side.optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    return side


def _compiled(side: Side) -> Side:
    """It shares the model, so it is the same weights that both train."""
    compute = torch.compile(side.compute)
    return Side(f"{side.name}, compiled", side.model, compute, side.optimizer)
