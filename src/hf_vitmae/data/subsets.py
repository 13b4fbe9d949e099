"""Parts of a source drawn by a seed: a hold-out for evaluation, a few labelled images per class."""

import numpy as np

from .image_source import ImageSource
from .order import Stream, random_stream


def hold_out(source: ImageSource, share: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split a source by chance into two parts, the second of the given share of every class.

    Raises:
        ValueError: if one part would be empty.
    """
    num_held = round(len(source) * share)
    if not 0 < num_held < len(source):
        raise ValueError(
            f"eval_share={share} of the {len(source)} images of {source.name} is {num_held} to "
            f"evaluate on and {len(source) - num_held} to train on; both need at least one."
        )
    generator = random_stream(Stream.HOLD_OUT, seed)
    order = generator.permutation(len(source))
    if source.labels is not None:
        order = order[np.argsort(source.labels[order], kind="stable")]
    # Every (1 / share)-th of the images sorted by class: each class gives its share, within one.
    every = len(source) / num_held
    held = np.zeros(len(source), dtype=bool)
    held[order[((np.arange(num_held) + generator.random()) * every).astype(np.int64)]] = True
    return source.select(np.flatnonzero(~held)), source.select(np.flatnonzero(held))


def few_labels(source: ImageSource, samples_per_class: int, seed: int) -> ImageSource:
    """Keep so many images of each class, drawn by chance (all of a class that has fewer).

    Raises:
        ValueError: if the source has no labels.
    """
    source.require_classes()
    assert source.labels is not None
    order = random_stream(Stream.FEW_LABELS, seed).permutation(len(source))
    labels = source.labels[order]
    kept = [order[labels == label][:samples_per_class] for label in np.unique(labels)]
    return source.select(np.sort(np.concatenate(kept)))
