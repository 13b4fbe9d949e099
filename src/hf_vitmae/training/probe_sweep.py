"""Several linear heads trained side by side, one for each learning rate (arXiv:2111.06377, A).

All of them see the same batches, which are read once for all. An epoch goes over one view of the
cached features; the state of a sweep is the number of epochs that are done, and its tensors.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from hf_vitmae.training.features import Features
from hf_vitmae.training.lars import Lars
from hf_vitmae.training.optim import effective_lr
from hf_vitmae.training.probe import LinearHead, feature_statistics
from hf_vitmae.training.schedule import cosine_schedule, set_learning_rate

VELOCITIES = {"lars": "velocity", "sgd": "momentum_buffer"}  # what the optimisers call theirs
INIT_STD = 0.01  # of the weights of a fresh head: LARS' steps are shares of them
CHUNK = 2**24  # logits that are held at once: 64 MB


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How the heads are trained.

    Args:
        base_lrs: learning rates for 256 images a step, one a head; multiplied by batch / 256.
        batch_size: images of a step; never more than there are.
        seed: decides the first weights, alike for all heads, and the order.
    """

    base_lrs: tuple[float, ...]
    optimizer: Literal["lars", "sgd"] = "lars"
    batch_size: int = 16384
    epochs: int = 90
    warmup_epochs: int = 10
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0


class Sweep:
    """The heads of a run and how far it is.

    Args:
        views: features of the same images, row by row; epoch e goes over view e mod their number.
        rows: the images to train on.
        device: holds the heads.
    """

    def __init__(
        self,
        config: SweepConfig,
        views: Sequence[Features],
        rows: np.ndarray,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.epoch = 0
        """Epochs that are done."""
        self._views, self._rows = views, rows
        self._mean, self._deviation = feature_statistics([view.values for view in views], rows)
        self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)
        shape = (len(views[0].class_names), views[0].values.shape[1])
        generator = torch.Generator().manual_seed(config.seed)
        first = torch.randn(shape, generator=generator) * INIT_STD  # (classes, D)
        num_heads = len(config.base_lrs)
        self._weight = first.repeat(num_heads, 1, 1).to(device).requires_grad_()  # (R, classes, D)
        self._bias = torch.zeros(num_heads, shape[0], device=device).requires_grad_()
        # Each head is a parameter of its own, as LARS scales by their sizes, in the same memory.
        self._weights = [nn.Parameter(weight) for weight in self._weight.detach()]
        self._biases = [nn.Parameter(bias) for bias in self._bias.detach()]
        self._optimizer = self._make_optimizer()

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return min(self.config.batch_size, len(self._rows))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, of one size within one image."""
        return math.ceil(len(self._rows) / self.batch_size)

    def run_epoch(self) -> list[float]:
        """Train for one epoch: -> mean loss of each head over its images, as they were met."""
        per_epoch, config = self.steps_per_epoch, self.config
        schedule = cosine_schedule(config.epochs * per_epoch, config.warmup_epochs * per_epoch)
        total = torch.zeros(len(config.base_lrs), dtype=torch.float64)
        for step, rows in enumerate(self._batches(), start=self.epoch * per_epoch):
            set_learning_rate(self._optimizer, schedule(step))
            total += self._step(rows).double().cpu()
        self.epoch += 1
        return (total / len(self._rows)).tolist()

    def heads(self) -> list[LinearHead]:
        """The heads as they are now, in the order of the learning rates."""
        pairs = zip(self._weight.detach().clone(), self._bias.detach().clone(), strict=True)
        return [LinearHead(*pair, self._mean, self._deviation) for pair in pairs]

    def state(self) -> dict[str, Tensor]:
        """All that a sweep of the same arguments needs to go on from here, on the CPU."""
        state = {"epoch": torch.tensor(self.epoch)}
        state |= {name: tensor.detach() for name, tensor in self._moving().items()}
        return {name: tensor.cpu().clone() for name, tensor in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state` was taken."""
        self.epoch = int(state["epoch"])
        with torch.no_grad():
            for name, tensor in self._moving().items():
                tensor.copy_(state[name])

    def _make_optimizer(self) -> Optimizer:
        config, groups = self.config, []
        for weight, bias, base_lr in zip(self._weights, self._biases, config.base_lrs, strict=True):
            lr = effective_lr(base_lr, self.batch_size)
            groups.append({"params": [weight], "lr": lr})
            groups.append({"params": [bias], "lr": lr, "weight_decay": 0.0})
        kind = Lars if config.optimizer == "lars" else SGD
        optimizer = kind(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
        for parameter in [*self._weights, *self._biases]:
            velocity = torch.zeros_like(parameter)
            optimizer.state[parameter][VELOCITIES[config.optimizer]] = velocity
        return optimizer

    def _moving(self) -> dict[str, Tensor]:
        """What a step changes."""
        moving = {"weight": self._weight, "bias": self._bias}
        for kind, parameters in {"weight": self._weights, "bias": self._biases}.items():
            for number, parameter in enumerate(parameters):
                velocity = self._optimizer.state[parameter][VELOCITIES[self.config.optimizer]]
                moving[f"velocity.{kind}.{number}"] = velocity
        return moving

    def _batches(self) -> Iterator[np.ndarray]:
        """The images of each step of this epoch, by number."""
        generator = np.random.default_rng((self.config.seed, self.epoch))
        order = generator.permutation(self._rows)
        return iter(np.array_split(order, self.steps_per_epoch))

    def _step(self, rows: np.ndarray) -> Tensor:
        """One step of all heads: -> summed losses before it, (R,)."""
        view = self._views[self.epoch % len(self._views)]
        num_heads, num_classes, _ = self._weight.shape
        total = torch.zeros(num_heads, device=self._weight.device)
        for some in np.array_split(rows, math.ceil(len(rows) * num_heads * num_classes / CHUNK)):
            losses = self._losses(view, some)
            (losses.sum() / len(rows)).backward()
            total += losses.detach()
        self._hand_out_gradients()
        self._optimizer.step()
        return total

    def _losses(self, view: Features, rows: np.ndarray) -> Tensor:
        """Summed cross-entropy of each head on some images: -> (R,)."""
        num_heads, num_classes, _ = self._weight.shape
        device = self._weight.device
        values = torch.from_numpy(view.values[rows]).to(device)  # (B, D)
        labels = torch.from_numpy(view.labels[rows]).to(device)  # (B,)
        inputs = ((values - self._mean) / self._deviation).float()
        # One product for all heads: (B, R * classes).
        logits = functional.linear(inputs, self._weight.flatten(0, 1), self._bias.flatten())
        scores = logits.view(-1, num_classes)  # (B * R, classes)
        targets = labels.repeat_interleave(num_heads)
        losses = functional.cross_entropy(scores, targets, reduction="none")
        return losses.view(-1, num_heads).sum(dim=0)

    def _hand_out_gradients(self) -> None:
        """Each head's part of the gradients goes to its own parameters."""
        for whole, parts in ((self._weight, self._weights), (self._bias, self._biases)):
            assert whole.grad is not None
            for part, gradient in zip(parts, whole.grad, strict=True):
                part.grad = gradient
            whole.grad = None
