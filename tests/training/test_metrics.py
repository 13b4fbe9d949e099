"""Accuracy and IoU without the network, without files, and without credit for saying nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from transformers import EvalPrediction

from hf_vitmae.training.metrics import (
    MeanIoU,
    PrecisionRecall,
    TopKAccuracy,
    class_scores,
    compute_metrics,
    confusion_matrix,
    iou_from_confusion,
    top_k_accuracy,
    wilson_interval,
)

# Of the four classes the last is nowhere, and 2 only predicted; one pixel is ignored.
PREDICTIONS = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
REFERENCES = torch.tensor([[[0, 0, 0], [1, 1, 255]]])
LOGITS = np.array([[3, 2, 1, 0], [0, 3, 2, 1], [0, 1, 2, 3]], dtype=np.float32)


@pytest.mark.parametrize("k, expected", [(1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1), (5, 1)])
def test_top_k_by_hand(k: int, expected: float):
    assert top_k_accuracy(LOGITS, np.array([0, 2, 0]), k) == pytest.approx(expected)


def test_it_agrees_with_torch_topk():
    logits, labels = torch.randn(200, 12), torch.randint(12, (200,))
    hits = (logits.topk(5).indices == labels[:, None]).any(dim=1).float().mean()
    assert top_k_accuracy(logits.numpy(), labels.numpy(), 5) == pytest.approx(hits.item())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_it_agrees_with_scikit_learn(k: int):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 12)), generator.integers(12, size=200)
    theirs = sklearn.metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(12))
    assert top_k_accuracy(logits, labels, k) == pytest.approx(theirs)


def test_equal_or_nan_logits_get_no_credit():
    labels = np.arange(4)
    assert top_k_accuracy(np.zeros((4, 4)), labels, 1) == 0.25
    assert top_k_accuracy(np.full((4, 4), np.nan), labels, 1) == 0.0


@pytest.mark.parametrize("label", [4, -1])
def test_an_unknown_class_is_refused(label: int):
    with pytest.raises(ValueError, match=f"Label {label} is none of the model's classes, 0 to 3"):
        top_k_accuracy(LOGITS, np.array([0, 1, label]), 1)


def test_the_metric_adds_up_batches_and_starts_afresh_after_compute():
    metric = TopKAccuracy(k=2)
    metric.add_batch(predictions=LOGITS[:2], references=[0, 2])
    metric.add_batch(predictions=torch.tensor(LOGITS[2:]), references=torch.tensor([0]))
    assert metric.compute() == {"top_2_accuracy": pytest.approx(2 / 3)}
    assert metric.compute(predictions=LOGITS[:1], references=[0]) == {"top_2_accuracy": 1.0}
    top_1 = TopKAccuracy().compute(predictions=LOGITS, references=[0, 2, 0])
    assert top_1 == {"accuracy": pytest.approx(1 / 3)}


def test_no_file_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    TopKAccuracy().compute(predictions=LOGITS, references=[0, 2, 0])
    MeanIoU(4).compute(predictions=PREDICTIONS, references=REFERENCES)
    PrecisionRecall(4).compute(predictions=[0, 1], references=[0, 2])
    assert not list(tmp_path.iterdir())


def test_compute_metrics_takes_what_the_trainer_gives():
    expected = {"accuracy": pytest.approx(1 / 3), "top_5_accuracy": 1.0}
    labels = np.array([0, 2, 0])
    assert compute_metrics(EvalPrediction(predictions=LOGITS, label_ids=labels)) == expected
    assert compute_metrics(((LOGITS, LOGITS), labels)) == expected  # the model gave hidden states


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k is 0"):
        TopKAccuracy(k=0)


def test_labels_that_were_mixed_are_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"shape \(3, 4\) are not one class .*MixingTrainer"):
        compute_metrics((LOGITS, np.full((3, 4), 0.25)))


# Classes


def random_classes() -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of 7 classes: 5 is never predicted, 4 has no image, 6 has neither."""
    generator = np.random.default_rng(1)
    labels, predicted = generator.choice([0, 1, 2, 3, 5], 300), generator.choice(5, 300)
    return labels, np.where(generator.random(300) < 0.5, labels % 5, predicted)


