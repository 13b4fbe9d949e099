"""timm's Vision Transformers and hybrids (arXiv:2010.11929, arXiv:2106.10270) to ours, and back.

The tensors tell the geometry; what they cannot tell, such as the number of heads and a rectangular
image, comes from the `config.json` of a Hub folder or from the model's name.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from hf_vitmae.convert.converted import Converted
from hf_vitmae.convert.pickles import load_pickle
from hf_vitmae.convert.positions import complete_positions
from hf_vitmae.convert.rules import to_ours
from hf_vitmae.convert.timm_rules import (
    ACTIVATIONS,
    BACKBONE,
    CROP_MODES,
    INTERPOLATIONS,
    LAYER_NORM_EPS,
    STEM_NUM_GROUPS,
    timm_rules,
)
from hf_vitmae.convert.to_timm import write, write_folder
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeModel
from hf_vitmae.models.patches import as_pair

__all__ = ["read", "write", "write_folder"]

Weights = Mapping[str, Tensor]
Facts = Mapping[str, Any]  # of a `config.json`

HEADS_OF_SIZE = {  # by the word for the size in a model's name
    "tiny": 3,
    "little": 5,
    "small": 6,
    "medium": 8,
    "base": 12,
    "large": 16,
    "huge": 16,
    "giant": 16,
    "gigantic": 16,
}
HEADS_OF_WIDTH = {1280: 16, 1408: 16, 1664: 16}
HEAD_WIDTH = 64  # of all other widths
LAYER_SCALE_START = 1e-5  # of a fresh model; those of a checkpoint are read
CROP_PCT = 0.9  # timm's default for these models, as are mean and deviation of 0.5

UNKNOWN_PARTS = {  # by a part of a tensor's name
    "reg_token": "register tokens",
    "dist_token": "a distillation token",
    "head_dist.": "a distillation head",
    "norm_pre.": "a norm before its blocks",
    "attn_pool.": "attention pooling",
    ".q_norm.": "norms of queries and keys",
    ".attn.norm.": "a norm inside attention",
    ".mlp.norm.": "a norm inside its MLPs",
    "patch_embed.norm.": "a norm of its patches",
    "patch_embed.backbone.conv": "a stem of another kind",
}
NUM_AXES = {  # by the end of a tensor's name
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "stem.conv.weight": 4,
    "mlp.fc1.weight": 2,
    "mlp.fc2.weight": 2,
    "head.weight": 2,
}
# By a model's argument, what no tensor tells and we can express.
KNOWN_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "global_pool": ("token", "avg", "", None),
    "act_layer": (*ACTIVATIONS, None),
    "norm_layer": ("layernorm", None),
    "block_fn": (None,),
    "attn_layer": (None,),
    "mlp_layer": (None,),
    "pool_include_prefix": (False, None),
}


def read(
    weights: Weights | str | Path,
    *,
    model_name: str | None = None,
    config: Facts | None = None,
    load: Callable[[Path], Mapping[str, Any]] = load_pickle,
) -> Converted:
    """A ViT or hybrid of timm: a state dict, a file with one, or the folder of a Hub model.

    Args:
        model_name: such as "vit_base_patch16_224"; a folder's `config.json` has it.
        config: the content of a `config.json`, where there is no folder.
        load: opens a file of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a model that cannot be expressed, or that its tensors do not tell enough of.
    """
    if not isinstance(weights, Mapping):
        path = Path(weights)
        config = _folder_config(path) if config is None else config
        weights = load(_weights_file(path))
    arguments, pretrained = _stated(config or {})
    _check_tensors(weights)
    _check_stated(weights, arguments, pretrained)
    name = model_name or (config or {}).get("architecture")
    said = [f"A {_title(weights)} of timm{f', {name}' if name else ''}."]
    fields = _geometry(weights, arguments, pretrained)
    fields["num_attention_heads"] = _num_heads(weights, arguments, name, said)
    fields |= _head(weights, arguments, pretrained) | _statistics(pretrained, fields, said)
    weights, fields["position_embedding"] = _positions(weights, fields, said)
    our_config = VitMaeConfig(**fields)
    kind = VitMaeForImageClassification if "head.weight" in weights else VitMaeModel
    rules = timm_rules(
        prefix="" if kind is VitMaeModel else "vit.",
        norm="fc_norm" if "fc_norm.weight" in weights else "norm",
    )
    ours = to_ours(weights, rules, "The timm checkpoint")
    return Converted(our_config, ours, kind, _processor(our_config, pretrained), said)


def _folder_config(path: Path) -> dict[str, Any] | None:
    """`config.json` of a folder; None for a file."""
    if not path.is_dir():
        return None
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no model of timm (no config.json).")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); fetch it anew.") from error
    if not isinstance(content, dict) or "architecture" not in content:
        raise ValueError(f"{file} is not of timm: it names no `architecture`.")
    return content


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    names = ("model.safetensors", "pytorch_model.bin")
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{path} holds no weights: neither {names[0]} nor {names[1]}.")
    return found[0]


def _stated(config: Facts) -> tuple[Facts, Facts]:
    """A model's arguments; and how its images are prepared and its labels called."""
    pretrained = dict(config.get("pretrained_cfg") or config)  # older files have one level
    for name in ("label_names", "label_descriptions"):
        if name in config:
            pretrained[name] = config[name]
    pretrained.setdefault("label_names", pretrained.get("labels"))  # as older files call them
    arguments = dict(config.get("model_args") or {})
    if "global_pool" in config:
        arguments.setdefault("global_pool", config["global_pool"])
    return arguments, pretrained


