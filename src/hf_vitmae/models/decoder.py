"""The MAE decoder (arXiv:2111.06377): visible and mask tokens -> the pixels of every patch."""

import torch
from torch import Tensor, nn

from .configuration_vitmae import VitMaeConfig
from .embeddings import PositionTable
from .layers import BlockStack, make_attention_mask, with_cls
from .masking import gather_tokens


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
        ids_restore: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        padding: Tensor | None = None,
    ) -> Tensor:
        """(B, 1 + K, D), (B, N), bool (B, N) -> (B, N, P).

        Args:
            padding: bool (B, N), True = holds no data: a mask token, kept out of attention.
        """
        gaps = mask if padding is None else mask | padding
        tokens = self.insert_mask_tokens(self.embed(latent), ids_restore, gaps)  # (B, 1 + N, D')
        tokens = tokens + self.positions(grid)
        attention_mask = None
        if padding is not None:
            is_data = with_cls(~padding)  # (B, 1 + N)
            attention_mask = make_attention_mask(self.config, tokens, is_data)
        tokens, _, _ = self.layers(tokens, attention_mask)
        return self.predict(self.layernorm(tokens[:, 1:]))  # (B, N, P)

    def insert_mask_tokens(self, tokens: Tensor, ids_restore: Tensor, mask: Tensor) -> Tensor:
        """Back to raster order with mask tokens in the gaps: (B, 1 + K, D') -> (B, 1 + N, D').

        The mask decides, not K: where images hide different numbers of patches, an image's tokens
        beyond its own visible ones are padding and become mask tokens too.
        """
        cls, visible = tokens[:, :1], tokens[:, 1:]
        num_hidden = ids_restore.shape[1] - visible.shape[1]
        gaps = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], num_hidden, -1)
        patches = gather_tokens(torch.cat([visible, gaps], dim=1), ids_restore)  # (B, N, D')
        patches = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), patches)
        return torch.cat([cls, patches], dim=1)
