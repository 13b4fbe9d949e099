"""Next patch prediction: prefixes, what a patch is predicted from, and continuing an image patch
by patch in raster order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from .configuration_vitmae import VitMaeConfig
from .layers import make_attention_mask, with_cls
from .masking import gather_tokens
from .modes import evaluating
from .patches import denormalize_patches, patch_statistics, patchify, unpatchify


def prefix_lengths(
    num_prefix_patches: int | Tensor, batch: int, num_patches: int, device: torch.device
) -> Tensor:
    """One length for all images, or one each, as int64 (B,).

    Raises:
        ValueError: if a length is not from 0 to N, or they are not one or B.
    """
    lengths = torch.as_tensor(num_prefix_patches, device=device)
    allowed = not lengths.is_floating_point() and lengths.shape in ((), (batch,))
    if not allowed or not _are_within(num_prefix_patches, num_patches):
        got = lengths.tolist() if allowed else f"{lengths.dtype} {tuple(lengths.shape)}"
        raise ValueError(
            f"`num_prefix_patches` must be 0 to {num_patches}, one whole number or ({batch},) of "
            f"them, got {got}."
        )
    return lengths.expand(batch)


def _are_within(lengths: int | Tensor, num_patches: int) -> bool:
    if not isinstance(lengths, Tensor):
        return 0 <= lengths <= num_patches
    if torch.compiler.is_compiling():  # no values to look at while a graph is made
        return True
    return bool(lengths.min() >= 0 and lengths.max() <= num_patches)


def newest_tokens(tokens: Tensor, padding: Tensor | None) -> Tensor:
    """What each patch is predicted from, the last token with data before it: (B, 1 + N, D) -> (B,
    N, D).
    """
    if padding is not None:
        is_data = with_cls(~padding)  # (B, 1 + N)
        places = torch.arange(is_data.shape[1], device=is_data.device) * is_data
        tokens = gather_tokens(tokens, places.cummax(dim=1).values)
    return tokens[:, :-1]


class NextPatchGeneration:
    """`generate` for a model with an encoder `vit` and a `next_patch_head`."""

    config: VitMaeConfig
    vit: Any
    next_patch_head: nn.Module

    def generate(
        self,
        pixel_values: Tensor,
        num_given_patches: int | None = None,
        *,
        bidirectional_prefix: bool = False,
        use_cache: bool = True,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        """Keep the first patches of images and predict the others: (B, C, H, W) -> (B, C, H, W).

        Each predicted patch is fed back in. With `norm_pix_loss` a prediction has no mean and
        contrast of its own, and takes those of the patch above it (in the first row, on its left).

        Args:
            pixel_values: (B, C, H, W), normalised; what lies after the given patches is not read.
            num_given_patches: how many to keep; by default the upper half of the rows.
            bidirectional_prefix: the given patches attend to each other both ways; for models that
                were trained so.
            use_cache: keep keys and values of earlier patches; the same result in less time.
            interpolate_pos_encoding: accept images of another size than the model's.

        Raises:
            ValueError: if the images do not fit, or there is no patch to keep or to predict.
        """
        grid = self.vit.embeddings.input_grid(pixel_values, interpolate_pos_encoding)
        num_given, columns = self._num_given(num_given_patches, grid), grid[1]
        patches = patchify(pixel_values, self.config.patch_pair).clone()  # (B, N, P)
        patches[:, num_given:] = 0
        cache = DynamicCache() if use_cache else None
        num_prefix = num_given if bidirectional_prefix else 0
        with evaluating(self):  # type: ignore[arg-type]
            for place in range(num_given, patches.shape[1]):
                predicted = self._predict(patches, grid, place, num_prefix, cache)  # (B, P)
                if self.config.norm_pix_loss:
                    neighbour = place - columns if place >= columns else place - 1
                    statistics = patch_statistics(patches[:, neighbour])  # (B, 1) each
                    predicted = denormalize_patches(predicted, *statistics)
                patches[:, place] = predicted
        return unpatchify(patches, self.config.patch_pair, grid)

    def _num_given(self, asked: int | None, grid: tuple[int, int]) -> int:
        rows, columns = grid
        given = (rows + 1) // 2 * columns if asked is None else asked
        least = 1 if self.config.norm_pix_loss else 0
        if not least <= given < rows * columns:
            raise ValueError(
                f"`num_given_patches` must be at least {least} and below {rows * columns}, the "
                f"patches of the image, got {given}."
            )
        return given

    def _predict(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        place: int,
        num_prefix: int,
        cache: Cache | None,
    ) -> Tensor:
        """One patch from all before it, of which the cache may have all but the newest: (B, N, P)
        -> (B, P).
        """
        if cache is None or cache.get_seq_length() == 0:
            return self._predict_last(self._embed(patches, grid)[:, : 1 + place], num_prefix, cache)
        newest = unpatchify(patches[:, place - 1 : place], self.config.patch_pair)
        token = self.vit.embeddings.patch_embeddings(newest, one_by_one=True)  # (B, 1, D)
        token = token + self.vit.embeddings.positions(grid)[:, place : place + 1]
        return self._predict_last(token, 0, cache)

    def _embed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """All patches as tokens: (B, N, P) -> (B, 1 + N, D)."""
        images = unpatchify(patches, self.config.patch_pair, grid)
        return self.vit.embeddings(
            self.vit.embeddings.patch_embeddings(images, one_by_one=True), grid
        )

    def _predict_last(self, tokens: Tensor, num_prefix: int, cache: Cache | None) -> Tensor:
        """What follows the last token: (B, L, D) -> (B, P)."""
        prefix = None
        if num_prefix:
            prefix = torch.full((len(tokens),), num_prefix, device=tokens.device)
        mask = make_attention_mask(self.config, tokens, None, is_causal=True, num_prefix=prefix)
        hidden, _, _ = self.vit.layers(tokens, mask, is_causal=True, cache=cache)
        return self.next_patch_head(self.vit.layernorm(hidden[:, -1:]))[:, 0]
