"""What a recipe says about its data: where the images are, which splits to use, how to read them.

Every field is a flag of the command line (`--data.source`, ...); its docstring is the flag's help.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they are split.

    Raises:
        ValueError: if a number is out of range, or both `eval_split` and `eval_share` are given.
    """

    source: str = "emoji"
    """`emoji`, `shapes`, a folder of images, parquet file or glob, Hub id (`user/name:config`)."""
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
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, not {self.num_workers}.")
        if self.eval_split is not None and self.eval_share:
            raise ValueError(
                f"data.eval_split={self.eval_split!r} and data.eval_share={self.eval_share} both "
                "choose the evaluation images; give only one of them."
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images vary; the defaults are MAE pretraining's (arXiv:2111.06377, A)."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of an image's area that a random crop covers; 1.0 1.0 takes all."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height of a crop, as a multiple of the model's own."""
    horizontal_flip: float = 0.5
    """Probability of a horizontal flip."""
