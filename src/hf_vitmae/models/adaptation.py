"""Weights of one geometry for another: image size, patch size and number of channels.

The patch projection is resampled with the pseudo-inverse of FlexiViT (arXiv:2212.08013), position
tables are recomputed or resized in two dimensions, and pixel predictions are resized as the small
pictures that they are. Nothing here trains: what cannot be carried over is left out and said.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from .configuration_vitmae import VitMaeConfig
from .embeddings import resize_positions, sincos_positions
from .losses import num_patch_outputs

# Where the geometry is in a state dict; in front may stand `vit.` or what else holds the model.
POSITION_TABLES = ("embeddings.position_embeddings", "decoder.position_embeddings")
PATCH_PROJECTION = "patch_embeddings.projection.weight"
STEM_CONVOLUTION = "patch_embeddings.stem.convolution.weight"
PIXEL_HEADS = ("decoder.predict", "next_patch_head")
PATCH_HEAD = "patch_head"  # pixels or colour classes, as `config.patch_target` says
PYRAMID = "pyramid"  # its steps from patches to pixels depend on the patch size


@torch.no_grad()
def adapt_weights(
    weights: Mapping[str, Tensor], old: VitMaeConfig, new: VitMaeConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights for the geometry of `new`, and a line for each kind of change that says what was
    done.

    A head of colour classes cannot follow a change of channels, nor a feature pyramid one of the
    patch size: they are missing in what is returned, and a line says so. All that does not depend
    on the geometry is passed on as it is; dtypes and devices stay.

    Args:
        weights: state dict of any class of the family; not modified.
        old: what the weights were saved with.
        new: what they are wanted for; `image_size`, `patch_size` and `num_channels` may differ.

    Raises:
        ValueError: if weights do not have the shapes that `old` says.
    """
    _check_shapes(weights, old)
    adapted = dict(weights)
    lines = [
        *_adapt_positions(adapted, old, new),
        *_adapt_projection(adapted, old, new),
        *_adapt_input_channels(adapted, old, new),
        *_adapt_predictions(adapted, old, new),
        *_drop_color_head(adapted, old, new),
        *_drop_pyramid(adapted, old, new),
    ]
    return adapted, lines


def resize_matrix(size: int, new_size: int) -> Tensor:
    """Bicubic, antialiased resizing of a line of pixels as a matrix: -> float64 (new_size, size).

    Resizing a picture is this along its height and along its width, the same arithmetic as the
    image processor's.
    """
    basis = torch.eye(size, dtype=torch.float64, device="cpu")
    if size == new_size:
        return basis
    resized = functional.interpolate(
        basis[None, None], size=(new_size, size), mode="bicubic", antialias=True
    )  # (1, 1, new_size, size): each column is one pixel, resized
    return resized[0, 0]


def resample_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """A patch projection for patches of another size: (D, C, p_h, p_w) -> (D, C, p_h', p_w').

    Its response to a resized patch is the old kernel's response to the patch itself: exactly where
    the patch grows, with the least squared error where it shrinks.
    """
    height, width = (
        torch.linalg.pinv(resize_matrix(before, after))  # (p, p')
        for before, after in zip(kernel.shape[2:], size, strict=True)
    )
    resampled = torch.einsum("dchw,ha,wb->dcab", _precise(kernel), height, width)
    return _like(resampled, kernel)


def mix_input_channels(kernel: Tensor, num_channels: int) -> Tensor:
    """A convolution for inputs of other channels: (D, C, k_h, k_w) -> (D, C', k_h, k_w).

    More channels repeat the old ones in turn, scaled by C / C'; of fewer channels each takes an
    equal share of those that fall away, so that one channel is the sum. The response to a gray
    picture stays exactly, unless C' > C is no multiple of C.
    """
    before = kernel.shape[1]
    mix = _repeat_in_turn(before, num_channels)  # (C', C)
    if num_channels >= before:
        mix = mix * (before / num_channels)
    else:
        mix[:, num_channels:] = 1 / num_channels
    return _like(torch.einsum("dchw,nc->dnhw", _precise(kernel), mix), kernel)


