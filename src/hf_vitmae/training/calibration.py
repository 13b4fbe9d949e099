"""Whether a classifier is as often right as it says: calibration (arXiv:1706.04599).

The confidence of a prediction is the probability of the class with the highest logit. The expected
calibration error puts the images into bins of confidence and averages how far the share that is
right lies from the mean confidence. Temperature scaling divides all logits by one number, which
changes confidences and no prediction.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import datasets
import evaluate
import numpy as np

from hf_vitmae.training.metrics import InMemoryMetric
from hf_vitmae.training.scores import check_labels

NUM_BINS = 15
TEMPERATURES = (0.01, 100.0)  # of the search; a model that is always right wants the lowest
HALVINGS = 30  # of the search, in log temperature: exact to eight digits


class CalibrationBin(TypedDict):
    """The predictions whose confidence lies in (low, high], the first bin's in [low, high]."""

    low: float
    high: float
    images: int
    confidence: float | None
    """Mean over the images; None without one."""
    accuracy: float | None
    """Share of the images that is right; None without one."""


class TemperatureHint(NamedTuple):
    """What one temperature would do for a model: fitted on some images, measured on others."""

    temperature: float
    fitted_on: int
    measured_on: int
    calibration_error: float
    """On the images that it was not fitted on, as the model is."""
    scaled_calibration_error: float
    """On the same images, with logits divided by the temperature."""
    loss: float
    scaled_loss: float


class CalibrationError(InMemoryMetric):
    """The expected calibration error of logits (B, classes), see `calibration_error`.

    Takes logits as `predictions` and class numbers (B,) as `references`, by `compute` at once or by
    `add_batch`. The result's key is `calibration_error`.
    """

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        _check_bins(num_bins)
        self.num_bins = num_bins
        super().__init__(f"{num_bins}_bins")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"Expected calibration error in {self.num_bins} bins of one width.",
            citation="",
            inputs_description="predictions: logits (B, classes); references: classes (B,).",
            features=datasets.Features(
                predictions=datasets.List(datasets.Value("float32")),
                references=datasets.Value("int64"),
            ),
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        logits, labels = np.asarray(predictions), np.asarray(references)
        return {"calibration_error": calibration_error(logits, labels, self.num_bins)}


def calibration_error(logits: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """The expected calibration error: sum over bins of |accuracy - confidence| * share of images.

    The bins are of one width over 0..1. A small set has an error also where the model is right
    about itself, since the accuracy of a bin of few images is far from its expectation.

    Args:
        logits: (n, classes).
        labels: int64 (n,).

    Raises:
        ValueError: for fewer than 1 bin, or a label that is not one of the classes.
    """
    bins = calibration_bins(logits, labels, num_bins)
    gaps = [
        abs(one["accuracy"] - one["confidence"]) * one["images"]
        for one in bins
        if one["accuracy"] is not None and one["confidence"] is not None
    ]
    return sum(gaps) / len(labels)


def calibration_bins(
    logits: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS
) -> list[CalibrationBin]:
    """Confidence and accuracy in bins of one width: (n, classes), int64 (n,) -> the bins.

    Raises:
        ValueError: as `calibration_error`.
    """
    _check_bins(num_bins)
    check_labels(labels, logits.shape[1])
    confidences = np.exp(log_probabilities(logits).max(axis=1))  # (n,)
    is_right = logits.argmax(axis=1) == labels  # (n,)
    places = np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)  # (n,)
    return [
        _bin(number, num_bins, confidences[places == number], is_right[places == number])
        for number in range(num_bins)
    ]


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest loss on these images: (n, classes), int64 (n,) -> a number.

    The loss is convex in 1 / temperature, so that the sign of its slope tells on which side the
    best one lies; it is searched for between 0.01 and 100.

    Raises:
        ValueError: if a label is not one of the classes.
    """
    check_labels(labels, logits.shape[1])
    logits = logits.astype(np.float64)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]  # (n,)
    low, high = np.log(TEMPERATURES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        probabilities = np.exp(log_probabilities(logits / np.exp(middle)))
        # The slope in 1 / temperature: what the model expects of its logits less what they are.
        slope = ((probabilities * logits).sum(axis=1) - own).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def temperature_hint(logits: np.ndarray, labels: np.ndarray) -> TemperatureHint | None:
    """Fit a temperature on every second image and measure it on the others; None for under 2.

    Every second one, since the images of a folder come class by class.
    """
    fitted, measured = slice(0, None, 2), slice(1, None, 2)
    if len(labels) < 2:
        return None
    temperature = best_temperature(logits[fitted], labels[fitted])
    held_out, own = logits[measured], labels[measured]
    return TemperatureHint(
        temperature=temperature,
        fitted_on=len(labels[fitted]),
        measured_on=len(own),
        calibration_error=calibration_error(held_out, own),
        scaled_calibration_error=calibration_error(held_out / temperature, own),
        loss=log_loss(held_out, own),
        scaled_loss=log_loss(held_out / temperature, own),
    )


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy: (n, classes), int64 (n,) -> a number, in float64."""
    own = np.take_along_axis(log_probabilities(logits), labels[:, None], axis=1)  # (n, 1)
    return float(-own.mean())


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax over the last axis, in float64: (..., classes) -> the same."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _bin(
    number: int, num_bins: int, confidences: np.ndarray, is_right: np.ndarray
) -> CalibrationBin:
    some = confidences.size > 0
    return {
        "low": number / num_bins,
        "high": (number + 1) / num_bins,
        "images": confidences.size,
        "confidence": float(confidences.mean()) if some else None,
        "accuracy": float(is_right.mean()) if some else None,
    }


def _check_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; the calibration error needs 1 or more.")
