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


def make_corruption(mask: Tensor, noise: Tensor) -> Corruption:
    """Decide by uniform noise in [0, 1): bool (B, N), (B, N) -> corruption.

    One number a patch says which of the three happens and, where it is another patch, which.
    """
    num_patches = mask.shape[1]
    first, last = MASKED_SHARE, MASKED_SHARE + SWAPPED_SHARE
    swapped = mask & (noise >= first) & (noise < last)
    steps = ((noise - first) / SWAPPED_SHARE * (num_patches - 1)).long()  # 0 .. N - 2 if swapped
    steps = steps.clamp(0, max(num_patches - 2, 0)) + 1
    others = (torch.arange(num_patches, device=mask.device) + steps) % num_patches
    return Corruption(mask, mask & (noise < first), swapped, others)


def draw_corruption_noise(mask: Tensor, training: bool) -> Tensor:
    """Random numbers in training, fixed ones in evaluation: bool (B, N) -> (B, N) in [0, 1).

    The fixed ones are not those that masks are made by, else the two would go together.
    """
    if training:
        return torch.rand(*mask.shape, device=mask.device)
    return fixed_noise(2 * mask.shape[1], mask.device)[:, mask.shape[1] :].expand_as(mask)
