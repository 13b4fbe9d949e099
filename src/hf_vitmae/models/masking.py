"""Which patches are hidden, and the order in which encoder and decoder see them (arXiv:2111.06377,
section 3).

A mask is boolean and True means hidden. A `PatchOrder` puts the visible patches first: the encoder
reads a prefix of it, the decoder all of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchOrder:
    """Visible patches first, hidden ones after them.

    Args:
        shuffle: (B, N) the patch that stands at each place of the order.
        restore: (B, N) the place of each patch: the inverse of `shuffle`.
        mask: (B, N) bool in raster order, True = hidden; padding is neither hidden nor visible.
        num_visible: K, the length of the prefix that the encoder reads: the largest number of
            visible patches of any image. In a compiled graph, whose shapes may not depend on what
            the masks hold, the largest that is possible.
        is_visible: (B, K) bool, False where an image has fewer than K visible patches; None when
            all have K.
    """

    shuffle: Tensor
    restore: Tensor
    mask: Tensor
    num_visible: int
    is_visible: Tensor | None = None

    @property
    def visible(self) -> Tensor:
        """(B, K) the patches that the encoder reads."""
        return self.shuffle[:, : self.num_visible]

    @property
    def hides_as_many(self) -> bool:
        """Whether the same number of patches, and not none, is hidden in every image."""
        return self.is_visible is None and self.num_visible < self.mask.shape[1]

    @property
    def after_visible(self) -> Tensor:
        """(B, N - K) the others: hidden, or without data."""
        return self.shuffle[:, self.num_visible :]


def num_visible_patches(num_patches: int, mask_ratio: float) -> int:
    """How many of N patches stay visible: int(N * (1 - ratio)), as the paper's code rounds."""
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"`mask_ratio` must be at least 0 and below 1, got {mask_ratio!r}.")
    return int(num_patches * (1 - mask_ratio))


def fixed_noise(num_patches: int, device: torch.device | None = None) -> Tensor:
    """Noise that is the same on every call and every device: (1, N) in [0, 1).

    Evaluation hides patches by it when the caller brings no noise, so that an image's result
    depends neither on a random state nor on its neighbours in the batch. An integer hash (two
    multiply-xorshift rounds) rather than a generator, so that the model stays one traceable graph.
    """
    bits = torch.arange(1, num_patches + 1, device=device)
    for _ in range(2):
        bits = (bits * 0x45D9F3B) & 0xFFFFFFFF
        bits = bits ^ (bits >> 16)
    return (bits >> 8)[None].float() / 2**24  # 24 bits, which float32 holds exactly


def order_from_noise(noise: Tensor, mask_ratio: float, padding: Tensor | None = None) -> PatchOrder:
    """Hide the patches with the highest noise: (B, N) -> order.

    Visible patches are read in the order of their noise, as in the paper's code; with nothing to
    hide they are read in raster order.

    Args:
        padding: bool (B, N), True = holds no data; the ratio is then that of an image's own
            patches.
    """
    num_patches = noise.shape[1]
    num_visible = num_visible_patches(num_patches, mask_ratio)
    if num_visible == num_patches:
        noise = torch.zeros_like(noise)
    if padding is not None:
        of_count = [num_visible_patches(count, mask_ratio) for count in range(num_patches + 1)]
        visible = torch.tensor(of_count, device=noise.device)[(~padding).sum(dim=1)]
        return _order(noise, visible, num_visible, padding)
    shuffle = noise.argsort(dim=1, stable=True)
    restore = _inverse(shuffle)
    return PatchOrder(shuffle, restore, restore >= num_visible, num_visible)


def order_from_mask(mask: Tensor, padding: Tensor | None = None) -> PatchOrder:
    """Hide the patches that the mask names: bool (B, N) -> order, visible patches in raster order.

    Images may hide different numbers of patches; those with fewer visible patches than the others
    are padded.
    """
    out = mask if padding is None else mask | padding
    return _order(mask.float(), (~out).sum(dim=1), mask.shape[1], padding)


