"""Corrupted patch embeddings for masked patch prediction (arXiv:2010.11929, appendix B.1.2).

Of the patches to predict 80 % become a learned [mask] embedding, 10 % the embedding of another
patch of the image, drawn at random, and 10 % stay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .masking import fixed_noise, gather_tokens

MASKED_SHARE, SWAPPED_SHARE = 0.8, 0.1


@dataclass(frozen=True)
class Corruption:
    """What happens to each patch.

    Args:
        mask: bool (B, N), True = corrupted: to be predicted.
        masked: bool (B, N), those that become the [mask] embedding.
        swapped: bool (B, N), those that become another patch's embedding.
        others: int64 (B, N), the other patch.
    """

    mask: Tensor
    masked: Tensor
    swapped: Tensor
    others: Tensor

    def apply(self, patches: Tensor, mask_token: Tensor) -> Tensor:
        """Corrupt patch embeddings: (B, N, D), (1, 1, D) -> (B, N, D)."""
        corrupted = torch.where(
            self.swapped[..., None], gather_tokens(patches, self.others), patches
        )
        return torch.where(self.masked[..., None], mask_token.to(patches.dtype), corrupted)


def make_corruption(mask: Tensor, noise: Tensor, padding: Tensor | None = None) -> Corruption:
    """Decide by uniform noise in [0, 1): bool (B, N), (B, N) -> corruption.

    One number a patch says which of the three happens and, where it is another patch, which.

    Args:
        padding: bool (B, N), True = no data: never taken as the other patch.

    Raises:
        ValueError: if there is not one number for each patch.
    """
    if noise.shape != mask.shape:
        raise ValueError(
            f"`corruption_noise` must be {tuple(mask.shape)}, one value for each patch of each "
            f"image, got {tuple(noise.shape)}."
        )
    first, last = MASKED_SHARE, MASKED_SHARE + SWAPPED_SHARE
    swapped = mask & (noise >= first) & (noise < last)
    out = torch.zeros_like(mask) if padding is None else padding
    count = (~out).sum(dim=1, keepdim=True)  # (B, 1) patches with data
    data_first = out.int().argsort(dim=1, stable=True)  # (B, N)
    steps = ((noise - first) / SWAPPED_SHARE * (count - 1)).long()  # 0 .. count - 2 if swapped
    steps = steps.clamp(min=0).minimum((count - 2).clamp(min=0)) + 1
    others = data_first.gather(1, (data_first.argsort(dim=1) + steps) % count.clamp(min=1))
    return Corruption(mask, mask & (noise < first), swapped, others)


def draw_corruption_noise(mask: Tensor, training: bool) -> Tensor:
    """Random numbers in training, fixed ones in evaluation: bool (B, N) -> (B, N) in [0, 1).

    The fixed ones are not those that masks are made by, else the two would go together.
    """
    if training:
        return torch.rand(*mask.shape, device=mask.device)
    return fixed_noise(2 * mask.shape[1], mask.device)[:, mask.shape[1] :].expand_as(mask)
