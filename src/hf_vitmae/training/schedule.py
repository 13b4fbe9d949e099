"""The learning rate as a pure function of the step, so that a checkpoint need not hold it.

Linear warm-up, then half a cosine (arXiv:2111.06377, appendix A; arXiv:1608.03983).
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
    if not 0 <= min_ratio <= 1:
        raise ValueError(
            f"The learning rate would end at {min_ratio} times its peak; lower `min_lr`."
        )
    return lambda step: cosine_with_warmup(step, total_steps, warmup_steps, min_ratio)


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
