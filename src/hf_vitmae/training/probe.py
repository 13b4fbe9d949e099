"""A linear classifier on features that stay as they are: the head, and its exact optimum.

The features are centred and scaled first, by a batch norm without affine map (arXiv:2111.06377,
appendix A). Its statistics are those of all training features: they stay as they are, so what the
running averages of a batch norm only estimate can be known exactly, whatever the batches are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hf_vitmae.training.features import Features, stratified_folds

NORM_EPS = 1e-6  # added to the variance, as in MAE's probe
LOST = -1e4  # logit of a class without a training image: it never wins
BLOCK = 2**14  # rows that are held in float64 at once
NEWTON_STEPS, CG_STEPS = 100, 300
CG_ACCURACY = 0.01  # of the squared residual, as a share; less of it near the optimum
TOLERANCE = 1e-12  # of the loss
SHORTEST = 1e-6  # share of a step


@dataclass(frozen=True)
class LinearHead:
    """Class scores of features: ((x - mean) / deviation) @ weight.T + bias.

    Args:
        weight: (classes, D).
        bias: (classes,).
        mean, deviation: (D,), of the training features.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def logits(self, values: np.ndarray) -> np.ndarray:
        """Features (n, D) -> float32 (n, classes)."""
        weight, bias = self.folded()
        with torch.no_grad():
            return functional.linear(torch.from_numpy(values), weight, bias).numpy()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (classes, D) and bias (classes,) for features as they are, float32 on the CPU."""
        weight, bias, mean, deviation = (
            value.detach().double().cpu()
            for value in (self.weight, self.bias, self.mean, self.deviation)
        )
        scaled = weight / deviation  # (classes, D)
        return scaled.float(), (bias - scaled @ mean).float()


def feature_statistics(
    parts: Sequence[np.ndarray], rows: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation over all parts: (n, D) each -> two float64 (D,).

    Args:
        rows: those of each part that count; all by default.
    """
    count = sum(len(part) if rows is None else len(rows) for part in parts)
    sums = (block.sum(axis=0) for block in _blocks(parts, rows))
    mean = np.sum(list(sums), axis=0) / count  # (D,)
    squares = np.sum([np.square(b - mean).sum(axis=0) for b in _blocks(parts, rows)], axis=0)
    deviation = np.sqrt(squares / count + NORM_EPS)
    return torch.from_numpy(mean), torch.from_numpy(deviation)


def _blocks(parts: Sequence[np.ndarray], rows: np.ndarray | None) -> Iterator[np.ndarray]:
    """The rows of all parts, in float64, some at a time."""
    for part in parts:
        for start in range(0, len(part) if rows is None else len(rows), BLOCK):
            some = slice(start, start + BLOCK)
            yield part[some if rows is None else rows[some]].astype(np.float64)


def fit_exact_probe(train: Features, strength: float) -> LinearHead:
    """The optimum of softmax regression with an L2 penalty, in float64.

    It minimises mean cross-entropy + strength / 2 * |weight|^2 over centred and scaled features;
    the bias is free. Classes without an image here get no weight and never win.

    Raises:
        ValueError: if `strength` is not above 0, where there need not be an optimum.
    """
    return _Regression(train).solve(strength)


class _Regression:
    """Softmax regression on some features, in the coordinates in which it is solved fastest.

    An orthogonal change of basis leaves the penalty as it is. In that of the principal components
    the curvature is nearly diagonal, so that conjugate gradients need few steps.
    """

    def __init__(self, train: Features) -> None:
        self.num_classes = len(train.class_names)
        self.mean, self.deviation = feature_statistics([train.values])
        present, targets = np.unique(train.labels, return_inverse=True)
        self.present, self.targets = torch.from_numpy(present), torch.from_numpy(targets)
        inputs = (torch.from_numpy(train.values).double() - self.mean) / self.deviation  # (n, D)
        self.basis = torch.eye(inputs.shape[1], dtype=torch.float64)
        if inputs.shape[1] > len(inputs):  # the weights lie in the span of the images
            self.basis, _ = torch.linalg.qr(inputs.T)  # (D, r), r = min(n, D)
            inputs = inputs @ self.basis  # (n, r)
        _, components = torch.linalg.eigh(inputs.T @ inputs / len(train))
        self.basis, self.inputs = self.basis @ components, inputs @ components

    def solve(self, strength: float) -> LinearHead:
        """The optimum."""
        _check_strength(strength)
        ones = torch.ones(len(self.inputs), 1, dtype=torch.float64)
        penalty = torch.full((self.inputs.shape[1] + 1,), strength, dtype=torch.float64)
        penalty[-1] = 0  # of the bias
        loss = _Loss(torch.cat([self.inputs, ones], dim=1), self.targets, penalty)
        found = _minimise(loss, len(self.present))  # (present, r + 1)
        weight = torch.zeros(self.num_classes, len(self.mean), dtype=torch.float64)
        bias = torch.full((self.num_classes,), LOST, dtype=torch.float64)
        weight[self.present] = found[:, :-1] @ self.basis.T
        bias[self.present] = found[:, -1]
        return LinearHead(weight, bias, self.mean, self.deviation)


