"""Dense predictions for images larger than a model: overlapping windows, averaged."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import SemanticSegmenterOutput

from .configuration_vitmae import VitMaeConfig
from .modes import evaluating


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side, the last one flush with the end."""
    return [*range(0, length - window, stride), length - window]


def slide(
    predict: Callable[[Tensor, Tensor | None], Tensor],
    pixel_values: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    patch_size: tuple[int, int],
    batch_size: int,
) -> Tensor:
    """Predict a map for windows of (height, width) pixels and put them together: (B, C, H, W) ->
    (B, classes, h, w).

    Maps are averaged where windows overlap, at the resolution of `predict`, so that a later
    enlargement knows no borders. An image that is no whole number of patches, or smaller than the
    window, is filled up with zeros below and on the right; the map covers them too.

    Args:
        predict: (b, C, *window) and the patches that lie outside the image, bool (b, N) or None ->
            (b, classes, h', w'), a map of the window at any resolution that is the same for all.
        stride: pixels (height, width) from one window to the next, whole patches.
    """
    padding = _outside(pixel_values, window, patch_size)  # (1, h, w) or None
    pixel_values = _fill_up(pixel_values, window, patch_size)
    height, width = pixel_values.shape[2:]
    places = [
        (top, left)
        for top in window_starts(height, window[0], stride[0])
        for left in window_starts(width, window[1], stride[1])
    ]
    crops = [pixel_values[:, :, y : y + window[0], x : x + window[1]] for y, x in places]
    parts = []
    for crop in torch.cat(crops).split(batch_size):
        mask = None if padding is None else padding.expand(len(crop), -1)
        parts.append(predict(crop, mask))
    maps = torch.cat(parts).split(len(pixel_values))
    return _average(maps, places, (height, width), window)


def _average(
    parts: Sequence[Tensor],
    places: Sequence[tuple[int, int]],
    size: tuple[int, int],
    window: tuple[int, int],
) -> Tensor:
    """Maps (B, classes, h', w') of windows at (top, left) in pixels: -> (B, classes, h, w)."""
    batch, classes, rows, columns = parts[0].shape
    height, width = size[0] * rows // window[0], size[1] * columns // window[1]
    total = parts[0].new_zeros(batch, classes, height, width)
    count = total.new_zeros(total.shape[2:])
    for (top, left), part in zip(places, parts, strict=True):
        y, x = top * rows // window[0], left * columns // window[1]
        total[:, :, y : y + rows, x : x + columns] += part
        count[y : y + rows, x : x + columns] += 1
    return total / count


def window_stride(
    stride: int | tuple[int, int] | None, window: tuple[int, int], patch_size: tuple[int, int]
) -> tuple[int, int]:
    """The stride asked for, or about two thirds of the window, as (height, width) in pixels.

    Raises:
        ValueError: if it is not whole patches, or steps over pixels.
    """
    if stride is None:
        sides = zip(window, patch_size, strict=True)
        height, width = (max(patch, 2 * side // 3 // patch * patch) for side, patch in sides)
        return height, width
    height, width = (stride, stride) if isinstance(stride, int) else stride
    sides = zip((height, width), window, patch_size, strict=True)
    if not all(0 < step <= side and step % patch == 0 for step, side, patch in sides):
        raise ValueError(
            f"`stride` must be a whole number of patches of {patch_size[0]}x{patch_size[1]} pixels "
            f"and at most the window of {window[0]}x{window[1]}, got {height}x{width}."
        )
    return height, width


def _fill_up(pixel_values: Tensor, window: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Zeros below and on the right, up to whole patches and at least a window."""
    sides = zip(pixel_values.shape[2:], window, patch_size, strict=True)
    bottom, right = (max(-side % patch, least - side) for side, least, patch in sides)
    return functional.pad(pixel_values, (0, right, 0, bottom))


def _outside(
    pixel_values: Tensor, window: tuple[int, int], patch_size: tuple[int, int]
) -> Tensor | None:
    """The patches of a window that hold nothing of an image smaller than it: -> bool (1, N)."""
    if all(side >= least for side, least in zip(pixel_values.shape[2:], window, strict=True)):
        return None
    rows, columns = (
        torch.arange(0, least, patch, device=pixel_values.device) >= side
        for side, least, patch in zip(pixel_values.shape[2:], window, patch_size, strict=True)
    )
    return (rows[:, None] | columns).flatten()[None]


class SlidingWindowSegmentation:
    """`segment_large` for a model that segments images of one size."""

    config: VitMaeConfig
    vit: Any
    _patch_logits: Callable[..., Tensor]
    _enlarge: Callable[[Tensor], Tensor]

    def segment_large(
        self,
        pixel_values: Tensor,
        stride: int | tuple[int, int] | None = None,
        batch_size: int = 8,
    ) -> SemanticSegmenterOutput:
        """Segment images of any size in windows of the model's own: (B, C, H, W) -> logits (B,
        num_labels, H, W).

        Where windows overlap, their scores are averaged before they are enlarged to pixels.

        Args:
            stride: pixels, or (height, width), from one window to the next: whole patches, by
                default about two thirds of the window.
            batch_size: windows that the model sees at once.

        Raises:
            ValueError: if the images or the stride do not fit.
        """
        self.vit.embeddings.check_images(pixel_values)
        window, patch_size = self.config.image_pair, self.config.patch_pair
        stride = window_stride(stride, window, patch_size)
        with evaluating(self):  # type: ignore[arg-type]
            logits = self._enlarge(
                slide(self._window_logits, pixel_values, window, stride, patch_size, batch_size)
            )
        height, width = pixel_values.shape[2:]
        return SemanticSegmenterOutput(logits=logits[:, :, :height, :width])  # type: ignore[arg-type]

    def _window_logits(self, pixel_values: Tensor, padding: Tensor | None) -> Tensor:
        """(b, C, *window), bool (b, N) -> (b, num_labels, h, w) or a multiple."""
        encoded = self.vit(pixel_values, padding_mask=padding, output_hidden_states=True)
        return self._patch_logits(encoded.hidden_states, self.config.grid)
