"""What an encoder knows of places: each position compared with all others.

As the right part of figure 7 of arXiv:2010.11929. Shapes: see `patches.py`.
"""

from typing import cast

import numpy as np
from PIL import Image
from torch import Tensor, nn

from hf_vitmae.models.embeddings import Embeddings
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.visualize.heat import heat_colors
from hf_vitmae.visualize.panel import PanelRow, picture_panel

CELL = 6  # pixels of a position at least, in each of the small maps
WIDTH = 900  # pixels that the map of all positions may have
GUTTER = 2  # between the maps


def position_similarity(model: VitMaePreTrainedModel) -> Tensor:
    """Cosine similarity of every two positions of the table: -> float32 (h, w, h, w)."""
    embeddings = _embeddings(model)
    grid = embeddings.grid
    table = embeddings.positions(grid)[0, 1:].detach().float().cpu()  # (N, D)
    table = nn.functional.normalize(table, dim=1)
    return (table @ table.T).unflatten(1, grid).unflatten(0, grid)


def position_panel(model: VitMaePreTrainedModel) -> Image.Image:
    """A map for each position, in its place: how alike all positions are to it."""
    similarity = position_similarity(model).numpy()  # (h, w, h, w)
    rows, columns = similarity.shape[:2]
    limits = (float(similarity.min()), float(similarity.max()))
    tiles = np.stack([heat_colors(one, limits) for one in similarity.reshape(-1, rows, columns)])
    cell = max(1, min(CELL, (WIDTH // columns - GUTTER) // columns))
    height, width = rows * cell, columns * cell
    page = np.full((rows * (height + GUTTER), columns * (width + GUTTER), 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        y, x = row * (height + GUTTER), column * (width + GUTTER)
        page[y : y + height, x : x + width] = tile.repeat(cell, axis=0).repeat(cell, axis=1)
    kind = "learned" if _embeddings(model).is_learned else "sin-cos, fixed"
    scale = f"cosine similarity: dark {limits[0]:.2f}, bright {limits[1]:.2f}"
    caption = f"{rows} x {columns} positions ({kind})\n{scale}"
    name = "how alike positions are"
    return picture_panel([PanelRow({name: Image.fromarray(page)}, caption)], scale=1)


def _embeddings(model: VitMaePreTrainedModel) -> Embeddings:
    return cast(Embeddings, model.base_model.embeddings)