def _check_tensors(weights: Mapping[str, Any]) -> None:
    """Raise `ValueError`, naming one, for tensors of a model that none of ours is."""
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            _refuse(
                f"`{name}` is a {type(value).__name__} and no tensor; pass the state dict alone"
            )
    for part, what in UNKNOWN_PARTS.items():
        if found := next((name for name in weights if part in f".{name}"), None):
            _refuse(f"it has {what} (`{found}`), which no model here has")
    if "cls_token" not in weights and "pos_embed" in weights:
        _refuse("it has no class token (`cls_token`), which every model here has")
    _check_shapes(weights)


def _check_shapes(weights: Weights) -> None:
    """Raise `ValueError` where those tensors are missing or misshapen that tell the geometry."""
    stem = [BACKBONE + "stem.conv.weight"] if _has_stem(weights) else []
    first = ("mlp.fc1.weight", "mlp.fc2.weight")
    needed = ["cls_token", "pos_embed", "patch_embed.proj.weight", *stem]
    for name in [*needed, *(f"blocks.0.{name}" for name in first)]:
        if name not in weights:
            _refuse(f"`{name}` is missing")
    for end, num_axes in NUM_AXES.items():
        for name in filter(lambda name: name.endswith(end), weights):
            if weights[name].ndim != num_axes:
                _refuse(f"`{name}` has {weights[name].ndim} axes, not {num_axes}")
    given, taken = (weights[f"blocks.0.{name}"].shape for name in first)
    if given[0] != taken[1]:
        _refuse(f"its MLPs are gated (`fc1` gives {given[0]} values, `fc2` takes {taken[1]})")


def _check_stated(weights: Weights, arguments: Facts, pretrained: Facts) -> None:
    """Raise `ValueError` for what no tensor tells and we cannot express."""
    for name, values in KNOWN_ARGUMENTS.items():
        if arguments.get(name) not in values:
            _refuse(f"{name}={arguments[name]!r} has no like here")
    if arguments.get("global_pool") == "avg" and "norm.weight" in weights:
        _refuse('its norm comes before the mean (global_pool="avg" and `norm`), not after it')
    for name, values in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
        if pretrained.get(name, next(iter(values))) not in values:
            _refuse(f"{name}={pretrained[name]!r} is not one of {', '.join(values)}")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"The timm checkpoint is not read: {reason}.")


def _has_stem(weights: Weights) -> bool:
    return any(name.startswith(BACKBONE) for name in weights)


def _title(weights: Weights) -> str:
    kind = "hybrid" if _has_stem(weights) else "Vision Transformer"
    return kind if "head.weight" in weights else f"{kind} without a head"


def _geometry(weights: Weights, arguments: Facts, pretrained: Facts) -> dict[str, Any]:
    """The fields of a configuration that shapes tell, and the image size."""
    projection = weights["patch_embed.proj.weight"]  # (D, C, p_h, p_w)
    fields: dict[str, Any] = {"num_channels": projection.shape[1]}
    stride = 1
    if _has_stem(weights):
        first = weights[BACKBONE + "stem.conv.weight"]  # (width, C, 7, 7)
        depths = _count(weights, re.escape(BACKBONE) + r"stages\.(\d+)\.blocks\.(\d+)\.")
        fields |= {"stem_depths": depths, "stem_num_groups": STEM_NUM_GROUPS}
        fields |= {"stem_width": first.shape[0], "num_channels": first.shape[1]}
        stride = 2 ** (len(depths) + 1)
    if "blocks.0.ls1.gamma" in weights:
        fields["layer_scale_init_value"] = arguments.get("init_values") or LAYER_SCALE_START
    patch = (projection.shape[2] * stride, projection.shape[3] * stride)
    return fields | {
        "hidden_size": projection.shape[0],
        "num_hidden_layers": _count(weights, r"(blocks)\.(\d+)\.")[0],
        "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
        "patch_size": _side_or_pair(patch),
        "image_size": _side_or_pair(
            _image_size(weights["pos_embed"].shape[1], patch, arguments, pretrained)
        ),
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "layer_norm_eps": LAYER_NORM_EPS,
    }


def _side_or_pair(pair: tuple[int, int]) -> int | tuple[int, int]:
    return pair[0] if pair[0] == pair[1] else pair


