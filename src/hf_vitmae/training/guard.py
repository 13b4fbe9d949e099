"""The start-up guard: stop a model that cannot tell positions apart before it wastes a run.

A masked autoencoder whose position tables are all zeros trains without complaint, and can at best
learn one patch for every hidden place. Behaviour is tested, not the tables, so it holds for any
kind of position embedding.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_vitmae.models.modes import evaluating
from hf_vitmae.models.patches import as_pair, patchify, unpatchify

ENCODER_TOLERANCE = 1e-4  # relative; fp32 noise from summing in another order is about 1e-6
DECODER_TOLERANCE = 1e-5  # relative; predictions of a blind decoder agree to about 1e-7


def check_positions(model: nn.Module, image_size: int | Sequence[int], num_channels: int) -> None:
    """Raise if the encoder, or the decoder if there is one, ignores where patches are.

    Takes an encoder, or a model that holds one as `vit`, ours or transformers'; leaves weights,
    training mode and random state as they were.

    Args:
        image_size: the (height, width) that training will use.

    Raises:
        ValueError: naming the part that is blind and the mend.
    """
    model = _in_full_precision(model)
    encoder = getattr(model, "vit", model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, num_channels, *as_pair(image_size), generator=generator)
    patch_size = as_pair(cast(Any, encoder).config.patch_size)
    noise = torch.rand(patchify(image, patch_size).shape[:2], generator=generator)  # (1, N)
    image, noise = image.to(device), noise.to(device)
    with evaluating(model), torch.random.fork_rng(devices=[]):
        if _encoder_is_blind(encoder, image, noise, patch_size):
            raise ValueError(_explain(model, "encoder", "vit.embeddings.position_embeddings"))
        if model is not encoder and _takes_noise(model) and _decoder_is_blind(model, image, noise):
            raise ValueError(_explain(model, "decoder", "the decoder's position embeddings"))


def _encoder_is_blind(
    encoder: nn.Module, image: Tensor, noise: Tensor, patch_size: tuple[int, int]
) -> bool:
    """Whether patches that change places keep their features."""
    height, width = image.shape[-2:]
    grid = (height // patch_size[0], width // patch_size[1])
    order = noise[0].argsort()  # (N,)
    moved_image = unpatchify(patchify(image, patch_size)[:, order], patch_size, grid)
    num_patches = len(order)

    tokens = encoder(image).last_hidden_state  # (1, L, D)
    if tokens.shape[1] > num_patches or not _takes_noise(encoder):
        moved = encoder(moved_image).last_hidden_state[:, -num_patches:]  # (1, N, D)
        tokens = tokens[:, -num_patches:][:, order]
    else:  # transformers' ViTMAE always masks: the noise moves along, so the same ones stay visible
        tokens = encoder(image, noise=noise).last_hidden_state[:, 1:]  # (1, K, D)
        moved = encoder(moved_image, noise=noise[:, order]).last_hidden_state[:, 1:]
    return bool((tokens - moved).abs().max() < ENCODER_TOLERANCE * tokens.abs().max())


def _decoder_is_blind(model: nn.Module, image: Tensor, noise: Tensor) -> bool:
    """Whether two hidden patches of one image get the same prediction."""
    output = model(image, noise=noise)
    hidden = output.logits[0][output.mask[0].bool()]  # (N - K, P)
    if len(hidden) < 2:
        return False
    distances = torch.cdist(hidden, hidden, p=float("inf"))  # (N - K, N - K)
    distances.fill_diagonal_(float("inf"))
    return bool(distances.min() < DECODER_TOLERANCE * hidden.abs().max())


def _takes_noise(module: nn.Module) -> bool:
    return "noise" in inspect.signature(module.forward).parameters


def _in_full_precision(model: nn.Module) -> nn.Module:
    """The model itself if its weights are fp32, else an fp32 copy: bf16 rounds differences away."""
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def _explain(model: nn.Module, part: str, table: str) -> str:
    return (
        f"The {part} of this {type(model).__name__} cannot tell positions apart: {table} are "
        "probably all zeros or all equal; re-initialise them, by building the model anew from its "
        "config or from an intact checkpoint."
    )
