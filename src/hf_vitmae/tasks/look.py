"""Look into a model: what it attends to, what it takes for alike, what it did not expect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro
from PIL import Image
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
)
from hf_vitmae.tasks.checkpoints import (
    Model,
    load_autoencoder,
    load_config,
    load_fine_tuned,
    load_model,
    load_processor,
    on_device,
)
from hf_vitmae.tasks.shown_images import (
    NUM_IMAGES,
    picture_format,
    save_picture,
    shown_images,
)
from hf_vitmae.visualize import (
    anomaly_maps,
    anomaly_panel,
    attention_panel,
    class_panel,
    feature_panel,
    mask_sweep,
    neighbor_panel,
    position_panel,
    segmentation_panel,
)
from hf_vitmae.visualize.sweep import RATIOS

Kind = Literal[
    "attention",
    "features",
    "neighbors",
    "masks",
    "anomaly",
    "positions",
    "classes",
    "segmentation",
]
Pattern = Literal["random", "block", "grid"]


@dataclass(frozen=True, kw_only=True)
class LookRequest:
    """Draw what a model sees in images, a row for each.

    Raises:
        ValueError: if a flag does not go with the kind of picture, or an output is no picture.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or Hub id of a model."""
    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")
    ] = ()
    """Image files; a folder, or `emoji`, gives some images spread over it."""
    kind: Kind = "attention"
    """attention: of each head, and rolled out over all layers. features: like patches in like
    colours. neighbors: the nearest images of a gallery. masks: more and more hidden, and what a
    masked autoencoder makes of it. anomaly: each patch as it was predicted, and where that was
    wrong. positions: how alike the places in the model's table are (without images). classes,
    segmentation: what a fine-tuned model says of an image, or of each of its pixels."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where the picture goes; KIND.png by default."""
    num_images: int = NUM_IMAGES
    """Images of each folder."""
    layer: int = -1
    """attention: whose heads; 0 is the first layer, -1 the last."""
    gallery: Path | None = None
    """neighbors: a folder of images, or `emoji`, to find the nearest in."""
    gallery_images: int = 1000
    """neighbors: so many of them at most, spread over the gallery."""
    k: int = 5
    """neighbors: how many are drawn."""
    mask_ratios: tuple[float, ...] = RATIOS
    """masks: shares of the patches to hide."""
    mask_patterns: tuple[Pattern, ...] = ("random",)
    """masks: single patches by chance, rectangles, or a regular grid; several side by side."""
    num_masks: int = 4
    """anomaly: runs of the model, each of which hides one patch in so many."""
    seed: int = 0
    """masks, anomaly: decides which patches are hidden."""
    statistics: Literal["hidden", "visible"] | None = None
    """masks, anomaly: for models that predict normalised patches, whose mean and deviation to
    un-normalise with; by default the hidden patches' own for masks, as papers do, and those of
    visible patches around them for an anomaly."""

    def __post_init__(self) -> None:
        for field in fields(self):
            kinds = FLAGS.get(field.name, (self.kind,))
            if self.kind not in kinds and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise ValueError(f"--{flag} goes with --kind {' or '.join(kinds)}.")
        if self.kind == "neighbors" and self.gallery is None:
            raise ValueError("Name the images to find neighbours in: --gallery FOLDER, or emoji.")
        picture_format(self.path)

    @property
    def path(self) -> Path:
        """Where the picture goes."""
        return self.output or Path(f"{self.kind}.png")


FLAGS: Mapping[str, tuple[Kind, ...]] = {
    "layer": ("attention",),
    "gallery": ("neighbors",),
    "gallery_images": ("neighbors",),
    "k": ("neighbors",),
    "mask_ratios": ("masks",),
    "mask_patterns": ("masks",),
    "num_masks": ("anomaly",),
    "seed": ("masks", "anomaly"),
    "statistics": ("masks", "anomaly"),
}


@dataclass(frozen=True)
class _Shown:
    """What is drawn, and by what."""

    request: LookRequest
    config: VitMaeConfig
    processor: VitMaeImageProcessor
    images: list[Tensor]

    def encoder(self) -> VitMaeModel:
        return on_device(load_model(VitMaeModel, self.request.model, self.config)[0])

    def autoencoder(self) -> VitMaeForPreTraining:
        return on_device(load_autoencoder(self.request.model, self.config))

    def fine_tuned(self, kind: type[Model]) -> Model:
        return on_device(load_fine_tuned(kind, self.request.model, self.config))


def run(request: LookRequest) -> Path:
    """Write the picture and return where it is; an image that cannot be decoded is named instead.

    Raises:
        ValueError, FileNotFoundError: for a model that cannot draw this, an image that is not
            there, or if none can be decoded.
    """
    config = load_config(request.model)
    processor = load_processor(request.model, config)
    has_images = request.kind != "positions"
    images = shown_images(request.images, processor, request.num_images) if has_images else []
    picture = DRAW[request.kind](_Shown(request, config, processor, images))
    save_picture(picture, request.path)
    return request.path


def _attention(shown: _Shown) -> Image.Image:
    layer = shown.request.layer
    return attention_panel(shown.encoder(), shown.images, shown.processor, layer=layer)


def _features(shown: _Shown) -> Image.Image:
    return feature_panel(shown.encoder(), shown.images, shown.processor)


def _neighbors(shown: _Shown) -> Image.Image:
    request = shown.request
    assert request.gallery is not None  # the request is checked
    gallery = shown_images([request.gallery], shown.processor, request.gallery_images)
    return neighbor_panel(shown.encoder(), shown.images, gallery, shown.processor, k=request.k)


def _masks(shown: _Shown) -> Image.Image:
    request = shown.request
    return mask_sweep(
        shown.autoencoder(),
        shown.images,
        shown.processor,
        ratios=request.mask_ratios,
        patterns=request.mask_patterns,
        seed=request.seed,
        statistics=request.statistics or "hidden",
    )


def _anomaly(shown: _Shown) -> Image.Image:
    request = shown.request
    found = anomaly_maps(
        shown.autoencoder(),
        shown.images,
        shown.processor,
        num_masks=request.num_masks,
        seed=request.seed,
        statistics=request.statistics or "visible",
    )
    return anomaly_panel(found)


def _positions(shown: _Shown) -> Image.Image:
    return position_panel(shown.encoder())


def _classes(shown: _Shown) -> Image.Image:
    model = shown.fine_tuned(VitMaeForImageClassification)
    return class_panel(model, shown.images, shown.processor)


def _segmentation(shown: _Shown) -> Image.Image:
    model = shown.fine_tuned(VitMaeForSemanticSegmentation)
    return segmentation_panel(model, shown.images, shown.processor)


DRAW: Mapping[Kind, Callable[[_Shown], Image.Image]] = {
    "attention": _attention,
    "features": _features,
    "neighbors": _neighbors,
    "masks": _masks,
    "anomaly": _anomaly,
    "positions": _positions,
    "classes": _classes,
    "segmentation": _segmentation,
}
