"""Images to patches and back, and the pixel targets of masked autoencoding (arXiv:2111.06377).

Patches run in raster order over the grid; inside a patch pixels run (p_h, p_w, C), as in the
paper's code. Shape legend of the package: `B` batch, `C` channels, `H W` pixels, `h w` grid, `N` =
h*w patches, `K` visible patches, `L` tokens with prefix, `D` width, `P` = p_h*p_w*C values of a
patch. Height comes before width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PATCH_EPS = 1e-6  # under the square root of a patch's deviation, as in the paper's code


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """An int or a (height, width) sequence as (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def grid_size(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Patches along height and width: (H, W), (p_h, p_w) -> (h, w).

    Raises:
        ValueError: if the patch does not divide the image.
    """
    (height, width), (patch_height, patch_width) = image_size, patch_size
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"An image of {height}x{width} pixels (height x width) is not a whole number of "
            f"{patch_height}x{patch_width} patches; resize or crop it to a multiple of the patch."
        )
    return height // patch_height, width // patch_width


def patchify(pixel_values: Tensor, patch_size: int | Sequence[int]) -> Tensor:
    """Cut images into patches: (B, C, H, W) -> (B, N, P)."""
    batch, channels, height, width = pixel_values.shape
    patch_height, patch_width = as_pair(patch_size)
    rows, columns = grid_size((height, width), (patch_height, patch_width))
    patches = pixel_values.reshape(batch, channels, rows, patch_height, columns, patch_width)
    patches = patches.permute(0, 2, 4, 3, 5, 1)  # (B, h, w, p_h, p_w, C)
    return patches.reshape(batch, rows * columns, patch_height * patch_width * channels)


def unpatchify(
    patches: Tensor, patch_size: int | Sequence[int], grid: tuple[int, int] | None = None
) -> Tensor:
    """Put patches back together, the exact inverse of `patchify`: (B, N, P) -> (B, C, H, W).

    Args:
        grid: (h, w); may be left out when the grid is square.

    Raises:
        ValueError: if the number of patches does not fill the grid, or no grid is given and N is
        not a square.
    """
    batch, num_patches, patch_values = patches.shape
    patch_height, patch_width = as_pair(patch_size)
    if grid is None:
        side = round(num_patches**0.5)
        grid = (side, side)
    rows, columns = grid
    if rows * columns != num_patches:
        raise ValueError(
            f"{num_patches} patches do not fill a grid of {rows}x{columns} (height x width); "
            "pass the `grid` that they were cut from."
        )
    channels = patch_values // (patch_height * patch_width)
    pixels = patches.reshape(batch, rows, columns, patch_height, patch_width, channels)
    pixels = pixels.permute(0, 5, 1, 3, 2, 4)  # (B, C, h, p_h, w, p_w)
    return pixels.reshape(batch, channels, rows * patch_height, columns * patch_width)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every patch: (B, N, P) -> (B, N, 1), (B, N, 1).

    The variance is the unbiased one and has `PATCH_EPS` added, as in the paper's code.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + PATCH_EPS).sqrt()


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each patch by itself: (B, N, P) -> (B, N, P), mean (B, N, 1), std (B, N, 1)."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std, mean, std


def denormalize_patches(patches: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Undo `normalize_patches`: (B, N, P), (B, N, 1), (B, N, 1) -> (B, N, P)."""
    return patches * std + mean
