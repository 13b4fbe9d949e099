"""Accuracy, precision and recall, and mean IoU as `evaluate` metrics that need no download, and for
the HF `Trainer`.

`evaluate.load("accuracy")` fetches code from the network; these classes are the code.
"""

from collections.abc import Sequence
from typing import cast

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction

from hf_vitmae.training.scores import (
    ClassScores,
    SegmentationScores,
    check_labels,
    class_scores,
    confusion_matrix,
    iou_from_confusion,
    top_k_accuracy,
    wilson_interval,
)

__all__ = [
    "ClassScores",
    "InMemoryMetric",
    "MeanIoU",
    "PrecisionRecall",
    "SegmentationScores",
    "TopKAccuracy",
    "check_labels",
    "class_scores",
    "compute_metrics",
    "confusion_matrix",
    "iou_from_confusion",
    "top_k_accuracy",
    "wilson_interval",
]


class InMemoryMetric(evaluate.Metric):
    """A metric that writes no file, and whose results depend on nothing but its inputs.

    Args:
        config_name: tells its options apart.
    """

    def __init__(self, config_name: str) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, seed=0)

    def _build_data_dir(self) -> str:
        return ""  # the base class would make a folder in the user's cache, and nothing is written


class TopKAccuracy(InMemoryMetric):
    """Share of images whose class is among the `k` highest logits; all count if there are fewer.

    Takes logits (B, classes) as `predictions` and class numbers (B,) as `references`, by `compute`
    at once or by `add_batch`. The result's key is `accuracy`, or `top_<k>_accuracy`. Everything
    stays in memory.
    """

    def __init__(self, k: int = 1) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; the accuracy among the top k needs 1 or more.")
        self.k = k
        self.key = "accuracy" if k == 1 else f"top_{k}_accuracy"
        super().__init__(f"top_{k}")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"Share of images whose class is among the {self.k} highest logits.",
            citation="",
            inputs_description="predictions: logits (B, classes); references: classes (B,).",
            features=datasets.Features(
                predictions=datasets.List(datasets.Value("float32")),
                references=datasets.Value("int64"),
            ),
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        return {self.key: top_k_accuracy(np.asarray(predictions), np.asarray(references), self.k)}


class PrecisionRecall(InMemoryMetric):
    """Precision, recall, F1 and support of every class: the `ClassScores` of class numbers.

    Takes class numbers (B,) as `predictions` and `references`, by `compute` at once or by
    `add_batch`. Everything stays in memory.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; precision needs 1 or more.")
        self.num_classes = num_classes
        super().__init__(f"{num_classes}_classes")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"Precision, recall and F1 of each of {self.num_classes} classes.",
            citation="",
            inputs_description="predictions and references: classes (B,).",
            features=datasets.Features(
                predictions=datasets.Value("int64"), references=datasets.Value("int64")
            ),
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> ClassScores:
        return class_scores(np.asarray(predictions), np.asarray(references), self.num_classes)


class MeanIoU(InMemoryMetric):
    """How well the classes of pixels are predicted: the `SegmentationScores` of class maps.

    Takes class maps (B, H, W), or lists of maps (H, W) of any sizes, as `predictions` and
    `references`, by `compute` at once or by `add_batch`. Everything stays in memory; for many large
    maps sum up `confusion_matrix` instead.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; mean IoU needs 1 or more.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        super().__init__(f"{num_classes}_classes")

    def _info(self) -> evaluate.MetricInfo:
        class_map = datasets.List(datasets.List(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=f"Mean intersection over union of {self.num_classes} classes.",
            citation="",
            inputs_description="predictions and references: class maps (B, H, W).",
            features=datasets.Features(predictions=class_map, references=class_map),
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> SegmentationScores:
        matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        for predicted, true in zip(predictions, references, strict=True):
            maps = np.asarray(predicted), np.asarray(true)
            matrix += confusion_matrix(*maps, self.num_classes, self.ignore_index)
        return iou_from_confusion(matrix)


def compute_metrics(prediction: EvalPrediction | tuple) -> dict[str, float]:
    """Top-1 and top-5 accuracy of (logits, labels), for `Trainer(compute_metrics=...)`."""
    logits, labels = cast(tuple, prediction)
    if isinstance(logits, tuple):  # the Trainer adds hidden states when the model returns them
        logits = logits[0]
    return {
        "accuracy": top_k_accuracy(logits, labels, 1),
        "top_5_accuracy": top_k_accuracy(logits, labels, 5),
    }