def resize_predictions(
    rows: Tensor, patch: tuple[int, int], new_patch: tuple[int, int], channels: tuple[int, int]
) -> Tensor:
    """Output rows that predict the pixels of a patch, for another patch: (P, ...) -> (P', ...).

    Every column of the rows is a picture of p_h x p_w x C and is resized as one. One channel is the
    mean of the old ones; otherwise the old ones are repeated in turn.

    Args:
        rows: weight (P, D) or bias (P,) of the output, rows in (p_h, p_w, C) order.
        patch, new_patch: (height, width) in pixels.
        channels: how many the pictures have, and how many they shall have.
    """
    before, after = channels
    mix = _repeat_in_turn(before, after)  # (C', C)
    if after == 1:
        mix = torch.full_like(mix, 1 / before)
    height, width = map(resize_matrix, patch, new_patch)  # (p_h', p_h), (p_w', p_w)
    pictures = _precise(rows).reshape(*patch, before, -1)  # (p_h, p_w, C, D)
    pictures = torch.einsum("hwcd,ah,bw,nc->abnd", pictures, height, width, mix)
    return _like(pictures.reshape(-1, *rows.shape[1:]), rows)  # (P', D) or (P',)


def _adapt_positions(weights: dict[str, Tensor], old: VitMaeConfig, new: VitMaeConfig) -> list[str]:
    names = _find(weights, *POSITION_TABLES)
    if old.grid == new.grid or not names:
        return []
    is_learned = old.position_embedding == "learned"
    for name in names:
        table = weights[name]  # (1, 1 + N, D)
        if is_learned:
            weights[name] = resize_positions(table, old.grid, new.grid)
        else:
            weights[name] = _like(sincos_positions(new.grid, table.shape[-1]), table)
    how = "learned, bicubic in two dimensions" if is_learned else "sin-cos, recomputed exactly"
    return [f"position table {_sizes(old.grid, new.grid)} patches ({how})"]


def _adapt_projection(
    weights: dict[str, Tensor], old: VitMaeConfig, new: VitMaeConfig
) -> list[str]:
    names = _find(weights, PATCH_PROJECTION)
    if old.patch_pair == new.patch_pair or not names:
        return []
    for name in names:
        weights[name] = resample_kernel(weights[name], _kernel_size(new))
    pixels = _sizes(old.patch_pair, new.patch_pair)
    return [f"patch projection {pixels} pixels (pseudo-inverse resampling)"]


def _adapt_input_channels(
    weights: dict[str, Tensor], old: VitMaeConfig, new: VitMaeConfig
) -> list[str]:
    # With a stem the projection sees the stem's channels, which stay. The stem standardises its
    # kernels and so undoes their scale; the group norm after it does the same to the response.
    has_stem = old.stem_depths is not None
    names = _find(weights, STEM_CONVOLUTION if has_stem else PATCH_PROJECTION)
    before, after = old.num_channels, new.num_channels
    if before == after or not names:
        return []
    for name in names:
        weights[name] = mix_input_channels(weights[name], after)
    what = "stem convolution" if has_stem else "patch projection"
    return [f"{what} {before} -> {after} channels ({_how_inputs_change(before, after)})"]


def _adapt_predictions(
    weights: dict[str, Tensor], old: VitMaeConfig, new: VitMaeConfig
) -> list[str]:
    kinds = ("weight", "bias")
    names = _find(weights, *(f"{head}.{kind}" for head in _pixel_heads(old) for kind in kinds))
    patch, new_patch = old.patch_pair, new.patch_pair
    before, after = channels = (old.num_channels, new.num_channels)
    if not names or (patch == new_patch and before == after):
        return []
    for name in names:
        weights[name] = resize_predictions(weights[name], patch, new_patch, channels)
    lines = []
    if patch != new_patch:
        lines.append(f"pixel predictions {_sizes(patch, new_patch)} (resized)")
    if before != after:
        how = _how_predictions_change(before, after)
        lines.append(f"pixel predictions {before} -> {after} channels ({how})")
    return lines


