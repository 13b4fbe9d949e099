"""A model as each library itself opens it, to compare what they make of the same image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_vitmae.convert.pickles import load_pickle
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.tasks.checkpoints import first_line, quiet_transformers

OURS, TRANSFORMERS, TIMM = "hf_vitmae", "transformers", "timm"
MAE, BIG_VISION = "mae", "big_vision"

Output = Callable[[Tensor, Tensor], Tensor]
"""Images (1, C, H, W) and noise (1, N) -> logits or, of an encoder, all tokens (1, L, D); these in
one row with what its pooler makes, where it has one.
"""


class NotCompared(Exception):
    """A library is not here, or does not open the model."""


def open_model(system: str, where: Path, model: VitMaePreTrainedModel) -> Output:
    """A folder or file as the library `system` itself opens it.

    Args:
        model: what the checkpoint is in our terms.

    Raises:
        NotCompared: saying why there is nothing to compare with.
    """
    if system == TIMM:
        return _timm_output(where, model)
    if system not in (OURS, TRANSFORMERS):
        raise NotCompared("there is no library of it")
    with quiet_transformers():
        if system == OURS:
            return our_output(type(model).from_pretrained(where, dtype=torch.float32))
        return _transformers_output(where, model)


def our_output(model: VitMaePreTrainedModel) -> Output:
    """A model of this package, in evaluation mode."""

    def output(pixel_values: Tensor, noise: Tensor) -> Tensor:
        if isinstance(model, VitMaeForPreTraining):
            return model(pixel_values, noise=noise).logits
        found = model(pixel_values)
        return _encoded(found, model) if isinstance(model, VitMaeModel) else found.logits

    return output


def _encoded(found: Any, model: VitMaePreTrainedModel) -> Tensor:
    """What an encoder gave."""
    if model.config.pooler_output_size is None:
        return found.last_hidden_state
    return torch.cat([found.last_hidden_state.flatten(1), found.pooler_output], dim=1)


def _transformers_output(where: Path, ours: VitMaePreTrainedModel) -> Output:
    import transformers

    kind = type(ours)
    openers: dict[type, Any] = {
        VitMaeForPreTraining: transformers.AutoModelForPreTraining,
        VitMaeForImageClassification: transformers.AutoModelForImageClassification,
    }
    try:
        opener = openers.get(kind, transformers.AutoModel)
        model = opener.from_pretrained(where, dtype=torch.float32).eval()
    except (ValueError, OSError) as error:
        raise NotCompared(first_line(error)) from error
    if model.config.model_type == "deit":
        raise NotCompared("its own model attends to the distillation token that was left out")
    is_masked = model.config.model_type == "vit_mae"

    def output(pixel_values: Tensor, noise: Tensor) -> Tensor:
        if kind is VitMaeForPreTraining:
            return model(pixel_values, noise=noise).logits
        if is_masked:  # it shuffles patches even where it hides none; ascending noise leaves them
            model.config.mask_ratio = 0.0
            noise = noise.sort(dim=1).values
            return model(pixel_values, noise=noise).last_hidden_state
        found = model(pixel_values)
        return found.logits if kind is VitMaeForImageClassification else _encoded(found, ours)

    return output


def _timm_output(where: Path, model: VitMaePreTrainedModel) -> Output:
    try:
        import timm
    except Exception as error:  # torchvision, which it needs, may be there and not load
        raise NotCompared(f"timm cannot be imported ({first_line(error)})") from error
    from hf_vitmae.convert import to_timm

    config, has_head = model.config, isinstance(model, VitMaeForImageClassification)
    theirs: Any
    if where.is_dir():
        theirs = timm.create_model(f"local-dir:{where}", pretrained=True).eval()
    else:
        weights = state_dict(load_pickle(where))
        theirs = timm.create_model(
            to_timm.architecture(config),
            num_classes=len(weights.get("head.weight", ())),
            **to_timm.model_arguments(config),
        ).eval()
        theirs.load_state_dict(weights)

    def output(pixel_values: Tensor, noise: Tensor) -> Tensor:
        if has_head:
            return theirs(pixel_values)
        return theirs.fc_norm(theirs.forward_features(pixel_values))  # one of the norms is none

    return output


def state_dict(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights in a file of timm's training script, or a file that is just weights."""
    weights = checkpoint.get("state_dict")
    return weights if isinstance(weights, dict) else checkpoint
