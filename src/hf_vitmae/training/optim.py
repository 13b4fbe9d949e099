"""AdamW with the parameter groups of the MAE recipes (arXiv:2111.06377, appendix A).

No weight decay on biases, norms, tokens and position tables; layer-wise learning-rate decay by the
encoder's parameter names. The groups are plain dicts: any torch optimiser takes them, and so does
the HF `Trainer`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import AdamW

from hf_vitmae.training.schedule import cosine_schedule, stable_schedule

REFERENCE_BATCH = 256  # base learning rates are quoted for this many images a step

_ENCODER_NAME = re.compile(  # peft's own model wraps ours; adapters lie below the map they adapt
    r"(?:base_model\.model\.)?(?:vit\.)?(?:embeddings\.|layers\.(?P<layer>\d+)\.)"
)
_NO_DECAY_SUFFIXES = ("_token", "_tokens", "position_embeddings", "pos_embed")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule; the defaults are MAE pretraining's.

    Args:
        base_lr: learning rate for 256 images a step; multiplied by effective batch / 256.
        layer_decay: learning-rate factor from one encoder layer to the one below it; 1.0 is off.
        warmup_share: linear warm-up, as a share of all steps.
        warmup_steps: linear warm-up in steps; takes the place of `warmup_share`.
        schedule: after the warm-up, half a cosine, or level and then a linear decay.
        decay_share: the decay of the latter, as a share of all steps.
        min_lr: where the schedule ends (before layer-wise decay).
        clip_grad_norm: largest norm of the gradient; None, as in the paper, never clips.

    Raises:
        ValueError: naming the field that is out of range.
    """

    base_lr: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    layer_decay: float = 1.0
    warmup_share: float = 0.05
    warmup_steps: int | None = None
    schedule: Literal["cosine", "warm-stable-decay"] = "cosine"
    decay_share: float = 0.2
    min_lr: float = 0.0
    clip_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _require(self.base_lr > 0, "base_lr", self.base_lr, "above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        _require(self.eps > 0, "eps", self.eps, "above 0")
        _require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "in (0, 1]")
        _require(0 <= self.warmup_share <= 1, "warmup_share", self.warmup_share, "in [0, 1]")
        _require((self.warmup_steps or 0) >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        _require(0 <= self.decay_share <= 1, "decay_share", self.decay_share, "in [0, 1]")
        _require(self.min_lr >= 0, "min_lr", self.min_lr, "0 or more")
        clip = self.clip_grad_norm
        _require(clip is None or clip > 0, "clip_grad_norm", clip, "above 0, or None")

    def num_warmup_steps(self, total_steps: int) -> int:
        """Steps of linear warm-up in a run of `total_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup_share * total_steps)

    def make_schedule(self, total_steps: int, effective_batch: int) -> Callable[[int], float]:
        """Step -> factor on the learning rate of a run.

        Raises:
            ValueError: if its parts do not fit into the run.
        """
        warmup = self.num_warmup_steps(total_steps)
        min_ratio = self.min_lr / effective_lr(self.base_lr, effective_batch)
        if self.schedule == "cosine":
            return cosine_schedule(total_steps, warmup, min_ratio)
        decay = round(self.decay_share * total_steps)
        return stable_schedule(total_steps, warmup, decay, min_ratio)


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"optim.{field} is {value}; it must be {allowed}.")


def effective_lr(base_lr: float, effective_batch: int) -> float:
    """The learning rate of a step that takes `effective_batch` images, over all processes."""
    return base_lr * effective_batch / REFERENCE_BATCH


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, lr: float | None = None
) -> list[dict]:
    """Trainable parameters grouped by weight decay and by encoder layer.

    Layers count from 0 (embeddings) over N + 1 (`layers.N`) to the last (final norm, heads,
    decoder), and layer i has `lr_scale` = layer_decay ** (last - i); an adapter of peft counts with
    the weight that it adapts. With `lr`, each group also carries its own `lr`; without it, the
    optimiser's one learning rate holds for all groups and `lr_scale` is only a note.

    Raises:
        ValueError: if nothing is trainable, or if layers are to differ and the model names none.
    """
    last = _last_layer(name for name, _ in model.named_parameters())
    if layer_decay != 1.0 and last == 1:
        raise ValueError(
            f"optim.layer_decay is {layer_decay} but {type(model).__name__} has no parameters "
            "named `vit.layers.N` or `layers.N`; set it to 1.0."
        )
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if _is_decayed(name, parameter) else 0.0
        scale = layer_decay ** (last - _layer_of(name, last))
        if (decay, scale) not in groups:
            groups[decay, scale] = {"params": [], "weight_decay": decay, "lr_scale": scale}
            if lr is not None:
                groups[decay, scale]["lr"] = lr * scale
        groups[decay, scale]["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; unfreeze some.")
    return list(groups.values())


def _is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not name.endswith(_NO_DECAY_SUFFIXES)


def _layer_of(name: str, last: int) -> int:
    match = _ENCODER_NAME.match(name)
    if match is None:
        return last
    return 0 if match["layer"] is None else int(match["layer"]) + 1


def _last_layer(names: Iterable[str]) -> int:
    """The number of the final norm, heads and decoder: one above the top encoder layer."""
    return 1 + max((_layer_of(name, last=0) for name in names), default=0)


def build_optimizer(model: nn.Module, config: OptimConfig, effective_batch: int) -> AdamW:
    """AdamW over `parameter_groups`; a group's `initial_lr` is its learning rate after warm-up."""
    lr = effective_lr(config.base_lr, effective_batch)
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, lr)
    for group in groups:
        group["initial_lr"] = group["lr"]
    return AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)
