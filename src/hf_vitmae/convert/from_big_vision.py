"""Vision Transformers of big_vision, and of the older vision_transformer repository, as `.npz`
files (arXiv:2010.11929): to ours and back.

There a linear map is a kernel (in, out), a convolution's is (p_h, p_w, C, D), and attention keeps
its heads apart: (D, heads, d) inward, (heads, d, D) outward. The activation is GELU in its tanh
form, the layer norms' epsilon is 1e-6.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from hf_vitmae.convert.converted import Converted
from hf_vitmae.convert.positions import complete_positions
from hf_vitmae.convert.rules import Rule, rename, reshaped, to_ours, to_theirs
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.models.patches import as_pair

ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new")  # two names of the same function
LAYER_NORM_EPS = 1e-6
PARAMETERS = "params/"  # before the names, where a file also holds the state of training
PRE_LOGITS = "pre_logits/kernel"  # a tanh layer on the class token
_WHAT = "The big_vision checkpoint"

UNKNOWN_PARTS = {  # by a part of an array's name
    "MAPHead_0/": "attention pooling",
    "conv_root/": "a hybrid's stem",
    "encoderblock/": "all blocks stacked in one (`scan=True`)",
    "head_dist/": "a distillation head",
}
NUM_AXES = {  # by the end of an array's name
    "embedding/kernel": 4,
    PRE_LOGITS: 2,
    "pos_embedding": 3,
    **{f"{part}/kernel": 3 for part in ("query", "key", "value", "out")},
    **{f"{part}/bias": 2 for part in ("query", "key", "value")},
    "Dense_0/kernel": 2,
    "Dense_1/kernel": 2,
    "head/kernel": 2,
}


@dataclass(frozen=True)
class Names:
    """What one of the two repositories calls what the other calls differently."""

    positions: str
    norms: tuple[str, str]
    attention: str
    mlp: str


NAMES = Names(
    positions="pos_embedding",
    norms=("LayerNorm_0", "LayerNorm_1"),
    attention="MultiHeadDotProductAttention_0",
    mlp="MlpBlock_0",
)
OLDER_NAMES = Names(
    positions="Transformer/posembed_input/pos_embedding",
    norms=("LayerNorm_0", "LayerNorm_2"),
    attention="MultiHeadDotProductAttention_1",
    mlp="MlpBlock_3",
)


def read(path: str | Path, *, image_size: int | Sequence[int] | None = None) -> Converted:
    """A ViT with a class token from an `.npz` file of either repository.

    Args:
        image_size: in pixels, an int or (height, width), where the position table is of no square.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a damaged file, one with pickled objects, or a model that cannot be
        expressed.
    """
    arrays = load_arrays(Path(path))
    said = ["A Vision Transformer of big_vision."]
    if any(name.startswith(PARAMETERS) for name in arrays):
        others = sum(not name.startswith(PARAMETERS) for name in arrays)
        if others:
            said.append(f"{others} arrays outside `{PARAMETERS}`, of training, are left out.")
        arrays = {
            name.removeprefix(PARAMETERS): value
            for name, value in arrays.items()
            if name.startswith(PARAMETERS)
        }
    names = OLDER_NAMES if OLDER_NAMES.positions in arrays else NAMES
    weights = {name: _tensor(name, array) for name, array in arrays.items()}
    _check_readable(weights, names)
    fields = _geometry(weights, names, image_size)
    weights[names.positions], fields["position_embedding"] = complete_positions(
        weights[names.positions], fields, said
    )
    kind = VitMaeForImageClassification if "head/kernel" in weights else VitMaeModel
    prefix = "" if kind is VitMaeModel else "vit."
    if kind is VitMaeForImageClassification:
        fields["num_labels"] = weights["head/kernel"].shape[1]
    if PRE_LOGITS in weights:
        fields["pooler_output_size"] = weights[PRE_LOGITS].shape[1]
    config = VitMaeConfig(**fields)
    ours = to_ours(weights, _rules(prefix, names, config.num_attention_heads), _WHAT)
    said.append("How to prepare its images is not stated; pixels are brought to -1..1.")
    return Converted(config, ours, kind, VitMaeImageProcessor.for_model(config), said)


def write(model: VitMaePreTrainedModel, *, older: bool = False) -> dict[str, np.ndarray]:
    """The model's arrays under big_vision's names, or the older repository's; for `numpy.savez`.

    big_vision gives the class token no position, so that ours is added to the token.

    Raises:
        ValueError: for a model that big_vision cannot express, and any but the encoder and
        classifier.
    """
    if type(model) not in (VitMaeModel, VitMaeForImageClassification):
        raise ValueError(
            f"big_vision has nothing like {type(model).__name__}; convert its encoder `model.vit` "
            "alone."
        )
    _check_writable(model.config)
    weights, prefix = model.state_dict(), "" if isinstance(model, VitMaeModel) else "vit."
    if not older:
        weights = _without_class_position(weights, f"{prefix}embeddings.")
    rules = _rules(prefix, OLDER_NAMES if older else NAMES, model.config.num_attention_heads)
    theirs = to_theirs(weights, rules, "big_vision")
    before = "" if older else PARAMETERS
    return {before + name: _array(name, value) for name, value in theirs.items()}


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an `.npz` file; nothing in it is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a damaged file, or one with pickled objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; name the .npz file of a checkpoint.")
    try:
        # Opened here: numpy leaves a file that it cannot read open.
        with path.open("rb") as file:
            return _unpack(np.load(file, allow_pickle=False))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is not read: it is truncated, or no .npz file of plain arrays ({reason:.100})."
        ) from error


def _unpack(archive: Any) -> dict[str, np.ndarray]:
    if isinstance(archive, np.ndarray):
        raise ValueError("a single array")
    with archive:
        return {name: archive[name] for name in archive.files}


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"{_WHAT} is not read: {reason}.")


def _tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype not in (np.float16, np.float32, np.float64):
        _refuse(f"`{name}` is of type {array.dtype}; save it as float32")
    return torch.from_numpy(np.ascontiguousarray(array))


def _array(name: str, value: Tensor) -> np.ndarray:
    if value.dtype == torch.bfloat16:
        raise ValueError(f"`{name}` is bfloat16, which numpy has not; call `model.float()` first.")
    return value.detach().cpu().contiguous().numpy().copy()


def _check_readable(weights: Mapping[str, Tensor], names: Names) -> None:
    """Raise `ValueError`, naming one, for arrays of a model that none of ours is."""
    for part, what in UNKNOWN_PARTS.items():
        if found := next((name for name in weights if f"/{part}" in f"/{name}"), None):
            _refuse(f"it has {what} (`{found}`), which no model here has")
    if PRE_LOGITS in weights and "head/kernel" in weights:
        _refuse(f"it has a tanh layer before its head (`{PRE_LOGITS}`), which no model here has")
    if "cls" not in weights and "embedding/kernel" in weights:
        _refuse("it has no class token (`cls`), which every model here has")
    first = "Transformer/encoderblock_0"
    query, dense = f"{first}/{names.attention}/query/kernel", f"{first}/{names.mlp}/Dense_0/kernel"
    for name in ("embedding/kernel", names.positions, query, dense):
        if name not in weights:
            _refuse(f"`{name}` is missing")
    for name, value in weights.items():
        for end, num_axes in NUM_AXES.items():
            if name.endswith(end) and value.ndim != num_axes:
                _refuse(f"`{name}` has {value.ndim} axes, not {num_axes}")


def _geometry(
    weights: Mapping[str, Tensor], names: Names, image_size: int | Sequence[int] | None
) -> dict[str, Any]:
    """The fields of a configuration that shapes tell."""
    first = "Transformer/encoderblock_0"
    height, width, channels, hidden_size = weights["embedding/kernel"].shape
    depth = 0
    while any(name.startswith(f"Transformer/encoderblock_{depth}/") for name in weights):
        depth += 1
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": weights[f"{first}/{names.attention}/query/kernel"].shape[1],
        "intermediate_size": weights[f"{first}/{names.mlp}/Dense_0/kernel"].shape[1],
        "num_channels": channels,
        "patch_size": height if height == width else (height, width),
        "image_size": _image_size(weights[names.positions].shape[1], (height, width), image_size),
        "hidden_act": ACTIVATIONS[0],
        "layer_norm_eps": LAYER_NORM_EPS,
    }


def _image_size(
    num_rows: int, patch: tuple[int, int], stated: int | Sequence[int] | None
) -> int | tuple[int, int]:
    """What is stated, if the position table agrees; else a square grid, as the table has it."""
    if stated is not None:
        height, width = as_pair(stated)
        if num_rows - (height // patch[0]) * (width // patch[1]) not in (0, 1):
            _refuse(
                f"its {num_rows} positions are not those of images of {height}x{width} pixels "
                f"(height x width) in patches of {patch[0]}x{patch[1]}"
            )
        return height if height == width else (height, width)
    for num_patches in (num_rows, num_rows - 1):  # without a row for the class token, and with
        side = math.isqrt(num_patches)
        if side > 0 and side * side == num_patches:
            height, width = side * patch[0], side * patch[1]
            return height if height == width else (height, width)
    _refuse(f"its {num_rows} positions are those of no square grid; pass image_size")


def _without_class_position(weights: Mapping[str, Tensor], embeddings: str) -> dict[str, Tensor]:
    """The same model with the class token's position in the token, and no row for it."""
    table, token = weights[f"{embeddings}position_embeddings"], weights[f"{embeddings}cls_token"]
    if table[:, 0].any():  # adding zeros would change the sign of a zero
        token = token + table[:, :1]
    return {
        **weights,
        f"{embeddings}position_embeddings": table[:, 1:],
        f"{embeddings}cls_token": token,
    }


