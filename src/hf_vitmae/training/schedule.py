"""The learning rate as a pure function of the step, so that a checkpoint need not hold it.

Linear warm-up, then half a cosine (arXiv:2111.06377, appendix A; arXiv:1608.03983), or a long level
stretch and a short decay (warm-stable-decay, arXiv:2404.06395), whose level part can be prolonged.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(
    step: int, total_steps: int, warmup_steps: int = 0, min_ratio: float = 0.0
) -> float:
    """The factor on the peak learning rate for step `step`, counted from 0.

    It rises linearly, already above zero at step 0, to 1 at step `warmup_steps`, and falls to
    `min_ratio` at `total_steps`, where it stays.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return min_ratio + (1 - min_ratio) * cosine


def cosine_schedule(
    total_steps: int, warmup_steps: int = 0, min_ratio: float = 0.0
) -> Callable[[int], float]:
    """`cosine_with_warmup` of one run: step -> factor.

    Raises:
        ValueError: if the warm-up is longer than the run, or `min_ratio` is not in [0, 1].
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"{warmup_steps} warm-up steps do not fit into a run of {total_steps} steps; use fewer."
        )
    _check_min_ratio(min_ratio)
    return lambda step: cosine_with_warmup(step, total_steps, warmup_steps, min_ratio)


def stable_schedule(
    total_steps: int, warmup_steps: int = 0, decay_steps: int = 0, min_ratio: float = 0.0
) -> Callable[[int], float]:
    """Warm-stable-decay: step, counted from 0, -> factor on the peak learning rate.

    It rises as `cosine_with_warmup` does, stays at 1, and in the last `decay_steps` falls linearly
    to `min_ratio` at `total_steps`, where it stays. Up to the decay the factors do not depend on
    `total_steps`: a checkpoint from there goes on to any length.

    Raises:
        ValueError: if warm-up and decay are longer than the run, or `min_ratio` is not in [0, 1].
    """
    if warmup_steps < 0 or decay_steps < 0 or warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"{warmup_steps} steps of warm-up and {decay_steps} of decay do not fit into a run of "
            f"{total_steps} steps; use fewer."
        )
    _check_min_ratio(min_ratio)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        left = max(0, total_steps - step)
        return 1.0 if left >= decay_steps else min_ratio + (1 - min_ratio) * left / decay_steps

    return factor


def _check_min_ratio(min_ratio: float) -> None:
    if not 0 <= min_ratio <= 1:
        raise ValueError(
            f"The learning rate would end at {min_ratio} times its peak; lower `min_lr`."
        )


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Set every group to `factor` times its `initial_lr`; returns the highest that came out."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
    return max(group["lr"] for group in optimizer.param_groups)


def cosine_scheduler(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, min_ratio: float = 0.0
) -> LambdaLR:
    """The same schedule as a torch scheduler, for the HF `Trainer`'s `optimizers=`."""
    return LambdaLR(optimizer, cosine_schedule(total_steps, warmup_steps, min_ratio))
