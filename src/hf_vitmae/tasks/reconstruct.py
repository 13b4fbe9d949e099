"""Look at a pretrained model: hide patches of images and draw what it makes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hf_vitmae.tasks.checkpoints import load_autoencoder, load_config, load_processor, on_device
from hf_vitmae.tasks.shown_images import (
    NUM_IMAGES,
    drawn_mask,
    picture_format,
    save_picture,
    shown_images,
)
from hf_vitmae.visualize import reconstruct, reconstruction_panel


@dataclass(frozen=True, kw_only=True)
class ReconstructRequest:
    """Draw input, masked input, prediction and both pasted together, a row for each image."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or Hub id of a pretrained model."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Image files; a folder, or `emoji`, gives some images spread over it."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("reconstruction.png")
    """Where the picture goes."""
    mask_ratio: float | None = None
    """Share of the patches to hide; the model's own by default."""
    mask_pattern: Literal["random", "block", "grid"] = "random"
    """Single patches by chance, rectangles, or a regular grid."""
    mask: Path | None = None
    """A picture whose white parts are hidden, in every image, in place of a ratio."""
    seed: int = 0
    """Decides which patches are hidden."""
    num_images: int = NUM_IMAGES
    """Images of each folder."""
    statistics: Literal["hidden", "visible"] = "hidden"
    """For models that predict normalised patches: un-normalise with the hidden patches' own mean
    and deviation, as papers do, or with what the visible patches around them have."""

    def __post_init__(self) -> None:
        if self.mask is not None and self.mask_ratio is not None:
            raise ValueError("Give either a mask or a mask ratio, not both.")
        picture_format(self.output)


def run(request: ReconstructRequest) -> Path:
    """Write the picture and return where it is; an image that cannot be decoded is named instead.

    Raises:
        ValueError, FileNotFoundError: for a model without decoder, an image that is not there, or
            if none can be decoded.
    """
    config = load_config(request.model)
    processor = load_processor(request.model, config)
    images = shown_images(request.images, processor, request.num_images)
    mask = request.mask and drawn_mask(request.mask, config.image_pair, len(images))
    model = on_device(load_autoencoder(request.model, config))
    reconstructions = reconstruct(
        model,
        images,
        processor,
        mask_ratio=request.mask_ratio,
        mask=mask,
        pattern=request.mask_pattern,
        seed=request.seed,
        statistics=request.statistics,
    )
    save_picture(reconstruction_panel(reconstructions), request.output)
    return request.output
