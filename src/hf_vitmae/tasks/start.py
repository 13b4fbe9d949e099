"""Starting from a checkpoint: what the tasks that fine-tune one share."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.tasks.checkpoints import Model, load_model
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class CheckpointRecipe(TaskRecipe):
    """A run that begins with the encoder of a checkpoint."""

    model: str = "runs/pretrain/model"
    """Folder or Hub id of a checkpoint; its geometry and encoder are used, its head is not."""
    optim: OptimConfig = OptimConfig(
        base_lr=5e-4, betas=(0.9, 0.999), layer_decay=0.65, min_lr=1e-6
    )
    image_size: int | tuple[int, int] | None = None
    """Pixels, an int or height and width; the weights are adapted to it."""
    patch_size: int | tuple[int, int] | None = None
    """Pixels, an int or height and width; the weights are adapted to it."""
    num_channels: int | None = None
    """Channels of the images; the weights are adapted to them."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last encoder block."""
    from_scratch: bool = False
    """Take only the architecture from `model` and start from fresh weights: the fair comparison."""
    new_head: bool = False
    """Replace the head of a model that was fine-tuned for other classes."""


def start_config(
    recipe: CheckpointRecipe, stored: VitMaeConfig, classes: Sequence[str], **fields: Any
) -> VitMaeConfig:
    """The checkpoint's configuration with the recipe's geometry, the data's classes and `fields`.

    Raises:
        ValueError: if they do not make a model.
    """
    config = copy.deepcopy(stored)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: i for i, name in enumerate(classes)}
    for name in ("image_size", "patch_size", "num_channels"):
        if getattr(recipe, name) is not None:
            fields[name] = getattr(recipe, name)
    return config.with_fields(drop_path_rate=recipe.drop_path_rate, **fields)


def start_model(
    recipe: CheckpointRecipe,
    model_class: type[Model],
    config: VitMaeConfig,
    accelerator: Accelerator,
) -> Model:
    """The checkpoint as `model_class`, or its architecture with fresh weights; says what it did."""
    if recipe.from_scratch:
        accelerator.print(f"{recipe.model}: its architecture, with fresh weights.")
        return model_class(config)
    model, new, adaptations = load_model(
        model_class, recipe.model, config, new_head=recipe.new_head
    )
    parts = ", ".join(sorted(new)) or "nothing"
    accelerator.print(f"{recipe.model}: encoder loaded; starting afresh: {parts}.")
    for line in adaptations:
        accelerator.print(f"{recipe.model}: {line}.")
    return model


def refuse_other_classes(
    recipe: CheckpointRecipe, model_class: type, stored: VitMaeConfig, classes: Sequence[str]
) -> None:
    """A fine-tuned head keeps its classes, unless it is replaced on purpose.

    Raises:
        ValueError: naming both.
    """
    has_head = stored.architectures == [model_class.__name__]
    if not has_head or recipe.from_scratch or recipe.new_head:
        return
    known = list((stored.id2label or {}).values())
    if known != list(classes):
        raise ValueError(
            f"{recipe.model} classifies into {len(known)} classes and the data has {len(classes)} "
            f"({', '.join(classes[:5])}, ...), or others; pass --new-head to replace its head."
        )
