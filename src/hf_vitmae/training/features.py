"""Labelled features in memory: what a linear probe and nearest neighbours see of a data set."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Features:
    """One vector an image, with its class.

    Args:
        values: float32 (n, D).
        labels: int64 (n,), class ids.
        class_names: a name for each class id; some classes may have no image here.

    Raises:
        ValueError: if the shapes do not match, or a label is none of the classes.
    """

    values: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        shapes = self.values.shape, self.labels.shape
        if self.values.ndim != 2 or self.labels.shape != self.values.shape[:1]:
            raise ValueError(f"Features (n, D) need labels (n,); the shapes are {shapes}.")
        unknown = self.labels[(self.labels < 0) | (self.labels >= len(self.class_names))]
        if unknown.size:
            raise ValueError(
                f"Label {unknown[0]} is none of the {len(self.class_names)} classes; name them all."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> "Features":
        """Those of some rows, by number or as bool (n,), in their order."""
        return replace(self, values=self.values[rows], labels=self.labels[rows])


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Deal the images out by chance, those of every class evenly: (n,) -> fold of each, int64 (n,).

    The folds are of one size within one image, and so is each class's part of them.

    Raises:
        ValueError: if there are fewer than 2 folds, or fewer images than folds.
    """
    if not 2 <= num_folds <= len(labels):
        raise ValueError(
            f"{len(labels)} images make no {num_folds} folds; take from 2 to as many as images."
        )
    folds = np.empty(len(labels), dtype=np.int64)
    folds[_by_class(labels, seed)] = np.arange(len(labels)) % num_folds
    return folds


def hold_out_rows(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split by chance into two parts, the second of the given share of every class.

    Returns:
        The rows of both, int64 and ascending.

    Raises:
        ValueError: if one part would be empty.
    """
    num_held = round(len(labels) * share)
    if not 0 < num_held < len(labels):
        raise ValueError(
            f"A share of {share} of {len(labels)} labelled images is {num_held} to choose by and "
            f"{len(labels) - num_held} to train on; both need at least one."
        )
    # Every (1 / share)-th of the images sorted by class, from the middle of a stride on.
    every = len(labels) / num_held
    held = np.zeros(len(labels), dtype=bool)
    held[_by_class(labels, seed)[((np.arange(num_held) + 0.5) * every).astype(np.int64)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _by_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """The rows sorted by class, in an order drawn by the seed within each."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]
