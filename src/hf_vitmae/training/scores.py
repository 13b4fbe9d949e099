"""Accuracy, precision and recall, and mean IoU of predictions: the arithmetic.

`hf_vitmae.training.metrics` has them as metrics of `evaluate`, whose import takes half a second.
"""

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of `labels` (B,) that are among the `k` highest of `logits` (B, classes).

    Of equal logits the lower class counts as the higher one, and NaN counts as wrong: a model that
    says nothing gets no credit.

    Raises:
        ValueError: if a label is not one of the classes.
    """
    check_labels(labels, logits.shape[1])
    k = min(k, logits.shape[1])
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # (B, 1)
    above = ~(logits <= own)  # written so that NaN is above everything
    tied_before = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    rank = (above | tied_before).sum(axis=1)  # (B,)
    return float((rank < k).mean())


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Refuse what is no class number, int64 (n,).

    Raises:
        ValueError: naming a label that is none of 0 to `num_classes` - 1, or for soft labels.
    """
    if labels.ndim != 1:
        raise ValueError(
            f"Labels of shape {labels.shape} are not one class an image; evaluate on images that "
            "are not mixed, as `MixingTrainer` does."
        )
    unknown = labels[(labels < 0) | (labels >= num_classes)]
    if unknown.size:
        raise ValueError(
            f"Label {unknown[0]} is none of the model's classes, 0 to {num_classes - 1}; "
            "give the model as many classes as the data has."
        )


def wilson_interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Where a share lies of which `hits` of `total` were seen, with 95 % confidence.

    Wilson's score interval ("Probable inference", 1927): unlike share +- z standard errors it stays
    inside 0..1 and has a width where all or none were hits.

    Raises:
        ValueError: if there are no trials, or more hits than trials.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} hits of {total} give no share; count at least one trial.")
    share, weight = hits / total, z**2 / total
    centre = (share + weight / 2) / (1 + weight)
    spread = (share * (1 - share) * weight + weight**2 / 4) ** 0.5 / (1 + weight)
    return max(0.0, centre - spread), min(1.0, centre + spread)


class ClassScores(TypedDict):
    """What `class_scores` finds of every class; 0..1, or NaN where there is nothing to count."""

    precision: list[float]
    """Share of a class's predictions that are right; NaN where it is never predicted."""
    recall: list[float]
    """Share of a class's images that are found; NaN where it has none."""
    f1: list[float]
    """Harmonic mean of both, 2 hits / (predictions + images); NaN where it has neither."""
    support: list[int]
    """Images of a class."""
    predicted: list[int]
    """Predictions of a class."""


def class_scores(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> ClassScores:
    """Precision, recall and F1 of every class: int64 (n,) twice -> lists of `num_classes`.

    Raises:
        ValueError: if a label or prediction is not one of the classes.
    """
    for numbers in (predicted, labels):
        check_labels(numbers, num_classes)
    hits, predictions, support = (
        np.bincount(numbers, minlength=num_classes)
        for numbers in (labels[predicted == labels], predicted, labels)
    )  # (classes,) each
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: there is nothing to count
        return {
            "precision": (hits / predictions).tolist(),
            "recall": (hits / support).tolist(),
            "f1": (2 * hits / (predictions + support)).tolist(),
            "support": support.tolist(),
            "predicted": predictions.tolist(),
        }


class SegmentationScores(TypedDict):
    """What `iou_from_confusion` finds; 0..1, or NaN where there is nothing to count."""

    mean_iou: float
    """Mean over the classes that are in predictions or references."""
    mean_accuracy: float
    """Share of a class's pixels that are found, mean over the classes that are in references."""
    pixel_accuracy: float
    """Share of the pixels whose class is right."""
    per_class_iou: list[float]
    """Intersection over union of every class; NaN where it is in neither."""


def confusion_matrix(
    predictions: Tensor | np.ndarray,
    references: Tensor | np.ndarray,
    num_classes: int,
    ignore_index: int = 255,
) -> Tensor:
    """Count pixels by class, rows true, columns predicted: -> int64 (classes, classes).

    Matrices of parts add up to that of the whole.

    Args:
        predictions, references: class ids of one shape, (B, H, W) or any other.
        ignore_index: pixels with this reference are not counted.

    Raises:
        ValueError: if the shapes differ, or a class that is counted is none of `num_classes`.
    """
    predictions, references = torch.as_tensor(predictions), torch.as_tensor(references)
    if predictions.shape != references.shape:
        raise ValueError(
            f"Predictions of shape {tuple(predictions.shape)} and references of shape "
            f"{tuple(references.shape)} do not match; bring them to one size."
        )
    counted = references != ignore_index
    predicted, true = predictions[counted].long(), references[counted].long()  # (pixels,) each
    for name, classes in {"prediction": predicted, "reference": true}.items():
        unknown = classes[(classes < 0) | (classes >= num_classes)]
        if unknown.numel():
            raise ValueError(
                f"A {name} is class {unknown[0].item()}, which is none of the {num_classes} "
                "classes from 0 on; give the model as many as the data has, or mark what does not "
                f"count as {ignore_index} in the references."
            )
    cells = torch.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def iou_from_confusion(matrix: Tensor) -> SegmentationScores:
    """The scores of a confusion matrix (classes, classes), rows true, columns predicted."""
    counts = matrix.cpu().double()
    hits, true, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)  # (classes,)
    iou = hits / (true + predicted - hits)  # 0 / 0 is NaN: the class is nowhere
    return {
        "mean_iou": iou.nanmean().item(),
        "mean_accuracy": (hits / true).nanmean().item(),
        "pixel_accuracy": (hits.sum() / counts.sum()).item(),
        "per_class_iou": iou.tolist(),
    }
