"""Classification by the nearest labelled features: k nearest neighbours, and nothing is trained.

With a temperature, closer neighbours count for more (as in arXiv:1805.01978). All in float64, so
that near ties fall the same way everywhere.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hf_vitmae.training.features import Features

Metric = Literal["cosine", "euclidean"]
CHUNK = 2**24  # distances that are held at once: 128 MB


def nearest_classes(
    train: Features,
    queries: np.ndarray,
    k: int,
    *,
    metric: Metric,
    temperature: float | None,
) -> np.ndarray:
    """How the `k` nearest features vote: queries (q, D) -> float32 (q, classes), rows sum to one.

    The highest vote wins, the lower class on ties (`argmax`). Of equally distant features the
    earlier ones are neighbours.

    Args:
        temperature: a neighbour's vote is exp(similarity / temperature), where similarity is the
            cosine, or minus the Euclidean distance; None gives every neighbour the same vote.

    Raises:
        ValueError: if `k`, the temperature or the width of the queries does not fit.
    """
    if queries.ndim != 2 or queries.shape[1] != train.values.shape[1]:
        raise ValueError(
            f"Queries of shape {queries.shape} do not fit features of shape {train.values.shape}; "
            "take both from one encoder."
        )
    return _votes(train, queries, k, metric, temperature, leave_own_out=False)


def leave_one_out_classes(
    features: Features, k: int, *, metric: Metric, temperature: float | None
) -> np.ndarray:
    """`nearest_classes` of every image among all others: -> float32 (n, classes).

    Raises:
        ValueError: as `nearest_classes`.
    """
    return _votes(features, features.values, k, metric, temperature, leave_own_out=True)


def _votes(
    train: Features,
    queries: np.ndarray,
    k: int,
    metric: Metric,
    temperature: float | None,
    leave_own_out: bool,
) -> np.ndarray:
    _check(k, len(train) - leave_own_out, temperature)
    known, asked = (_prepared(values, metric) for values in (train.values, queries))  # (n or q, D)
    labels = torch.from_numpy(train.labels)
    votes = torch.empty(len(asked), len(train.class_names))  # (q, classes)
    size = max(1, CHUNK // len(known))
    for start in range(0, len(asked), size):
        chunk = slice(start, start + size)
        similarity = _similarity(asked[chunk], known, metric)  # (chunk, n)
        if leave_own_out:
            own = torch.arange(len(similarity))
            similarity[own, own + start] = -torch.inf
        votes[chunk] = _count(similarity, labels, k, temperature, votes.shape[1]).float()
    return votes.numpy()


def _check(k: int, num_known: int, temperature: float | None) -> None:
    if not 1 <= k <= num_known:
        raise ValueError(f"k is {k} and there are {num_known} labelled images; take 1 to as many.")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, or none, got {temperature}.")


def _prepared(values: np.ndarray, metric: Metric) -> Tensor:
    """Features in float64, of length 1 for the cosine; one without length stays zero."""
    features = torch.from_numpy(np.asarray(values, dtype=np.float64))
    if metric == "euclidean":
        return features
    length = features.norm(dim=1, keepdim=True)
    return features / length.where(length > 0, 1.0)


def _similarity(queries: Tensor, known: Tensor, metric: Metric) -> Tensor:
    """Higher is nearer: (q, D), (n, D) -> (q, n)."""
    products = queries @ known.T
    if metric == "cosine":
        return products
    squares = queries.square().sum(dim=1)[:, None] + known.square().sum(dim=1)
    return -(squares - 2 * products).clamp(min=0).sqrt()


def _count(
    similarity: Tensor, labels: Tensor, k: int, temperature: float | None, num_classes: int
) -> Tensor:
    """Shares of the votes: (q, n), (n,) -> (q, classes)."""
    last = similarity.topk(k, dim=1).values[:, -1:]  # (q, 1) of the k-th neighbour
    nearer, tied = similarity > last, similarity == last
    missing = k - nearer.sum(dim=1, keepdim=True)
    chosen = nearer | (tied & (tied.cumsum(dim=1) <= missing))  # (q, n), k in each row
    neighbors = chosen.nonzero()[:, 1].view(-1, k)  # (q, k)
    weights = torch.ones(neighbors.shape, dtype=torch.float64)
    if temperature is not None:
        nearness = similarity.gather(1, neighbors)
        # Relative to the nearest, which changes no share and cannot overflow.
        weights = ((nearness - nearness.amax(dim=1, keepdim=True)) / temperature).exp()
    votes = torch.zeros(len(similarity), num_classes, dtype=torch.float64)
    votes.scatter_add_(1, labels[neighbors], weights)
    return votes / weights.sum(dim=1, keepdim=True)
