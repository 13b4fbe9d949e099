"""The exact probe is the optimum that scikit-learn finds."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from hf_vitmae.training import probe
from hf_vitmae.training.features import Features, stratified_folds
from hf_vitmae.training.probe import (
    LinearHead,
    choose_strength,
    feature_statistics,
    fit_exact_probe,
    strength_scores,
)

from .clouds import clouds

STRENGTHS = [1e-5, 1e-3, 1e-1, 1.0]


def objective(weight: torch.Tensor, bias: torch.Tensor, inputs, labels, strength: float) -> float:
    """Mean cross-entropy + strength / 2 * |weight|^2, in float64."""
    logits = functional.linear(torch.as_tensor(inputs), weight.double(), bias.double())
    loss = functional.cross_entropy(logits, torch.as_tensor(labels))
    return (loss + strength / 2 * weight.double().square().sum()).item()


def standardised(features: Features, head: LinearHead) -> np.ndarray:
    return (features.values - head.mean.numpy()) / head.deviation.numpy()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_it_is_the_optimum_of_logistic_regression(strength: float):
    features = clouds()
    head = fit_exact_probe(features, strength)
    inputs, labels = standardised(features, head), features.labels
    # Their penalty is on the sum of losses.
    model = LogisticRegression(C=1 / (strength * len(features)), tol=1e-10, max_iter=10_000)
    model.fit(inputs, labels)
    theirs = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    ours = objective(head.weight, head.bias, inputs, labels, strength)
    assert ours == pytest.approx(objective(*theirs, inputs, labels, strength), abs=1e-6)
    others = clouds(seed=1)
    expected = model.predict(standardised(others, head))
    assert np.array_equal(head.logits(others.values).argmax(axis=1), expected)
    assert len(set(expected)) > 2


def test_more_features_than_images():
    features = clouds(20, width=200)
    head = fit_exact_probe(features, 1e-2)
    inputs = standardised(features, head)
    model = LogisticRegression(C=1 / (1e-2 * 20), tol=1e-10, max_iter=10_000)
    model.fit(inputs, features.labels)
    np.testing.assert_allclose(head.weight.numpy(), model.coef_, rtol=0, atol=1e-5)


def test_it_knows_features_by_their_mean_and_deviation():
    features = clouds()
    parts = [features.values[:100], features.values[100:]]
    mean, deviation = feature_statistics(parts)
    np.testing.assert_allclose(mean, features.values.mean(axis=0, dtype=np.float64))
    variance = features.values.var(axis=0, dtype=np.float64)
    np.testing.assert_allclose(deviation, np.sqrt(variance + 1e-6))
    rows = np.array([5, 3, 99])
    of_some = feature_statistics(parts, rows)
    same = feature_statistics([part[rows] for part in parts])
    assert all(map(torch.equal, of_some, same))


def test_statistics_of_many_rows_are_those_of_all(monkeypatch: pytest.MonkeyPatch):
    values = clouds().values
    whole = feature_statistics([values])
    monkeypatch.setattr(probe, "BLOCK", 7)
    for ours, expected in zip(feature_statistics([values]), whole, strict=True):
        np.testing.assert_allclose(ours, expected)


def test_a_constant_feature_does_no_harm():
    features = clouds()
    features.values[:, 3] = 5.0
    head = fit_exact_probe(features, 1e-2)
    assert head.weight[:, 3].abs().max() < 1e-9
    assert np.isfinite(head.logits(features.values)).all()


def test_the_folded_head_gives_the_same_logits():
    features = clouds()
    head = fit_exact_probe(features, 1e-3)
    weight, bias = head.folded()
    assert weight.dtype == bias.dtype == torch.float32
    inputs = torch.from_numpy(standardised(features, head))
    expected = functional.linear(inputs, head.weight, head.bias)
    logits = head.logits(features.values)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    by_hand = features.values @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(logits, by_hand, rtol=0, atol=1e-5)


def test_a_class_without_images_never_wins_and_changes_no_other():
    features = clouds()
    wider = Features(features.values, features.labels + 1, ("absent", *features.class_names))
    logits = fit_exact_probe(wider, 1e-2).logits(features.values)
    expected = fit_exact_probe(features, 1e-2).logits(features.values)
    np.testing.assert_allclose(logits[:, 1:], expected, rtol=0, atol=1e-5)
    assert (logits[:, 0] < expected.min() - 1000).all()


def test_the_strength_is_chosen_by_left_out_images():
    train = clouds(60, width=10)
    strengths = (1e-2, 3.0)
    scores = strength_scores(train, strengths, folds=5, seed=0)
    folds = stratified_folds(train.labels, 5, seed=0)
    for score in scores:
        right, losses = 0, []
        for fold in range(5):
            inputs, left_out = train.select(folds != fold), train.select(folds == fold)
            head = fit_exact_probe(inputs, score.strength)
            logits = torch.from_numpy(head.logits(left_out.values))
            labels = torch.from_numpy(left_out.labels)
            right += int((logits.argmax(dim=1) == labels).sum())
            losses += functional.cross_entropy(logits, labels, reduction="none").tolist()
        assert score.accuracy == right / 60
        assert score.loss == pytest.approx(np.mean(losses), rel=1e-5)
    best = max(scores, key=lambda score: (score.accuracy, -score.loss))
    assert choose_strength(train, strengths, 5, 0) == best.strength
    assert len({score.accuracy for score in scores}) > 1


def test_of_equal_accuracies_the_lower_loss_decides():
    train = clouds(40, width=2)
    train.values[:] = 20 * train.labels[:, None] + train.values  # far apart: all are right
    scores = strength_scores(train, (0.01, 1e-4), folds=4, seed=0)
    assert [score.accuracy for score in scores] == [1.0, 1.0]
    assert scores[1].loss < scores[0].loss
    assert choose_strength(train, (0.01, 1e-4), 4, 0) == 1e-4


def test_two_images_of_a_class_make_two_folds():
    train = clouds(8)
    pairs = Features(train.values, np.array([0, 0, 1, 1, 2, 2, 3, 3]), train.class_names)
    assert choose_strength(pairs, (0.1, 1.0), 5, 0) in (0.1, 1.0)
    single = Features(train.values[:3], np.arange(3), train.class_names)
    with pytest.raises(ValueError, match="Each class has one labelled image.*give one strength"):
        choose_strength(single, (0.1, 1.0), 5, 0)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_a_strength_must_be_above_0(strength: float):
    with pytest.raises(ValueError, match=f"`strength` must be above 0, got {strength}"):
        fit_exact_probe(clouds(20), strength)
