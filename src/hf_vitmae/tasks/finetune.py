"""Fine-tuning for classification: every weight (arXiv:2111.06377, appendix A), or low-rank adapters
(arXiv:2106.09685).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional

from hf_vitmae.data.augmentation.mixing import Mixing
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.sources import Sources
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification
from hf_vitmae.tasks.checkpoints import load_config, load_processor
from hf_vitmae.tasks.fit import fit
from hf_vitmae.tasks.images import (
    Batch,
    held_out_batches,
    normalized,
    open_sources,
    spread,
    watch_images,
)
from hf_vitmae.tasks.lora import (
    add_adapters,
    count_parameters,
    merged,
    require_peft,
    save_adapter,
)
from hf_vitmae.tasks.normalization import pixel_statistics, processor_options, with_statistics
from hf_vitmae.tasks.start import (
    CheckpointRecipe,
    refuse_other_classes,
    start_config,
    start_model,
)
from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.loop_config import Best

ADAPTER = "adapter"  # in the run's folder: what LoRA trained, without the rest of the model


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(CheckpointRecipe):
    """A complete fine-tuning run."""

    pooling: Literal["cls", "mean"] = "mean"
    """What the classifier sees: the CLS token or the mean of the patch tokens."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    lora_rank: int = 0
    """Train adapters of this rank (LoRA) and the head, and no other weight; 0 trains all weights.
    8 is a good start; adapters learn best at a higher --optim.base-lr than all weights do, often
    some ten times higher."""
    lora_alpha: int = 16
    """The adapters are scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """Share of each adapter's inputs that is dropped in training."""
    output_dir: Path = Path("runs/finetune")
    """Folder of the run; the same command again resumes what is in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"`label_smoothing` must be at least 0 and below 1, got {self.label_smoothing}."
            )
        self._check_lora()

    def _check_lora(self) -> None:
        if self.lora_rank < 0 or self.lora_alpha < 1:
            name, least = ("lora_rank", 0) if self.lora_rank < 0 else ("lora_alpha", 1)
            raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"`lora_dropout` must be at least 0 and below 1, got {self.lora_dropout}."
            )
        if self.push_checkpoints and self.lora_rank:
            raise ValueError(
                "`push_checkpoints` is for runs that train the whole model, not for LoRA "
                "(`lora_rank`); leave it out, `push_to_hub` pushes what the run ends with."
            )
        if self.lora_dropout and not self.lora_rank:
            raise ValueError(
                f"`lora_dropout` {self.lora_dropout} is for adapters; set `lora_rank` too."
            )
        if self.lora_rank and self.from_scratch:
            raise ValueError(
                f"`lora_rank` {self.lora_rank} adapts trained weights and `from_scratch` has none; "
                "leave one of them out."
            )


def run(recipe: FinetuneRecipe, source: Sources | None = None) -> dict[str, Any]:
    """Fine-tune, and leave model, log and checkpoints in `recipe.output_dir`; of LoRA, the model
    with its adapters folded in, and these alone in `adapter/`.

    Args:
        source: a `datasets` object or a list of them, opened in place of `recipe.data.source`.

    Returns:
        The newest value of everything logged, with `eval_accuracy` when there were held-out images.

    Raises:
        ValueError, FileNotFoundError: for a recipe, model or data that cannot be used, in one line.
        ImportError: for adapters without `peft`.
    """
    if recipe.lora_rank:
        require_peft()
    accelerator = recipe.make_accelerator()
    stored = load_config(recipe.model)
    train_source, eval_source = open_sources(recipe, accelerator, source)
    classes = train_source.require_classes()
    refuse_other_classes(recipe, VitMaeForImageClassification, stored, classes)
    config = start_config(recipe, stored, classes, pooling=recipe.pooling)
    statistics = pixel_statistics(recipe, accelerator, train_source, config.num_channels)
    config = with_statistics(config, statistics)
    model = make_model(recipe, config, accelerator)
    processor = load_processor(recipe.model, config, **processor_options(statistics))
    held_out = eval_source and spread(eval_source, recipe.eval_images)
    bad_images = watch_images(recipe, train_source, held_out)
    evaluators = []
    if held_out is not None:
        evaluators.append(HeldOutAccuracy(recipe, accelerator, processor, held_out, bad_images))
    soften = make_targets(recipe, len(classes))

    def prepare(batch: Batch) -> Batch:
        labels = batch["labels"].to(accelerator.device, non_blocking=True)
        pixel_values = normalized(batch, processor, accelerator.device)
        return soften({"pixel_values": pixel_values, "labels": labels})

    trained = fit(
        recipe,
        accelerator,
        model,
        processor,
        train_source,
        prepare,
        evaluators,
        bad_images,
        Best("eval_accuracy", "highest"),
        finish=make_finish(recipe, processor),
    )
    accelerator.print(f"The model is in {trained.run.model}.")
    return trained.metrics


def make_model(
    recipe: FinetuneRecipe, config: VitMaeConfig, accelerator: Accelerator
) -> VitMaeForImageClassification:
    """The model to train, the recipe's adapters included; says what starts afresh or is trained."""
    torch.manual_seed(recipe.seed)
    model = start_model(recipe, VitMaeForImageClassification, config, accelerator)
    if recipe.lora_rank:
        add_adapters(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
        trained, total = count_parameters(model)
        accelerator.print(
            f"LoRA of rank {recipe.lora_rank}: {trained:,} of {total:,} parameters are trained."
        )
    return model


def make_finish(
    recipe: FinetuneRecipe, processor: VitMaeImageProcessor
) -> Callable[[VitMaeForImageClassification], VitMaeForImageClassification]:
    """The trained model -> the plain one to save; of LoRA, it writes the adapters on the way."""

    def finish(model: VitMaeForImageClassification) -> VitMaeForImageClassification:
        if not recipe.lora_rank:
            return model
        save_adapter(recipe.output_dir / ADAPTER, model, processor, recipe.model)
        return merged(model)

    return finish


def make_targets(recipe: FinetuneRecipe, num_classes: int) -> Callable[[Batch], Batch]:
    """What mixes images and labels of a batch, or smooths its labels alone, as the recipe says.

    A mix is drawn by torch's generator, which the loop seeds for each step and process: a resumed
    run draws the same, and processes differ.
    """
    mixing = Mixing(recipe.augment, num_classes, recipe.label_smoothing)

    def smooth(batch: Batch) -> Batch:
        labels = smooth_labels(batch["labels"], num_classes, recipe.label_smoothing)
        return batch | {"labels": labels}

    def mix(batch: Batch) -> Batch:
        seed = int(torch.randint(2**63 - 1, ()))
        return mixing(batch, np.random.default_rng(seed))

    return mix if recipe.augment.mixes else smooth


def smooth_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Class numbers, as distributions when smoothed: (B,) -> (B,) or float (B, classes)."""
    if smoothing == 0.0:
        return labels
    return functional.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Top-1 and top-5 accuracy and the loss on held-out images, each counted once."""

    recipe: FinetuneRecipe
    accelerator: Accelerator
    processor: VitMaeImageProcessor
    source: AnySource
    bad_images: BadImages

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate `model`, on every process alike: -> eval_loss, eval_accuracy and the like."""
        from hf_vitmae.training.metrics import TopKAccuracy

        logits, labels = self._predict(model)
        results = {"loss": functional.cross_entropy(logits, labels).item()}
        for metric in (TopKAccuracy(1), TopKAccuracy(5)):
            results |= metric.compute(predictions=logits.numpy(), references=labels.numpy()) or {}
        results["images"] = len(labels)
        return {f"eval_{name}": value for name, value in results.items()}

    def _predict(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits and labels of the whole source on the CPU: -> float32 (n, classes), int64 (n,)."""
        device = self.accelerator.device
        pairs = []
        for batch in held_out_batches(
            self.recipe, self.accelerator, self.processor, self.source, self.bad_images
        ):
            valid = batch["valid"]
            logits = model(pixel_values=normalized(batch, self.processor, device)).logits
            pairs.append((logits.float().cpu()[valid], batch["labels"][valid]))
        logits, labels = zip(*gather_object(pairs), strict=True)
        return torch.cat(logits), torch.cat(labels)
