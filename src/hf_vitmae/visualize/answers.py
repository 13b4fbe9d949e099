"""What a fine-tuned model says of images: the class of each, or of each of its pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
    VitMaePreTrainedModel,
)
from hf_vitmae.models.modes import evaluating
from hf_vitmae.visualize.attention import attention_rollout
from hf_vitmae.visualize.heat import heat_over
from hf_vitmae.visualize.panel import PanelRow, picture_panel
from hf_vitmae.visualize.pictures import BATCH_SIZE, prepared, to_pictures
from hf_vitmae.visualize.segmentation import class_legend, segmentation_rows

NUM_CLASSES = 5  # that are named of an image
ATTENTION_NOTE = "attention: rolled out over all layers; each picture has its own scale"


def class_shares(model: VitMaeForImageClassification, pixel_values: Tensor) -> Tensor:
    """Probability of each class: (B, C, H, W) -> float32 (B, num_labels) on the CPU.

    Where an image may have several classes (`multi_label_classification`), each has its own.

    Raises:
        ValueError: if the model has no classifier, or one that predicts quantities.
    """
    _check_part(model, "classifier", VitMaeForImageClassification)
    if not predicts_classes(model.config):
        raise ValueError(
            "The model predicts quantities, not classes (`problem_type` regression, or one label); "
            "take its `logits`."
        )
    logits = _logits(model, pixel_values)
    several = model.config.problem_type == "multi_label_classification"
    return logits.sigmoid() if several else logits.softmax(dim=1)


def pixel_classes(model: VitMaeForSemanticSegmentation, pixel_values: Tensor) -> Tensor:
    """The likeliest class of each pixel: (B, C, H, W) -> int64 (B, H, W) on the CPU.

    Raises:
        ValueError: if the model is not for segmentation.
    """
    _check_part(model, "segmentation_head", VitMaeForSemanticSegmentation)
    return _logits(model, pixel_values).argmax(dim=1)


def predicts_classes(config: VitMaeConfig) -> bool:
    """Whether a classifier's outputs are classes, and not quantities."""
    return config.problem_type != "regression" and config.num_labels != 1


def class_names(config: VitMaeConfig) -> list[str]:
    """Names of a fine-tuned model's classes, in the order of its logits."""
    names: Any = config.id2label
    return [str(names[index]) for index in range(len(names))]


def likeliest(shares: Tensor, names: Sequence[str], most: int = NUM_CLASSES) -> dict[str, float]:
    """The likeliest classes of one image, the first first: (num_labels,) -> {name: probability}."""
    places: list[int] = shares.argsort(descending=True, stable=True)[:most].tolist()
    return {names[place]: float(shares[place]) for place in places}


def class_panel(
    model: VitMaeForImageClassification,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    most: int = NUM_CLASSES,
    scale: int | None = None,
) -> Image.Image:
    """Each image as a row: input, where the model looks, and the classes that it names.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        most: classes that are named of each image.
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if the model is no classifier, or nothing is to be named.
    """
    if most < 1:
        raise ValueError(f"`most` must be at least 1, got {most}.")
    processor, pixel_values = prepared(model.config, images, processor)  # (B, C, H, W)
    names, shares = class_names(model.config), class_shares(model, pixel_values)
    rolled = [attention_rollout(model, part) for part in pixel_values.split(BATCH_SIZE)]
    rows = []
    pictures = to_pictures(processor, pixel_values)
    for picture, looked, found in zip(pictures, torch.cat(rolled).numpy(), shares, strict=True):
        said = [f"{share:.1%} {name}" for name, share in likeliest(found, names, most).items()]
        columns = {"input": picture, "attention": heat_over(picture, looked)}
        rows.append(PanelRow(columns, "\n".join(said)))
    return picture_panel(rows, [ATTENTION_NOTE], scale=scale)


def segmentation_panel(
    model: VitMaeForSemanticSegmentation,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    scale: int | None = None,
) -> Image.Image:
    """Each image as a row: input, the classes of its pixels, and both; below, what colours mean.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if the model is not for segmentation.
    """
    processor, pixel_values = prepared(model.config, images, processor)  # (B, C, H, W)
    names = class_names(model.config)
    predicted = pixel_classes(model, pixel_values)
    rows = segmentation_rows(to_pictures(processor, pixel_values), predicted, None, names)
    return picture_panel(rows, [class_legend(names)], scale=scale)


def _check_part(
    model: VitMaePreTrainedModel, part: str, expected: type[VitMaePreTrainedModel]
) -> None:
    # By what it has, not by class: a checkpoint loaded with its own code has classes of its own.
    if not hasattr(model, part):
        raise ValueError(
            f"{type(model).__name__} has no {part.replace('_', ' ')}; load a fine-tuned checkpoint "
            f"as {expected.__name__}."
        )


def _logits(model: VitMaePreTrainedModel, pixel_values: Tensor) -> Tensor:
    """The model in evaluation mode: (B, C, H, W) -> float32 (B, num_labels, ...) on the CPU."""
    with evaluating(model):
        parts = [
            model(part.to(model.device)).logits.float().cpu()
            for part in pixel_values.split(BATCH_SIZE)
        ]
    return torch.cat(parts)
