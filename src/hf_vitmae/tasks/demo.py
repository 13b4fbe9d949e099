"""The whole way in minutes on a CPU: pretrain on the embedded emoji, look, fine-tune with few
labels, load again.

The comparison is at equal compute: what pretraining cost is given to the model that starts from
scratch as more fine-tuning steps, counted in floating-point operations of forward and backward
passes.
"""

import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from hf_vitmae.data.decoding.decode import decode
from hf_vitmae.data.sources import open_source
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining
from hf_vitmae.tasks import finetune, pretrain
from hf_vitmae.tasks.compute import step_flops
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
    """Draws of labelled images to compare on; the table has three rows for each."""


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
    pictures = draw(output, held_out["eval_loss_mean_visible"])
    print("\n2. Fine-tune with few labels, pretrained and from scratch.", flush=True)
    outcomes = compare(output, pretraining, tuning, recipe.draws)
    print("\n3. Load what was saved in a fresh process.", flush=True)
    load_again(output)
    print("\n" + summary(output, tuning, held_out, outcomes, pictures))
    print(f"All of it took {time.perf_counter() - started:.0f} s.")
    return outcomes


def draw(output: Path, baseline: float) -> list[Path]:
    """The reconstruction panel and the loss curve of the pretraining run, as PNG in `output`."""
    run = RunFolder(output / "pretrain")
    panel, curve = output / "reconstruction.png", output / "loss_curve.png"
    shutil.copyfile(run.samples / "reconstruction.png", panel)
    loss_curve(run.metrics, baselines={"mean visible colour": baseline}).save(curve)
    return [panel, curve]


def compare(
    output: Path, pretraining: PretrainRecipe, tuning: FinetuneRecipe, draws: int
) -> list[Outcome]:
    """Fine-tune from the pretrained encoder, and from scratch with as many steps and with as much
    compute in all, on the same labels."""
    pretrain_flops = (pretraining.steps or 0) * step_flops(
        VitMaeForPreTraining(pretraining.model.to_config()), pretraining.plan_batches(1).num_images
    )
    classifier = pretraining.model.to_config()
    classifier.pooling = tuning.pooling
    flops = step_flops(VitMaeForImageClassification(classifier), tuning.plan_batches(1).num_images)
    steps = tuning.steps or 0
    starts = {
        "pretrained": (False, steps, pretrain_flops),
        "scratch": (True, steps, 0.0),
        "scratch-longer": (True, steps + round(pretrain_flops / flops), 0.0),
    }
    outcomes = []
    for draw_seed in range(draws):
        for start, (is_fresh, own_steps, spent) in starts.items():
            metrics = finetune.run(
                replace(
                    tuning,
                    seed=draw_seed,
                    steps=own_steps,
                    from_scratch=is_fresh,
                    output_dir=output / f"finetune-{start}-{draw_seed}",
                )
            )
            outcomes.append(
                Outcome(
                    start,
                    draw_seed,
                    own_steps,
                    spent + own_steps * flops,
                    metrics["eval_accuracy"],
                    metrics["eval_top_5_accuracy"],
                )
            )
    return outcomes


def load_again(output: Path) -> None:
    """Open the saved models by transformers' Auto classes and pipelines in a new process.

    Raises:
        RuntimeError: if that fails.
    """
    picture = output / "example.png"
    save_example(picture)
    command = [sys.executable, "-m", "hf_vitmae.tasks.load_again"]
    folders = [str(output / "pretrain" / "model"), str(output / "finetune-pretrained-0" / "model")]
    finished = subprocess.run([*command, *folders, str(picture)], check=False)
    if finished.returncode:
        raise RuntimeError("The saved models could not be loaded again; the lines above say why.")


def save_example(path: Path) -> None:
    """Write a held-out emoji, laid on white: pipelines drop transparency before any processor."""
    pixels = decode(open_source("emoji", "test")[0].encoded, num_channels=3)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def summary(
    output: Path,
    tuning: FinetuneRecipe,
    held_out: dict[str, Any],
    outcomes: list[Outcome],
    pictures: list[Path],
) -> str:
    """What came out, in words and a table."""
    rows = [
        f"{o.start:<14} {o.draw:>5} {o.steps:>17} {o.flops / 1e12:>14.1f} "
        f"{o.accuracy:>9.3f} {o.top_5_accuracy:>9.3f}"
        for o in outcomes
    ]
    gain = _mean_accuracy(outcomes, "pretrained") - _mean_accuracy(outcomes, "scratch-longer")
    noise = 1 / held_out["eval_images"] ** 0.5  # two standard errors of a share near a half
    return "\n".join(
        [
            f"Held-out masked error {held_out['eval_loss']:.4f}; painting hidden patches in the "
            f"mean visible colour gives {held_out['eval_loss_mean_visible']:.4f}.",
            f"Fine-tuned on {tuning.data.samples_per_class} labelled images a class, accuracy on "
            "held-out emoji (scratch-longer has the compute of pretrained):",
            "start           draw  fine-tuning steps  total TFLOPs     top-1     top-5",
            *rows,
            f"With the same total compute pretraining changes top-1 by {gain:+.3f}; on so many "
            f"images differences below {noise:.2f} mean little.",
            *(f"Picture: {picture}" for picture in pictures),
            f"Pretrained model: {output / 'pretrain' / 'model'}",
            f"Classifier: {output / 'finetune-pretrained-0' / 'model'}",
        ]
    )


def _mean_accuracy(outcomes: list[Outcome], start: str) -> float:
    return statistics.mean(outcome.accuracy for outcome in outcomes if outcome.start == start)
