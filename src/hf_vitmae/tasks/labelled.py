"""Labelled images for tasks that embed each of them once: probes and nearest neighbours."""

from typing import cast

from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import Sources, open_train_and_eval


def open_labelled(
    data: DataConfig, seed: int, source: Sources | None = None
) -> tuple[ImageSource, ImageSource | None]:
    """The images to learn from and those to evaluate on, if there are any.

    Args:
        source: opened in place of `data.source`.

    Raises:
        ValueError: if there are no labels, or images can only be read from front to back; and what
            `open_train_and_eval` raises.
    """
    train, evaluation = open_train_and_eval(data, seed, source=source)
    train.require_classes()
    for images in (train, evaluation):
        if images is not None and not isinstance(images, ImageSource):
            raise ValueError(
                f"{images.name} can only be read from front to back, and this needs images by "
                "their number; take a folder of images, parquet or a Dataset."
            )
    return cast(ImageSource, train), cast("ImageSource | None", evaluation)


def refuse_unused(data: DataConfig) -> None:
    """Raise `ValueError` for what says how images are trained on, where each is embedded once."""
    for name, unused in {"weights": (), "stats": "none", "repeats": 1}.items():
        if (value := getattr(data, name)) != unused:
            raise ValueError(
                f"data.{name} is {value}, and here each image is embedded once, as the model's own "
                "processor makes it; leave it out."
            )
