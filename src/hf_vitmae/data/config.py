"""What a recipe says about its data: where the images are, which splits to use, how to read them.

Every field is a flag of the command line (`--data.source`, ...); its docstring is the flag's help.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they are split.

    Raises:
        ValueError: if a number is out of range, or both `eval_split` and `eval_share` are given.
    """

    source: str | tuple[str, ...] = "emoji"
    """`emoji`, `shapes`, `defects`, `bands`, a folder of images, parquet or WebDataset tars (file,
    folder, glob, URL), a folder of `save_to_disk`, Hub id (`user/name:config`); several are mixed.
    """
    weights: tuple[float, ...] = ()
    """How often an epoch shows each image of each source: 2 is twice, 0.5 every other epoch."""
    split: str = "train"
    """Split to train on."""
    eval_split: str | None = None
    """Split to evaluate on; if left out, `eval_share`, else a split called validation or test."""
    eval_share: float = 0.0
    """Share of the training split to hold out for evaluation: by the seed, alike in every class."""
    image_column: str | None = None
    """Column that holds the images; found by type and name when left out."""
    label_column: str | None = None
    """Column that holds the labels; found by type and name when left out."""
    label_map_column: str | None = None
    """Column that holds the label maps of segmentation; found by name when left out."""
    samples_per_class: int | None = None
    """Train on only so many labelled images of each class, drawn by the seed."""
    streaming: bool = False
    """Read parquet, Hub data and `save_to_disk` from front to back, as tars always are."""
    stream_readers: int = 8
    """Places of a stream that are read side by side; a multiple of the number of processes."""
    shuffle_block: int = 1000
    """Images of a stream that are held in memory and shuffled among each other."""
    stats: str = "none"
    """What fresh weights see images normalised with: `auto` measures the training images,
    `imagenet`, or a FILE of `hf-vitmae stats`; `none` takes the model's own, 0.5 and 0.5."""
    repeats: int = 1
    """Crops and masks of each decoded image, side by side in a batch: for slow storage."""
    max_bad: float = 0.01
    """Share of the images that may be bad, such as damaged files; more of them stop the run."""
    num_workers: int = 2
    """Worker processes that decode images, per training process; changes speed, never a batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.eval_share < 1:
            raise ValueError(
                f"data.eval_share must be at least 0 and below 1, not {self.eval_share}."
            )
        if self.samples_per_class is not None and self.samples_per_class < 1:
            raise ValueError(
                f"data.samples_per_class must be at least 1, not {self.samples_per_class}."
            )
        check_max_bad(self.max_bad)
        least_values = {"num_workers": 0, "stream_readers": 1, "shuffle_block": 1, "repeats": 1}
        for name, least in least_values.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"data.{name} must be at least {least}, not {value}.")
        check_weights(self.weights, len(self.sources))
        if self.eval_split is not None and self.eval_share:
            raise ValueError(
                f"data.eval_split={self.eval_split!r} and data.eval_share={self.eval_share} both "
                "choose the evaluation images; give only one of them."
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of all sources."""
        return (self.source,) if isinstance(self.source, str) else self.source


def check_max_bad(max_bad: float) -> None:
    """Refuse a share of bad images that is none.

    Raises:
        ValueError: naming it.
    """
    if not 0 <= max_bad <= 1:
        raise ValueError(f"data.max_bad is a share and must lie in 0..1, not {max_bad}.")


def check_weights(weights: Sequence[float], num_sources: int) -> None:
    """Refuse weights that are not numbers above 0, one for each source.

    Raises:
        ValueError: naming them.
    """
    if num_sources == 0:
        raise ValueError("data.source is empty; name at least one source.")
    if weights and len(weights) != num_sources:
        raise ValueError(
            f"data.weights has {len(weights)} values and data.source has {num_sources}; give one "
            "weight for each source, or none."
        )
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"data.weights must be above 0, not {weight}.")
