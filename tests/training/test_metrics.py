"""Accuracy without the network, without files, and without credit for saying nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_vitmae.training.metrics import TopKAccuracy, compute_metrics, top_k_accuracy

LOGITS = np.array([[3, 2, 1, 0], [0, 3, 2, 1], [0, 1, 2, 3]], dtype=np.float32)


@pytest.mark.parametrize("k, expected", [(1, 1 / 3), (2, 2 / 3), (3, 2 / 3), (4, 1), (5, 1)])
def test_top_k_by_hand(k: int, expected: float):
    assert top_k_accuracy(LOGITS, np.array([0, 2, 0]), k) == pytest.approx(expected)


def test_it_agrees_with_torch_topk():
    logits, labels = torch.randn(200, 12), torch.randint(12, (200,))
    hits = (logits.topk(5).indices == labels[:, None]).any(dim=1).float().mean()
    assert top_k_accuracy(logits.numpy(), labels.numpy(), 5) == pytest.approx(hits.item())


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
    assert not list(tmp_path.iterdir())


def test_compute_metrics_takes_what_the_trainer_gives():
    expected = {"accuracy": pytest.approx(1 / 3), "top_5_accuracy": 1.0}
    labels = np.array([0, 2, 0])
    assert compute_metrics(EvalPrediction(predictions=LOGITS, label_ids=labels)) == expected
    assert compute_metrics(((LOGITS, LOGITS), labels)) == expected  # the model gave hidden states


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k is 0"):
        TopKAccuracy(k=0)
