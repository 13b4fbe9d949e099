"""How a comparison was made, as values for comparison.json and as sentences for comparison.md."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from hf_vitmae.tasks.compare_measure import Measurer, Results
from hf_vitmae.tasks.compare_plan import TUNING_SEED, Arm
from hf_vitmae.tasks.compare_report import Comparison
from hf_vitmae.tasks.compute import pretraining_flops


def describe(measurer: Measurer, arms: Sequence[Arm], results: Results) -> Comparison:
    """The comparison with everything that its reader must know."""
    request, images = measurer.request, measurer.images
    settings: dict[str, Any] = {
        "source": request.source,
        "train_images": len(images.training),
        "eval_images": len(images.evaluation),
        "classes": len(images.class_names),
        "labels": len(measurer.draw(0)),
        "labels_per_class": request.labels_per_class,
        "seeds": request.seeds,
        "pooling": request.pooling,
        "models": [_model(measurer, arm, results) for arm in arms],
    }
    notes = list(_notes(measurer, arms, results))
    return Comparison(arms, results.records, settings, notes)


def _model(measurer: Measurer, arm: Arm, results: Results) -> dict[str, Any]:
    """One model: what it is, and of fine-tuning how it was tuned and what it cost."""
    values = asdict(arm)
    if "finetune" in measurer.request.methods and arm.takes("finetune"):
        spent = (pretraining_flops(arm.checkpoint) or 0.0) if arm.is_checkpoint else 0.0
        steps = measurer.steps + arm.extra_steps
        values |= {
            "base_lr": measurer.base_lr(arm, results),
            "tuning": {f"{r['base_lr']:g}": r["accuracy"] for r in results.tuning(arm)},
            "steps": steps,
            "pretraining_flops": spent,
            "total_flops": spent + steps * measurer.step_flops(arm),
        }
    return values


def _notes(measurer: Measurer, arms: Sequence[Arm], results: Results) -> Iterator[str]:
    request, images = measurer.request, measurer.images
    yield (
        f"{len(images.training):,} training images and {len(images.evaluation):,} to evaluate on, "
        f"of {len(images.class_names)} classes. By the images to evaluate on nothing was chosen."
    )
    if request.data.eval_share:
        yield f"These are a share of {request.data.eval_share:g}, held out once for all seeds."
    else:
        yield (
            "The labelled images of seed s are those of `hf-vitmae finetune` with "
            f"`--data.samples-per-class {request.labels_per_class} --seed s`."
        )
    if any(arm.is_random for arm in arms):
        yield "`random` has other fresh weights for each seed: its spread has both causes."
    if "knn" in request.methods:
        yield (
            f"kNN: {request.neighbors} neighbours by cosine similarity, temperature "
            f"{request.temperature}, features pooled by {request.pooling}; nothing is tuned."
        )
    if "linear-probe" in request.methods:
        yield (
            "Linear probe: L2-regularised softmax regression on the same features, solved to its "
            f"optimum. Its strength is the best of {_listed(request.strengths)} by "
            f"{request.folds}-fold cross-validation on the labelled images of the draw alone: "
            f"{'; '.join(_chosen_strengths(arms, results))}."
        )
    if "finetune" in request.methods:
        yield from _finetuning_notes(measurer, arms, results)


def _finetuning_notes(measurer: Measurer, arms: Sequence[Arm], results: Results) -> Iterator[str]:
    request, decay = measurer.request, measurer.request.finetune.optim.layer_decay
    tuned = [arm for arm in arms if arm.takes("finetune")]
    yield f"Fine-tuning: {measurer.steps} steps of {measurer.step_images} images for every model."
    if len(request.base_lrs) > 1:
        yield from _tuning_notes(measurer, tuned, results)
    else:
        yield f"The base learning rate is {_listed(request.base_lrs)} for all; it was not tuned."
    if any(arm.is_random for arm in tuned) and decay != request.scratch_layer_decay:
        yield (
            f"Layer-wise decay of the learning rate is {decay:g} from pretrained weights and "
            f"{request.scratch_layer_decay:g} from random ones, which have no layers to spare."
        )
    for arm in tuned:
        spent = measurer.step_flops(arm) * (measurer.steps + arm.extra_steps)
        before = (pretraining_flops(arm.checkpoint) or 0.0) if arm.is_checkpoint else 0.0
        cost = f"{before / 1e12:.3g} + " if before else ""
        yield (
            f"{arm.name}: {measurer.steps + arm.extra_steps:,} steps of fine-tuning, "
            f"{cost}{spent / 1e12:.3g} TFLOPs{' (pretraining + fine-tuning)' if before else ''}."
        )


def _chosen_strengths(arms: Sequence[Arm], results: Results) -> Iterator[str]:
    for arm in arms:
        asked = ("linear-probe", arm.name)
        own = [r for r in results.records if (r["method"], r["model"]) == asked]
        if own:
            strengths = (f"{record['strength']:g}" for record in own)
            yield f"{arm.name} {' '.join(strengths)}"


def _tuning_notes(measurer: Measurer, tuned: Sequence[Arm], results: Results) -> Iterator[str]:
    """How the learning rates were chosen, and whether the grid may have been too narrow."""
    grid = measurer.request.base_lrs
    num_held = max(r.get("eval_images", 0) for arm in tuned for r in results.tuning(arm))
    best = {arm.name: measurer.base_lr(arm, results) for arm in tuned}
    found = {
        arm.name: r["accuracy"]
        for arm in tuned
        for r in results.tuning(arm)
        if r["base_lr"] == best[arm.name]
    }
    chosen = [f"{name} {lr:g} (accuracy {found[name]:.3f})" for name, lr in best.items()]
    yield (
        f"Each model has the base learning rate that was its best of {_listed(grid)} on {num_held} "
        "images held out of the training split, with the labels of a draw of its own (seed "
        f"{TUNING_SEED}); it is then the same for all seeds. Chosen: {'; '.join(chosen)}."
    )
    if at_end := [name for name, lr in best.items() if lr in (min(grid), max(grid))]:
        yield (
            f"The best learning rate is the end of the grid for {'; '.join(at_end)}: a wider one "
            "(--base-lrs) may serve them better."
        )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