def test_class_scores_agree_with_scikit_learn():
    labels, predicted = random_classes()
    scores = class_scores(predicted, labels, 7)
    theirs: Any = sklearn.metrics.precision_recall_fscore_support(
        labels,
        predicted,
        labels=range(7),
        zero_division=np.nan,  # type: ignore[arg-type]
    )
    for name, expected in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert scores[name] == pytest.approx(list(expected), nan_ok=True), name
    assert np.isnan([scores["precision"][5], scores["recall"][4], scores["f1"][6]]).all()
    assert scores["f1"][5] == scores["f1"][4] == 0.0
    assert scores["predicted"] == np.bincount(predicted, minlength=7).tolist()


def test_the_confusion_matrix_agrees_with_scikit_learn():
    labels, predicted = random_classes()
    theirs = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(7))
    assert confusion_matrix(predicted, labels, 7).tolist() == theirs.tolist()


def test_the_metric_of_classes_adds_up_batches_and_starts_afresh():
    labels, predicted = random_classes()
    metric = PrecisionRecall(7)
    metric.add_batch(predictions=predicted[:100], references=labels[:100])
    metric.add_batch(predictions=predicted[100:], references=labels[100:])
    assert repr(metric.compute()) == repr(class_scores(predicted, labels, 7))  # NaN is not NaN
    again = metric.compute(predictions=[0, 1], references=[0, 0])
    assert again is not None and again["recall"][0] == 0.5
    with pytest.raises(ValueError, match="num_classes is 0"):
        PrecisionRecall(0)


