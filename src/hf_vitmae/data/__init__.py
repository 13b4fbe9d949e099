"""Images anywhere to batches: sources, order, decoding, augmentation, loading.

The order of samples and their randomness are pure functions of the seed and of a global position
(`order`), so nothing depends on the number of workers and the state of the pipeline is one integer.
Names load on first use: a recipe needs only `DataConfig`, and should not wait for the `datasets`
library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentation.transforms import EvalTransform, TrainTransform
    from .config import DataConfig
    from .image_source import ImageSource, Record
    from .loader import eval_batches, train_batches
    from .sources import open_images, open_source, open_train_and_eval
    from .streams.stream import StreamSource

__all__ = [
    "DataConfig",
    "EvalTransform",
    "ImageSource",
    "Record",
    "StreamSource",
    "TrainTransform",
    "eval_batches",
    "open_images",
    "open_source",
    "open_train_and_eval",
    "train_batches",
]

_MODULES = {
    "DataConfig": "config",
    "EvalTransform": "augmentation.transforms",
    "ImageSource": "image_source",
    "Record": "image_source",
    "StreamSource": "streams.stream",
    "TrainTransform": "augmentation.transforms",
    "eval_batches": "loader",
    "open_images": "sources",
    "open_source": "sources",
    "open_train_and_eval": "sources",
    "train_batches": "loader",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
