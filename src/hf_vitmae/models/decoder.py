"""The MAE decoder (arXiv:2111.06377): visible and mask tokens -> the pixels of every patch."""

import torch
from torch import Tensor, nn

from .configuration_vitmae import VitMaeConfig
from .embeddings import PositionTable
from .layers import BlockStack, make_attention_mask, with_cls
from .masking import PatchOrder


class Decoder(PositionTable):
    """A small transformer over the latent tokens, with a learned token for each hidden patch."""

    def __init__(self, config: VitMaeConfig) -> None:
        width = config.decoder_hidden_size
        patch_height, patch_width = config.patch_pair
        super().__init__(config, width)
        self.config = config
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.layers = BlockStack(
            config,
            config.decoder_num_hidden_layers,
            width,
            config.decoder_num_attention_heads,
            config.decoder_intermediate_size,
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.predict = nn.Linear(width, patch_height * patch_width * config.num_channels)

    def forward(
        self,
        latent: Tensor,
        order: PatchOrder,
        grid: tuple[int, int],
        padding: Tensor | None = None,
        only_hidden: bool = False,
    ) -> Tensor:
        """The patches of an order, in that order: (B, 1 + K, D) -> (B, N, P).

        Attention does not ask where a token stands, so that nothing is put back into raster order
        here: each has its place's position.

        Args:
            padding: bool (B, N), True = holds no data: a mask token, kept out of attention.
            only_hidden: predict those after the first K alone: -> (B, N - K, P).
        """
        tokens = self.insert_mask_tokens(self.embed(latent), order)  # (B, 1 + N, D')
        tokens = tokens + self.positions_of(order.shuffle, grid)
        attention_mask = None
        if padding is not None:
            is_data = with_cls(~padding.gather(1, order.shuffle))  # (B, 1 + N)
            attention_mask = make_attention_mask(self.config, tokens, is_data)
        first = 1 + (order.num_visible if only_hidden else 0)
        tokens, _, _ = self.layers(tokens, attention_mask, queries=slice(first, None))
        return self.predict(self.layernorm(tokens))

    def insert_mask_tokens(self, tokens: Tensor, order: PatchOrder) -> Tensor:
        """A mask token for each patch that the encoder has not read: (B, 1 + K, D') -> (B, 1 + N,
        D').

        Where images hide different numbers of patches, an image's tokens beyond its own visible
        ones are padding and become mask tokens too.
        """
        mask_token = self.mask_token.to(tokens.dtype)
        if order.is_visible is not None:
            tokens = torch.where(with_cls(order.is_visible)[..., None], tokens, mask_token)
        num_others = order.after_visible.shape[1]
        return torch.cat([tokens, mask_token.expand(tokens.shape[0], num_others, -1)], dim=1)
