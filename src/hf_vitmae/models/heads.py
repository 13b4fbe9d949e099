"""From tokens to what a task needs. Tokens are [CLS | patches]."""

from torch import Tensor


def pool_tokens(tokens: Tensor, pooling: str, is_visible: Tensor | None = None) -> Tensor:
    """One vector an image: (B, 1 + K, D) -> (B, D).

    "cls" takes the CLS token (arXiv:2010.11929), "mean" the mean of the patch tokens, as MAE's
    fine-tuning does; where `is_visible` (B, K) is False the token is padding and does not count.
    """
    cls, patches = tokens[:, 0], tokens[:, 1:]
    if pooling == "cls":
        return cls
    if is_visible is None:
        return patches.mean(dim=1)
    total = (patches * is_visible[..., None]).sum(dim=1)  # (B, D)
    return total / is_visible.sum(dim=1, keepdim=True).clamp(min=1)
