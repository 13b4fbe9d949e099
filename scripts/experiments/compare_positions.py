"""What position tables are worth: transformers' fresh ViTMAE, with its tables filled, and ours.

    python scripts/experiments/compare_positions.py --steps 600

All three have the geometry of the `mae-cpu` recipe and see the same emoji in the same order under
the same masks. transformers 5.23 leaves both tables of a fresh ViTMAEForPreTraining at zero.
"""

from collections.abc import Iterator

import torch
import tyro
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_vitmae import VitMaeForPreTraining, VitMaeImageProcessor, open_source
from hf_vitmae.data.augmentation.transforms import EvalTransform, TrainTransform
from hf_vitmae.data.loader import eval_batches, train_batches
from hf_vitmae.models.embeddings import sincos_positions
from hf_vitmae.recipes.mae import mae_cpu
from hf_vitmae.training.optim import build_optimizer
from hf_vitmae.training.schedule import cosine_schedule, set_learning_rate
from hf_vitmae.visualize import mean_visible_baseline

RECIPE = mae_cpu()
CONFIG = RECIPE.model.to_config()
PROCESSOR = VitMaeImageProcessor.for_model(CONFIG)


def theirs(*, filled: bool) -> nn.Module:
    """transformers' model in our geometry, with or without positions."""
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names = [*fields, *(f"decoder_{name}" for name in fields), "image_size", "patch_size"]
    model = ViTMAEForPreTraining(
        ViTMAEConfig(**{name: getattr(CONFIG, name) for name in names}, layer_norm_eps=1e-6)
    )
    tables = (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed)
    for table in tables if filled else ():
        table.data = sincos_positions(CONFIG.grid, table.shape[-1])
    return model


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch as both libraries take it."""
    return {"pixel_values": PROCESSOR.normalize(batch["pixel_values"]), "noise": batch["noise"]}


def train(model: nn.Module, steps: int) -> None:
    """Pretrain by the recipe's optimiser and schedule."""
    optimizer = build_optimizer(model, RECIPE.optim, RECIPE.plan_batches(1).batch_size)
    schedule = cosine_schedule(steps, RECIPE.optim.num_warmup_steps(steps))
    augment = RECIPE.augment
    transform = TrainTransform(CONFIG.image_pair, 3, augment.crop_scale, augment.crop_ratio)
    batches = train_batches(
        open_source("emoji", "train"),
        transform,
        seed=0,
        batch_size=RECIPE.plan_batches(1).batch_size,
        num_noise=CONFIG.num_patches,
    )
    for step, batch in zip(range(steps), batches, strict=False):
        set_learning_rate(optimizer, schedule(step))
        model(**inputs(batch)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE.optim.clip_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()


def held_out() -> Iterator[dict[str, Tensor]]:
    """The test emoji in one batch, each under its own fixed mask."""
    source, transform = open_source("emoji", "test"), EvalTransform(PROCESSOR)
    size = len(source)
    return eval_batches(source, transform, seed=0, batch_size=size, num_noise=CONFIG.num_patches)


def main(steps: int = 600) -> None:
    """Train all three, print the held-out masked error of each.

    Args:
        steps: optimiser steps of each model.
    """
    (batch,) = held_out()
    makers = {
        "transformers, as it comes": lambda: theirs(filled=False),
        "transformers, tables filled": lambda: theirs(filled=True),
        "hf_vitmae": lambda: VitMaeForPreTraining(CONFIG),
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        model = make()
        train(model, steps)
        with torch.no_grad():
            output = model.eval()(**inputs(batch))
        print(f"{name:28} held-out masked error after {steps} steps: {output.loss.item():.3f}")
    pixels, mask = inputs(batch)["pixel_values"], output.mask.bool()
    baseline = mean_visible_baseline(pixels, mask, CONFIG.patch_pair, norm_pix_loss=False)
    print(f"{'mean of the visible pixels':28} {baseline:.3f}")


if __name__ == "__main__":
    tyro.cli(main)
