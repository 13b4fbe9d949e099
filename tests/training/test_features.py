"""Labelled features: their shapes, their rows, and how they are dealt out."""

import numpy as np
import pytest

from hf_vitmae.training.features import Features, hold_out_rows, stratified_folds

from .clouds import clouds

LABELS = np.array([0] * 20 + [1] * 10 + [2] * 5)


def test_rows_are_selected_by_number_or_by_mask():
    features = clouds(10)
    some = features.select(np.array([7, 2]))
    assert np.array_equal(some.values, features.values[[7, 2]])
    assert np.array_equal(some.labels, features.labels[[7, 2]])
    assert some.class_names == features.class_names
    assert len(features.select(features.labels == 1)) == (features.labels == 1).sum()


@pytest.mark.parametrize(
    ("values", "labels", "words"),
    [
        (np.zeros((2, 3)), np.array([0]), r"\(2, 3\), \(1,\)"),
        (np.zeros(2), np.array([0, 1]), r"\(2,\)"),
        (np.zeros((2, 3)), np.array([0, 2]), "Label 2 is none of the 2 classes"),
        (np.zeros((2, 3)), np.array([-1, 1]), "Label -1"),
    ],
)
def test_what_does_not_fit_is_refused(values: np.ndarray, labels: np.ndarray, words: str):
    with pytest.raises(ValueError, match=words):
        Features(values, labels, ("a", "b"))


def test_folds_hold_as_much_of_every_class():
    folds = stratified_folds(LABELS, 5, seed=0)
    counts = np.array([np.bincount(LABELS[folds == fold]) for fold in range(5)])
    assert counts.tolist() == [[4, 2, 1]] * 5
    assert np.array_equal(stratified_folds(LABELS, 5, seed=0), folds)
    assert not np.array_equal(stratified_folds(LABELS, 5, seed=1), folds)


def test_folds_of_uneven_classes_are_of_one_size():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    assert sorted(np.bincount(stratified_folds(labels, 3, seed=0))) == [2, 2, 3]
    with pytest.raises(ValueError, match="7 images make no 8 folds"):
        stratified_folds(labels, 8, seed=0)


def test_a_share_of_every_class_is_held_out():
    rest, held = hold_out_rows(LABELS, 0.2, seed=0)
    assert np.bincount(LABELS[held]).tolist() == [4, 2, 1]
    assert sorted([*rest, *held]) == list(range(35))
    assert not np.array_equal(hold_out_rows(LABELS, 0.2, seed=1)[1], held)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_nothing_is_refused(share: float):
    with pytest.raises(ValueError, match=f"share of {share} of 35 labelled images"):
        hold_out_rows(LABELS, share, seed=0)
