"""The geometry of the image processor: images, maps of classes and logits brought to a size.

Images and maps go through the same functions, as torch arithmetic on their own type, so that their
pixels keep corresponding. Shape legend: see `patches.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .patches import as_pair, grid_size

IGNORED = 255  # the label that no loss or metric counts, as in ADE20k
FULL_RANGE = {torch.uint8: 255, torch.uint16: 65535}  # white of each integer type; floats have 1.0
NEAREST = "nearest"
INTERPOLATION = {0: NEAREST, 2: "bilinear", 3: "bicubic"}  # as in PIL.Image.Resampling


def size_dict(size: int | Sequence[int] | Mapping[str, int]) -> dict[str, int]:
    """A size in any of its forms as {"height", "width"}.

    Raises:
        ValueError: for a mapping with other keys.
    """
    if isinstance(size, Mapping):
        if set(size) != {"height", "width"}:
            raise ValueError(f'size={dict(size)} must have "height" and "width" only.')
        size = (size["height"], size["width"])
    height, width = as_pair(size)
    return {"height": height, "width": width}


def height_width(image: Tensor) -> tuple[int, int]:
    """Size of an image in pixels: (..., H, W) -> (H, W)."""
    return image.shape[-2], image.shape[-1]


def covering_size(image: Tensor, size: tuple[int, int], share: float) -> tuple[int, int]:
    """Size that just covers `size / share`, aspect kept: (..., H, W) -> (H', W')."""
    height, width = height_width(image)
    box_height, box_width = (int(side / share) for side in size)
    if box_height * width >= box_width * height:
        return box_height, box_height * width // height
    return box_width * height // width, box_width


def whole_patches(image: Tensor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """The largest whole number of patches in an image: (..., H, W) -> (H', W').

    Raises:
        ValueError: if not even one patch fits.
    """
    (height, width), (patch_height, patch_width) = height_width(image), patch_size
    if height < patch_height or width < patch_width:
        raise ValueError(
            f"An image of {height}x{width} pixels is smaller than one patch of {patch_height}x"
            f"{patch_width} (height x width); use do_resize=True or a smaller patch_size."
        )
    return height - height % patch_height, width - width % patch_width


def fit(
    image: Tensor,
    size: tuple[int, int] | None,
    patch_size: tuple[int, int],
    mode: str,
    share: float | None,
) -> Tensor:
    """Resize and crop the centre to whole patches: (C, H, W) -> (C, H', W').

    Args:
        size: of the result; None resizes nothing and keeps the whole patches.
        share: that `size` has in what the resize covers, keeping the aspect; None stretches to
            `size` and crops nothing.

    Raises:
        ValueError: if the result is not a whole number of patches.
    """
    target = whole_patches(image, patch_size) if size is None else size
    if size is not None:
        cover = size if share is None else covering_size(image, size, share)
        image = resize(image, cover, mode)  # (C, *cover)
    if share is not None:
        image = center_crop(image, target)  # (C, H', W')
    grid_size(height_width(image), patch_size)  # raises where nothing was to make it whole
    return image


def resize(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize, antialiased unless nearest, keeping the type: (C, H, W) -> (C, *size)."""
    if mode == NEAREST:
        return resize_nearest(image, size)
    native = image.is_floating_point() or (image.dtype == torch.uint8 and image.is_cpu)
    values = image if native else image.float()
    values = F.interpolate(values[None], size, mode=mode, antialias=True)[0]
    return values if native else values.round().clamp(0, FULL_RANGE[image.dtype]).to(image.dtype)


def resize_nearest(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Each new pixel takes the value under its centre, exactly: (..., H, W) -> (..., *size)."""
    rows, columns = (
        (2 * torch.arange(new, device=image.device) + 1) * old // (2 * new)  # (new,)
        for old, new in zip(height_width(image), size, strict=True)
    )
    return image[..., rows[:, None], columns]


def center_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop the centre: (..., H, W) -> (..., *size). Odd margins round as in torchvision."""
    (height, width), (crop_height, crop_width) = height_width(image), size
    top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
    return image[..., top : top + crop_height, left : left + crop_width]


def stack(images: list[Tensor]) -> Tensor:
    """Images or maps of one size as a batch: B times (..., H, W) -> (B, ..., H, W).

    Raises:
        ValueError: for none or for several sizes.
    """
    if len({image.shape for image in images}) != 1:
        sizes = [height_width(image) for image in images[:8]]
        raise ValueError(f"{len(images)} images of {sizes} pixels make no batch; give one size.")
    return torch.stack(images)


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
