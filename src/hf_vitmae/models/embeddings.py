"""Patch projection or hybrid stem, CLS token and two-dimensional positions (arXiv:2010.11929;
sin-cos as in arXiv:2111.06377).

A position table has a row for the CLS token and one for each patch in raster order. The sin-cos
table holds the column's part first and the row's second, and zeros for CLS: released MAE weights
rely on that.
"""

import torch
from torch import Tensor, nn

from .configuration_vitmae import VitMaeConfig
from .masking import PatchOrder, gather_tokens, over_pixels
from .patches import grid_size, patchify, unpatchify
from .stem import HybridStem


def sincos_positions(
    grid: tuple[int, int], hidden_size: int, device: torch.device | None = None
) -> Tensor:
    """The fixed 2-D sin-cos table for a grid (h, w): -> float32 (1, 1 + h*w, D).

    Computed on the CPU: not every device has float64, and the table is then the same on all of
    them.
    """
    rows, columns = grid
    frequencies = torch.arange(hidden_size // 4, dtype=torch.float64, device="cpu")
    frequencies = 10000.0 ** (-frequencies / (hidden_size // 4))  # (D/4,)
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64, device="cpu"),
        torch.arange(columns, dtype=torch.float64, device="cpu"),
        indexing="ij",
    )
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]  # two of (N, D/4)
    patches = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    cls = patches.new_zeros(1, hidden_size)
    return torch.cat([cls, patches]).float()[None].to(device=device)


