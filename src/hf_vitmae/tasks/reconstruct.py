"""Look at a pretrained model: hide patches of images and draw what it makes of them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.tasks.checkpoints import load_config, load_model, load_processor
from hf_vitmae.tasks.images import decode_for
from hf_vitmae.visualize import reconstruct, reconstruction_panel


@dataclass(frozen=True, kw_only=True)
class ReconstructRequest:
    """Draw input, masked input, prediction and both pasted together, a row for each image."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or Hub id of a pretrained model."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Image files."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("reconstruction.png")
    """Where the picture goes."""
    mask_ratio: float | None = None
    """Share of the patches to hide; the model's own by default."""
    seed: int = 0
    """Decides which patches are hidden."""
    statistics: Literal["hidden", "visible"] = "hidden"
    """For models that predict normalised patches: un-normalise with the hidden patches' own mean
    and deviation, as
    papers do, or with what the visible patches around them have."""


def run(request: ReconstructRequest) -> Path:
    """Write the picture and return where it is; an image that cannot be decoded is named instead.

    Raises:
        ValueError, FileNotFoundError: for a model without decoder, an image that is not there, or
            if none can be decoded.
    """
    if not request.images:
        raise ValueError("No images given; name one or more image files after the model.")
    config = load_config(request.model)
    processor = load_processor(request.model, config)
    images = _read_images(request.images, processor)
    model, new, _ = load_model(VitMaeForPreTraining, request.model, config)
    if "decoder" in new:
        raise ValueError(
            f"{request.model} has no decoder, so it predicts no pixels; name a checkpoint of "
            "pretraining."
        )
    reconstructions = reconstruct(
        model,
        images,
        processor,
        mask_ratio=request.mask_ratio,
        seed=request.seed,
        statistics=request.statistics,
    )
    request.output.parent.mkdir(parents=True, exist_ok=True)
    reconstruction_panel(reconstructions).save(request.output)
    print(f"The picture is {request.output}.")
    return request.output


def _read_images(paths: Sequence[Path], processor: VitMaeImageProcessor) -> list[Tensor]:
    """The images that can be decoded, (C, H, W) each; the others are named on the screen.

    Raises:
        FileNotFoundError: if a path is wrong.
        BadImage: if none is left.
    """
    images, bad = [], []
    for path in paths:
        try:
            images.append(decode_for(processor, path.read_bytes(), str(path)))
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no image {str(path)!r}; check the path.") from None
        except BadImage as error:
            bad.append(error)
    if not images:
        raise bad[0]
    for error in bad:
        print(f"Left out: {error}", file=sys.stderr)
    return images
