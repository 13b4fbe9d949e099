"""Attention written with matrix products, for bfloat16 on a CPU, where torch's fused attention is
several times slower in the backward pass.

Like fused attention it keeps only queries, keys and values, and computes the weights again; images
go through in groups whose weights stay in the cache.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Products of a call, in training and in inference; with fewer the way there costs more.
FEWEST_IN_TRAINING, FEWEST_IN_INFERENCE = 2**16, 2**22
WEIGHTS_OF_A_GROUP = 2**20  # attention weights at once, 2 MiB of bfloat16


def suits_matmul(query: Tensor, key: Tensor) -> bool:
    """Whether `matmul_attention` is the faster one for (B, heads, Q, d), (B, heads, L, d), and can
    be used here.
    """
    fewest = FEWEST_IN_TRAINING if torch.is_grad_enabled() else FEWEST_IN_INFERENCE
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.numel() * key.shape[2] >= fewest
        and not torch.compiler.is_compiling()
    )


def matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention without a mask: (B, heads, Q, d), (B, heads, L, d) twice -> (B, Q, heads,
    d), and no weights.
    """
    return _MatmulAttention.apply(query * scaling, key, value), None


class _MatmulAttention(torch.autograd.Function):
    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, num_queries, size = query.shape
        context = query.new_empty(batch, num_queries, heads, size)
        with torch.autocast("cpu", enabled=False):
            for group in _groups(query, key):
                weights = _weights(query[group], key[group])
                context[group] = (weights @ value[group]).transpose(1, 2)
        return context

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        query, key, value = ctx.saved_tensors
        gradients = tuple(_heads_inside(tokens) for tokens in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            for group in _groups(query, key):
                asked, answered = query[group].contiguous(), key[group].contiguous()
                arriving = gradient[group].transpose(1, 2).contiguous()  # (G, heads, Q, d)
                with torch.enable_grad():
                    scores = (asked @ answered.transpose(-1, -2)).requires_grad_()
                    weights = scores.softmax(dim=-1)
                of_weights = arriving @ value[group].transpose(-1, -2)
                (of_scores,) = torch.autograd.grad(weights, scores, of_weights)
                gradients[0][group] = of_scores @ answered
                gradients[1][group] = of_scores.transpose(-1, -2) @ asked
                gradients[2][group] = weights.detach().transpose(-1, -2) @ arriving
        return gradients  # type: ignore[return-value]


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2)).softmax(dim=-1)


def _groups(query: Tensor, key: Tensor) -> list[slice]:
    """Images that go together."""
    batch, heads, num_queries, _ = query.shape
    size = max(1, WEIGHTS_OF_A_GROUP // (heads * num_queries * key.shape[2]))
    return [slice(first, first + size) for first in range(0, batch, size)]


def _heads_inside(tokens: Tensor) -> Tensor:
    """Memory for (B, heads, L, d) with a token's heads side by side, as linear layers give them."""
    batch, heads, length, size = tokens.shape
    return tokens.new_empty(batch, length, heads, size).transpose(1, 2)