def _count(weights: Weights, pattern: str) -> tuple[int, ...]:
    """How many blocks each stage has, by names that tell the stage and the block."""
    found = [match.groups() for match in map(re.compile(pattern).match, weights) if match]
    stages = sorted({stage for stage, _ in found})
    return tuple(1 + max(int(block) for at, block in found if at == stage) for stage in stages)


def _image_size(
    num_rows: int, patch: tuple[int, int], arguments: Facts, pretrained: Facts
) -> tuple[int, int]:
    """What is stated, if the position table agrees; else a square grid, as the table has it."""
    if stated := arguments.get("img_size") or (pretrained.get("input_size") or ())[1:]:
        height, width = as_pair(stated)
        if num_rows - (height // patch[0]) * (width // patch[1]) not in (0, 1):
            _refuse(
                f"its {num_rows} positions are not those of images of {height}x{width} pixels "
                f"(height x width) in patches of {patch[0]}x{patch[1]}, which its config states"
            )
        return height, width
    for num_patches in (num_rows - 1, num_rows):  # with a row for the class token, and without
        side = math.isqrt(num_patches)
        if side > 0 and side * side == num_patches:
            return side * patch[0], side * patch[1]
    _refuse(
        f"its {num_rows} positions are those of no square grid; pass "
        'config={"pretrained_cfg": {"input_size": [channels, height, width]}}'
    )


def _num_heads(weights: Weights, arguments: Facts, name: str | None, said: list[str]) -> int:
    """Heads, which no tensor tells: as stated, by the size in the name, or by the width."""
    if stated := arguments.get("num_heads"):
        return stated
    width = weights["cls_token"].shape[-1]
    words = (name or "").split(".")[0].split("_")
    named = next((HEADS_OF_SIZE[word] for word in words if word in HEADS_OF_SIZE), None)
    heads = named or HEADS_OF_WIDTH.get(width, width // HEAD_WIDTH)
    if heads == 0 or width % heads:
        _refuse(
            f"no tensor tells how many heads share its width of {width}; pass "
            'config={"model_args": {"num_heads": ...}}'
        )
    said.append(f"{heads} attention heads, by its {'name' if named else f'width of {width}'}.")
    return heads


def _head(weights: Weights, arguments: Facts, pretrained: Facts) -> dict[str, Any]:
    """Pooling, activation and labels; a label's description, where there is one, is its name."""
    # A norm after pooling is `fc_norm`, and of one token it is the same before pooling.
    is_mean = "fc_norm.weight" in weights and arguments.get("global_pool") != "token"
    fields: dict[str, Any] = {
        "pooling": "mean" if is_mean else "cls",
        "hidden_act": ACTIVATIONS[arguments.get("act_layer") or "gelu"],
    }
    if "head.weight" not in weights:
        return fields
    stored = pretrained.get("label_names") or {}
    names = stored if isinstance(stored, Mapping) else dict(enumerate(stored))
    names = {int(label): name for label, name in names.items()}
    descriptions = pretrained.get("label_descriptions") or {}
    labels = [names.get(at, f"LABEL_{at}") for at in range(weights["head.weight"].shape[0])]
    labels = [descriptions.get(name, name) for name in labels]
    label2id = {name: at for at, name in enumerate(labels)}
    return fields | {"id2label": dict(enumerate(labels)), "label2id": label2id}


def _statistics(pretrained: Facts, fields: Facts, said: list[str]) -> dict[str, Any]:
    """Mean and deviation of pixels; equal ones do for any number of channels."""
    if "mean" not in pretrained or "std" not in pretrained:
        said.append("How to prepare its images is not stated; timm's defaults are taken.")
        return {"image_mean": 0.5, "image_std": 0.5}
    statistics = {"image_mean": list(pretrained["mean"]), "image_std": list(pretrained["std"])}
    for name, values in statistics.items():
        if len(set(values)) == 1:
            statistics[name] = values[:1] * fields["num_channels"]
    return statistics


def _positions(weights: Weights, fields: Facts, said: list[str]) -> tuple[dict[str, Tensor], str]:
    """The weights, their table with a row for the class token, and which kind of table it is."""
    table, kind = complete_positions(weights["pos_embed"], fields, said)
    if kind == "sincos":
        said.append("Its positions are the fixed sin-cos ones.")
    return {**weights, "pos_embed": table}, kind


def _processor(config: VitMaeConfig, pretrained: Facts) -> VitMaeImageProcessor:
    return VitMaeImageProcessor(
        size=config.image_size,
        resample=INTERPOLATIONS[pretrained.get("interpolation", "bicubic")],
        crop_pct=pretrained.get("crop_pct", CROP_PCT),
        do_center_crop=CROP_MODES[pretrained.get("crop_mode", "center")],
        image_mean=config.image_mean,
        image_std=config.image_std,
        num_channels=config.num_channels,
        patch_size=config.patch_size,
    )
