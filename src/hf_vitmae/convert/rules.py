"""Tables of names, read in both directions: a foreign state dict to ours, and back.

A table is a list of rules; each names what it takes and what it gives, and loses nothing. Whatever
no rule names is an error, so that a checkpoint of another kind is never half read.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def _as_they_are(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Rule:
    """Tensors of theirs that are tensors of ours.

    Args:
        theirs, ours: names; `{}` stands for a number, the same ones in the same order in all names.
        inward: theirs, in the order of the names, -> ours.
        outward: the exact inverse.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    inward: Callable[[Tensors], Tensors] = _as_they_are
    outward: Callable[[Tensors], Tensors] = _as_they_are


def rename(theirs: str, ours: str) -> Rule:
    """The same tensor under another name."""
    return Rule((theirs,), (ours,))


def rename_pair(theirs: str, ours: str) -> list[Rule]:
    """`weight` and `bias` of a module that has both."""
    return [rename(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def reshaped(
    theirs: str, ours: str, inward: Callable[[Tensor], Tensor], outward: Callable[[Tensor], Tensor]
) -> Rule:
    """One tensor in another layout, such as a transposed one."""
    return Rule(
        (theirs,),
        (ours,),
        lambda tensors: [inward(tensors[0])],
        lambda tensors: [outward(tensors[0])],
    )


def fused(theirs: str, ours: Sequence[str]) -> Rule:
    """Several of our tensors stacked along the first dimension in one of theirs (q, k and v)."""
    return Rule(
        (theirs,),
        tuple(ours),
        lambda tensors: [part.contiguous() for part in tensors[0].chunk(len(ours))],
        lambda tensors: [torch.cat(list(tensors))],
    )


def to_ours(weights: Mapping[str, Tensor], rules: Iterable[Rule], what: str) -> dict[str, Tensor]:
    """A foreign state dict under our names.

    Args:
        what: what an error calls the checkpoint.

    Raises:
        ValueError: naming a tensor that no rule knows, or that a rule lacks.
    """
    return _apply(
        weights, ((rule.theirs, rule.ours, rule.inward) for rule in rules), f"{what} is not read: "
    )


def to_theirs(weights: Mapping[str, Tensor], rules: Iterable[Rule], what: str) -> dict[str, Tensor]:
    """Our state dict under foreign names; the inverse of `to_ours`, and raises as it does."""
    return _apply(
        weights,
        ((rule.ours, rule.theirs, rule.outward) for rule in rules),
        f"{what} cannot express this model: ",
    )


def _apply(
    weights: Mapping[str, Tensor],
    directed: Iterable[tuple[tuple[str, ...], tuple[str, ...], Callable[[Tensors], Tensors]]],
    trouble: str,
) -> dict[str, Tensor]:
    left, result = dict(weights), {}
    for sources, targets, convert in directed:
        pattern = re.compile(re.escape(sources[0]).replace(r"\{\}", r"(\d+)"))
        for match in filter(None, map(pattern.fullmatch, list(left))):
            names = [source.format(*match.groups()) for source in sources]
            missing = [name for name in names if name not in left]
            if missing:
                raise ValueError(f"{trouble}`{names[0]}` is there and `{missing[0]}` is missing.")
            tensors = convert([left.pop(name) for name in names])
            result |= zip(
                (target.format(*match.groups()) for target in targets), tensors, strict=True
            )
    if left:
        raise ValueError(
            f"{trouble}{len(left)} of its {len(weights)} tensors are of another kind, "
            f"`{min(left)}` {tuple(left[min(left)].shape)} the first."
        )
    return result
