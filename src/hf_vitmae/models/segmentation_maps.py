"""Maps of class ids: read from pictures and arrays, and made of a segmentation model's logits.

Shape legend: see `patches.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .resizing import height_width

IGNORED = 255  # the label that no loss or metric counts, as in ADE20k


def maps_of_images(segmentation_maps: Any, images: Sequence[Tensor]) -> list[Tensor]:
    """Maps of any kind, one for each image (C, H, W) -> int64 (H, W) of the image's size each.

    Raises:
        ValueError: if a map is missing, or is not of its image's size.
    """
    maps = _flatten_maps(segmentation_maps)
    if len(maps) != len(images):
        raise ValueError(f"{len(maps)} segmentation maps (H, W) do not fit {len(images)} images.")
    for index, (class_map, image) in enumerate(zip(maps, images, strict=True)):
        if height_width(class_map) != height_width(image):
            raise ValueError(
                f"Segmentation map {index} has (height, width) {height_width(class_map)}, but its "
                f"image {height_width(image)}; each is turned upright by its own EXIF."
            )
    return maps


def _flatten_maps(maps: Any) -> list[Tensor]:
    """Single maps, batches (B, H, W) and lists of these -> one flat list of int64 (H, W)."""
    if isinstance(maps, list | tuple):
        return [class_map for item in maps for class_map in _flatten_maps(item)]
    if isinstance(maps, np.ndarray | Tensor) and maps.ndim == 3:
        return [class_ids(class_map) for class_map in maps]
    return [class_ids(maps)]


def class_ids(class_map: Image.Image | np.ndarray | Tensor) -> Tensor:
    """One map of integers as it is, a palette image by its indices -> int64 (H, W).

    Raises:
        ValueError: for colours, floats, or another shape than (H, W) or (1, H, W).
    """
    if isinstance(class_map, Image.Image):
        if len(class_map.getbands()) != 1:
            raise ValueError(
                f"A segmentation map of mode {class_map.mode} holds colours, not class ids; use a "
                "picture of one band (mode L, P or I;16)."
            )
        class_map = np.array(ImageOps.exif_transpose(class_map))
    if not isinstance(class_map, np.ndarray | Tensor):
        raise ValueError(f"{class_map!r:.80} is not a PIL image, an array or a tensor.")
    if isinstance(class_map, np.ndarray) and class_map.dtype.kind in "biu":
        class_map = class_map.astype(np.int64)  # torch takes no array in foreign byte order
    ids = torch.as_tensor(class_map)
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"A segmentation map of type {ids.dtype} must hold class ids as integers.")
    if ids.ndim not in (2, 3) or ids.shape[:-2].numel() != 1:
        raise ValueError(f"A segmentation map of shape {tuple(ids.shape)} must be (H, W).")
    return ids.reshape(height_width(ids)).long()


def reduce_class_ids(class_map: Tensor) -> Tensor:
    """Class 0 becomes `IGNORED`, which stays; the others move down by one: int64, same shape.

    Raises:
        ValueError: for ids beyond `IGNORED`, with which the result would be ambiguous.
    """
    low, high = int(class_map.min()), int(class_map.max())
    if low < 0 or high > IGNORED:
        raise ValueError(f"do_reduce_labels=True needs class ids 0..{IGNORED}, not {low}..{high}.")
    ignored = (class_map == 0) | (class_map == IGNORED)
    return (class_map.long() - 1).masked_fill(ignored, IGNORED)


def class_maps(logits: Tensor, sizes: Sequence[Sequence[int]] | Tensor | None) -> list[Tensor]:
    """The likeliest class of each pixel: (B, num_labels, h, w) -> B times int64 (H, W).

    Args:
        sizes: (height, width) of each map, to which the logits are resized; None keeps theirs.

    Raises:
        ValueError: if there is not one size for each map.
    """
    if logits.ndim != 4:
        raise ValueError(f"Logits of shape {tuple(logits.shape)} must be (B, num_labels, h, w).")
    if sizes is None:
        return list(logits.argmax(dim=1))
    pairs = np.asarray(sizes)
    if pairs.shape != (len(logits), 2) or pairs.min() < 1:
        raise ValueError(
            f"target_sizes={sizes!r:.80} must hold one positive (height, width) for each of the "
            f"{len(logits)} images."
        )
    resized = (
        F.interpolate(one[None].float(), size, mode="bilinear")[0]  # (num_labels, *size)
        for one, size in zip(logits, pairs.tolist(), strict=True)
    )
    return [one.argmax(dim=0) for one in resized]
