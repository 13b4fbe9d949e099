"""What pretraining objectives differ in: the model, its inputs, the trivial baseline that a trained
model must beat, and the picture that a run ends with.

An evaluation adds up `measure` over batches and processes and makes its figures from the sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.losses import (
    masked_pixel_loss,
    num_color_classes,
    num_patch_outputs,
    patch_targets,
    pixel_targets,
    unnormalized,
)
from hf_vitmae.models.mask_patterns import MASK_PATTERNS, contrast_weights, weighted_noise
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaePreTrainedModel,
)
from hf_vitmae.visualize import (
    CONTINUATION_NOTE,
    CORRUPTION_NOTE,
    color_predictions,
    continuations,
    mean_visible_baseline,
    picture_panel,
    reconstruct,
    reconstruction_panel,
)

Inputs = dict[str, Any]


class Objective(Protocol):
    """One way to learn from images without labels."""

    picture_name: str

    @property
    def model_class(self) -> type[VitMaePreTrainedModel]: ...

    @property
    def num_noise(self) -> int:
        """Random numbers in [0, 1) that each image brings."""
        ...

    def inputs(self, pixel_values: Tensor, noise: Tensor) -> Inputs:
        """(B, C, H, W), (B, num_noise) -> keyword arguments of the model."""
        ...

    def unmasked(self, pixel_values: Tensor) -> Inputs:
        """(B, C, H, W) -> keyword arguments with which the model sees whole images."""
        ...

    def measure(self, pixel_values: Tensor, output: Any) -> Tensor:
        """What adds up over batches: float64 (k,)."""
        ...

    def report(self, sums: Tensor) -> dict[str, float]:
        """The figures of an evaluation: -> eval_loss, its baselines and the like."""
        ...

    def picture(
        self, model: Any, images: Sequence[Tensor], processor: VitMaeImageProcessor, seed: int
    ) -> Image.Image:
        """What the model makes of some images."""
        ...


@dataclass(frozen=True)
class MaskedAutoencoding:
    """Pixels of hidden patches (arXiv:2111.06377)."""

    config: VitMaeConfig
    pattern: str = "random"
    model_class = VitMaeForPreTraining
    picture_name = "reconstruction.png"

    @property
    def num_noise(self) -> int:
        return self.config.num_patches

    def inputs(self, pixel_values: Tensor, noise: Tensor) -> Inputs:
        if self.pattern == "contrast":
            weights = contrast_weights(pixel_values, self.config.patch_pair)
            noise = weighted_noise(noise, weights)
        else:
            noise = MASK_PATTERNS[self.pattern](noise, self.config.grid)
        return {"pixel_values": pixel_values, "noise": noise, "predict_visible_patches": False}

    def unmasked(self, pixel_values: Tensor) -> Inputs:
        return {"pixel_values": pixel_values, "mask": _nothing_hidden(pixel_values, self.config)}

    def measure(self, pixel_values: Tensor, output: Any) -> Tensor:
        config = self.config
        baseline = mean_visible_baseline(
            pixel_values, output.mask, config.patch_pair, config.norm_pix_loss
        )
        return _loss_sums(output.loss, baseline, len(pixel_values))

    def report(self, sums: Tensor) -> dict[str, float]:
        return _loss_report(sums, "mean_visible")

    def picture(
        self, model: Any, images: Sequence[Tensor], processor: VitMaeImageProcessor, seed: int
    ) -> Image.Image:
        return reconstruction_panel(reconstruct(model, images, processor, seed=seed))


@dataclass(frozen=True)
class MaskedPatchPrediction:
    """Colours, or pixels, of corrupted patches (arXiv:2010.11929, B.1.2)."""

    config: VitMaeConfig
    model_class = VitMaeForMaskedPatchPrediction
    picture_name = "prediction.png"

    @property
    def num_noise(self) -> int:
        return 2 * self.config.num_patches

    def inputs(self, pixel_values: Tensor, noise: Tensor) -> Inputs:
        noise, corruption_noise = noise.chunk(2, dim=1)
        return {
            "pixel_values": pixel_values,
            "noise": noise,
            "corruption_noise": corruption_noise,
        }

    def unmasked(self, pixel_values: Tensor) -> Inputs:
        return {"pixel_values": pixel_values, "mask": _nothing_hidden(pixel_values, self.config)}

    def measure(self, pixel_values: Tensor, output: Any) -> Tensor:
        """Loss, number of images and right answers; then how often each class occurs at each of the
        S colours of a patch, (S * classes,).
        """
        config, images = self.config, len(pixel_values)
        if config.patch_target == "pixels":
            pixels = unnormalized(pixel_values, config)
            baseline = mean_visible_baseline(pixels, output.mask, config.patch_pair, False)
            return _loss_sums(output.loss, baseline, images)
        targets = patch_targets(pixel_values, config)[output.mask]  # (n, S)
        colors, outputs = targets.shape[1], num_patch_outputs(config)
        logits = output.logits[output.mask].unflatten(1, (colors, -1))  # (n, S, classes)
        right = (logits.argmax(dim=-1) == targets).double().mean(dim=1).sum()
        places = targets + torch.arange(colors, device=targets.device) * (outputs // colors)
        counts = places.flatten().bincount(minlength=outputs).double()
        sums = [images * output.loss.item(), images, right.item()]
        return torch.cat([torch.tensor(sums, dtype=torch.float64), counts.cpu()])

    def report(self, sums: Tensor) -> dict[str, float]:
        """Beside loss and accuracy, those of answering with the colours' own frequencies, and with
        the most frequent one.
        """
        if self.config.patch_target == "pixels":
            return _loss_report(sums, "mean_visible")
        loss, images, right = sums[:3].tolist()
        classes = num_color_classes(self.config.num_channels)
        counts = sums[3:].unflatten(0, (-1, classes))  # (S, classes)
        shares = counts / counts.sum(dim=1, keepdim=True)
        patches = counts[0].sum().item()
        return {
            "eval_loss": loss / images,
            "eval_loss_color_frequencies": torch.special.entr(shares).sum(dim=1).mean().item(),
            "eval_accuracy": right / patches,
            "eval_accuracy_most_frequent_color": shares.amax(dim=1).mean().item(),
            "eval_images": int(images),
        }

    def picture(
        self, model: Any, images: Sequence[Tensor], processor: VitMaeImageProcessor, seed: int
    ) -> Image.Image:
        rows = color_predictions(model, images, processor, seed=seed)
        return picture_panel(rows, [CORRUPTION_NOTE])


@dataclass(frozen=True)
class NextPatchPrediction:
    """Pixels of each patch from those before it; of a first share of them drawn for each image from
    0 to `prefix_share`, all see each other.
    """

    config: VitMaeConfig
    prefix_share: float = 0.0
    model_class = VitMaeForNextPatchPrediction
    picture_name = "continuation.png"

    @property
    def num_noise(self) -> int:
        return 1

    def inputs(self, pixel_values: Tensor, noise: Tensor) -> Inputs:
        inputs = {"pixel_values": pixel_values}
        if self.prefix_share:
            most = int(self.prefix_share * self.config.num_patches)
            inputs["num_prefix_patches"] = (noise[:, 0] * (most + 1)).long()
        return inputs

    def unmasked(self, pixel_values: Tensor) -> Inputs:
        return {"pixel_values": pixel_values}

    def measure(self, pixel_values: Tensor, output: Any) -> Tensor:
        config = self.config
        targets = pixel_targets(pixel_values, config.patch_pair, config.norm_pix_loss)
        previous = targets.roll(1, dims=1)
        previous[:, 0] = 0.0  # before the first patch there is none: mid-gray
        baseline = masked_pixel_loss(previous, targets, output.mask)
        return _loss_sums(output.loss, baseline.item(), len(pixel_values))

    def report(self, sums: Tensor) -> dict[str, float]:
        return _loss_report(sums, "previous_patch")

    def picture(
        self, model: Any, images: Sequence[Tensor], processor: VitMaeImageProcessor, seed: int
    ) -> Image.Image:
        has_prefix = self.prefix_share > 0
        rows = continuations(model, images, processor, bidirectional_prefix=has_prefix)
        return picture_panel(rows, [CONTINUATION_NOTE])


def _nothing_hidden(pixel_values: Tensor, config: VitMaeConfig) -> Tensor:
    """A mask that hides no patch: bool (B, N)."""
    shape = (len(pixel_values), config.num_patches)
    return torch.zeros(shape, dtype=torch.bool, device=pixel_values.device)


def _loss_sums(loss: Tensor, second: float, images: int) -> Tensor:
    """Means over images as sums: -> float64 (loss, second, images)."""
    return torch.tensor([images * loss.item(), images * second, images], dtype=torch.float64)


def _loss_report(sums: Tensor, baseline: str) -> dict[str, float]:
    loss, trivial, images = sums.tolist()
    return {
        "eval_loss": loss / images,
        f"eval_loss_{baseline}": trivial / images,
        "eval_images": int(images),
    }
