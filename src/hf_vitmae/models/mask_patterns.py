"""Patterns of masks: functions from uniform noise to noise whose highest values form the pattern.

The encoder hides the patches with the highest noise, so that a pattern needs no mask of its own:
the ratio stays an argument of each call, all images hide equally many patches, and a higher ratio
hides the same patches and more. Blocks come from arXiv:2106.08254, grids from arXiv:2111.06377
(Table 1f), weights from Efraimidis and Spirakis (2006).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .patches import as_pair, patchify

MAX_BLOCKS = 32  # they leave about 2 % of a 14 x 14 grid uncovered
BLOCK_SHARES = (16 / 196, 0.4)  # smallest and largest block: 16 patches and 40 % of 14 x 14 in BEiT
MIN_BLOCK_PATCHES = 4  # on small grids, where the smallest share would be a single patch
MAX_ASPECT = 1 / 0.3  # height : width of a block, and the reverse


def random_noise(noise: Tensor, grid: tuple[int, int]) -> Tensor:
    """The noise as it is, which hides patches at random: (B, N) -> (B, N)."""
    return noise


def block_noise(noise: Tensor, grid: tuple[int, int]) -> Tensor:
    """Noise that hides random rectangles, one after another: (B, N) in [0, 1) -> (B, N) in [0, 1).

    The last rectangle that a ratio reaches shrinks around its centre; what no rectangle covers is
    hidden after all of them, at random. Rectangles may hang over the edge, so that each covers
    every patch with the same probability; kept inside, as in BEiT, they hardly ever hide a corner.

    Args:
        noise: uniform; the rectangles are a function of it, and the values returned are distinct.
        grid: (h, w).

    Raises:
        ValueError: if the noise does not fit the grid or is not in [0, 1).
    """
    _check_grid(noise, grid)
    height, width, center_y, center_x = _rectangles(noise.float(), grid)  # (B, M) each
    rows, columns = (torch.arange(size, device=noise.device) + 0.5 for size in grid)
    distance_y = (rows - center_y[..., None]).abs() / (height[..., None] / 2)  # (B, M, h)
    distance_x = (columns - center_x[..., None]).abs() / (width[..., None] / 2)  # (B, M, w)
    distance = torch.maximum(distance_y[..., None], distance_x[:, :, None]).flatten(2)  # (B, M, N)
    num_blocks = distance.shape[1]
    turn = torch.arange(num_blocks, device=noise.device)[:, None]  # (M, 1)
    first = (turn + distance).where(distance < 1, num_blocks).amin(dim=1)  # (B, N)
    return _ranked(-first, noise)


def grid_noise(noise: Tensor, grid: tuple[int, int]) -> Tensor:
    """Noise that hides a regular pattern, shifted at random: (B, N) in [0, 1) -> (B, N) in [0, 1).

    Where height and width are even, a ratio of 0.75 leaves one patch visible in every 2 x 2, 0.5
    gives a checkerboard and 0.25 hides one patch in every 2 x 2. Ratios between them fill these
    patterns evenly, by the thresholds of ordered dithering (Bayer 1973).

    Args:
        noise: uniform; each image's shift is a function of it.
        grid: (h, w).

    Raises:
        ValueError: if the noise does not fit the grid or is not in [0, 1).
    """
    _check_grid(noise, grid)
    num_bits = (max(grid) - 1).bit_length()
    side = 2**num_bits  # a square of thresholds that holds the grid, so that no value comes twice
    shift = (noise[:, [0, -1]].float() * side).long()  # (B, 2)
    rows, columns = (torch.arange(size, device=noise.device) for size in grid)
    y = ((rows + shift[:, :1]) % side)[:, :, None]  # (B, h, 1)
    x = ((columns + shift[:, 1:]) % side)[:, None]  # (B, 1, w)
    threshold = torch.zeros_like(x ^ y)  # (B, h, w)
    for bit in range(num_bits):  # the lowest bit, which side of a 2 x 2, weighs most
        threshold = 4 * threshold + 2 * ((x ^ y) >> bit & 1) + (y >> bit & 1)
    return (threshold.flatten(1) / side**2).to(noise.dtype)


def weighted_noise(noise: Tensor, weights: Tensor) -> Tensor:
    """Noise that hides patches by weight: (B, N) in [0, 1), (B, N) -> (B, N) in [0, 1).

    At every draw a patch with twice the weight of another is twice as likely to be hidden next:
    sampling without replacement by one key a patch (Efraimidis and Spirakis 2006). Patches of
    weight 0 are hidden last, at random; equal weights keep the order of the noise.

    Raises:
        ValueError: if a weight is negative or not finite, shapes differ, or the noise is not in
        [0, 1).
    """
    if weights.shape != noise.shape:
        raise ValueError(
            f"`weights` must be {tuple(noise.shape)}, one for each value of `noise`, "
            f"got {tuple(weights.shape)}."
        )
    _check_uniform(noise)
    _check_values("weights", weights, (weights >= 0) & (weights < torch.inf), "finite and >= 0")
    wide = torch.promote_types(weights.dtype, torch.float32)
    uniform = noise.float().clamp(min=2**-25, max=1 - 2**-24)
    # In the order of the keys uniform ** (1 / weight), which themselves would round to 0 and 1.
    return _ranked(weights.to(wide).log() - (-uniform.log()).log(), noise)


def foreground_weights(
    foreground: Tensor,
    grid: tuple[int, int],
    patch_size: int | Sequence[int],
    background: float = 0.5,
) -> Tensor:
    """Weights by the share of foreground in each patch: (B, H, W) or (B, N) -> float32 (B, N).

    Args:
        foreground: bool, or a share or probability in [0, 1], of every pixel or every patch.
        grid: (h, w).
        background: the weight of a patch without foreground, where a patch full of it has 1. With
            a small one, a ratio above the foreground's share hides nearly all of the foreground
            and leaves nothing to predict it from; 0.5 shows about a tenth of it at a ratio of 0.75.

    Raises:
        ValueError: if the map has neither shape, or a value or `background` is not in [0, 1].
    """
    (rows, columns), (patch_height, patch_width) = grid, as_pair(patch_size)
    pixels = (rows * patch_height, columns * patch_width)
    _check_values("foreground", foreground, (foreground >= 0) & (foreground <= 1), "in [0, 1]")
    share = foreground.float()
    if foreground.ndim == 3 and foreground.shape[1:] == pixels:
        share = patchify(share[:, None], patch_size).mean(dim=2)  # (B, N)
    elif foreground.ndim != 2 or foreground.shape[1] != rows * columns:
        raise ValueError(
            f"`foreground` must be (batch, {rows * columns}) over patches or "
            f"(batch, {pixels[0]}, {pixels[1]}) over pixels, got {tuple(foreground.shape)}."
        )
    return _above(background, share)


def contrast_weights(
    pixel_values: Tensor, patch_size: int | Sequence[int], background: float = 0.5
) -> Tensor:
    """Weights by the contrast of each patch: (B, C, H, W) -> float32 (B, N).

    For images without a foreground map. A patch's contrast is the deviation of its pixels within
    their channels, so that a flat patch of any colour has none. It is taken relative to the mean
    over the image, so that a faint image is weighted as a strong one, and counts up to that mean,
    so that a few bright spots do not draw all hiding to themselves.

    Args:
        pixel_values: normalised, so that channels of different units count alike.
        background: the weight of a flat patch, where one of average contrast or more has 1; too
            small a value has the price told at `foreground_weights`.

    Raises:
        ValueError: if the patch does not divide the image, or `background` is not in [0, 1].
    """
    batch, channels = pixel_values.shape[:2]
    patches = patchify(pixel_values.float(), patch_size)  # (B, N, P)
    pixels = patches.reshape(batch, patches.shape[1], -1, channels)  # (B, N, p_h*p_w, C)
    deviation = pixels.var(dim=2, correction=0).mean(dim=2).sqrt()  # (B, N)
    mean = deviation.mean(dim=1, keepdim=True)  # (B, 1)
    contrast = deviation / mean.where(mean > 0, 1)
    return _above(background, contrast.clamp(max=1))


def complementary_masks(noise: Tensor, num_sets: int) -> Tensor:
    """Masks that together hide each patch exactly once: (B, N) -> bool (num_sets, B, N).

    The sets differ by at most one patch in size. The first hides the highest noise, the next the
    highest of what is left: block noise gives blocks, grid noise and four sets regular grids. The
    inverse, `~masks`, shows each patch exactly once.

    Raises:
        ValueError: if `num_sets` is not from 2 to N.
    """
    num_patches = noise.shape[1]
    if not 2 <= num_sets <= num_patches:
        raise ValueError(
            f"`num_sets` must be from 2 to the {num_patches} patches of an image, got {num_sets}."
        )
    place = noise.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (B, N)
    sets = torch.arange(num_sets, device=noise.device)[:, None, None]
    return place * num_sets // num_patches == sets  # (num_sets, B, N)


MASK_PATTERNS: Mapping[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "random": random_noise,
    "block": block_noise,
    "grid": grid_noise,
}


def _rectangles(noise: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random rectangles, in patches: (B, N) -> height, width, centre y and x, (B, M) each."""
    (rows, columns), num_patches = grid, noise.shape[1]
    turns = torch.arange(min(num_patches, MAX_BLOCKS), device=noise.device)
    numbers = torch.arange(4, device=noise.device)[:, None] * max(1, num_patches // 4)
    area, aspect, y, x = noise[:, (numbers + turns) % num_patches].unbind(1)  # (B, M) each
    smallest = min(num_patches, max(MIN_BLOCK_PATCHES, BLOCK_SHARES[0] * num_patches))
    largest = max(smallest, BLOCK_SHARES[1] * num_patches)
    area = smallest + (largest - smallest) * area
    height = (area * MAX_ASPECT ** (2 * aspect - 1)).sqrt()
    height = torch.maximum(height, area / columns).clamp(max=rows)  # neither side leaves the grid
    width = area / height
    # From one row or column inside to one inside on the other side, the place is uniform.
    center_y = 0.5 - height / 2 + y * (rows + height - 1)
    center_x = 0.5 - width / 2 + x * (columns + width - 1)
    return height, width, center_y, center_x


def _above(background: float, share: Tensor) -> Tensor:
    """Weights from `background` at a share of 0 to 1 at a share of 1: (B, N) -> (B, N)."""
    if not 0 <= background <= 1:
        raise ValueError(f"`background` must be in [0, 1], got {background!r}.")
    return background + (1 - background) * share


def _ranked(priority: Tensor, noise: Tensor) -> Tensor:
    """Rank by priority, ties by noise, as distinct values in [0, 1): (B, N), (B, N) -> (B, N)."""
    by_noise = noise.argsort(dim=1, stable=True)
    by_priority = priority.gather(1, by_noise).argsort(dim=1, stable=True)
    rank = by_noise.gather(1, by_priority).argsort(dim=1)  # (B, N)
    return (rank / noise.shape[1]).to(noise.dtype)


def _check_grid(noise: Tensor, grid: tuple[int, int]) -> None:
    if noise.ndim != 2 or noise.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"`noise` must be (batch, {grid[0] * grid[1]}) for a grid of {grid[0]}x{grid[1]} "
            f"(height x width), got {tuple(noise.shape)}."
        )
    _check_uniform(noise)


def _check_uniform(noise: Tensor) -> None:
    _check_values("noise", noise, (noise >= 0) & (noise < 1), "in [0, 1), as torch.rand draws it")


def _check_values(name: str, values: Tensor, is_valid: Tensor, allowed: str) -> None:
    if not bool(is_valid.all()):
        raise ValueError(f"`{name}` must be {allowed}, got {values[~is_valid][0].item()!r}.")
