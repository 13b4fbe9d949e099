"""Classification accuracy as `evaluate` metrics that need no download, and for the HF `Trainer`.

`evaluate.load("accuracy")` fetches code from the network; these classes are the code.
"""

from collections.abc import Sequence
from typing import cast

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction


class TopKAccuracy(evaluate.Metric):
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
        super().__init__(config_name=f"top_{k}", keep_in_memory=True, seed=0)

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

    def _build_data_dir(self) -> str:
        return ""  # the base class would make a folder in the user's cache, and nothing is written

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        return {self.key: top_k_accuracy(np.asarray(predictions), np.asarray(references), self.k)}


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of `labels` (B,) that are among the `k` highest of `logits` (B, classes).

    Of equal logits the lower class counts as the higher one, and NaN counts as wrong: a model that
    says nothing gets no credit.

    Raises:
        ValueError: if a label is not one of the classes.
    """
    unknown = labels[(labels < 0) | (labels >= logits.shape[1])]
    if unknown.size:
        raise ValueError(
            f"Label {unknown[0]} is none of the model's classes, 0 to {logits.shape[1] - 1}; "
            "give the model as many classes as the data has."
        )
    k = min(k, logits.shape[1])
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # (B, 1)
    above = ~(logits <= own)  # written so that NaN is above everything
    tied_before = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    rank = (above | tied_before).sum(axis=1)  # (B,)
    return float((rank < k).mean())


def compute_metrics(prediction: EvalPrediction | tuple) -> dict[str, float]:
    """Top-1 and top-5 accuracy of (logits, labels), for `Trainer(compute_metrics=...)`."""
    logits, labels = cast(tuple, prediction)
    if isinstance(logits, tuple):  # the Trainer adds hidden states when the model returns them
        logits = logits[0]
    return {
        "accuracy": top_k_accuracy(logits, labels, 1),
        "top_5_accuracy": top_k_accuracy(logits, labels, 5),
    }
