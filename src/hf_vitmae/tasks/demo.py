"""The whole way in minutes on a CPU: pretrain on the embedded emoji, look, fine-tune with few
labels, load again.

The comparison is at equal compute: what pretraining cost is given to the model that starts from
scratch as more fine-tuning steps, counted in floating-point operations of forward and backward
passes.
"""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import PreTrainedModel

from hf_vitmae.data.sources import open_source
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining
from hf_vitmae.tasks import finetune, pretrain
from hf_vitmae.tasks.finetune import FinetuneRecipe
from hf_vitmae.tasks.pretrain import PretrainRecipe
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.visualize import loss_curve


@dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """Pretrain a small model on the embedded emoji, look at it, fine-tune it, load it again."""

    pretrain: PretrainRecipe
    """How to pretrain; its folder is `pretrain` in `output_dir`."""
    finetune: FinetuneRecipe
    """How to fine-tune it; the model from scratch gets the compute of pretraining on top."""
    output_dir: Path = Path("runs/demo")
    """Folder for everything; the same command again goes on with what is in it."""
    draws: int = 1
    """Draws of labelled images to compare on; the table has two rows for each."""


@dataclass(frozen=True)
class Outcome:
    """One fine-tuned model."""

    start: str
    draw: int
    steps: int
    flops: float
    accuracy: float
    top_5_accuracy: float


def run(recipe: DemoRecipe) -> list[Outcome]:
    """Do it all, say what came out and where it lies."""
    started = time.perf_counter()
    output = recipe.output_dir
    pretraining = replace(recipe.pretrain, output_dir=output / "pretrain")
    tuning = replace(recipe.finetune, model=str(output / "pretrain" / "model"))
    print("1. Pretrain a masked autoencoder on the embedded emoji, without labels.", flush=True)
    held_out = pretrain.run(pretraining)
    pictures = draw(output)
    print("\n2. Fine-tune with few labels, pretrained and from scratch.", flush=True)
    outcomes = compare(output, pretraining, tuning, recipe.draws)
    print("\n3. Load what was saved in a fresh process.", flush=True)
    load_again(output)
    print("\n" + summary(output, tuning, held_out, outcomes, pictures))
    print(f"All of it took {time.perf_counter() - started:.0f} s.")
    return outcomes


def draw(output: Path) -> list[Path]:
    """The reconstruction panel and the loss curve of the pretraining run, as PNG in `output`."""
    run = RunFolder(output / "pretrain")
    panel, curve = output / "reconstruction.png", output / "loss_curve.png"
    shutil.copyfile(run.samples / "reconstruction.png", panel)
    loss_curve(run.metrics).save(curve)
    return [panel, curve]


def compare(
    output: Path, pretraining: PretrainRecipe, tuning: FinetuneRecipe, draws: int
) -> list[Outcome]:
    """Fine-tune from the pretrained encoder and from scratch: same labels, same total compute."""
    pretrain_flops = (pretraining.steps or 0) * step_flops(
        VitMaeForPreTraining(pretraining.model.to_config()), pretraining.batch_size
    )
    classifier = pretraining.model.to_config()
    classifier.pooling = tuning.pooling
    flops = step_flops(VitMaeForImageClassification(classifier), tuning.batch_size)
    steps = tuning.steps or 0
    more_steps = round(pretrain_flops / flops)
    outcomes = []
    for draw_seed in range(draws):
        for start, is_fresh in (("pretrained", False), ("scratch", True)):
            own_steps = steps + more_steps if is_fresh else steps
            metrics = finetune.run(
                replace(
                    tuning,
                    seed=draw_seed,
                    steps=own_steps,
                    from_scratch=is_fresh,
                    output_dir=output / f"finetune-{start}-{draw_seed}",
                )
            )
            total = own_steps * flops + (0 if is_fresh else pretrain_flops)
            outcomes.append(
                Outcome(
                    start,
                    draw_seed,
                    own_steps,
                    total,
                    metrics["eval_accuracy"],
                    metrics["eval_top_5_accuracy"],
                )
            )
    return outcomes


def step_flops(model: PreTrainedModel, batch_size: int) -> float:
    """Floating-point operations of one forward and backward pass, as torch counts them."""
    config = model.config
    pixel_values = torch.zeros(batch_size, config.num_channels, *config.image_pair)
    inputs = {"pixel_values": pixel_values}
    if isinstance(model, VitMaeForImageClassification):
        inputs["labels"] = torch.zeros(batch_size, dtype=torch.long)
    model.set_attn_implementation("eager")  # made of products that the counter knows anywhere
    with FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    return float(counter.get_total_flops())


def load_again(output: Path) -> None:
    """Open the saved models by transformers' Auto classes and pipelines in a new process.

    Raises:
        RuntimeError: if that fails.
    """
    picture = output / "example.png"
    picture.write_bytes(open_source("emoji", "test")[0].encoded)
    command = [sys.executable, "-m", "hf_vitmae.tasks.load_again"]
    folders = [str(output / "pretrain" / "model"), str(output / "finetune-pretrained-0" / "model")]
    finished = subprocess.run([*command, *folders, str(picture)], check=False)
    if finished.returncode:
        raise RuntimeError("The saved models could not be loaded again; the lines above say why.")


def summary(
    output: Path,
    tuning: FinetuneRecipe,
    held_out: dict[str, Any],
    outcomes: list[Outcome],
    pictures: list[Path],
) -> str:
    """What came out, in words and a table."""
    rows = [
        f"{o.start:<11} {o.draw:>5} {o.steps:>17} {o.flops / 1e12:>14.1f} "
        f"{o.accuracy:>9.3f} {o.top_5_accuracy:>9.3f}"
        for o in outcomes
    ]
    return "\n".join(
        [
            f"Held-out masked error {held_out['eval_loss']:.4f}; painting hidden patches in the "
            f"mean visible colour gives {held_out['eval_loss_mean_visible']:.4f}.",
            f"{tuning.data.samples_per_class} labelled images a class, equal total compute, "
            "accuracy on held-out emoji:",
            "start        draw  fine-tuning steps  total TFLOPs     top-1     top-5",
            *rows,
            *(f"Picture: {picture}" for picture in pictures),
            f"Pretrained model: {output / 'pretrain' / 'model'}",
            f"Classifier: {output / 'finetune-pretrained-0' / 'model'}",
        ]
    )
