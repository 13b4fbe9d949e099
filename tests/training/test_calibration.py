"""Calibration against values worked out by hand, temperatures against those that were put in."""

import numpy as np
import pytest
import sklearn.metrics

from hf_vitmae.training.calibration import (
    CalibrationError,
    best_temperature,
    calibration_bins,
    calibration_error,
    log_loss,
    log_probabilities,
    temperature_hint,
)


def logits_of(*confidences: float) -> np.ndarray:
    """Two classes, of which the first has these probabilities: (n, 2)."""
    first = np.array(confidences)
    return np.log(np.stack([first, 1 - first], axis=1))


def drawn(
    true_temperature: float, count: int = 4000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 5), and labels that are as probable as logits / temperature say: int64 (n,)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, 5)) * 3
    probabilities = np.exp(log_probabilities(logits / true_temperature))
    labels = [generator.choice(5, p=p / p.sum()) for p in probabilities]
    return logits, np.array(labels)


def test_the_error_by_hand():
    # Bins of a fifth: 0.62 and 0.78 share one, half of them right; 0.9 is alone, and wrong.
    logits, labels = logits_of(0.62, 0.78, 0.9), np.array([0, 1, 1])
    expected = 2 / 3 * abs(0.5 - 0.7) + 1 / 3 * abs(0.0 - 0.9)
    assert calibration_error(logits, labels, 5) == pytest.approx(expected)
    # Bins of a twentieth: each is alone.
    expected = (abs(1 - 0.62) + 0.78 + 0.9) / 3
    assert calibration_error(logits, labels, 20) == pytest.approx(expected)
    assert calibration_error(logits, labels, 1) == pytest.approx(
        abs(1 / 3 - (0.62 + 0.78 + 0.9) / 3)
    )


def test_the_confidence_is_that_of_the_prediction_whatever_the_label():
    logits = logits_of(0.3)  # the second class, with 0.7
    assert calibration_error(logits, np.array([1])) == pytest.approx(0.3)
    assert calibration_error(logits, np.array([0])) == pytest.approx(0.7)


def test_bins_cover_everything_once():
    logits = logits_of(0.5, 0.6, 0.61, 0.8, 1 - 1e-12)
    bins = calibration_bins(logits, np.array([0, 0, 1, 0, 0]), 5)
    assert [(one["low"], one["high"]) for one in bins] == [(i / 5, (i + 1) / 5) for i in range(5)]
    assert [one["images"] for one in bins][:2] == [0, 0] and sum(b["images"] for b in bins) == 5
    assert bins[0]["accuracy"] is None and bins[0]["confidence"] is None
    assert bins[4]["accuracy"] == 1.0 and bins[4]["images"] in (1, 2)  # 0.8 is at a rounded edge
    sure = calibration_bins(np.array([[800.0, 0.0]]), np.array([0]))
    assert sure[-1]["images"] == 1 and sure[-1]["confidence"] == 1.0


def test_a_model_that_knows_itself_has_a_small_error_and_a_sure_one_a_large_one():
    logits, labels = drawn(1.0)
    assert calibration_error(logits, labels) < 0.03
    assert calibration_error(logits * 3, labels) > 0.1


def test_the_loss_agrees_with_scikit_learn():
    logits, labels = drawn(2.0, 300)
    probabilities = np.exp(log_probabilities(logits))
    theirs = sklearn.metrics.log_loss(labels, probabilities, labels=range(5))
    assert log_loss(logits, labels) == pytest.approx(theirs, rel=1e-9)
    far = np.array([[2000.0, 0.0]], dtype=np.float32)
    assert log_loss(far, np.array([1])) == pytest.approx(2000)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_best_temperature_is_the_one_that_was_put_in(temperature: float):
    logits, labels = drawn(temperature)
    found = best_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    at_best = log_loss(logits / found, labels)
    assert all(log_loss(logits / (found * factor), labels) > at_best for factor in (0.99, 1.01))


def test_a_model_that_is_always_right_gets_the_lowest_temperature():
    assert best_temperature(np.eye(4), np.arange(4)) == pytest.approx(0.01)
    assert best_temperature(np.eye(4), (np.arange(4) + 1) % 4) == pytest.approx(100.0)


def test_the_hint_is_measured_on_images_that_it_was_not_fitted_on():
    logits, labels = drawn(3.0, 2001)
    hint = temperature_hint(logits, labels)
    assert hint is not None
    assert (hint.fitted_on, hint.measured_on) == (1001, 1000)
    assert hint.temperature == best_temperature(logits[::2], labels[::2])
    assert hint.calibration_error == calibration_error(logits[1::2], labels[1::2])
    scaled = logits[1::2] / hint.temperature
    assert hint.scaled_calibration_error == calibration_error(scaled, labels[1::2])
    assert (hint.loss, hint.scaled_loss) == (
        log_loss(logits[1::2], labels[1::2]),
        log_loss(scaled, labels[1::2]),
    )
    assert hint.scaled_calibration_error < 0.5 * hint.calibration_error
    assert temperature_hint(logits[:1], labels[:1]) is None


def test_the_metric_adds_up_batches_and_has_its_own_bins():
    logits, labels = drawn(3.0, 50)
    logits = logits.astype(np.float32)
    for num_bins in (15, 4):
        metric = CalibrationError(num_bins)
        metric.add_batch(predictions=logits[:20], references=labels[:20])
        metric.add_batch(predictions=logits[20:], references=labels[20:])
        expected = calibration_error(logits, labels, num_bins)
        assert metric.compute() == {"calibration_error": pytest.approx(expected)}
    assert calibration_error(logits, labels, 4) != calibration_error(logits, labels, 15)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="num_bins is 0"):
        CalibrationError(0)
    for measure in (calibration_error, best_temperature):
        with pytest.raises(ValueError, match="Label 2 is none of the model's classes, 0 to 1"):
            measure(logits_of(0.5), np.array([2]))