def _order(key: Tensor, visible: Tensor, at_most: int, padding: Tensor | None) -> PatchOrder:
    """Of each image the first so many patches by key (B, N), `visible` (B,), padding last.

    Args:
        at_most: what no image's number of visible patches exceeds.
    """
    if padding is not None:
        key = key.masked_fill(padding, torch.inf)
    shuffle = key.argsort(dim=1, stable=True)
    restore = _inverse(shuffle)
    mask = restore >= visible[:, None]  # (B, N)
    if padding is not None:
        mask = mask & ~padding
    is_compiling = torch.compiler.is_compiling()
    num_visible = at_most if is_compiling else int(visible.max())
    if not is_compiling and bool((visible == num_visible).all()):
        return PatchOrder(shuffle, restore, mask, num_visible)
    places = torch.arange(num_visible, device=key.device)
    return PatchOrder(shuffle, restore, mask, num_visible, places < visible[:, None])


def _inverse(permutation: Tensor) -> Tensor:
    """Where each number of 0..N-1 stands in every row: (B, N) -> (B, N)."""
    places = torch.arange(permutation.shape[1], device=permutation.device)
    return torch.empty_like(permutation).scatter_(1, permutation, places.expand_as(permutation))


def make_order(
    shape: tuple[int, int],
    *,
    noise: Tensor | None,
    mask: Tensor | None,
    mask_ratio: float,
    padding: Tensor | None,
    training: bool,
    device: torch.device,
) -> PatchOrder:
    """What to hide of `shape` = (B, N) patches, however the caller said it.

    Args:
        noise: (B, N); None draws it in training and takes `fixed_noise` in evaluation.
        mask: bool (B, N), in place of noise and ratio.
        padding: bool (B, N), True = holds no data.

    Raises:
        ValueError: if noise or mask is not for that many images and patches.
    """
    for name, values in (("mask", mask), ("noise", noise)):
        if values is not None and values.shape != shape:
            raise ValueError(
                f"`{name}` must be {shape}, one value for each patch of each image, "
                f"got {tuple(values.shape)}."
            )
    if mask is not None:
        return order_from_mask(mask, padding)
    if noise is None:
        noise = draw_noise(shape, training, device)
    return order_from_noise(noise, mask_ratio, padding)


def draw_noise(shape: tuple[int, int], training: bool, device: torch.device) -> Tensor:
    """Random noise in training, `fixed_noise` in evaluation: -> (B, N)."""
    if training:
        return torch.rand(*shape, device=device)
    return fixed_noise(shape[1], device).expand(shape[0], -1)


def patch_mask(
    mask: Tensor,
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    name: str = "mask",
    batch: int | None = None,
) -> Tensor:
    """A mask over patches (B, N), or over pixels (B, H, W), as one over patches (B, N).

    A patch is hidden when any of its pixels is.

    Args:
        name: what an error calls the mask.
        batch: images that it must be for.

    Raises:
        ValueError: if the mask is not boolean, of neither shape, or for another number of images.
    """
    (rows, columns), (patch_height, patch_width) = grid, patch_size
    if mask.dtype != torch.bool:
        raise ValueError(
            f"`{name}` must be boolean with True = {'hidden' if name == 'mask' else 'no data'}, "
            f"got {mask.dtype}; use `{name}.bool()`."
        )
    if batch is not None and mask.shape[0] != batch:
        raise ValueError(
            f"`{name}` must have one row for each of the {batch} images, got {tuple(mask.shape)}."
        )
    if mask.ndim == 2 and mask.shape[1] == rows * columns:
        return mask
    pixels = (rows * patch_height, columns * patch_width)
    if mask.ndim == 3 and mask.shape[1:] == pixels:
        cut = mask.reshape(-1, rows, patch_height, columns, patch_width)
        return cut.any(dim=4).any(dim=2).flatten(1)  # (B, N)
    raise ValueError(
        f"`{name}` must be (batch, {rows * columns}) over patches or "
        f"(batch, {pixels[0]}, {pixels[1]}) over pixels, got {tuple(mask.shape)}."
    )


def over_pixels(mask: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """A mask over patches as one over pixels: (B, N) -> (B, H, W)."""
    mask = mask.unflatten(1, grid)  # (B, h, w)
    for dimension, side in zip((1, 2), patch_size, strict=True):
        mask = mask.repeat_interleave(side, dim=dimension)
    return mask


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens by place: (B, N, D), (B, K) -> (B, K, D)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))
