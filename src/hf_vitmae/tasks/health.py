"""What a pretraining run says of itself while it goes on: a health report that needs no labels, and
the accuracy of nearest neighbours where there are some.

Both are evaluators of the loop, the same on every process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_vitmae.data.augmentation.transforms import EvalTransform
from hf_vitmae.data.loader import eval_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.losses import masked_pixel_loss, pixel_targets
from hf_vitmae.models.masking import order_from_noise
from hf_vitmae.tasks.images import Batch, example_images, normalized, spread
from hf_vitmae.tasks.objectives import MaskedAutoencoding, Objective
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training import interrupts
from hf_vitmae.training.advice import advise
from hf_vitmae.training.features import Features
from hf_vitmae.training.health import (
    attention_distance,
    effective_rank,
    encoder_tokens,
    exchange_visible,
    interpolation_baseline,
    position_use,
    prediction_spread,
    token_spread,
    watched_attention,
)
from hf_vitmae.training.neighbors import nearest_classes
from hf_vitmae.training.processes import on_main
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.scores import top_k_accuracy
from hf_vitmae.visualize import mean_visible_baseline

NUM_IMAGES = 64  # whose masked loss a report has
NUM_WHOLE_IMAGES = 16  # of them that are looked at without a mask, which takes four times as long
NUM_NEIGHBORS = 20
NEIGHBOR_TEMPERATURE = 0.07  # as arXiv:1805.01978 weighs them
MOST_NEIGHBORS_FROM = 5000  # training images among which neighbours are looked for


@dataclass(frozen=True)
class HealthReport:
    """Figures of a masked autoencoder on fixed images under fixed masks, and a verdict on them.

    Args:
        source: where the images are taken from: held-out ones, or else those that train.
        also_every: steps between reports, beside those at each evaluation.
    """

    recipe: TaskRecipe
    objective: MaskedAutoencoding
    accelerator: Accelerator
    processor: VitMaeImageProcessor
    source: AnySource
    also_every: int

    @property
    def periods(self) -> tuple[int, ...]:
        """Numbers of steps after each of which a report is due."""
        return (self.recipe.eval_every, self.also_every)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Examine `model`: -> health_loss and the like; nothing where no image can be used."""
        pixel_values, noise = (values.to(self.accelerator.device) for values in self.sample)
        if not len(pixel_values):
            return {}
        found = self._predictions(model, pixel_values, noise)
        found |= self._features(model, pixel_values[:NUM_WHOLE_IMAGES])
        report = {f"health_{name}": value for name, value in found.items()}
        return {**report, "health_verdict": self._verdict(report)}

    @cached_property
    def sample(self) -> tuple[Tensor, Tensor]:
        """The images, as the main process reads them, and noise for their masks: float32 (B, C, H,
        W), (B, num_noise).
        """
        pixels = on_main(self.accelerator, self._read)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        return pixels, torch.rand(len(pixels), self.objective.num_noise, generator=generator)

    def _read(self) -> Tensor:
        images = example_images(self.source, NUM_IMAGES, self.processor)
        if not images:
            return torch.empty(0)
        return self.processor(images, return_tensors="pt")["pixel_values"]

    def _predictions(
        self, model: nn.Module, pixel_values: Tensor, noise: Tensor
    ) -> dict[str, float]:
        """The masked loss beside two simple rules, and what predictions depend on."""
        config = self.objective.config
        rule = (config.patch_pair, config.norm_pix_loss)
        masked = self.objective.inputs(pixel_values, noise)["noise"]
        mask = order_from_noise(masked, config.mask_ratio).mask
        logits, tokens = self._run(model, pixel_values, mask)
        few, mask_of_few = pixel_values[:NUM_WHOLE_IMAGES], mask[:NUM_WHOLE_IMAGES]
        exchanged = exchange_visible(few, mask_of_few, config.patch_pair)
        _, moved = self._run(model, exchanged, mask_of_few)
        between, within = prediction_spread(logits, mask)
        return {
            "loss": masked_pixel_loss(logits, pixel_targets(pixel_values, *rule), mask).item(),
            "loss_mean_visible": mean_visible_baseline(pixel_values, mask, *rule),
            "loss_interpolation": interpolation_baseline(pixel_values, mask, *rule),
            "prediction_spread_images": between,
            "prediction_spread_patches": within,
            "position_use": position_use(tokens[:NUM_WHOLE_IMAGES], moved),
        }

    def _features(self, model: nn.Module, pixel_values: Tensor) -> dict[str, float]:
        """How rich the features of whole images are, and how far each layer looks, in pixels."""
        config = self.objective.config

        def distances(weights: Tensor) -> Tensor:
            return attention_distance(weights, config.grid, config.patch_pair)

        with watched_attention(model, distances) as measured:
            _, tokens = self._run(model, **self.objective.unmasked(pixel_values))
        rank, (between, within) = effective_rank(tokens.flatten(0, 1)), token_spread(tokens)
        layers = range(config.num_hidden_layers)
        means = [torch.cat(measured[layer :: len(layers)]).mean().item() for layer in layers]
        return {
            "feature_rank": rank,
            "feature_rank_share": rank / tokens.shape[-1],
            "feature_spread_images": between,
            "feature_spread_patches": within,
            **{f"attention_distance_{layer + 1}": means[layer] for layer in layers},
        }

    def _run(self, model: nn.Module, pixel_values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """-> predictions (B, N, P), the encoder's tokens of visible patches (B, K, D) in order."""
        results, size = [], self.recipe.eval_batch_size
        for part in zip(pixel_values.split(size), mask.split(size), strict=True):
            inputs = {"pixel_values": part[0], "mask": part[1], "return_loss": False}
            output, tokens = encoder_tokens(model, inputs)
            results.append((output.logits.float(), tokens))
        logits, tokens = (torch.cat(parts) for parts in zip(*results, strict=True))
        return logits, tokens

    def _verdict(self, report: dict[str, float]) -> str:
        """What the main process makes of the log and this report, which comes to stand in it."""

        def advise_on_log() -> str:
            records = RunFolder(self.recipe.output_dir).read_metrics()
            step = records[-1]["step"] if records else 0  # of the newest line, if not this one's
            return advise([*records, {"step": step, **report}]).verdict

        return on_main(self.accelerator, advise_on_log)


@dataclass(frozen=True)
class NeighborAccuracy:
    """How many held-out images have the class of their nearest training images, by the mean of the
    encoder's patch tokens.

    Args:
        every: steps between evaluations.
    """

    recipe: TaskRecipe
    objective: Objective
    accelerator: Accelerator
    processor: VitMaeImageProcessor
    train_source: AnySource
    eval_source: AnySource
    every: int

    @property
    def periods(self) -> tuple[int, ...]:
        """Numbers of steps after each of which it is due."""
        return (self.every,)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate `model`: -> eval_knn_accuracy; nothing where no image can be used."""
        known = self._features(model, spread(self.train_source, MOST_NEIGHBORS_FROM))
        asked = self._features(model, self.eval_source)
        if not len(known) or not len(asked):
            return {}
        votes = nearest_classes(
            known,
            asked.values,
            min(NUM_NEIGHBORS, len(known)),
            metric="cosine",
            temperature=NEIGHBOR_TEMPERATURE,
        )
        return {"eval_knn_accuracy": top_k_accuracy(votes, asked.labels, k=1)}

    def _features(self, model: nn.Module, source: AnySource) -> Features:
        """Of every good image of a source, in its order, on every process."""
        values, labels = [], []
        for batch in self._batches(source):
            pixel_values = normalized(batch, self.processor, self.accelerator.device)
            _, tokens = encoder_tokens(model, self.objective.unmasked(pixel_values))
            own = (tokens.mean(dim=1), batch["labels"], batch["valid"])
            own = tuple(part.to(self.accelerator.device) for part in own)
            pooled, classes, valid = cast(tuple[Tensor, ...], self.accelerator.gather(own))
            values.append(pooled[valid].cpu().numpy())  # (B, D)
            labels.append(classes[valid].cpu().numpy())
            interrupts.check(self.accelerator)
        return Features(np.concatenate(values), np.concatenate(labels), source.require_classes())

    def _batches(self, source: AnySource) -> Iterator[Batch]:
        """This process's part of them; bad images are noted where the run itself meets them."""
        return eval_batches(
            source,
            EvalTransform(self.processor),
            seed=self.recipe.seed,
            batch_size=self.recipe.eval_batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_workers=self.recipe.data.num_workers,
            skip=lambda image: None,
        )
