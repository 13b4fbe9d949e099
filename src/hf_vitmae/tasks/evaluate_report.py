"""What `hf-vitmae evaluate` found: as numbers, and as a table to read."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from hf_vitmae.training.calibration import (
    NUM_BINS,
    calibration_bins,
    calibration_error,
    log_loss,
    log_probabilities,
    temperature_hint,
)
from hf_vitmae.training.scores import (
    class_scores,
    iou_from_confusion,
    top_k_accuracy,
    wilson_interval,
)
from hf_vitmae.visualize.confusion import (
    Confusion,
    most_confused,
    shortened,
)

MOST_CLASSES = 50  # in the printed table: of more, those that are worst
MOST_CELLS = 100  # classes of a confusion matrix that is written in full
MOST_LISTED = 100  # pairs of confused classes in evaluation.json
MOST_PRINTED = 5  # pairs of confused classes on the screen
Results = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Classified:
    """A classifier's answers.

    Args:
        rows: int64 (n,), the images of the source that they are for.
        logits: float32 (n, classes).
        labels: int64 (n,).
    """

    rows: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class with the highest logit, of equal ones the lowest: int64 (n,)."""
        return self.logits.argmax(axis=1)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the predicted classes: float64 (n,)."""
        return np.exp(log_probabilities(self.logits).max(axis=1))


@dataclass(frozen=True, eq=False)
class Segmented:
    """How right a segmentation model is.

    Args:
        rows: int64 (n,), the images of the source.
        accuracies, ious: share of right pixels and mean IoU of each image, NaN without a label.
        matrix: int64 (classes, classes), pixels by true class and by predicted one.
        renumber: turns class numbers of the data's label maps into the model's.
        ignored: the label that does not count.
    """

    rows: np.ndarray
    accuracies: np.ndarray
    ious: np.ndarray
    matrix: Tensor
    classes: tuple[str, ...]
    renumber: Callable[[Tensor], Tensor]
    ignored: int


def classification_results(answers: Classified) -> Results:
    """The figures of a classifier; means over classes are of those that have any.

    `balanced_accuracy` is the mean recall over the classes with images, `macro_f1` the mean F1 over
    those with images or predictions. `confusion_matrix` has a row for each true class, a column for
    each predicted one, and is None beyond 100 classes.
    """
    logits, labels, classes = answers.logits, answers.labels, answers.classes
    hits, total = int((answers.predicted == labels).sum()), len(labels)
    accuracy = hits / total
    scores = class_scores(answers.predicted, labels, len(classes))
    hint = temperature_hint(logits, labels)
    columns = {"class": classes, **scores}
    cells = cells_of_classes(labels, answers.predicted)
    return {
        "num_images": total,
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / total),
        "accuracy_interval": list(wilson_interval(hits, total)),
        "top_5_accuracy": top_k_accuracy(logits, labels, 5),
        "loss": log_loss(logits, labels),
        "calibration_error": calibration_error(logits, labels),
        "calibration_bins": calibration_bins(logits, labels),
        "temperature": None if hint is None else hint._asdict(),
        "balanced_accuracy": float(np.nanmean(scores["recall"])),
        "macro_f1": float(np.nanmean(scores["f1"])),
        "per_class": _rows_of(columns),
        "confusion_matrix": _matrix(cells, len(classes)),
        "most_confused": _named(cells, classes),
    }


def segmentation_results(answers: Segmented) -> Results:
    """The figures of a segmentation model."""
    scores = iou_from_confusion(answers.matrix)
    support, predicted = answers.matrix.sum(dim=1), answers.matrix.sum(dim=0)  # (classes,)
    columns = {
        "class": answers.classes,
        "iou": scores["per_class_iou"],
        "support": support.tolist(),
        "predicted": predicted.tolist(),
    }
    cells = cells_of_matrix(answers.matrix)
    return {
        "num_images": len(answers.rows),
        "num_pixels": int(answers.matrix.sum()),
        "mean_iou": scores["mean_iou"],
        "mean_accuracy": scores["mean_accuracy"],
        "pixel_accuracy": scores["pixel_accuracy"],
        "per_class": _rows_of(columns),
        "confusion_matrix": _matrix(cells, len(answers.classes)),
        "most_confused": _named(cells, answers.classes),
    }


def classification_lines(results: Results) -> Iterator[str]:
    """The table that a person reads."""
    low, high = results["accuracy_interval"]
    error, classes = results["accuracy_standard_error"], results["per_class"]
    yield f"{results['model']} on {results['source']}: {results['num_images']:,} images"
    yield (
        f"  top-1              {results['accuracy']:.2%} (standard error {error:.2%}, "
        f"95 % interval {low:.2%} to {high:.2%})"
    )
    if len(classes) > 5:  # of fewer all are among the first five
        yield f"  top-5              {results['top_5_accuracy']:.2%}"
    yield f"  balanced accuracy  {results['balanced_accuracy']:.2%} (mean recall of the classes)"
    yield f"  macro F1           {results['macro_f1']:.4f}"
    yield f"  loss               {results['loss']:.4f}"
    yield (
        f"  calibration error  {results['calibration_error']:.4f} (mean gap between confidence and "
        f"accuracy, {NUM_BINS} bins of one width)"
    )
    if results["temperature"] is not None:
        yield _temperature_line(results["temperature"])
    columns = {"precision": "precision", "recall": "recall", "f1": "F1", "support": "images"}
    yield from _class_table(classes, columns, "f1")
    yield from _confused_line(results)


def segmentation_lines(results: Results) -> Iterator[str]:
    """The table that a person reads."""
    pixels = f"{results['num_pixels']:,} labelled pixels at the model's size"
    yield (f"{results['model']} on {results['source']}: {results['num_images']:,} images, {pixels}")
    yield f"  mean IoU        {_number(results['mean_iou'])}"
    yield f"  mean accuracy   {_number(results['mean_accuracy'])} (mean recall of the classes)"
    yield f"  pixel accuracy  {_number(results['pixel_accuracy'])}"
    yield from _class_table(results["per_class"], {"iou": "IoU", "support": "pixels"}, "iou")
    yield from _confused_line(results)


def _temperature_line(hint: Mapping[str, Any]) -> str:
    """What one temperature would do; the words keep apart fitting and measuring."""
    before, after = hint["calibration_error"], hint["scaled_calibration_error"]
    return (
        f"  temperature        {hint['temperature']:.3f} fitted on {hint['fitted_on']:,} of the "
        f"images: on the other {hint['measured_on']:,} it takes the calibration error from "
        f"{before:.4f} to {after:.4f}"
    )


def _class_table(
    classes: Sequence[Mapping[str, Any]], columns: Mapping[str, str], worst: str
) -> Iterator[str]:
    """A line for each class, or of many for those with the lowest value of the column `worst`."""
    shown = list(classes)
    if len(classes) > MOST_CLASSES:
        counted = [row for row in classes if not is_nan(row[worst])]
        shown = sorted(counted, key=lambda row: row[worst])[:MOST_CLASSES]
        yield f"The {len(shown)} worst of {len(classes)} classes:"
    width = max(len("class"), *(len(shortened(row["class"])) for row in shown))
    yield "  ".join([f"  {'class':{width}}", *(f"{title:>9}" for title in columns.values())])
    for row in shown:
        values = (f"{_number(row[name]):>9}" for name in columns)
        yield "  ".join([f"  {shortened(row['class']):{width}}", *values])


def _confused_line(results: Results) -> Iterator[str]:
    """The pairs that are confused most, if there are any."""
    pairs = results["most_confused"][:MOST_PRINTED]
    if pairs:
        listed = [f"{p['true']} taken for {p['predicted']} ({p['count']:,})" for p in pairs]
        yield f"Confused most: {', '.join(listed)}."


def cells_of_classes(labels: np.ndarray, predicted: np.ndarray) -> list[Confusion]:
    """The cells of the confusion matrix that are not 0: int64 (n,) twice -> cells."""
    pairs, counts = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
    rows = np.column_stack([pairs, counts]).tolist()
    return [Confusion(true, other, count) for true, other, count in rows]


def cells_of_matrix(matrix: Tensor) -> list[Confusion]:
    """The same of a matrix (classes, classes)."""
    places = matrix.nonzero().tolist()
    return [Confusion(true, other, int(matrix[true, other])) for true, other in places]


def _matrix(cells: Sequence[Confusion], num_classes: int) -> list[list[int]] | None:
    """Rows true, columns predicted; None of more classes than anyone would read."""
    if num_classes > MOST_CELLS:
        return None
    rows = [[0] * num_classes for _ in range(num_classes)]
    for true, predicted, count in cells:
        rows[true][predicted] = count
    return rows


def _named(cells: Sequence[Confusion], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs that are confused most, by name."""
    return [
        {"true": classes[true], "predicted": classes[predicted], "count": count}
        for true, predicted, count in most_confused(cells, MOST_LISTED)
    ]


def _rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of one length as a list of rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _number(value: float | int) -> str:
    """With four decimals, or whole; a dash where there is none."""
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:.4f}"


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
