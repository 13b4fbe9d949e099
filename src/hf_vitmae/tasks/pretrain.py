"""Pretraining on images without labels: a masked autoencoder (arXiv:2111.06377), masked patch
prediction (arXiv:2010.11929, B.1.2) or next patch prediction.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.sources import Sources
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.tasks.fit import Trained, fit
from hf_vitmae.tasks.health import HealthReport, NeighborAccuracy
from hf_vitmae.tasks.images import (
    Batch,
    example_images,
    held_out_batches,
    normalized,
    open_sources,
    spread,
    watch_images,
)
from hf_vitmae.tasks.normalization import new_processor, pixel_statistics, with_statistics
from hf_vitmae.tasks.objectives import (
    MaskedAutoencoding,
    MaskedPatchPrediction,
    NextPatchPrediction,
    Objective,
)
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.advice import advise
from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.loop import Evaluator
from hf_vitmae.training.loop_config import Best
from hf_vitmae.visualize import attention_panel, feature_panel

PANELS = {"attention": attention_panel, "features": feature_panel}
NUM_PICTURES = 8  # rows of the panel that a run ends with
NUM_REPORTS = 10  # of health, in a run that says nothing of them


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields of `VitMaeConfig` that a pretraining recipe chooses; the defaults are ViT-B/16."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    image_size: int | tuple[int, int] = 224
    """Pixels, an int or height and width."""
    patch_size: int | tuple[int, int] = 16
    """Pixels, an int or height and width; divides the image size."""
    num_channels: int = 3
    """1 for gray, 3 for colour, or the number of bands that the files have."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    norm_pix_loss: bool = False
    """Predict each patch normalised by its own mean and deviation."""
    position_embedding: str = "sincos"
    """sincos (fixed) or learned (starts from the same values)."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last encoder block."""
    stem_depths: tuple[int, ...] | None = None
    """Blocks of each stage of a ResNet stem, 3 4 9 for R50; none for linear patches."""
    stem_width: int = 64
    """Channels of the stem's first convolution."""
    stem_num_groups: int = 32
    """Groups of the stem's group norms."""
    corruption_ratio: float = 0.5
    """Share of the patches that masked patch prediction corrupts."""
    patch_target: Literal["mean_color", "colors_4x4", "pixels"] = "mean_color"
    """What masked patch prediction predicts of a patch."""

    def to_config(self) -> VitMaeConfig:
        """The model's configuration; raises `ValueError` for values that do not fit."""
        return VitMaeConfig(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(TaskRecipe):
    """A complete pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: Literal["mae", "masked-patch", "next-patch"] = "mae"
    """What is learned: pixels of hidden patches, colours of corrupted ones, or the next patch."""
    mask_pattern: Literal["random", "block", "grid", "contrast"] = "random"
    """Which patches the masked autoencoder hides: any, blocks, a grid, or rather those with
    contrast."""
    prefix_share: float = 0.0
    """Next patch prediction: at most this share of the patches sees each other both ways."""
    health_every: int | None = None
    """Steps between health reports of a masked autoencoder, beside those at each evaluation; none
    makes some ten of them in a run, 0 leaves them to the evaluations."""
    knn_every: float = 0.0
    """Epochs between evaluations of how many held-out images have the class of their nearest
    training images; 0 is off. Labels are read for it, and `data.eval_share` draws by class then."""
    pictures: tuple[Literal["attention", "features"], ...] = ()
    """Drawn at each evaluation beside what the model predicts, into the run's samples/steps."""
    output_dir: Path = Path("runs/pretrain")
    """Folder of the run; the same command again resumes what is in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_mixing("pretraining has no labels that could be mixed too")
        if not 0 <= self.prefix_share < 1:
            raise ValueError(
                f"`prefix_share` must be at least 0 and below 1, got {self.prefix_share}."
            )
        if not (self.knn_every >= 0 and math.isfinite(self.knn_every)):
            raise ValueError(f"`knn_every` must be 0 or more epochs, got {self.knn_every}.")
        if self.health_every is not None and self.health_every < 0:
            raise ValueError(f"`health_every` must be 0 or more steps, got {self.health_every}.")
        if self.pictures and self.shard:
            raise ValueError("`pictures` are drawn by models that no other process holds parts of.")
        for field_name, default, objective in (
            ("mask_pattern", "random", "mae"),
            ("health_every", None, "mae"),
            ("prefix_share", 0.0, "next-patch"),
        ):
            value = getattr(self, field_name)
            if value != default and self.objective != objective:
                raise ValueError(
                    f"`{field_name}` {value} is for the objective {objective}, "
                    f"not for {self.objective}."
                )


def make_objective(recipe: PretrainRecipe, config: VitMaeConfig) -> Objective:
    """What `recipe.objective` names."""
    if recipe.objective == "mae":
        return MaskedAutoencoding(config, recipe.mask_pattern)
    if recipe.objective == "masked-patch":
        return MaskedPatchPrediction(config)
    return NextPatchPrediction(config, recipe.prefix_share)


def run(recipe: PretrainRecipe, source: Sources | None = None) -> dict[str, Any]:
    """Pretrain, and leave model, log, checkpoints and a picture in `recipe.output_dir`.

    Args:
        source: a `datasets` object or a list of them, opened in place of `recipe.data.source`.

    Returns:
        The newest value of everything logged, with `eval_loss` and its baseline when there were
        held-out images.

    Raises:
        ValueError, FileNotFoundError: for a recipe or data that cannot be used, in one line.
    """
    config = recipe.model.to_config()
    accelerator = recipe.make_accelerator()
    has_labels = recipe.knn_every > 0  # else they stay unread, whatever state they are in
    train_source, eval_source = open_sources(recipe, accelerator, source, use_labels=has_labels)
    _check_evaluation(recipe, train_source, eval_source)
    statistics = pixel_statistics(recipe, accelerator, train_source, config.num_channels)
    config = with_statistics(config, statistics)
    objective = make_objective(recipe, config)
    processor = new_processor(config, statistics)
    torch.manual_seed(recipe.seed)
    model = objective.model_class(config)
    eval_source = eval_source and spread(eval_source, recipe.eval_images)
    bad_images = watch_images(recipe, train_source, eval_source)
    evaluators = make_evaluators(
        recipe, objective, accelerator, processor, train_source, eval_source, bad_images
    )

    def prepare(batch: Batch) -> Batch:
        noise = batch["noise"].to(accelerator.device, non_blocking=True)
        return objective.inputs(normalized(batch, processor, accelerator.device), noise)

    draw = partial(_draw, recipe, objective, processor, eval_source or train_source)
    trained = fit(
        recipe,
        accelerator,
        model,
        processor,
        train_source,
        prepare,
        evaluators,
        bad_images,
        Best("eval_loss", "lowest"),
        num_noise=objective.num_noise,
        pictures=draw,
    )
    if accelerator.is_main_process:
        _tell(recipe, trained, draw(trained.model))
    return trained.metrics


def _draw(
    recipe: PretrainRecipe,
    objective: Objective,
    processor: VitMaeImageProcessor,
    source: AnySource,
    model: nn.Module,
) -> dict[str, Image.Image]:
    """What the model makes of some images; nothing where none can be decoded."""
    images = example_images(source, NUM_PICTURES, processor)
    if not images:
        return {}
    picture = objective.picture(model, images, processor, recipe.seed)
    more = {name: PANELS[name](model, images, processor) for name in recipe.pictures}
    return {Path(objective.picture_name).stem: picture, **more}


def _tell(
    recipe: PretrainRecipe, trained: Trained[Any], pictures: Mapping[str, Image.Image]
) -> None:
    """Save what a run ends with, and say where it is and how the run went."""
    saved = trained.run.save_samples(pictures)
    what = f", a picture of what it sees in {saved[0]}" if saved else ""
    print(f"The model is in {trained.run.model}{what}.")
    if recipe.objective == "mae":
        advice = advise(trained.run.read_metrics())
        print(f"Health: {advice.verdict}. {advice.sentence}")


def make_evaluators(
    recipe: PretrainRecipe,
    objective: Objective,
    accelerator: Accelerator,
    processor: VitMaeImageProcessor,
    train_source: AnySource,
    eval_source: AnySource | None,
    bad_images: BadImages,
) -> list[Evaluator]:
    """What an evaluation measures: the held-out loss, health, nearest neighbours."""
    evaluators: list[Evaluator] = []
    shared = (recipe, objective, accelerator, processor)
    if eval_source is not None:
        evaluators.append(HeldOutLoss(*shared, eval_source, bad_images))
    if isinstance(objective, MaskedAutoencoding):
        steps = health_period(recipe, train_source.epoch_size, accelerator.num_processes)
        source = train_source if eval_source is None else eval_source
        evaluators.append(HealthReport(recipe, objective, accelerator, processor, source, steps))
    if recipe.knn_every and eval_source is not None:
        per_epoch = steps_per_epoch(recipe, train_source.epoch_size, accelerator.num_processes)
        steps = max(1, round(recipe.knn_every * per_epoch))
        evaluators.append(NeighborAccuracy(*shared, train_source, eval_source, steps))
    return evaluators


def health_period(recipe: PretrainRecipe, num_samples: int, num_processes: int) -> int:
    """Steps between health reports; where nothing is said, some ten in a run, with lines of the
    log."""
    if recipe.health_every is not None:
        return recipe.health_every
    per_epoch = steps_per_epoch(recipe, num_samples, num_processes)
    steps = recipe.steps or (recipe.epochs or 0) * per_epoch
    return max(1, round(steps / NUM_REPORTS / recipe.log_every)) * recipe.log_every


def steps_per_epoch(recipe: PretrainRecipe, num_samples: int, num_processes: int) -> float:
    """Steps in which the run sees so many images."""
    if recipe.effective_batch is not None:
        return num_samples / recipe.effective_batch
    return num_samples / (recipe.plan_batches(num_processes).num_images * num_processes)


def _check_evaluation(
    recipe: PretrainRecipe, train_source: AnySource, eval_source: AnySource | None
) -> None:
    """Refuse what needs held-out images, or labels, where there are none."""
    for field_name in ("best_model", "knn_every"):
        if getattr(recipe, field_name) and eval_source is None:
            raise ValueError(
                f"`{field_name}` needs held-out images and there are none; set --data.eval-share "
                "or --data.eval-split."
            )
    for source in (train_source, eval_source):
        if recipe.knn_every and source is not None:
            source.require_classes()


@dataclass(frozen=True)
class HeldOutLoss:
    """The objective on held-out images, each under its own fixed mask, beside trivial baselines."""

    recipe: PretrainRecipe
    objective: Objective
    accelerator: Accelerator
    processor: VitMaeImageProcessor
    source: AnySource
    bad_images: BadImages

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate `model`, on every process alike: -> eval_loss, its baseline and the like."""
        device, objective = self.accelerator.device, self.objective
        sums = torch.zeros((), dtype=torch.float64)
        for batch in held_out_batches(
            self.recipe,
            self.accelerator,
            self.processor,
            self.source,
            self.bad_images,
            objective.num_noise,
        ):
            # A process without images of its own in a step measures one and counts it not at all.
            keep = batch["valid"] if batch["valid"].any() else slice(0, 1)
            batch = {name: values[keep] for name, values in batch.items()}
            pixel_values = normalized(batch, self.processor, device)
            output = model(**objective.inputs(pixel_values, batch["noise"].to(device)))
            sums = sums + objective.measure(pixel_values, output) * batch["valid"].any()
        total = cast(Tensor, self.accelerator.reduce(sums.to(device), reduction="sum"))
        return objective.report(total.cpu())
