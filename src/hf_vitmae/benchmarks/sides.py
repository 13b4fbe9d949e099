"""What is compared: our models and other libraries' with the same weights, in the same task.

A side is a model and one call of it. All sides of a case get the same images, masks and labels.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hf_vitmae.benchmarks.timm_vit import timm_counterpart
from hf_vitmae.convert.from_transformers import COUNTERPARTS, write
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)

KINDS: Mapping[str, type[VitMaePreTrainedModel]] = {  # by task
    "mae": VitMaeForPreTraining,
    "finetune": VitMaeForImageClassification,
    "inference": VitMaeForImageClassification,
    "features": VitMaeModel,
}
TASKS = tuple(KINDS)
TRAINING = ("mae", "finetune")
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
ADAMW = {"lr": 1e-5, "betas": (0.9, 0.95), "fused": True}
WEIGHT_DECAY = 0.05
POSITION_TABLES = ("position_embeddings", "pos_embed")
Inputs = Mapping[str, Tensor]
Precision = Callable[[], AbstractContextManager[Any]]


@dataclass
class Side:
    """One library's model in a task.

    Args:
        compute: inputs -> loss () in training, logits or features in inference.
        eager: of a compiled side, the same as it was.
    """

    name: str
    model: nn.Module
    compute: Callable[[Inputs], Tensor]
    optimizer: torch.optim.Optimizer | None = None
    eager: "Side | None" = None


@contextmanager
def running(side: Side, precision: Precision) -> Iterator[None]:
    """How a side computes: in a precision, and without gradients where it does not train."""
    with torch.inference_mode() if side.optimizer is None else nullcontext(), precision():
        yield


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
    """Ours first, then transformers' and, in `peers`, "timm"; the first two compiled too where
    `peers` has "compiled".

    Ours pretrains as our recipes do, for the loss alone; "recomputed" keeps fewer activations.

    Raises:
        ValueError: if there is no such task, or timm is asked for and not installed.
    """
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose from {', '.join(TASKS)}.")
    torch.manual_seed(0)
    kind = KINDS[task]
    ours = kind(config)
    theirs = _trained_alike(counterpart(ours), config)
    sides = [_side("ours", ours, task), _side("transformers", theirs, task)]
    if task == "mae" and "recomputed" in peers:
        thrifty = kind(config.with_fields(recompute_activations=True))
        thrifty.load_state_dict(ours.state_dict())
        sides.append(_side("ours, recomputed", thrifty, task))
    if task != "mae" and "timm" in peers:  # it has no masked autoencoder
        sides.append(_side("timm", _trained_alike(timm_counterpart(ours), config), task))
    if "compiled" in peers:
        torch.compiler.reset()  # what it remembers of another case would change this one's graphs
        sides += [_compiled(side) for side in sides[:2]]
    return sides


def counterpart(model: VitMaePreTrainedModel) -> nn.Module:
    """transformers' model with our weights, position tables included."""
    options = {"add_pooling_layer": False} if type(model) is VitMaeModel else {}
    kind = getattr(transformers, COUNTERPARTS[type(model)])
    with tempfile.TemporaryDirectory(prefix="hf_vitmae_benchmark_") as folder:
        write(model, None, folder)
        return kind.from_pretrained(folder, **options)


def _trained_alike(model: nn.Module, config: VitMaeConfig) -> nn.Module:
    """A model of another library whose position tables are fixed where ours are."""
    for name, parameter in model.named_parameters():
        if name.endswith(POSITION_TABLES):
            parameter.requires_grad_(config.position_embedding == "learned")
    return model


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
    model.train(task in TRAINING)
    compute = _timm_call(model, task) if name == "timm" else _call(model, task)
    side = Side(name, model, compute)
    if task in TRAINING:
        side.optimizer = torch.optim.AdamW(_groups(model), **ADAMW)
    return side


def _call(model: nn.Module, task: str) -> Callable[[Inputs], Tensor]:
    """What is asked of our models and of transformers'."""
    options: dict[str, Any] = {}
    if isinstance(model, VitMaeForPreTraining):
        options["predict_visible_patches"] = False
    wanted = "loss" if task in TRAINING else "logits"
    wanted = "last_hidden_state" if task == "features" else wanted
    return lambda inputs: getattr(model(**inputs, **options), wanted)


def _timm_call(model: Any, task: str) -> Callable[[Inputs], Tensor]:
    if task == "features":
        return lambda inputs: model.forward_features(inputs["pixel_values"])
    if task == "inference":
        return lambda inputs: model(inputs["pixel_values"])
    return lambda inputs: nn.functional.cross_entropy(
        model(inputs["pixel_values"]), inputs["labels"]
    )


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights with decay, and biases, norms, tokens and position tables without, as we train."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        is_exempt = parameter.ndim == 1 or name.endswith(("_token", "_tokens", *POSITION_TABLES))
        if parameter.requires_grad:
            (others if is_exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


def _compiled(side: Side) -> Side:
    """It shares the model, so it is the same weights that both train."""
    compute = torch.compile(side.compute, dynamic=False)
    return Side(f"{side.name}, compiled", side.model, compute, side.optimizer, eager=side)
