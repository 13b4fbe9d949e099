"""What training costs in floating-point operations, as torch counts them in matrix products.

They do not depend on the machine, so runs of different models and tasks can be given equal compute.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import PreTrainedModel

from hf_vitmae.benchmarks.count import uncounted
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaePreTrainedModel,
)
from hf_vitmae.models.onednn_linear import is_faster
from hf_vitmae.tasks.checkpoints import load_config
from hf_vitmae.tasks.pretrain import PretrainRecipe
from hf_vitmae.training.run_folder import RunFolder

PRETRAINING_CLASSES: dict[str, type[VitMaePreTrainedModel]] = {
    kind.__name__: kind
    for kind in (VitMaeForPreTraining, VitMaeForMaskedPatchPrediction, VitMaeForNextPatchPrediction)
}


def step_flops(model: PreTrainedModel, batch_size: int) -> float:
    """Floating-point operations of one forward and backward pass over so many images.

    One image is passed through the model: in products, each image costs the same.
    """
    config = model.config
    pixel_values = torch.zeros(1, config.num_channels, *config.image_pair)
    inputs: dict[str, Any] = {"pixel_values": pixel_values}
    if isinstance(model, VitMaeForPreTraining):
        inputs["predict_visible_patches"] = False  # as it is trained
    if isinstance(model, VitMaeForImageClassification):
        inputs["labels"] = torch.zeros(1, dtype=torch.long)
    model.set_attn_implementation("eager")  # made of products that the counter knows anywhere
    is_faster(torch.get_num_threads())  # its trial, made once, is none of the model's
    with FlopCounterMode(display=False, custom_mapping=uncounted()) as counter:
        model(**inputs).loss.backward()
    return float(counter.get_total_flops() * batch_size)


def pretraining_flops(model: str) -> float | None:
    """What the pretraining run cost whose folder is around a checkpoint, RUN for RUN/model.

    Returns:
        The operations of all its steps; None if the checkpoint lies in no such folder.
    """
    run = RunFolder(Path(model).expanduser().resolve().parent)
    if run.model != Path(model).expanduser().resolve() or not run.recipe.exists():
        return None
    if run.read_recipe()["task"] != PretrainRecipe.__name__:
        return None
    records = run.read_metrics()
    batch = next((r["effective_batch"] for r in records if "effective_batch" in r), None)
    if batch is None:
        return None
    config = load_config(model)
    trained = PRETRAINING_CLASSES[(config.architectures or [VitMaeForPreTraining.__name__])[0]]
    steps = max(record["step"] for record in records)
    return steps * step_flops(trained(config), batch)
