"""Linear probe: how far a linear classifier gets on features of a model that stays as it is.

Features are computed once and kept (`features/` of the run's folder). On them either one head for
each learning rate is trained side by side (arXiv:2111.06377, appendix A), or the exact optimum is
found for each strength of an L2 penalty. The best one on training images that were held out is
trained again on all of them, and only that one meets the evaluation images.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import Sources
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification
from hf_vitmae.tasks.checkpoints import save_model
from hf_vitmae.tasks.encoders import NetworkEncoder, Pooling, trained_encoder
from hf_vitmae.tasks.features import View, cached_features, cached_views
from hf_vitmae.tasks.labelled import open_labelled, refuse_unused
from hf_vitmae.tasks.probe_solvers import Solved, SweepRun, evaluate, solve_exactly
from hf_vitmae.training.features import Features
from hf_vitmae.training.probe import LinearHead
from hf_vitmae.training.probe_sweep import SweepConfig
from hf_vitmae.training.run_folder import FREE_FIELDS, RunFolder
from hf_vitmae.training.run_lock import run_lock
from hf_vitmae.whole_or_absent import write_whole

FEATURES, RESULTS = "features", "results.json"  # in the run's folder
JUDGED = ("accuracy", "loss")  # of a candidate


@dataclass(frozen=True, kw_only=True)
class LinearProbeRecipe:
    """A complete linear probe.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    model: str = "runs/pretrain/model"
    """Folder or Hub id of a model; its encoder is used and not changed."""
    data: DataConfig = DataConfig()
    output_dir: Path = Path("runs/linear-probe")
    """Folder of the run; the same command again goes on with what is in it."""
    pooling: Pooling = "cls"
    """What the classifier sees: the CLS token or the mean of the patch tokens."""
    solver: Literal["lars", "sgd", "exact"] = "lars"
    """`lars` and `sgd` train one head for each learning rate; `exact` finds the optimum for each
    strength, the choice for up to a few thousand labels."""
    base_lrs: tuple[float, ...] = (0.1,)
    """Learning rates to try, for 256 images a step; multiplied by batch / 256."""
    batch_size: int = 16384
    """Images of a step; never more than there are."""
    epochs: int = 90
    """Times that the heads see every image."""
    warmup_epochs: int = 10
    """Epochs of linear warm-up; half a cosine follows."""
    momentum: float = 0.9
    """Momentum of the optimiser."""
    weight_decay: float = 0.0
    """Weight decay of the heads; their biases have none."""
    views: int = 1
    """Views of each training image that are embedded and kept, by random crop and flip; epoch e
    takes view e mod views. 1 is the image as inference sees it, without chance."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of an image's area that a random crop covers."""
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Strengths of the L2 penalty to try, where the solver is exact."""
    folds: int = 5
    """Parts of the cross-validation that chooses the strength."""
    validation_share: float = 0.1
    """Share of the training images, alike in every class, that chooses the learning rate."""
    seed: int = 0
    """Decides crops, order, first weights and what is held out."""
    embed_batch_size: int = 64
    """Images of one forward pass of the encoder."""
    images_per_part: int = 4096
    """Images that are embedded between two saves."""
    log_every: int = 10
    """Epochs between lines of metrics.jsonl."""
    checkpoint_every: int = 10
    """Epochs between saves of the heads."""
    allow_change: tuple[str, ...] = ()
    """Fields that may differ from those that the run began with."""

    def __post_init__(self) -> None:
        least_values = {"batch_size": 1, "epochs": 1, "warmup_epochs": 0, "views": 1, "folds": 2}
        least_values |= {"seed": 0, "embed_batch_size": 1, "images_per_part": 1}
        least_values |= {"log_every": 1, "checkpoint_every": 1}
        for name, least in least_values.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        for name in ("base_lrs", "strengths"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) < len(values):
                raise ValueError(f"`{name}` must be different numbers above 0, got {values}.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"`crop_scale` must be two shares above 0 in order, got {self.crop_scale}."
            )
        self._check_choice()
        refuse_unused(self.data)

    def _check_choice(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"`validation_share` must be at least 0 and below 1, got {self.validation_share}."
            )
        if self.solver == "exact" and self.views > 1:
            raise ValueError(
                f"`views` {self.views} is for the solvers lars and sgd; exact takes each image "
                "once, as inference sees it."
            )
        if self.solver == "exact":
            return
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"`warmup_epochs` {self.warmup_epochs} do not fit into {self.epochs} epochs."
            )
        if len(self.base_lrs) > 1 and not self.validation_share:
            raise ValueError(
                f"{len(self.base_lrs)} base learning rates and `validation_share` 0 leave nothing "
                "to choose by; give one rate, or a share."
            )

    @property
    def candidates(self) -> tuple[float, ...]:
        """What is tried: learning rates, or strengths."""
        return self.strengths if self.solver == "exact" else self.base_lrs

    @property
    def searched(self) -> str:
        """What the candidates are."""
        return "strength" if self.solver == "exact" else "base_lr"


def run(recipe: LinearProbeRecipe, source: Sources | None = None) -> dict[str, Any]:
    """Probe the model, and leave classifier, log, features and results in `recipe.output_dir`.

    Args:
        source: a `datasets` object or a list of them, opened in place of `recipe.data.source`.

    Returns:
        What is in results.json, with `eval_accuracy` when there were held-out images.

    Raises:
        ValueError, FileNotFoundError: for a recipe, model or data that cannot be used, in one line.
    """
    train, evaluation = open_labelled(recipe.data, recipe.seed, source)
    encoder = trained_encoder(recipe.model, recipe.pooling)
    with run_lock(recipe.output_dir):
        # A batch decides what is learned here, unlike in runs that can accumulate.
        free_fields = (FREE_FIELDS - {"batch_size"}) | set(recipe.allow_change)
        folder = RunFolder.open(recipe.output_dir, recipe, free_fields)
        features, views, held_out = _embed(recipe, folder, encoder, train, evaluation)
        solved = _solve(recipe, folder, features, views, encoder)
        results = {"model": recipe.model, "solver": recipe.solver, "images": len(features)}
        results |= {"candidates": [asdict(c) for c in solved.candidates], "best": solved.best}
        if held_out is not None:
            measured = evaluate(solved.head, held_out)
            results |= {f"eval_{name}": value for name, value in measured.items()}
        _log_results(recipe, folder, results)
        write_whole(folder.path / RESULTS, json.dumps(results, indent=2) + "\n")
        classifier = make_classifier(encoder, solved.head, features.class_names)
        save_model(folder.model, classifier, encoder.processor)
    print("\n".join(_report(recipe, results, evaluation)))
    print(f"The model is in {folder.model}.")
    return results


def make_classifier(
    encoder: NetworkEncoder, head: LinearHead, class_names: Sequence[str]
) -> VitMaeForImageClassification:
    """The encoder with the head on top, whose statistics are folded into its weights."""
    config = copy.deepcopy(encoder.config)
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: i for i, name in enumerate(class_names)}
    model = VitMaeForImageClassification(config).eval()
    model.vit.load_state_dict(encoder.model.state_dict())
    weight, bias = head.folded()
    model.classifier.weight, model.classifier.bias = nn.Parameter(weight), nn.Parameter(bias)
    return model


def _embed(
    recipe: LinearProbeRecipe,
    folder: RunFolder,
    encoder: NetworkEncoder,
    train: ImageSource,
    evaluation: ImageSource | None,
) -> tuple[Features, list[Features], Features | None]:
    """Features of the training images, as inference sees them and by views, and of the others."""
    options: dict[str, Any] = {
        "batch_size": recipe.embed_batch_size,
        "num_workers": recipe.data.num_workers,
        "max_bad": recipe.data.max_bad,
        "images_per_part": recipe.images_per_part,
    }
    kept = folder.path / FEATURES
    views = range(recipe.views if recipe.views > 1 else 0)
    drawn = [View(number, recipe.seed, recipe.crop_scale) for number in views]
    features, embedded = cached_views(kept, encoder, train, drawn, **options)
    held_out = None
    if evaluation is not None:
        held_out = cached_features(kept, encoder, evaluation, **options)
    return features, embedded or [features], held_out


def _solve(
    recipe: LinearProbeRecipe,
    folder: RunFolder,
    features: Features,
    views: list[Features],
    encoder: NetworkEncoder,
) -> Solved:
    if recipe.solver == "exact":
        return solve_exactly(features, recipe.strengths, recipe.folds, recipe.seed)
    config = SweepConfig(
        base_lrs=recipe.base_lrs,
        optimizer=recipe.solver,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
    )
    origin, every = encoder.digest, (recipe.log_every, recipe.checkpoint_every)
    sweep = SweepRun(config, features, views, origin, folder, *every, encoder.device)
    return sweep.solve(recipe.validation_share, recipe.seed)


def _log_results(recipe: LinearProbeRecipe, folder: RunFolder, results: dict[str, Any]) -> None:
    """The last lines of metrics.jsonl: one for each candidate, then the evaluation."""
    epochs = 0 if recipe.solver == "exact" else recipe.epochs * min(2, len(recipe.candidates))
    folder.cut_metrics(epochs)
    for candidate in results["candidates"]:
        named = {f"validation_{key}": candidate[key] for key in JUDGED}
        folder.append_metrics({"step": epochs + 1, recipe.searched: candidate["value"], **named})
    measured = {key: value for key, value in results.items() if key.startswith("eval_")}
    folder.append_metrics({"step": epochs + 1, recipe.searched: results["best"], **measured})


def _report(
    recipe: LinearProbeRecipe, results: dict[str, Any], evaluation: ImageSource | None
) -> Iterator[str]:
    """A row for each learning rate or strength, and the evaluation."""
    yield f"{recipe.searched.replace('_', ' '):12} {'accuracy':>9} {'loss':>9}   on held-out images"
    for candidate in results["candidates"]:
        shown = ["-" if candidate[key] is None else f"{candidate[key]:.4f}" for key in JUDGED]
        mark = "   <- trained on all" if candidate["value"] == results["best"] else ""
        yield f"{candidate['value']:<12g} {shown[0]:>9} {shown[1]:>9}{mark}"
    if evaluation is None:
        yield "There are no images to evaluate on; give --data.eval-split or --data.eval-share."
        return
    yield (
        f"{evaluation.name}: accuracy {results['eval_accuracy']:.4f}, top-5 "
        f"{results['eval_top_5_accuracy']:.4f}, loss {results['eval_loss']:.4f} on "
        f"{results['eval_images']} images, by a probe of {results['images']} training images."
    )
