"""Nearest neighbours are those of scikit-learn, vote for vote."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from hf_vitmae.training import neighbors
from hf_vitmae.training.features import Features
from hf_vitmae.training.neighbors import leave_one_out_classes, nearest_classes

from .clouds import clouds

METRICS = ["cosine", "euclidean"]
NAMES = ("a", "b", "c")


def theirs(train: Features, k: int, metric: str, temperature: float | None) -> KNeighborsClassifier:
    weights: Any = "uniform" if temperature is None else partial(_weigh, metric, temperature)
    model = KNeighborsClassifier(k, metric=metric, algorithm="brute", weights=weights)
    return model.fit(train.values.astype(np.float64), train.labels)


def _weigh(metric: str, temperature: float, distances: np.ndarray) -> np.ndarray:
    similarity = 1 - distances if metric == "cosine" else -distances
    return np.exp(similarity / temperature)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("temperature", [None, 0.07, 3.0])
@pytest.mark.parametrize("k", [1, 4, 25])
def test_votes_and_predictions_are_those_of_scikit_learn(metric, temperature, k):
    train, queries = clouds(200), clouds(150, seed=1).values
    votes = nearest_classes(train, queries, k, metric=metric, temperature=temperature)
    model = theirs(train, k, metric, temperature)
    expected = model.predict_proba(queries.astype(np.float64))
    assert votes.dtype == np.float32
    np.testing.assert_allclose(votes, expected, rtol=0, atol=1e-6)
    assert np.array_equal(votes.argmax(axis=1), model.predict(queries.astype(np.float64)))


def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch):
    train, queries = clouds(50), clouds(33, seed=1).values
    classify = partial(nearest_classes, train, queries, 5, metric="cosine", temperature=0.1)
    leave = partial(leave_one_out_classes, train, 5, metric="cosine", temperature=0.1)
    whole, left = classify(), leave()
    monkeypatch.setattr(neighbors, "CHUNK", 4 * 50)
    np.testing.assert_allclose(classify(), whole, rtol=0, atol=1e-7)
    np.testing.assert_allclose(leave(), left, rtol=0, atol=1e-7)


def test_each_image_is_classified_by_all_others():
    features = clouds(40)
    votes = leave_one_out_classes(features, 3, metric="euclidean", temperature=None)
    for row in range(40):
        others = features.select(np.arange(40) != row)
        query = features.values[row : row + 1]
        expected = nearest_classes(others, query, 3, metric="euclidean", temperature=None)
        np.testing.assert_allclose(votes[row], expected[0], rtol=0, atol=1e-6)


def test_the_lower_class_wins_ties_and_the_earlier_of_equal_features_are_neighbours():
    values = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    train = Features(values, np.array([2, 1, 0, 1, 2]), NAMES)
    query = np.array([[1, 0], [0, 1]], dtype=np.float32)
    votes = nearest_classes(train, query, 2, metric="euclidean", temperature=None)
    assert votes.tolist() == [[0, 0.5, 0.5], [0.5, 0.5, 0]]
    assert votes.argmax(axis=1).tolist() == [1, 0]


def test_classes_without_an_image_get_no_vote_and_zero_features_do_no_harm():
    train = Features(np.array([[0, 0], [1, 1]], dtype=np.float32), np.array([0, 2]), NAMES)
    query = np.array([[2, 2], [0, 0]], dtype=np.float32)
    votes = nearest_classes(train, query, 1, metric="cosine", temperature=None)
    assert votes.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_tiny_temperature_is_the_nearest_neighbour():
    train, queries = clouds(60), clouds(20, seed=1).values
    sharp = nearest_classes(train, queries, 9, metric="cosine", temperature=1e-6)
    nearest = nearest_classes(train, queries, 1, metric="cosine", temperature=None)
    assert np.array_equal(sharp.argmax(axis=1), nearest.argmax(axis=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k is 0 and there are 8"),
        ({"k": 9}, "k is 9 and there are 8"),
        ({"temperature": 0.0}, "`temperature` must be above 0, or none, got 0.0"),
        ({"queries": np.zeros((2, 3), np.float32)}, r"\(2, 3\) do not fit .* \(8, 12\)"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, words: str):
    train = clouds(8)
    given = {"queries": train.values, "k": 3, "metric": "cosine", "temperature": None} | options
    with pytest.raises(ValueError, match=words):
        nearest_classes(train, given.pop("queries"), given.pop("k"), **given)


def test_an_image_is_no_neighbour_of_itself():
    with pytest.raises(ValueError, match="k is 8 and there are 7"):
        leave_one_out_classes(clouds(8), 8, metric="cosine", temperature=None)
