"""Images beside those whose features are nearest: what an encoder takes for alike."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.visualize.features import patch_tokens
from hf_vitmae.visualize.panel import PanelRow, picture_panel
from hf_vitmae.visualize.pictures import BATCH_SIZE, prepared, to_pictures

SIMILARITY_NOTE = "similarity: cosine between means of patches, less the mean of the gallery"


def image_features(model: VitMaePreTrainedModel, pixel_values: Tensor) -> Tensor:
    """The mean of the last patch tokens: (B, C, H, W) -> float32 (B, D).

    Of patches and not of the CLS token, which pretraining as a masked autoencoder does not train.
    """
    parts = pixel_values.split(BATCH_SIZE)
    return torch.cat([patch_tokens(model, part).mean(dim=1).cpu() for part in parts])


def neighbor_panel(
    model: VitMaePreTrainedModel,
    queries: Sequence[ImageLike],
    gallery: Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    k: int = 5,
    scale: int | None = None,
) -> Image.Image:
    """Each query as a row, followed by the k images of the gallery that are nearest to it.

    What all images have in common makes any two of them look alike, so the gallery's mean is
    taken away first; of a gallery of one image it would leave nothing.

    Args:
        queries, gallery: what the processor takes: PIL images, arrays, tensors.
        processor: None takes one of the model's geometry with default statistics.
        k: how many; of equally near ones the first in the gallery.
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if there are no queries, or fewer than k images in the gallery.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(
            f"`k` must be from 1 to the {len(gallery)} images of the gallery, got {k}."
        )
    processor, asked = prepared(model.config, list(queries), processor)  # (B, C, H, W)
    _, known = prepared(model.config, list(gallery), processor)  # (n, C, H, W)
    alike = similarity(image_features(model, asked), image_features(model, known))  # (B, n)
    values, places = alike.sort(dim=1, descending=True, stable=True)
    rows = []
    for number, picture in enumerate(to_pictures(processor, asked)):
        nearest = to_pictures(processor, known[places[number, :k]])
        row = {"query": picture} | {f"nearest {i}": near for i, near in enumerate(nearest, start=1)}
        said = ", ".join(f"{value:.3f}" for value in values[number, :k].tolist())
        rows.append(PanelRow(row, f"similarity {said}"))
    return picture_panel(rows, [SIMILARITY_NOTE], scale=scale)


def similarity(asked: Tensor, known: Tensor) -> Tensor:
    """Cosines of centred features: (B, D), (n, D) -> (B, n)."""
    mean = known.mean(dim=0) if len(known) > 1 else 0
    normalize = nn.functional.normalize
    return normalize(asked - mean, dim=1) @ normalize(known - mean, dim=1).T
