"""A masked autoencoder written out slowly from the equations of arXiv:2010.11929 and 2111.06377.

One image, one patch, one head at a time, on a state dict; it shares no code with the package.
Weights are read by name; the rest is in the arguments.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """(L, D) -> (L, D')."""
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """(L, D) -> (L, D): each token to mean 0 and (biased) variance 1, then scale and shift."""
    mean = x.sum(dim=1, keepdim=True) / x.shape[1]
    variance = ((x - mean) ** 2).sum(dim=1, keepdim=True) / x.shape[1]
    return (x - mean) / (variance + eps) ** 0.5 * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """x times the standard normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(state: State, name: str, x: Tensor, num_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head: (L, D) -> (L, D)."""
    query, key, value = (linear(state, f"{name}.{part}_proj", x) for part in "qkv")
    width = x.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        own = slice(head * width, (head + 1) * width)
        scores = (query[:, own] @ key[:, own].T / math.sqrt(width)).exp()  # (L, L)
        heads.append(scores / scores.sum(dim=1, keepdim=True) @ value[:, own])
    return linear(state, f"{name}.o_proj", torch.cat(heads, dim=1))


def blocks(state: State, name: str, x: Tensor, num_heads: int, eps: float) -> Tensor:
    """Every pre-norm block that the state dict has under the name: (L, D) -> (L, D)."""
    depth = 0
    while f"{name}.{depth}.mlp.fc1.weight" in state:
        block = f"{name}.{depth}"
        normed = layer_norm(state, f"{block}.layernorm_before", x, eps)
        x = x + attention(state, f"{block}.attention", normed, num_heads)
        normed = layer_norm(state, f"{block}.layernorm_after", x, eps)
        x = x + linear(state, f"{block}.mlp.fc2", gelu(linear(state, f"{block}.mlp.fc1", normed)))
        depth += 1
    return x


def cut(image: Tensor, patch: tuple[int, int]) -> list[Tensor]:
    """(C, H, W) -> patches (C, p_h, p_w), left to right, then top to bottom."""
    (_, height, width), (patch_height, patch_width) = image.shape, patch
    return [
        image[:, top : top + patch_height, left : left + patch_width]
        for top in range(0, height, patch_height)
        for left in range(0, width, patch_width)
    ]


def target(patch: Tensor, norm_pix_loss: bool) -> Tensor:
    """(C, p_h, p_w) -> (P,) in (p_h, p_w, C) order, normalised by its own statistics if asked."""
    channels, height, width = patch.shape
    pixels = [patch[c, y, x] for y in range(height) for x in range(width) for c in range(channels)]
    values = torch.stack(pixels)
    if not norm_pix_loss:
        return values
    mean = values.sum() / len(values)
    variance = ((values - mean) ** 2).sum() / (len(values) - 1)
    return (values - mean) / (variance + 1e-6) ** 0.5


def encode(
    state: State, patches: list[Tensor], visible: list[int], num_heads: int, eps: float
) -> Tensor:
    """CLS and the visible patches, in the order given: -> (1 + K, D)."""
    positions = state["vit.embeddings.position_embeddings"][0]
    weight = state["vit.embeddings.patch_embeddings.projection.weight"].flatten(1)  # (D, C*p_h*p_w)
    bias = state["vit.embeddings.patch_embeddings.projection.bias"]
    tokens = [state["vit.embeddings.cls_token"][0, 0] + positions[0]]
    tokens += [weight @ patches[n].flatten() + bias + positions[1 + n] for n in visible]
    x = blocks(state, "vit.layers", torch.stack(tokens), num_heads, eps)
    return layer_norm(state, "vit.layernorm", x, eps)


def decode(
    state: State, latent: Tensor, visible: list[int], num_patches: int, num_heads: int, eps: float
) -> Tensor:
    """The latent tokens at their places and the mask token at all others: (1 + K, D) -> (N, P)."""
    embedded = linear(state, "decoder.embed", latent)
    tokens = [embedded[0]]
    for n in range(num_patches):
        seen = n in visible
        tokens.append(embedded[1 + visible.index(n)] if seen else state["decoder.mask_token"][0, 0])
    x = torch.stack(tokens) + state["decoder.position_embeddings"][0]
    x = blocks(state, "decoder.layers", x, num_heads, eps)
    return linear(state, "decoder.predict", layer_norm(state, "decoder.layernorm", x[1:], eps))


def masked_autoencoder(
    state: State,
    pixel_values: Tensor,
    noise: Tensor,
    *,
    patch: tuple[int, int],
    mask_ratio: float,
    norm_pix_loss: bool,
    num_heads: int,
    decoder_num_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Loss and predictions of a batch: (B, C, H, W), (B, N) -> (), (B, N, P)."""
    predictions, errors = [], []
    for image, values in zip(pixel_values, noise, strict=True):
        patches = cut(image, patch)
        ranked = sorted(range(len(patches)), key=lambda n, values=values: float(values[n]))
        visible = ranked[: int(len(patches) * (1 - mask_ratio))]
        latent = encode(state, patches, visible, num_heads, eps)
        predicted = decode(state, latent, visible, len(patches), decoder_num_heads, eps)
        for n in set(range(len(patches))) - set(visible):
            errors.append(((predicted[n] - target(patches[n], norm_pix_loss)) ** 2).mean())
        predictions.append(predicted)
    return torch.stack(errors).mean(), torch.stack(predictions)
