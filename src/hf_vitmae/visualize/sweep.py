"""The same image with more and more hidden, or with other patterns of masks, side by side."""

from collections.abc import Sequence

from PIL import Image

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.visualize.panel import UNTRAINED_NOTE, PanelRow, picture_panel
from hf_vitmae.visualize.prediction import Statistics
from hf_vitmae.visualize.reconstruction import reconstruct

RATIOS = (0.25, 0.5, 0.75, 0.9)


def mask_sweep(
    model: VitMaeForPreTraining,
    images: ImageLike | Sequence[ImageLike],
    processor: VitMaeImageProcessor | None = None,
    *,
    ratios: Sequence[float] = RATIOS,
    patterns: Sequence[str] = ("random",),
    seed: int = 0,
    statistics: Statistics = "hidden",
    scale: int | None = None,
    interpolate_pos_encoding: bool = False,
) -> Image.Image:
    """Each image as two rows: what the model sees at every ratio, and what it makes of that.

    With one pattern a higher ratio hides the same patches and more.

    Args:
        images: what the processor takes: PIL images, arrays, tensors; one, several or a batch.
        processor: None takes one of the model's geometry with default statistics.
        ratios: shares of the patches to hide.
        patterns: of the masks: random, block or grid; each is drawn with every ratio.
        seed: decides which patches are hidden.
        statistics: for models with `norm_pix_loss`, as in `reconstruct`.
        scale: each pixel becomes scale x scale; by default a small image grows to about 160 pixels.

    Raises:
        ValueError: if the model cannot reconstruct, or an argument does not fit.
    """
    if not ratios or not patterns:
        raise ValueError("A sweep needs one ratio and one pattern at least.")
    found = {
        f"{pattern} {ratio:.0%}": reconstruct(
            model,
            images,
            processor,
            mask_ratio=ratio,
            pattern=pattern,
            seed=seed,
            statistics=statistics,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )
        for pattern in patterns
        for ratio in ratios
    }
    rows = []
    for number, first in enumerate(next(iter(found.values()))):
        items = {name: drawn[number] for name, drawn in found.items()}
        errors = ", ".join(f"{item.error:.3f}" for item in items.values())
        masked = {name: item.masked for name, item in items.items()}
        pasted = {name: item.pasted for name, item in items.items()}
        rows.append(PanelRow({"input": first.input, **masked}, ""))
        rows.append(PanelRow({"input": first.input, **pasted}, f"mean squared error {errors}"))
    notes = dict.fromkeys(item.statistics for drawn in found.values() for item in drawn)
    footer = [f"hidden patches as predicted ({note})" for note in notes]
    return picture_panel(rows, [*footer, UNTRAINED_NOTE], scale=scale)
