"""Classify by the nearest neighbours among a model's features: nothing is trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.sources import Sources
from hf_vitmae.tasks.encoders import Pooling, trained_encoder
from hf_vitmae.tasks.features import cached_features
from hf_vitmae.tasks.labelled import open_labelled, refuse_unused
from hf_vitmae.training.neighbors import Metric, leave_one_out_classes, nearest_classes
from hf_vitmae.training.scores import top_k_accuracy
from hf_vitmae.whole_or_absent import write_whole


@dataclass(frozen=True, kw_only=True)
class KnnRequest:
    """Classify images by their nearest neighbours among labelled ones, and print the accuracy.

    Raises:
        ValueError: if a number is out of range, or the output is no .json file.
    """

    model: str = "runs/pretrain/model"
    """Folder or Hub id of a model; its encoder is used."""
    data: DataConfig = DataConfig()
    """The training images are the neighbours. Without images to evaluate on, each one is classified
    by all others."""
    k: int = 20
    """Neighbours that vote."""
    temperature: float | Literal["none"] = 0.07
    """A vote is exp(similarity / temperature): the lower, the more the nearest count; none gives
    all the same vote."""
    metric: Metric = "cosine"
    """How near two features are: by their cosine or their Euclidean distance."""
    pooling: Pooling = "cls"
    """The feature of an image: the CLS token or the mean of the patch tokens."""
    features_dir: Path = Path("runs/features")
    """Folder that keeps the features, so that the same images are embedded once."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file of the result."""
    batch_size: int = 64
    """Images of one forward pass of the encoder."""
    seed: int = 0
    """Decides which images `data.samples_per_class` and `data.eval_share` draw."""

    def __post_init__(self) -> None:
        for name, least in {"k": 1, "batch_size": 1, "seed": 0}.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if self.temperature != "none" and not self.temperature > 0:
            raise ValueError(f"`temperature` must be above 0, or none, got {self.temperature}.")
        if self.output is not None and self.output.suffix.lower() != ".json":
            raise ValueError(f"`output` must be a .json file, got {str(self.output)!r}.")
        refuse_unused(self.data)


def run(request: KnnRequest, source: Sources | None = None) -> dict[str, Any]:
    """Print top-1 and top-5 accuracy in one line, and write them to `request.output`.

    Args:
        source: a `datasets` object or a list of them, opened in place of `request.data.source`.

    Returns:
        `accuracy`, `top_5_accuracy`, the numbers of images, and the settings.

    Raises:
        ValueError, FileNotFoundError: for a model or data that cannot be used, in one line.
    """
    train, evaluation = open_labelled(request.data, request.seed, source)
    encoder = trained_encoder(request.model, request.pooling)
    options: dict[str, Any] = {
        "batch_size": request.batch_size,
        "num_workers": request.data.num_workers,
        "max_bad": request.data.max_bad,
    }
    known = cached_features(request.features_dir, encoder, train, **options)
    temperature = None if request.temperature == "none" else request.temperature
    voting: dict[str, Any] = {"metric": request.metric, "temperature": temperature}
    if evaluation is None:
        asked, name = known, f"{train.name}, each by all others"
        votes = leave_one_out_classes(known, request.k, **voting)  # (n, classes)
    else:
        asked = cached_features(request.features_dir, encoder, evaluation, **options)
        name = f"{evaluation.name} by {train.name}"
        votes = nearest_classes(known, asked.values, request.k, **voting)  # (q, classes)
    results = {
        "accuracy": top_k_accuracy(votes, asked.labels, 1),
        "top_5_accuracy": top_k_accuracy(votes, asked.labels, 5),
        "images": len(asked),
        "neighbors_among": len(known),
    }
    settings = ("model", "pooling", "k", "metric", "temperature")
    results |= {setting: getattr(request, setting) for setting in settings}
    print(
        f"{name}: accuracy {results['accuracy']:.4f}, top-5 {results['top_5_accuracy']:.4f} on "
        f"{len(asked)} images ({request.k} of {len(known)} neighbours, {request.metric})."
    )
    if request.output is not None:
        write_whole(request.output, json.dumps(results, indent=2) + "\n")
    return results
