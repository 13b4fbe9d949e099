"""Measures of a masked autoencoder that need no labels: what it does better than a simple rule, and
whether features and predictions depend on image and place at all.

Features are the encoder's last tokens of whole images, predictions those of hidden patches. All is
computed in float32 or better, whatever the model's precision. Shapes: see `patches.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_vitmae.models.layers import Attention
from hf_vitmae.models.losses import masked_pixel_loss, pixel_targets
from hf_vitmae.models.patches import as_pair, grid_size, patchify, unpatchify

# Visible patches weigh distance**-3 in an interpolation. Of the powers 1, 2, 3, 4 and 6 it is the
# best, or within 3 % of it, at emoji in patches of 4, 8 and 16 with 75 % of them hidden.
DISTANCE_POWER = 3
MOST_TOKENS = 4096  # that a rank is computed from: some for each dimension of the largest models


class Spread(NamedTuple):
    """How much differs between images, and between patches of one: variances over the mean square.

    As shares of the total variance they would say nothing of features that have hardly any.
    """

    images: float
    patches: float


def encoder_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """Run a pretraining model by its own forward, as a sharded or autocast model has to be run.

    Returns:
        Its output, and the patch tokens that its encoder ends with, float32 (B, N or K, D).
    """
    seen: list[Tensor] = []

    def see(module: nn.Module, arguments: Any, tokens: Tensor) -> None:
        seen.append(tokens)

    handle = model.get_submodule("vit.layernorm").register_forward_hook(see)
    try:
        output = model(**inputs)
    finally:
        handle.remove()
    tokens = next(tokens for tokens in seen if tokens.ndim == 3)  # pooled ones pass there too
    return output, tokens[:, 1:].float()


@contextmanager
def watched_attention(
    model: nn.Module, measure: Callable[[Tensor], Tensor]
) -> Iterator[list[Tensor]]:
    """What `measure` makes of the attention weights of each encoder layer, (B, heads, L, L), in a
    forward pass within; the weights of one layer are held at a time.

    They are computed from queries and keys, since fast attention keeps none; no mask is looked at.
    """
    queries, measured, handles = [], [], []

    def remember(module: nn.Module, arguments: Any, query: Tensor) -> None:
        queries.append(query)

    def weigh(layer: Attention, module: nn.Module, arguments: Any, key: Tensor) -> None:
        query, key = (_heads(values, layer.head_dim) for values in (queries.pop(), key))
        scores = query @ key.transpose(-1, -2) * layer.scaling
        measured.append(measure(scores.softmax(dim=-1, dtype=torch.float32)))

    for layer in model.get_submodule("vit.layers").modules():
        if isinstance(layer, Attention):
            handles.append(layer.q_proj.register_forward_hook(remember))
            handles.append(layer.k_proj.register_forward_hook(partial(weigh, layer)))
    try:
        yield measured
    finally:
        for handle in handles:
            handle.remove()


def effective_rank(features: Tensor) -> float:
    """How many directions features fill: (n, D) -> 1 to D, or 0 where all are the same.

    exp of the entropy of the centred features' singular values, normalised to sum to one (Roy &
    Vetterli, 2007). Of many features some are taken, spread evenly.
    """
    features = features[:: -(-len(features) // MOST_TOKENS)].cpu().double()
    centred = features - features.mean(dim=0)
    squares = torch.linalg.eigvalsh(centred.T @ centred)  # (D,), of the singular values
    # What rounding to float32 leaves of features that are all the same counts for nothing.
    rounding = features.square().sum() * torch.finfo(torch.float32).eps ** 2
    values = squares[squares > rounding].sqrt()
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item() if len(values) else 0.0


def token_spread(tokens: Tensor) -> Spread:
    """How features differ: (B, N, D) -> between the images' means, between patches of an image.

    What is missing from a sum of one is common to all tokens.
    """
    pooled = tokens.mean(dim=1, keepdim=True)  # (B, 1, D), what a task sees of an image
    between = pooled - pooled.mean(dim=0)
    return Spread(_share(between.expand_as(tokens), tokens), _share(tokens - pooled, tokens))


def prediction_spread(logits: Tensor, mask: Tensor) -> Spread:
    """How predictions of hidden patches differ: (B, N, P), bool (B, N) -> between images at the
    same place, between places of the same image.

    The first is 0 where a prediction depends on the place alone, the second where it depends on the
    image alone.
    """
    hidden = mask[..., None].float()  # (B, N, 1)
    values = logits.float() * hidden
    between, within = (
        (values - values.sum(dim, keepdim=True) / hidden.sum(dim, keepdim=True).clamp(min=1))
        * hidden
        for dim in (0, 1)
    )
    return Spread(_share(between, values), _share(within, values))


def position_use(tokens: Tensor, exchanged: Tensor) -> float:
    """How much the encoder's tokens of visible patches change when these change places.

    It is 0 where the encoder cannot tell positions apart: each token then moves with its patch.

    Args:
        tokens: (B, K, D), of the visible patches in raster order.
        exchanged: the same after `exchange_visible`.

    Returns:
        The mean square of the change of a patch's token over that of the tokens.
    """
    return _share(exchanged.flip(1) - tokens, tokens)


def exchange_visible(pixel_values: Tensor, mask: Tensor, patch_size: int | Sequence[int]) -> Tensor:
    """The visible patches in reverse order, the last one in the first's place: (B, C, H, W), bool
    (B, N) -> (B, C, H, W).
    """
    patch_size = as_pair(patch_size)
    height, width = pixel_values.shape[-2:]
    patches = patchify(pixel_values, patch_size)  # (B, N, P)
    moved = patches.clone()
    for image, visible in enumerate(~mask):
        moved[image, visible] = patches[image, visible].flip(0)
    return unpatchify(moved, patch_size, grid_size((height, width), patch_size))


def interpolation_baseline(
    pixel_values: Tensor, mask: Tensor, patch_size: int | Sequence[int], norm_pix_loss: bool
) -> float:
    """The masked error of painting each hidden patch in a colour that lies between those of the
    visible ones.

    The colour of a patch is the mean of its targets over its pixels, for each channel; the targets
    are normalised first with `norm_pix_loss`. Hidden patch i gets sum_j w_ij c_j / sum_j w_ij over
    the visible patches j of its image, where c_j is the colour of j and w_ij the distance between
    the centres of i and j, in pixels, to the power of -3. With nothing visible it gets 0.

    Interpolating whole patches, pixel by pixel, is a weaker rule: its error at emoji in patches of
    4 to 16 is higher by 5 to 20 %.

    Args:
        pixel_values: (B, C, H, W), normalised.
        mask: bool (B, N), True = hidden.
        norm_pix_loss: what the model's targets are.
    """
    patch_size = as_pair(patch_size)
    height, width = pixel_values.shape[-2:]
    targets = pixel_targets(pixel_values, patch_size, norm_pix_loss)  # (B, N, P)
    num_pixels = patch_size[0] * patch_size[1]
    colors = targets.unflatten(2, (num_pixels, -1)).mean(dim=2)  # (B, N, C)
    distances = patch_distances(grid_size((height, width), patch_size), patch_size)  # (N, N)
    weights = distances.fill_diagonal_(torch.inf).to(targets.device) ** -DISTANCE_POWER
    visible = (~mask).float()[..., None]  # (B, N, 1)
    total = weights @ visible  # (B, N, 1)
    predicted = weights @ (colors * visible) / total.where(total > 0, 1.0)  # (B, N, C)
    return masked_pixel_loss(predicted.repeat(1, 1, num_pixels), targets, mask).item()


def patch_distances(grid: tuple[int, int], patch_size: int | Sequence[int]) -> Tensor:
    """Pixels between the centres of patches: (h, w), (p_h, p_w) -> (N, N)."""
    sides = [torch.arange(n) * p for n, p in zip(grid, as_pair(patch_size), strict=True)]
    centres = torch.cartesian_prod(*sides).float()  # (N, 2)
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(
    weights: Tensor, grid: tuple[int, int], patch_size: int | Sequence[int]
) -> Tensor:
    """How far patches look: (B, heads, 1 + N, 1 + N) -> pixels, (B, heads).

    The mean over patches of the distance from a patch's centre to those that it attends
    to, itself among them, weighted by the attention. CLS is left out and the rest sums to one again
    (as in arXiv:2010.11929, appendix D.7).
    """
    weights = weights[..., 1:, 1:].float()  # (B, heads, N, N)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo().tiny)
    distances = patch_distances(grid, patch_size).to(weights.device)
    return (weights * distances).sum(dim=-1).mean(dim=-1)


def _heads(values: Tensor, head_dim: int) -> Tensor:
    """(B, L, D) -> (B, heads, L, d)."""
    return values.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _share(part: Tensor, whole: Tensor) -> float:
    """The sum of squares of a part over that of the whole; 0 of nothing."""
    total = whole.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return (part.square().sum() / total).item()
