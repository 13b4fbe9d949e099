"""Which class of a model a label of the data is: that of the same name, or of the same number.

Folders and data sets number their classes in orders of their own, so that numbers say nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.models.configuration_vitmae import VitMaeConfig

Match = Literal["name", "order"]


def model_classes(config: VitMaeConfig) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its logits."""
    names: dict[Any, str] = dict(config.id2label or {})
    return tuple(str(names[number]) for number in sorted(names))


def match_labels(
    images: ImageSource, model: str, classes: Sequence[str], match: Match
) -> ImageSource:
    """The images with the model's class numbers as labels.

    Args:
        model: what an error calls it.
        classes: of the model.

    Raises:
        ValueError: if there are no labels, or a class is not one of the model's.
    """
    own = images.require_classes()
    if match == "order":
        if len(own) > len(classes):
            raise ValueError(
                f"{images.name} has {len(own)} classes and {model} has {len(classes)}, so that "
                "class i cannot be class i; take --match name."
            )
        return replace(images, class_names=tuple(classes))
    if own == tuple(classes):  # names may then even be double, as ImageNet's are
        return images
    present = [own[number] for number in np.unique(cast(np.ndarray, images.labels))]
    if unknown := [name for name in present if list(classes).count(name) != 1]:
        raise ValueError(_other_classes(model, images.name, unknown, classes))
    return images.with_classes(classes)


def match_label_maps(
    images: ImageSource, model: str, classes: Sequence[str], match: Match, ignored: int
) -> Callable[[Tensor], Tensor]:
    """What turns the class numbers of label maps (..., H, W) into the model's.

    Data that does not name the classes of its label maps has the model's numbers already; this is
    said.

    Args:
        ignored: the number that does not count.

    Raises:
        ValueError: if a class is not one of the model's; what is returned, for a number that is
            none of the data's classes.
    """
    names = images.map_class_names
    if names is None:
        print(f"{images.name} does not name the classes of its label maps: number i is class i.")
    if names is None or match == "order" or tuple(names) == tuple(classes):
        return lambda labels: labels
    if unknown := [name for name in names if list(classes).count(name) != 1]:
        raise ValueError(_other_classes(model, images.name, unknown, classes))
    table = torch.tensor([list(classes).index(name) for name in names])

    def renumber(labels: Tensor) -> Tensor:
        counted = labels != ignored
        highest = int(labels[counted].max()) if counted.any() else 0
        if highest >= len(table):
            raise ValueError(
                f"A label map of {images.name} holds class {highest}, and its classes are 0 to "
                f"{len(table) - 1}; mark what does not count as {ignored}."
            )
        return torch.where(counted, table[labels.where(counted, 0)], labels)

    return renumber


def _other_classes(model: str, source: str, unknown: Sequence[str], known: Sequence[str]) -> str:
    """What an error says about classes that the model does not have, or has twice."""
    return (
        f"{source} has {len(unknown)} classes that are not, or not once, among those of {model}: "
        f"{_listed(unknown)}; the model has {len(known)}: {_listed(known)}. Leave these images "
        "out, or pass --match order if class i of the data is class i of the model."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