def _drop_color_head(weights: dict[str, Tensor], old: VitMaeConfig, new: VitMaeConfig) -> list[str]:
    names = _find(weights, f"{PATCH_HEAD}.weight", f"{PATCH_HEAD}.bias")
    if old.num_channels == new.num_channels or not names or PATCH_HEAD in _pixel_heads(old):
        return []
    for name in names:
        del weights[name]
    before, after = num_patch_outputs(old), num_patch_outputs(new)
    return [f"patch head starts afresh: {before} -> {after} colour classes"]


def _drop_pyramid(weights: dict[str, Tensor], old: VitMaeConfig, new: VitMaeConfig) -> list[str]:
    names = [name for name in weights if f".{PYRAMID}." in f".{name}"]
    if old.patch_pair == new.patch_pair or not names:
        return []
    for name in names:
        del weights[name]
    pixels = _sizes(old.patch_pair, new.patch_pair)
    return [f"feature pyramid starts afresh: patches of {pixels} pixels"]


def _how_inputs_change(before: int, after: int) -> str:
    if after > before:
        return "repeated and scaled"
    if after == 1:
        return "summed"
    return f"the first {after} kept, the rest shared among them"


def _how_predictions_change(before: int, after: int) -> str:
    if after > before:
        return "repeated" if before == 1 else "repeated in turn"
    if after == 1:
        return "averaged"
    return f"the first {after} kept"


def _pixel_heads(config: VitMaeConfig) -> tuple[str, ...]:
    return (*PIXEL_HEADS, PATCH_HEAD) if config.patch_target == "pixels" else PIXEL_HEADS


def _kernel_size(config: VitMaeConfig) -> tuple[int, int]:
    """What the patch projection sees of a patch, in pixels or in places of the stem's map."""
    height, width = config.patch_pair
    return height // config.stem_stride, width // config.stem_stride


def _find(weights: Mapping[str, Tensor], *endings: str) -> list[str]:
    """The names with such an ending, whole parts of it: `next_patch_head` is no `patch_head`."""
    dotted = tuple(f".{ending}" for ending in endings)
    return [name for name in weights if f".{name}".endswith(dotted)]


def _check_shapes(weights: Mapping[str, Tensor], old: VitMaeConfig) -> None:
    inputs = old.num_channels if old.stem_depths is None else None  # None: any number
    num_values = old.patch_pair[0] * old.patch_pair[1] * old.num_channels
    shapes: dict[str, tuple[int | None, ...]] = {
        **dict.fromkeys(POSITION_TABLES, (1, 1 + old.num_patches, None)),
        PATCH_PROJECTION: (None, inputs, *_kernel_size(old)),
        STEM_CONVOLUTION: (None, old.num_channels, None, None),
        **{f"{head}.weight": (num_values, None) for head in _pixel_heads(old)},
        **{f"{head}.bias": (num_values,) for head in _pixel_heads(old)},
    }
    for ending, shape in shapes.items():
        for name in _find(weights, ending):
            _require_shape(name, tuple(weights[name].shape), shape)


def _require_shape(name: str, shape: tuple[int, ...], allowed: tuple[int | None, ...]) -> None:
    fits = len(shape) == len(allowed)
    fits = fits and all(size in (None, own) for own, size in zip(shape, allowed, strict=True))
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in allowed)
        raise ValueError(
            f"`{name}` is {shape} where its configuration says ({sizes}); adapt weights together "
            "with the configuration that they were saved with."
        )


def _sizes(before: tuple[int, int], after: tuple[int, int]) -> str:
    return f"{before[0]}x{before[1]} -> {after[0]}x{after[1]}"


def _repeat_in_turn(before: int, after: int) -> Tensor:
    """Which old channel each new one is: -> float64 (C', C)."""
    which = torch.arange(after, device="cpu") % before
    return torch.eye(before, dtype=torch.float64, device="cpu")[which]


def _precise(tensor: Tensor) -> Tensor:
    """In float64, on the CPU because not every device has it."""
    return tensor.to(device="cpu", dtype=torch.float64)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.contiguous().to(device=other.device, dtype=other.dtype)