def _check_writable(config: VitMaeConfig) -> None:
    allowed: dict[str, tuple[Any, ...]] = {
        "hidden_act": ACTIVATIONS,
        "layer_norm_eps": (LAYER_NORM_EPS,),
        "pooling": ("cls",),
        "is_causal": (False,),
        "qkv_bias": (True,),
        "stem_depths": (None,),
        "layer_scale_init_value": (None,),
    }
    if config.pooler_output_size is not None:
        allowed["pooler_act"] = ("tanh",)
    for name, values in allowed.items():
        if (value := getattr(config, name)) not in values:
            choices = " or ".join(map(repr, values))
            raise ValueError(
                f"big_vision cannot express this model: its `{name}` is {value!r}, not {choices}."
            )


def _rules(prefix: str, names: Names, num_heads: int) -> list[Rule]:
    """Every array of the file, and the tensor of ours that it is.

    Args:
        prefix: of our encoder's names.
    """
    embeddings, block = prefix + "embeddings.", "Transformer/encoderblock_{}/"
    layer = prefix + "layers.{}."
    projection = embeddings + "patch_embeddings.projection"
    return [
        rename("cls", embeddings + "cls_token"),
        rename(names.positions, embeddings + "position_embeddings"),
        reshaped(
            "embedding/kernel",
            f"{projection}.weight",
            lambda kernel: kernel.permute(3, 2, 0, 1).contiguous(),  # (D, C, p_h, p_w)
            lambda weight: weight.permute(2, 3, 1, 0),  # (p_h, p_w, C, D)
        ),
        rename("embedding/bias", f"{projection}.bias"),
        *_norm(block + names.norms[0], layer + "layernorm_before"),
        *_attention(f"{block}{names.attention}/", layer + "attention.", num_heads),
        *_norm(block + names.norms[1], layer + "layernorm_after"),
        *_linear(f"{block}{names.mlp}/Dense_0", layer + "mlp.fc1"),
        *_linear(f"{block}{names.mlp}/Dense_1", layer + "mlp.fc2"),
        *_norm("Transformer/encoder_norm", prefix + "layernorm"),
        *_linear("pre_logits", prefix + "pooler.dense"),
        *_linear("head", "classifier"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [rename(f"{theirs}/scale", f"{ours}.weight"), rename(f"{theirs}/bias", f"{ours}.bias")]


def _linear(theirs: str, ours: str) -> list[Rule]:
    kernel = reshaped(f"{theirs}/kernel", f"{ours}.weight", _transposed, _transposed)
    return [kernel, rename(f"{theirs}/bias", f"{ours}.bias")]


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous()


def _attention(theirs: str, ours: str, num_heads: int) -> list[Rule]:
    rules = [
        reshaped(
            f"{theirs}out/kernel",
            f"{ours}o_proj.weight",
            lambda kernel: _transposed(kernel.flatten(0, 1)),  # (D, heads * d)
            lambda weight: weight.T.unflatten(0, (num_heads, -1)),  # (heads, d, D)
        ),
        rename(f"{theirs}out/bias", f"{ours}o_proj.bias"),
    ]
    for part in ("query", "key", "value"):
        rules += [
            reshaped(
                f"{theirs}{part}/kernel",
                f"{ours}{part[0]}_proj.weight",
                lambda kernel: _transposed(kernel.flatten(1)),  # (heads * d, D)
                lambda weight: weight.T.unflatten(1, (num_heads, -1)),  # (D, heads, d)
            ),
            reshaped(
                f"{theirs}{part}/bias",
                f"{ours}{part[0]}_proj.bias",
                torch.flatten,  # (heads * d,)
                lambda bias: bias.unflatten(0, (num_heads, -1)),  # (heads, d)
            ),
        ]
    return rules