def resize_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Bicubic resize of the patch rows in both directions: (1, 1 + h*w, D) -> (1, 1 + h'*w', D)."""
    if grid == new_grid:
        return table
    patches = table[:, 1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    patches = nn.functional.interpolate(
        patches.float(), size=new_grid, mode="bicubic", align_corners=False
    )
    patches = patches.flatten(2).transpose(1, 2).to(table.dtype)  # (1, h'*w', D)
    return torch.cat([table[:, :1], patches], dim=1)


class PositionTable(nn.Module):
    """Common to embeddings and decoder: `position_embeddings`, its start values and its resizing.

    A learned table is a parameter; a fixed one is a buffer, because `from_pretrained` makes every
    parameter trainable.
    """

    position_embeddings: Tensor

    def __init__(self, config: VitMaeConfig, hidden_size: int) -> None:
        super().__init__()
        self.grid = config.grid
        self.is_learned = config.position_embedding == "learned"
        table = torch.empty(1, 1 + config.num_patches, hidden_size)
        if self.is_learned:
            self.position_embeddings = nn.Parameter(table)
        else:
            self.register_buffer("position_embeddings", table)

    def initial_positions(self) -> Tensor:
        """What a fresh table holds, learned or not: (1, 1 + N, D)."""
        table = self.position_embeddings
        return sincos_positions(self.grid, table.shape[-1], table.device)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The table for a grid: sin-cos recomputed exactly, learned resized: -> (1, 1 + h*w, D)."""
        table = self.position_embeddings
        if grid == self.grid:
            return table
        if self.is_learned:
            return resize_positions(table, self.grid, grid)
        return sincos_positions(grid, table.shape[-1], table.device).to(table.dtype)

    def positions_of(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """The rows of the CLS token and of some patches of a grid: (B, K) -> (B, 1 + K, D)."""
        rows = nn.functional.pad(patches + 1, (1, 0))  # CLS has the first
        return nn.functional.embedding(rows, self.positions(grid)[0])


class PatchEmbeddings(nn.Module):
    """Linear projection of patches, written as the convolution that it equals.

    With a hybrid stem (arXiv:2010.11929, section 3.1) patches are cut from its feature map. A
    convolution sees beyond the patch, so what may not be seen is erased from the image first, and a
    causal model puts every patch through the stem by itself.
    """

    def __init__(self, config: VitMaeConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_pair
        self.stem = None if config.stem_depths is None else HybridStem(config)
        channels = config.num_channels if self.stem is None else self.stem.out_channels
        kernel = (
            self.patch_size[0] // config.stem_stride,
            self.patch_size[1] // config.stem_stride,
        )
        self.projection = nn.Conv2d(channels, config.hidden_size, kernel_size=kernel, stride=kernel)

    def forward(
        self, pixel_values: Tensor, unseen: Tensor | None = None, one_by_one: bool = False
    ) -> Tensor:
        """(B, C, H, W) -> (B, N, D).

        Args:
            unseen: bool (B, N), True = no other patch may be influenced by this one.
            one_by_one: no patch may be influenced by another.
        """
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        if self.stem is None:
            return self.projection(pixel_values).flatten(2).transpose(1, 2)
        batch, channels, height, width = pixel_values.shape
        grid = grid_size((height, width), self.patch_size)
        if unseen is not None:
            erased = over_pixels(unseen, grid, self.patch_size)[:, None]  # (B, 1, H, W)
            pixel_values = pixel_values.masked_fill(erased, 0.0)  # mid-gray after normalisation
        if one_by_one:
            patches = patchify(pixel_values, self.patch_size).reshape(
                batch * grid[0] * grid[1], 1, -1
            )
            patches = unpatchify(patches, self.patch_size)  # (B * N, C, p_h, p_w)
            return self.projection(self.stem(patches)).reshape(batch, grid[0] * grid[1], -1)
        return self.projection(self.stem(pixel_values)).flatten(2).transpose(1, 2)

    def visible(self, pixel_values: Tensor, order: PatchOrder, one_by_one: bool = False) -> Tensor:
        """Only the patches that the encoder reads, in its order: (B, C, H, W) -> (B, K, D)."""
        if self.stem is not None or order.num_visible == order.mask.shape[1]:
            return gather_tokens(self(pixel_values, order.mask, one_by_one), order.visible)
        pixels = gather_tokens(patchify(pixel_values, self.patch_size), order.visible)  # (B, K, P)
        weight = self.projection.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P)
        return nn.functional.linear(pixels.to(weight.dtype), weight, self.projection.bias)


class Embeddings(PositionTable):
    """Patches to tokens: [CLS | patches], positions added before any patch is hidden."""

    def __init__(self, config: VitMaeConfig) -> None:
        super().__init__(config, config.hidden_size)
        self.image_size = config.image_pair
        self.patch_size = config.patch_pair
        self.num_channels = config.num_channels
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def check_images(self, pixel_values: Tensor) -> None:
        """Raise `ValueError` if these are no images of any size for the model."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` must be (batch, {self.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be normalised floating point numbers, got "
                f"{pixel_values.dtype}; pass the images through the image processor."
            )

    def input_grid(self, pixel_values: Tensor, interpolate_pos_encoding: bool) -> tuple[int, int]:
        """The grid (h, w) of the input.

        Raises:
            ValueError: if the images do not fit the model; the message names what they are and what
            fits.
        """
        self.check_images(pixel_values)
        size = (pixel_values.shape[2], pixel_values.shape[3])
        if size != self.image_size and not interpolate_pos_encoding:
            raise ValueError(
                f"Images of {size[0]}x{size[1]} pixels (height x width) do not fit a model for "
                f"{self.image_size[0]}x{self.image_size[1]}; resize them, or pass "
                "`interpolate_pos_encoding=True`."
            )
        return grid_size(size, self.patch_size)

    def forward(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        order: PatchOrder | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Embedded patches (B, N, D) -> (B, 1 + N, D), or the visible ones of an order (B, K, D) ->
        (B, 1 + K, D).

        Padding has its position alone, so that nothing of a hidden patch or of one without data, be
        it NaN, gets past here.
        """
        if order is None:
            gaps, positions = padding, self.positions(grid)
        else:
            gaps = None if order.is_visible is None else ~order.is_visible
            positions = self.positions_of(order.visible, grid)
        if gaps is not None:
            patches = patches.masked_fill(gaps[..., None], 0.0)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.dropout(tokens + positions)
