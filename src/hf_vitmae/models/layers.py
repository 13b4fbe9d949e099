"""Transformer blocks: attention, MLP, layer scale, drop path, and a stack of pre-norm blocks
(arXiv:2010.11929).

Encoder and decoder are both a `BlockStack`. Shapes: (B, L, D) in, (B, L, D) out.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .configuration_vitmae import VitMaeConfig
from .matmul_attention import matmul_attention, suits_matmul
from .onednn_linear import linear

logger = logging.get_logger(__name__)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out: (B, heads, L, d) three times -> (B, L, heads, d), weights (B,
    heads, L, L).

    `attention_mask` is boolean with True = attend, or added to the scores as transformers' mask
    functions for "eager" make it; `is_causal` counts without a mask and for several queries only.
    """
    scores = query @ key.transpose(-1, -2) * scaling  # (B, heads, L, L)
    if is_causal and attention_mask is None and query.shape[2] > 1:
        attention_mask = causal_mask(query.shape[2], device=query.device)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2), weights


def causal_mask(
    length: int, num_prefix: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """Each token attends to itself and those before it: -> bool (1 or B, 1, L, L), True = attend.

    The CLS token and the first `num_prefix` (B,) patches attend to each other both ways.
    """
    places = torch.arange(length, device=device)
    attend = (places <= places[:, None])[None]  # (1, L queries, L keys)
    if num_prefix is not None:
        attend = attend | (places <= num_prefix[:, None])[:, None]  # (B, L, L)
    return attend[:, None]


def make_attention_mask(
    config: VitMaeConfig,
    tokens: Tensor,
    is_data: Tensor | None,
    *,
    is_causal: bool = False,
    num_prefix: Tensor | None = None,
    for_eager: bool = False,
) -> Tensor | None:
    """What keeps padding, and under causal attention later tokens, out of attention.

    None, where nothing does or `is_causal` says it all; else what the attention implementation
    takes.

    Args:
        tokens: (B, L, D).
        is_data: bool (B, L), False = padding.
        for_eager: eager attention computes this call, whatever the implementation.

    Raises:
        ValueError: if the implementation cannot attend like that.
    """
    if is_causal:
        is_plain = is_data is None and num_prefix is None
        _check_causal(config._attn_implementation or "eager", is_plain)
        if is_plain:
            return None
        attend = causal_mask(tokens.shape[1], num_prefix, tokens.device)  # (1 or B, 1, L, L)
        return attend if is_data is None else attend & is_data[:, None, None]
    if is_data is None:
        return None
    if for_eager:
        return is_data[:, None, None]  # (B, 1, 1, L)
    return create_bidirectional_mask(config=config, inputs_embeds=tokens, attention_mask=is_data)


def with_cls(is_data: Tensor) -> Tensor:
    """The CLS token before patches, and always data: bool (B, K) -> (B, 1 + K)."""
    return torch.cat([is_data.new_ones(is_data.shape[0], 1), is_data], dim=1)


def _check_causal(implementation: str, is_plain: bool) -> None:
    if implementation in ("eager", "sdpa") or (is_plain and "flash" in implementation):
        return
    what = "Causal attention" if is_plain else "Causal attention with a prefix or padding"
    raise ValueError(
        f"{what} does not run on `{implementation}`; load the model with "
        'attn_implementation="sdpa".'
    )


class Attention(nn.Module):
    """Multi-head self-attention through transformers' attention interface."""

    def __init__(
        self, config: VitMaeConfig, hidden_size: int, num_heads: int, layer_index: int
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool,
        is_causal: bool = False,
        cache: Cache | None = None,
        queries: slice | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) -> (B, Q, D), weights (B, heads, Q, L) where asked for.

        Args:
            cache: keys and values of the tokens before these; it takes in those of these.
            queries: which Q tokens attend to all; all of them by default.
        """
        query = self._heads(
            linear(self.q_proj, _picked(hidden_states, queries))
        )  # (B, heads, Q, d)
        key = self._heads(linear(self.k_proj, hidden_states))  # (B, heads, L, d)
        value = self._heads(linear(self.v_proj, hidden_states))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        dropout = self.dropout if self.training else 0.0
        is_plain = attention_mask is None and not is_causal and dropout == 0.0
        attend = self._attention(output_attentions, is_plain and suits_matmul(query, key))
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=dropout,
            is_causal=is_causal,
        )
        context = context.flatten(2)  # (B, Q, D)
        return linear(self.o_proj, context), weights if output_attentions else None

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, heads, L, d)."""
        return tokens.view(*tokens.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _attention(
        self, output_attentions: bool, with_matmul: bool
    ) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """What computes this call."""
        implementation = self.config._attn_implementation or "eager"
        if output_attentions and implementation != "eager":
            logger.warning_once(
                f"The `{implementation}` attention keeps no weights; with `output_attentions=True` "
                "this call computes eager attention instead."
            )
            return eager_attention
        if implementation == "sdpa" and with_matmul:
            return matmul_attention
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)


class MLP(nn.Module):
    """Two linear layers with an activation between them: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: VitMaeConfig, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor, can_recompute: bool = True) -> Tensor:
        """With `config.recompute_activations` the backward pass computes the activations again."""
        inner = linear(self.fc1, hidden_states)
        activated = self.activation(inner)
        can_recompute = can_recompute and torch.is_grad_enabled()
        can_recompute = can_recompute and not torch.compiler.is_compiling()  # which does it itself
        if not (can_recompute and self.config.recompute_activations):
            return linear(self.fc2, activated)
        with computed_again(activated, lambda: self.activation(inner.detach())):
            return linear(self.fc2, activated)


def computed_again(tensor: Tensor, compute: Callable[[], Tensor]) -> AbstractContextManager[object]:
    """Within it, autograd keeps `compute` in place of `tensor`, whose value it must give again."""
    kept = (tensor.data_ptr(), tensor.numel(), tensor.dtype)

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        is_kept = (saved.data_ptr(), saved.numel(), saved.dtype) == kept
        return (saved.shape, saved.stride()) if is_kept else saved

    def unpack(saved: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return compute().as_strided(*saved)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class LayerScale(nn.Module):
    """A learned scale per channel (arXiv:2103.17239): (B, L, D) -> (B, L, D)."""

    def __init__(self, hidden_size: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((hidden_size,), initial))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): drop a sample's whole branch, scale up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return hidden_states
        keep = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.rate)
        return hidden_states * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Block(GradientCheckpointingLayer):
    """One pre-norm transformer block."""

    def __init__(
        self,
        config: VitMaeConfig,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        drop_path_rate: float,
        layer_index: int = 0,
    ) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, hidden_size, num_heads, layer_index)
        self.layer_scale1 = _layer_scale(config, hidden_size)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config, hidden_size, intermediate_size)
        self.layer_scale2 = _layer_scale(config, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        is_causal: bool = False,
        cache: Cache | None = None,
        queries: slice | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) -> (B, Q, D), weights (B, heads, Q, L) where asked for."""
        normed = self.layernorm_before(hidden_states)
        attended, weights = self.attention(
            normed, attention_mask, output_attentions, is_causal, cache, queries
        )
        attended = self._dropped(attended, self.layer_scale1)
        hidden_states = _picked(hidden_states, queries) + attended
        # Checkpointing keeps nothing of a block, and hooks within it would.
        normed = self.layernorm_after(hidden_states)
        branch = self.mlp(normed, can_recompute=not self.gradient_checkpointing)
        return hidden_states + self._dropped(branch, self.layer_scale2), weights

    def _dropped(self, branch: Tensor, scale: nn.Module) -> Tensor:
        """What a branch adds to the tokens; without training nothing is called for nothing, which
        is time that small models notice.
        """
        if not self.training:
            return scale(branch)
        return self.drop_path(scale(self.dropout(branch)))


def _layer_scale(config: VitMaeConfig, hidden_size: int) -> nn.Module:
    if config.layer_scale_init_value is None:
        return nn.Identity()
    return LayerScale(hidden_size, config.layer_scale_init_value)


def _picked(tokens: Tensor, places: slice | None) -> Tensor:
    """(B, L, D) -> (B, Q, D); a slice of all would cost a copy of the gradient."""
    return tokens if places is None else tokens[:, places].contiguous()


class BlockStack(nn.ModuleList):
    """Blocks one after another; a list, so that parameters are named as in transformers' ViT."""

    def __init__(
        self,
        config: VitMaeConfig,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
    ) -> None:
        last = max(num_layers - 1, 1)
        super().__init__(
            Block(
                config,
                hidden_size,
                num_heads,
                intermediate_size,
                drop_path_rate * depth / last,
                layer_index=depth,
            )
            for depth in range(num_layers)
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        is_causal: bool = False,
        cache: Cache | None = None,
        queries: slice | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Run every block: (B, L, D) -> (B, Q, D), and where asked for the states and weights.

        The states are the input and the output of every block (num_layers + 1 of them), before any
        last norm.

        Args:
            queries: which Q tokens to return; without a mask the last block computes them alone.
        """
        can_ask_few = attention_mask is None and not is_causal
        states = (hidden_states,) if output_hidden_states else None
        attentions = () if output_attentions else None
        for depth, block in enumerate(self):
            asking = queries if can_ask_few and depth == len(self) - 1 else None
            hidden_states, weights = block(
                hidden_states, attention_mask, output_attentions, is_causal, cache, asking
            )
            if states is not None:
                states += (hidden_states,)
            if attentions is not None:
                attentions += (weights,)
        if not can_ask_few:
            hidden_states = _picked(hidden_states, queries)
        return hidden_states, states, attentions
