"""The geometry of the image processor: images and maps of classes brought to a size.

Both go through the same functions, as torch arithmetic on their own type, so that their pixels keep
corresponding. Shape legend: see `patches.py`.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .patches import as_pair, grid_size

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
    # Written so that torch sees a batch whose channels lie side by side where the image's do:
    # `image[None]` hides that from it, and it would sort the pixels into planes first.
    batch = values.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # (1, C, H, W)
    values = F.interpolate(batch, size, mode=mode, antialias=True)[0].contiguous()  # (C, *size)
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
