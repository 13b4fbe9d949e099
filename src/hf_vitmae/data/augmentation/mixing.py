"""Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899): images of a batch mixed, labels soft.

Every image is mixed with the next one of its batch, the last with the first: the order of samples
is random already, and unlike a reversed batch, an odd one leaves no image alone. A batch gets one
of the two and one share for all its images. Only numbers are drawn, so images may be on any device.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import default_data_collator

from .config import AugmentConfig

Batch = dict[str, Tensor]

FINGERPRINT_SIDE = 16  # pixels of an image along either side, at least, that tell batches apart


class Mix(NamedTuple):
    """What is drawn for a batch.

    Args:
        kept: share of an image, and of its label, that is its own.
        box: (top, left, height, width) in pixels that comes from the next image; None blends.
    """

    kept: float = 1.0
    box: tuple[int, int, int, int] | None = None

    def of_images(self, images: Tensor) -> Tensor:
        """Mix a batch: (B, C, H, W) -> the same, uint8 rounded to the nearest value."""
        if self.kept == 1.0:
            return images
        if self.box is None:
            mixed = self._blend(images if images.is_floating_point() else images.float())
            return mixed if images.is_floating_point() else mixed.round().to(images.dtype)
        top, left, height, width = self.box
        area = (..., slice(top, top + height), slice(left, left + width))
        mixed = images.clone()
        mixed[area] = images[area].roll(-1, dims=0)
        return mixed

    def of_labels(self, labels: Tensor) -> Tensor:
        """Mix distributions over classes: float (B, classes) -> the same."""
        return labels if self.kept == 1.0 else self._blend(labels)

    def _blend(self, values: Tensor) -> Tensor:
        return torch.lerp(values.roll(-1, dims=0), values, self.kept)


@dataclass(frozen=True)
class Mixing:
    """Mixup or cutmix as `config` says; make one and call it on every training batch.

    Args:
        label_smoothing: share of every label that is spread over all classes.

    Raises:
        ValueError: if `label_smoothing` is not at least 0 and below 1.
    """

    config: AugmentConfig
    num_classes: int
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}."
            )

    def __call__(self, batch: Batch, generator: np.random.Generator) -> Batch:
        """`pixel_values` (B, C, H, W) and `labels` int64 (B,) -> mixed, and float (B, classes).

        Args:
            generator: made for this batch alone, from the run's seed and the position of the
                batch's first sample: then resumed runs go on exactly and ranks differ.

        Raises:
            ValueError: if the labels are not one class an image.
        """
        images, labels = batch["pixel_values"], self._soft_labels(batch.get("labels"))
        mix = self.draw(images.shape[-2], images.shape[-1], generator)
        return {**batch, "pixel_values": mix.of_images(images), "labels": mix.of_labels(labels)}

    def draw(self, height: int, width: int, generator: np.random.Generator) -> Mix:
        """Draw what is done to a batch of images of height x width."""
        config = self.config
        if not config.mixes or generator.random() >= config.mixing_probability:
            return Mix()
        both = config.mixup > 0 and config.cutmix > 0
        share = config.cutmix_share if both else float(config.cutmix > 0)
        if generator.random() >= share:
            return Mix(generator.beta(config.mixup, config.mixup))
        box = _draw_box(height, width, generator.beta(config.cutmix, config.cutmix), generator)
        return Mix(1 - box[2] * box[3] / (height * width), box)

    def _soft_labels(self, labels: Tensor | None) -> Tensor:
        """Smoothed distributions: int64 (B,) -> float32 (B, classes)."""
        if labels is None or labels.ndim != 1 or labels.is_floating_point():
            found = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ValueError(
                f"Mixup and cutmix need labels of one class an image, int64 (B,), not {found}; "
                "set augment.mixup and augment.cutmix to 0."
            )
        classes = functional.one_hot(labels, self.num_classes).float()
        return classes * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes


def _draw_box(
    height: int, width: int, kept: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of the image's shape and about 1 - `kept` of its area: (top, left, height, width).

    Its centre may be at any pixel, and what lies outside is cut off.
    """
    side = (1 - kept) ** 0.5
    top, bottom = _draw_interval(height, side, generator)
    left, right = _draw_interval(width, side, generator)
    return top, left, bottom - top, right - left


def _draw_interval(length: int, share: float, generator: np.random.Generator) -> tuple[int, int]:
    """First pixel of an interval inside 0..length, and the one after its last."""
    size, centre = int(length * share), int(generator.integers(length))
    start = centre - size // 2
    return max(0, start), min(length, start + size)


@dataclass(frozen=True)
class MixingCollator:
    """A data collator for transformers' `Trainer` that mixes: samples -> a batch.

    What is drawn depends on the seed and on the batch itself, since a collator is told no step: so
    a resumed run goes on exactly, with any number of workers, and ranks differ.

    A `Trainer` uses its collator for evaluation too, where nothing should be mixed:
    `hf_vitmae.training.trainer.MixingTrainer` does not.

    Args:
        collate: makes a batch with `pixel_values` and `labels` of samples.
    """

    mixing: Mixing
    seed: int = 0
    collate: Callable[[list[Any]], dict[str, Any]] = default_data_collator

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        """Collate and mix."""
        batch = self.collate(samples)
        return self.mixing(batch, np.random.default_rng((self.seed, _fingerprint(batch))))


def _fingerprint(batch: Batch) -> int:
    """A number of 128 bits that other images or labels make another."""
    pixels = batch["pixel_values"]
    row_step, column_step = (max(1, side // FINGERPRINT_SIDE) for side in pixels.shape[-2:])
    pixels = pixels[..., ::row_step, ::column_step]
    digest = hashlib.blake2b(digest_size=16)
    for values in (pixels, batch["labels"]):
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")
