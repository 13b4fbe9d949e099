"""Checkpoints of the original masked autoencoder (arXiv:2111.06377), to ours and back.

One file holds an encoder, an encoder with its decoder, a fine-tuned classifier or a linear probe;
its tensors tell which. What they do not tell, such as the number of heads, comes from the training
options stored beside them, or from the sizes that were published.
"""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_vitmae.convert.converted import Converted
from hf_vitmae.convert.pickles import load_pickle
from hf_vitmae.convert.positions import is_fixed
from hf_vitmae.convert.rules import Rule, fused, rename, rename_pair, to_ours, to_theirs
from hf_vitmae.models.configuration_vitmae import SIZES, VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)

HEADS_OF_WIDTH = {width: heads for width, _, heads, _, _ in SIZES.values()}
HEAD_WIDTH = 64  # of the standard sizes but for huge
DECODER_HEADS = 16  # of every released decoder
EVALUATION_CROP = 224 / 256  # the crop's share of the resized image, for classifiers up to 224
PROBE_EPS = 1e-6  # of the batch norm before a linear probe
DECODER = ("decoder_", "mask_token")

Kind = type[VitMaePreTrainedModel]


def recognises(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a file's content is of the original MAE and not a plain state dict of the same names.

    Plain ones are timm's, whose tensors are called alike, unless there is a decoder.
    """
    weights = _weights(checkpoint)
    has_encoder = "cls_token" in weights and "patch_embed.proj.weight" in weights
    return has_encoder and (
        weights is not checkpoint or "mask_token" in weights or "head.1.weight" in weights
    )


def read(path: str | Path, kind: Kind | None = None) -> Converted:
    """A checkpoint file of the original MAE.

    Args:
        kind: the class to make of it; by default what the file holds.

    Raises:
        FileNotFoundError, ValueError: for a file that cannot be read, is of another kind, has
        missing or surplus tensors, or lacks what `kind` needs.
    """
    checkpoint = load_pickle(path)
    weights, options = _weights(checkpoint), _options(checkpoint)
    what = f"{path} as an original MAE checkpoint"
    _check_encoder(weights, what)
    stored = _stored_kind(weights)
    kind = _check_kind(path, stored, stored if kind is None else kind)
    said = [_describe(weights, options, Path(path).name)]
    said += _left_out(checkpoint, stored, kind)
    if "head.1.weight" in weights:
        weights = fold_probe(weights)
    ours = to_ours(weights, _rules(stored, "mean" if _has_mean(weights) else "cls"), what)
    config = _config(weights, options, ours)
    if stored is VitMaeForPreTraining and kind is stored and "norm_pix_loss" not in options:
        said.append(
            "The file does not say whether targets were normalised; norm_pix_loss is False."
        )
    return Converted(config, _for_kind(ours, kind), kind, _processor(config, stored), said)


def write(model: VitMaePreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model under the original names; `read` makes the same model of them.

    Raises:
        ValueError: for a model that the original code cannot express.
    """
    config, kind = model.config, type(model)
    if kind not in (VitMaeModel, VitMaeForPreTraining, VitMaeForImageClassification):
        raise ValueError(f"The original MAE has no {kind.__name__}; save its encoder, `model.vit`.")
    _check_expressible(config)
    weights = dict(model.state_dict())
    if kind is VitMaeModel:
        weights = {f"vit.{name}": value for name, value in weights.items()}
    pooling = "cls" if kind is VitMaeForPreTraining else config.pooling
    return to_theirs(weights, _rules(kind, pooling), "The original MAE")


def fold_probe(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A linear probe's batch norm, an affine map in evaluation, made part of its linear map."""
    folded = {name: value for name, value in weights.items() if not name.startswith("head.")}
    extra = {name for name in weights if name.startswith("head.")} - {
        "head.0.running_mean",
        "head.0.running_var",
        "head.0.num_batches_tracked",
        "head.1.weight",
        "head.1.bias",
    }
    missing = {"head.0.running_mean", "head.0.running_var", "head.1.bias"} - weights.keys()
    if extra or missing:
        name, said = (min(extra), "surplus") if extra else (min(missing), "missing")
        raise ValueError(f"The linear probe is not read: `{name}` is {said}.")
    mean, variance = weights["head.0.running_mean"].double(), weights["head.0.running_var"].double()
    weight, bias = weights["head.1.weight"], weights["head.1.bias"]
    scaled = weight.double() / (variance + PROBE_EPS).sqrt()  # (labels, D)
    folded["head.weight"] = scaled.to(weight.dtype)
    folded["head.bias"] = (bias.double() - scaled @ mean).to(bias.dtype)
    return folded


def _weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    model = checkpoint.get("model")
    return model if isinstance(model, Mapping) else checkpoint


def _options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The training script's options, a namespace or a dict; empty where there are none."""
    options = checkpoint.get("args")
    if isinstance(options, Namespace):
        return vars(options)
    return dict(options) if isinstance(options, Mapping) else {}


def _check_encoder(weights: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` unless these are tensors, and those that tell the geometry are there."""
    for name, dimensions in {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4}.items():
        if name not in weights:
            raise ValueError(f"{what} is not read: it has no `{name}`.")
        if getattr(weights[name], "ndim", None) != dimensions:
            raise ValueError(f"{what} is not read: `{name}` has not {dimensions} dimensions.")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{what} is not read: `{name}` is a {type(value).__name__}.")


def _stored_kind(weights: Mapping[str, Any]) -> Kind:
    if any(name.startswith(DECODER) for name in weights):
        return VitMaeForPreTraining
    is_classifier = any(name.startswith("head.") for name in weights)
    return VitMaeForImageClassification if is_classifier else VitMaeModel


def _check_kind(path: str | Path, stored: Kind, asked: Kind) -> Kind:
    """`asked`, if the file has all of its parts."""
    if asked in (stored, VitMaeModel):
        return asked
    parts = {VitMaeForPreTraining: "decoder", VitMaeForImageClassification: "classifier"}
    if asked not in parts:
        raise ValueError(f"An original MAE checkpoint makes no {asked.__name__}; open VitMaeModel.")
    raise ValueError(
        f"{path} has no {parts[asked]}, which {asked.__name__} needs; convert it as it is, and "
        f"`{asked.__name__}.from_pretrained` starts a new one."
    )


def _has_mean(weights: Mapping[str, Any]) -> bool:
    """Whether patches were averaged: the norm then comes after, and has another name."""
    return "fc_norm.weight" in weights


def _describe(weights: Mapping[str, Tensor], options: Mapping[str, Any], name: str) -> str:
    stored = _stored_kind(weights)
    pooling = "mean of the patches" if _has_mean(weights) else "CLS token"
    if stored is VitMaeForPreTraining:
        is_picture = "visuali" in f"{name} {options.get('model', '')}".lower()
        kind = "visualisation, with decoder" if is_picture else "pretraining, with decoder"
    elif "head.1.weight" in weights:
        kind = f"linear probe on the {pooling}; its batch norm is folded into the classifier"
    elif stored is VitMaeForImageClassification:
        kind = f"fine-tuned classifier on the {pooling}"
    else:
        kind = "pretraining, encoder only"
    return f"The original MAE: {kind}."


def _left_out(checkpoint: Mapping[str, Any], stored: Kind, kind: Kind) -> list[str]:
    said = []
    if _weights(checkpoint) is not checkpoint and checkpoint.keys() - {"model", "args"}:
        others = ", ".join(sorted(checkpoint.keys() - {"model", "args"}))
        said.append(f"Left out, since they only serve to resume training: {others}.")
    if kind is not stored:
        part = "decoder" if stored is VitMaeForPreTraining else "classifier"
        said.append(f"Left out, since {kind.__name__} has none: the {part}.")
    return said


def _config(
    weights: Mapping[str, Tensor], options: Mapping[str, Any], ours: Mapping[str, Tensor]
) -> VitMaeConfig:
    """The configuration that the shapes and the options tell."""
    projection = weights["patch_embed.proj.weight"]
    width, channels, *patch = projection.shape
    side = _grid_side(weights)
    has_statistics = channels == len(IMAGENET_DEFAULT_MEAN)
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": _depth(weights, "blocks"),
        "num_attention_heads": _num_heads(width, options),
        "intermediate_size": _size(weights, "blocks.0.mlp.fc1.weight"),
        "image_size": _one_or_pair([side * patch[0], side * patch[1]]),
        "patch_size": _one_or_pair(patch),
        "num_channels": channels,
        "pooling": "mean" if _has_mean(weights) else "cls",
        "position_embedding": "sincos" if _are_fixed(ours, side) else "learned",
        "image_mean": tuple(IMAGENET_DEFAULT_MEAN) if has_statistics else 0.5,
        "image_std": tuple(IMAGENET_DEFAULT_STD) if has_statistics else 0.5,
    }
    if "head.weight" in weights:
        fields["num_labels"] = _size(weights, "head.weight")
    if "decoder_embed.weight" in weights:
        fields |= _decoder_fields(weights, options)
    return VitMaeConfig(**fields)


def _decoder_fields(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "decoder_hidden_size": _size(weights, "decoder_embed.weight"),
        "decoder_num_hidden_layers": _depth(weights, "decoder_blocks"),
        "decoder_num_attention_heads": options.get("decoder_num_heads", DECODER_HEADS),
        "decoder_intermediate_size": _size(weights, "decoder_blocks.0.mlp.fc1.weight"),
        "mask_ratio": options.get("mask_ratio", 0.75),
        "norm_pix_loss": bool(options.get("norm_pix_loss", False)),
    }


def _size(weights: Mapping[str, Tensor], name: str) -> int:
    """The outputs of a layer."""
    if name not in weights:
        raise ValueError(f"The original MAE checkpoint is not read: `{name}` is missing.")
    return weights[name].shape[0]


def _depth(weights: Mapping[str, Tensor], name: str) -> int:
    """Blocks under a name; a gap among them shows when the model is filled."""
    return 1 + max(
        (int(key.split(".")[1]) for key in weights if key.startswith(f"{name}.")), default=0
    )


def _num_heads(width: int, options: Mapping[str, Any]) -> int:
    if "num_heads" in options:
        return options["num_heads"]
    if width not in HEADS_OF_WIDTH and width % HEAD_WIDTH:
        raise ValueError(
            f"The original MAE checkpoint does not tell how many heads share its width of {width}; "
            "add `num_heads` to the options in its `args`."
        )
    return HEADS_OF_WIDTH.get(width, width // HEAD_WIDTH)


def _grid_side(weights: Mapping[str, Tensor]) -> int:
    num_patches = weights["pos_embed"].shape[1] - 1
    side = math.isqrt(max(num_patches, 0))
    if side == 0 or side**2 != num_patches:
        raise ValueError(
            f"The original MAE checkpoint is not read: `pos_embed` is for {num_patches} patches, "
            "which are no square grid."
        )
    return side


def _are_fixed(ours: Mapping[str, Tensor], side: int) -> bool:
    """Whether every position table is the sin-cos one."""
    tables = [value for name, value in ours.items() if name.endswith("position_embeddings")]
    return all(is_fixed(table, (side, side)) for table in tables)


def _one_or_pair(sides: list[int]) -> int | list[int]:
    return sides[0] if sides[0] == sides[1] else sides


def _processor(config: VitMaeConfig, stored: Kind) -> VitMaeImageProcessor:
    processor = VitMaeImageProcessor.for_model(config)
    if stored is VitMaeForImageClassification and max(config.image_pair) <= 224:
        processor.crop_pct = EVALUATION_CROP
    return processor


def _for_kind(ours: dict[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The tensors that a class takes, under the names it has for them."""
    if kind is not VitMaeModel:
        return ours
    return {
        name.removeprefix("vit."): value for name, value in ours.items() if name.startswith("vit.")
    }


def _rules(kind: Kind, pooling: str) -> list[Rule]:
    """The names of all tensors of a kind."""
    rules = [
        rename("cls_token", "vit.embeddings.cls_token"),
        rename("pos_embed", "vit.embeddings.position_embeddings"),
        *rename_pair("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
        *_block_rules("blocks", "vit.layers"),
        *rename_pair("fc_norm" if pooling == "mean" else "norm", "vit.layernorm"),
    ]
    if kind is VitMaeForImageClassification:
        rules += rename_pair("head", "classifier")
    if kind is VitMaeForPreTraining:
        rules += [
            rename("mask_token", "decoder.mask_token"),
            rename("decoder_pos_embed", "decoder.position_embeddings"),
            *rename_pair("decoder_embed", "decoder.embed"),
            *_block_rules("decoder_blocks", "decoder.layers"),
            *rename_pair("decoder_norm", "decoder.layernorm"),
            *rename_pair("decoder_pred", "decoder.predict"),
        ]
    return rules


def _block_rules(theirs: str, ours: str) -> list[Rule]:
    attention = f"{ours}.{{}}.attention"
    return [
        *rename_pair(f"{theirs}.{{}}.norm1", f"{ours}.{{}}.layernorm_before"),
        *(
            fused(
                f"{theirs}.{{}}.attn.qkv.{part}",
                [f"{attention}.{one}_proj.{part}" for one in "qkv"],
            )
            for part in ("weight", "bias")
        ),
        *rename_pair(f"{theirs}.{{}}.attn.proj", f"{attention}.o_proj"),
        *rename_pair(f"{theirs}.{{}}.norm2", f"{ours}.{{}}.layernorm_after"),
        *rename_pair(f"{theirs}.{{}}.mlp.fc1", f"{ours}.{{}}.mlp.fc1"),
        *rename_pair(f"{theirs}.{{}}.mlp.fc2", f"{ours}.{{}}.mlp.fc2"),
    ]


def _check_expressible(config: VitMaeConfig) -> None:
    """Raise `ValueError` for what the original code has no place for."""
    (height, width), (patch_height, patch_width) = config.image_pair, config.patch_pair
    expected = {
        "stem_depths": None,
        "is_causal": False,
        "layer_scale_init_value": None,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"The original MAE cannot express `{name}={getattr(config, name)!r}`; it has "
                f"{value!r}."
            )
    if height != width or patch_height != patch_width:
        raise ValueError(
            f"The original MAE takes square images and patches, not images of {height}x{width} "
            f"with patches of {patch_height}x{patch_width}."
        )