def test_a_class_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="Label 7 is none of the model's classes, 0 to 6"):
        class_scores(np.array([0, 1]), np.array([7, 1]), 7)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),  # published examples of the score interval, z = 1.96
    [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1)],
)
def test_wilsons_interval(hits: int, total: int, low: float, high: float):
    assert wilson_interval(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_covers_the_truth_as_often_as_it_says():
    hits = np.random.default_rng(0).binomial(40, 0.1, size=4000)
    intervals = [wilson_interval(int(number), 40) for number in hits]
    assert np.mean([low <= 0.1 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("hits", "total"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_refused(hits: int, total: int):
    with pytest.raises(ValueError, match=f"{hits} hits of {total} give no share"):
        wilson_interval(hits, total)


# Segmentation


def random_maps(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and references of 5 classes, some of these ignored."""
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randint(5, shape, generator=generator)
    references = torch.randint(6, shape, generator=generator)
    return predictions, references.masked_fill(references == 5, 255)


def test_the_confusion_matrix_by_hand():
    matrix = confusion_matrix(PREDICTIONS, REFERENCES, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert matrix.dtype == torch.int64
    with_two = confusion_matrix(PREDICTIONS, REFERENCES.where(REFERENCES != 255, 0), 4)
    assert with_two[0].tolist() == [2, 1, 1, 0]


def test_the_scores_by_hand():
    references = REFERENCES.where(REFERENCES != 255, 0)
    scores = iou_from_confusion(confusion_matrix(PREDICTIONS, references, 4))
    assert scores["per_class_iou"] == pytest.approx([2 / 4, 2 / 3, 0, np.nan], nan_ok=True)
    assert scores["mean_iou"] == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)
    assert scores["mean_accuracy"] == pytest.approx((2 / 4 + 2 / 2) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(4 / 6)


def test_the_scores_agree_with_sets_of_pixels():
    predictions, references = random_maps(0, 3, 20, 30)
    scores = iou_from_confusion(confusion_matrix(predictions, references, 5))
    counted = references != 255
    hits = [counted & (predictions == c) & (references == c) for c in range(5)]
    either = [counted & ((predictions == c) | (references == c)) for c in range(5)]
    ious = [(h.sum() / e.sum()).item() for h, e in zip(hits, either, strict=True)]
    assert scores["per_class_iou"] == pytest.approx(ious)
    assert scores["mean_iou"] == pytest.approx(sum(ious) / 5)


def test_matrices_of_parts_add_up_and_arrays_count_like_tensors():
    predictions, references = random_maps(1, 4, 10, 10)
    whole = confusion_matrix(predictions, references, 5)
    first, last = (confusion_matrix(predictions[s], references[s], 5) for s in ([0, 1, 2], [3]))
    assert torch.equal(first + last, whole)
    small = predictions.to(torch.uint8).numpy(), references.to(torch.uint8).numpy()
    assert torch.equal(confusion_matrix(*small, 5), whole)


def test_counts_beyond_single_precision_are_exact():
    matrix = torch.tensor([[2**24, 1], [0, 2**24]])  # 2**24 + 1 is no float32
    assert 0 < 1 - iou_from_confusion(matrix)["pixel_accuracy"] < 1e-7


def test_the_ignore_index_can_be_another():
    matrix = confusion_matrix(PREDICTIONS, REFERENCES.where(REFERENCES != 255, -100), 4, -100)
    assert torch.equal(matrix, confusion_matrix(PREDICTIONS, REFERENCES, 4))


def test_where_nothing_counts_the_scores_are_nan():
    matrix = confusion_matrix(PREDICTIONS, torch.full_like(REFERENCES, 255), 4)
    assert matrix.sum() == 0 and matrix.shape == (4, 4)
    scores = iou_from_confusion(matrix)
    assert np.isnan([scores["mean_iou"], scores["mean_accuracy"], scores["pixel_accuracy"]]).all()


@pytest.mark.parametrize(
    ("predictions", "references", "line"),
    [
        ([0, 1], [0, 4], "A reference is class 4, which is none of the 4 classes from 0 on"),
        ([0, 1], [-1, 255], "A reference is class -1"),
        ([0, 4], [0, 1], "A prediction is class 4"),
        ([0, -1], [0, 1], "A prediction is class -1"),
        ([0, 1, 2], [0, 1], r"shape \(3,\) and references of shape \(2,\) do not match"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused_in_one_line(predictions, references, line):
    with pytest.raises(ValueError, match=line) as caught:
        confusion_matrix(torch.tensor(predictions), torch.tensor(references), 4)
    assert "\n" not in str(caught.value)


def test_what_is_predicted_where_nothing_counts_does_not_matter():
    predictions = PREDICTIONS.where(REFERENCES != 255, 99)
    expected = confusion_matrix(PREDICTIONS, REFERENCES, 4)
    assert torch.equal(confusion_matrix(predictions, REFERENCES, 4), expected)


def test_mean_iou_adds_up_maps_of_any_sizes_and_starts_afresh_after_compute():
    batch, single = random_maps(2, 3, 8, 9), random_maps(3, 5, 4)
    metric = MeanIoU(5)
    metric.add_batch(predictions=batch[0], references=batch[1])
    metric.add_batch(predictions=[single[0].numpy()], references=[single[1].numpy()])
    both = confusion_matrix(*batch, 5) + confusion_matrix(*single, 5)
    assert metric.compute() == iou_from_confusion(both)
    again = metric.compute(predictions=batch[0].tolist(), references=batch[1].tolist())
    assert again == iou_from_confusion(confusion_matrix(*batch, 5))


def test_mean_iou_keeps_to_its_options():
    references = REFERENCES.where(REFERENCES != 255, 9)
    scores = MeanIoU(4, ignore_index=9).compute(predictions=PREDICTIONS, references=references)
    assert scores is not None and scores["mean_iou"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="num_classes is 0"):
        MeanIoU(0)
