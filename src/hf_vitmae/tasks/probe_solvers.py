"""From features to one linear head: try several settings on held-out images, train the best again.

The training of heads is saved as it goes, in a file that is named after all that it depends on.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from hf_vitmae.tasks.encoders import digest_of
from hf_vitmae.tasks.features import write_tensors
from hf_vitmae.training.features import Features, hold_out_rows
from hf_vitmae.training.probe import LinearHead, fit_exact_probe, strength_scores
from hf_vitmae.training.probe_sweep import Sweep, SweepConfig
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.scores import top_k_accuracy


@dataclass(frozen=True)
class Candidate:
    """A learning rate or strength, and what images that it did not see say of it.

    Args:
        accuracy, loss: None where nothing was held out, and a loss that is not finite.
    """

    value: float
    accuracy: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Solved:
    """What was tried, the best of it, and its head, trained on all images."""

    candidates: list[Candidate]
    best: float
    head: LinearHead


def solve_exactly(features: Features, strengths: Sequence[float], folds: int, seed: int) -> Solved:
    """The optimum, its strength chosen by cross-validation where there are several.

    Raises:
        ValueError: as `choose_strength`.
    """
    candidates = [Candidate(strength) for strength in strengths]
    if len(strengths) > 1:
        scores = strength_scores(features, strengths, folds, seed)
        candidates = [Candidate(s.strength, s.accuracy, s.loss) for s in scores]
    best = _best(candidates)
    return Solved(candidates, best, fit_exact_probe(features, best))


@dataclass(frozen=True)
class SweepRun:
    """A sweep over learning rates in a run's folder, which can be interrupted anywhere.

    Args:
        features: of the training images as inference sees them.
        views: of the same images, to train on.
        origin: tells these features from those of another encoder.
    """

    config: SweepConfig
    features: Features
    views: Sequence[Features]
    origin: str
    run: RunFolder
    log_every: int
    checkpoint_every: int
    device: torch.device

    def solve(self, validation_share: float, seed: int) -> Solved:
        """Choose the learning rate on a share of the images where there are several, and train it
        on all.

        Raises:
            ValueError: if nothing can be held out, or no head stayed finite.
        """
        config, everything = self.config, np.arange(len(self.features))
        candidates = [Candidate(base_lr) for base_lr in config.base_lrs]
        first = 0
        if len(candidates) > 1:
            rest, held = hold_out_rows(self.features.labels, validation_share, seed)
            heads = self.train(config, rest, first)
            held_out = self.features.select(held)
            candidates = [
                _judged(*pair, held_out) for pair in zip(config.base_lrs, heads, strict=True)
            ]
            first = config.epochs
        best = _best(candidates)
        (head,) = self.train(replace(config, base_lrs=(best,)), everything, first)
        if not all(value.isfinite().all() for value in head.folded()):
            raise ValueError(
                f"No head stayed finite; the learning rates {config.base_lrs} are too high, lower "
                "--base-lrs."
            )
        return Solved(candidates, best, head)

    def train(self, config: SweepConfig, rows: np.ndarray, first: int) -> list[LinearHead]:
        """A head for each learning rate, trained on some images.

        Args:
            first: epochs that the log has of what was trained before.
        """
        sweep = Sweep(config, self.views, rows, self.device)
        path = self._path(config, rows)
        if path.exists():
            sweep.load_state(load_file(path))
        if sweep.epoch < config.epochs:  # lines that a killed run wrote after its last save
            self.run.cut_metrics(first + sweep.epoch)
        while sweep.epoch < config.epochs:
            losses = sweep.run_epoch()
            is_last = sweep.epoch == config.epochs
            if is_last or sweep.epoch % self.log_every == 0:
                names = (f"train_loss_{base_lr:g}" for base_lr in config.base_lrs)
                losses_by_name = dict(zip(names, losses, strict=True))
                self.run.append_metrics({"step": first + sweep.epoch, **losses_by_name})
            if is_last or sweep.epoch % self.checkpoint_every == 0:
                write_tensors(path, sweep.state())
        return sweep.heads()

    def _path(self, config: SweepConfig, rows: np.ndarray) -> Path:
        """The file of a training's state: another one for other features, images or settings."""
        examples = self.views[0].values[:: max(1, len(self.features) // 256)]
        said = [self.origin, len(self.views), asdict(config)]
        digest = digest_of(said, self.features.labels, rows, np.ascontiguousarray(examples))
        return self.run.path / f"heads-{digest}.safetensors"


def _judged(value: float, head: LinearHead, held_out: Features) -> Candidate:
    measured = evaluate(head, held_out)
    loss = measured["loss"]
    return Candidate(value, measured["accuracy"], loss if math.isfinite(loss) else None)


def _best(candidates: Sequence[Candidate]) -> float:
    """The most accurate, of equals the one with the lower loss, then the earlier one."""

    def rank(candidate: Candidate) -> tuple[float, float]:
        loss = math.inf if candidate.loss is None else candidate.loss
        return candidate.accuracy or 0.0, -loss

    return max(candidates, key=rank).value


def evaluate(head: LinearHead, features: Features) -> dict[str, float]:
    """Accuracy, top-5 accuracy and mean loss of a head on features, and their number."""
    logits, labels = head.logits(features.values), features.labels  # (n, classes), (n,)
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    return {
        "accuracy": top_k_accuracy(logits, labels, 1),
        "top_5_accuracy": top_k_accuracy(logits, labels, 5),
        "loss": loss.item(),
        "images": len(features),
    }
