"""The position table of another library's checkpoint, with a row for the class token."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_vitmae.models.embeddings import sincos_positions
from hf_vitmae.models.patches import as_pair, grid_size

FIXED_TOLERANCE = 1e-6


def complete_positions(
    table: Tensor, fields: Mapping[str, Any], said: list[str]
) -> tuple[Tensor, str]:
    """A table (1, N, D) or (1, 1 + N, D) -> (1, 1 + N, D), and which kind of table it is.

    Args:
        fields: of a `VitMaeConfig`: its `image_size` and `patch_size`.
        said: takes a line, if the class token has no position of its own.
    """
    grid = grid_size(as_pair(fields["image_size"]), as_pair(fields["patch_size"]))
    if table.shape[1] == grid[0] * grid[1]:
        table = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        said.append("Its class token has no position; here it has one of zeros.")
    return table, "sincos" if is_fixed(table, grid) else "learned"


def is_fixed(table: Tensor, grid: tuple[int, int]) -> bool:
    """Whether a table (1, 1 + N, D) is the sin-cos one; a trained one is not, by far."""
    fixed = sincos_positions(grid, table.shape[-1])
    return fixed.shape == table.shape and bool(
        ((table.float() - fixed).abs() <= FIXED_TOLERANCE).all()
    )