@dataclass(frozen=True)
class _Loss:
    """Mean cross-entropy of inputs @ weight.T, and a penalty, with the first two derivatives.

    Args:
        inputs: (n, r).
        targets: int64 (n,).
        penalty: (r,), strength of that on each column of the weight.
    """

    inputs: Tensor
    targets: Tensor
    penalty: Tensor

    def value(self, weight: Tensor) -> float:
        entropy = functional.cross_entropy(self.inputs @ weight.T, self.targets)
        return (entropy + (weight.square() * self.penalty).sum() / 2).item()

    def shares(self, weight: Tensor) -> Tensor:
        """Probabilities of the classes: -> (n, classes)."""
        return (self.inputs @ weight.T).softmax(dim=1)

    def gradient(self, weight: Tensor, shares: Tensor) -> Tensor:
        wrong = shares - functional.one_hot(self.targets, shares.shape[1])  # (n, classes)
        return wrong.T @ self.inputs / len(shares) + weight * self.penalty

    def curvature(self, shares: Tensor, direction: Tensor) -> Tensor:
        """The matrix of second derivatives times a direction: (classes, r) -> (classes, r)."""
        change = self.inputs @ direction.T  # (n, classes)
        change = shares * (change - (shares * change).sum(dim=1, keepdim=True))
        return change.T @ self.inputs / len(shares) + direction * self.penalty

    def diagonal(self, shares: Tensor) -> Tensor:
        """The diagonal of that matrix, kept above zero: -> (classes, r)."""
        varied = shares * (1 - shares)
        diagonal = varied.T @ self.inputs.square() / len(shares) + self.penalty
        return diagonal.clamp(min=torch.finfo(torch.float64).tiny)


def choose_strength(train: Features, strengths: Sequence[float], folds: int, seed: int) -> float:
    """The strength of `fit_exact_probe` that classifies most left-out images right.

    Stratified cross-validation: of equally good strengths the one with the lower loss, then the
    earlier one.

    Args:
        folds: no more are made than there are images of the most frequent class.

    Raises:
        ValueError: if no class has two images, so that nothing can be left out.
    """
    scores = strength_scores(train, strengths, folds, seed)
    return max(scores, key=lambda score: (score.accuracy, -score.loss)).strength


@dataclass(frozen=True)
class StrengthScore:
    """What cross-validation says of one strength.

    Args:
        accuracy: share of the images that are classified right while left out.
        loss: their mean cross-entropy; images of classes that no other one is of do not count.
    """

    strength: float
    accuracy: float
    loss: float


def strength_scores(
    train: Features, strengths: Sequence[float], folds: int, seed: int
) -> list[StrengthScore]:
    """Accuracy and loss of each strength by stratified cross-validation, as `choose_strength`."""
    for strength in strengths:
        _check_strength(strength)
    most = int(np.bincount(train.labels).max())
    if most < 2:
        raise ValueError(
            "Each class has one labelled image, so that none can be left out to choose the strength"
            " by; give one strength, or more labels."
        )
    fold_of = stratified_folds(train.labels, min(folds, most), seed)
    num_right, losses = np.zeros(len(strengths), dtype=np.int64), [[] for _ in strengths]
    for fold in range(fold_of.max() + 1):
        rest, left_out = train.select(fold_of != fold), train.select(fold_of == fold)
        labels = torch.from_numpy(left_out.labels)
        known = torch.from_numpy(np.isin(left_out.labels, rest.labels))
        regression = _Regression(rest)
        for number, strength in enumerate(strengths):
            logits = torch.from_numpy(regression.solve(strength).logits(left_out.values))
            num_right[number] += int((logits.argmax(dim=1) == labels).sum())
            losses[number] += functional.cross_entropy(
                logits[known], labels[known], reduction="none"
            ).tolist()
    return [
        StrengthScore(strength, int(right) / len(train), float(np.mean(of_one)))
        for strength, right, of_one in zip(strengths, num_right, losses, strict=True)
    ]


def _minimise(loss: _Loss, num_classes: int) -> Tensor:
    """Newton's method with a line search, from zero: -> float64 (classes, r)."""
    weight = torch.zeros(num_classes, loss.inputs.shape[1], dtype=torch.float64)
    value = loss.value(weight)
    for _ in range(NEWTON_STEPS):
        shares = loss.shares(weight)
        gradient = loss.gradient(weight, shares)
        step = _newton_step(loss, shares, gradient)
        slope = (gradient * step).sum().item()
        if -slope <= TOLERANCE:  # twice what the step would gain
            break
        length = 1.0
        while loss.value(weight + length * step) > value + 1e-4 * length * slope:
            length /= 2
            if length < SHORTEST:  # no more than rounding is left to gain
                return weight
        weight = weight + length * step
        value = loss.value(weight)
    return weight


def _newton_step(loss: _Loss, shares: Tensor, gradient: Tensor) -> Tensor:
    """Where the quadratic model of the loss is least, by conjugate gradients: -> (classes, r)."""
    diagonal = loss.diagonal(shares)
    step, residual = torch.zeros_like(gradient), -gradient
    ahead = residual / diagonal
    direction, size = ahead, (residual * ahead).sum()
    enough = size * min(CG_ACCURACY, size.sqrt().item())
    for _ in range(CG_STEPS):
        if size <= enough:
            break
        bent = loss.curvature(shares, direction)
        length = size / (direction * bent).sum()
        step, residual = step + length * direction, residual - length * bent
        ahead = residual / diagonal
        before, size = size, (residual * ahead).sum()
        direction = ahead + size / before * direction
    return step


def _check_strength(strength: float) -> None:
    if not strength > 0:
        raise ValueError(f"`strength` must be above 0, got {strength}.")
