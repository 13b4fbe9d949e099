"""transformers' ViT, ViT-MAE, DeiT and former ViT-Hybrid to ours; and ours to a folder that
transformers opens by itself, of version 4 or 5.

Files are written with the names of transformers 4, which all versions read. The hybrid, whose class
transformers has dropped, is read from its files by the same tables.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.hub import cached_file

from hf_vitmae.convert.converted import Converted
from hf_vitmae.convert.rules import Rule, rename, rename_pair, to_ours, to_theirs
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.foreign import (
    ENCODER_FIELDS,
    LABEL_FIELDS,
    MAE_FIELDS,
    NAMES,
    POOLER_FIELDS,
    open_foreign,
    stored_processor,
)
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)

WHAT = "transformers"
HYBRID = "vit-hybrid"
BILINEAR = 2  # transformers' own choice where a file does not name one

# Our classes, and theirs with the same parts.
COUNTERPARTS: dict[type[VitMaePreTrainedModel], str] = {
    VitMaeModel: "ViTModel",
    VitMaeForImageClassification: "ViTForImageClassification",
    VitMaeForPreTraining: "ViTMAEForPreTraining",
}


def _block_rules(theirs: str, ours: str) -> list[Rule]:
    """The blocks of an encoder or decoder, theirs as transformers 4 calls them."""
    parts = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "layernorm_before",
        "layernorm_after": "layernorm_after",
    }
    return [
        rule
        for part, our_part in parts.items()
        for rule in rename_pair(f"{theirs}.{{}}.{part}", f"{ours}.{{}}.{our_part}")
    ]


def encoder_rules(prefix: str = "vit.") -> list[Rule]:
    """Names on disk of an encoder that stands behind a prefix, the same one in both."""
    same = ("embeddings.cls_token", "embeddings.position_embeddings")
    modules = ("embeddings.patch_embeddings.projection", "layernorm")
    return [
        *(rename(prefix + name, prefix + name) for name in same),
        *(rule for name in modules for rule in rename_pair(prefix + name, prefix + name)),
        *_block_rules(f"{prefix}encoder.layer", f"{prefix}layers"),
    ]


def decoder_rules() -> list[Rule]:
    """Names on disk of the MAE decoder."""
    modules = [(theirs[:-1], ours[:-1]) for theirs, ours in NAMES if theirs.endswith(".")]
    blocks = ("decoder.decoder_layers", "decoder.layers")
    return [
        rename("decoder.mask_token", "decoder.mask_token"),
        rename("decoder.decoder_pos_embed", "decoder.position_embeddings"),
        *(rule for pair in modules if pair != blocks for rule in rename_pair(*pair)),
        *_block_rules(*blocks),
    ]


def stem_rules() -> list[Rule]:
    """Names on disk of the hybrid's stem, a BiT backbone, in an encoder behind `vit.`."""
    theirs = "vit.embeddings.patch_embeddings.backbone.bit"
    ours = "vit.embeddings.patch_embeddings.stem"
    their_block, block = f"{theirs}.encoder.stages.{{}}.layers.{{}}", f"{ours}.stages.{{}}.{{}}"
    rules = [
        rename(f"{theirs}.embedder.convolution.weight", f"{ours}.convolution.weight"),
        *rename_pair(f"{theirs}.embedder.norm", f"{ours}.norm"),
        rename(f"{their_block}.downsample.conv.weight", f"{block}.shortcut.convolution.weight"),
        *rename_pair(f"{their_block}.downsample.norm", f"{block}.shortcut.norm"),
    ]
    for number in (1, 2, 3):
        rules.append(rename(f"{their_block}.conv{number}.weight", f"{block}.conv{number}.weight"))
        rules += rename_pair(f"{their_block}.norm{number}", f"{block}.norm{number}")
    return rules


HEAD_RULES: dict[type[VitMaePreTrainedModel], list[Rule]] = {
    VitMaeModel: rename_pair("pooler.dense", "pooler.dense"),
    VitMaeForImageClassification: rename_pair("classifier", "classifier"),
    VitMaeForPreTraining: decoder_rules(),
}


def read(name: str) -> Converted:
    """A folder or Hub id of transformers' ViT, ViT-MAE, DeiT or ViT-Hybrid.

    Raises:
        ValueError: if it is another model, or damaged.
    """
    missing = f"There is no config.json in {name}; name the folder of a model, or its Hub id."
    try:
        stored = PreTrainedConfig.get_config_dict(name)[0]
    except OSError as error:
        raise ValueError(missing) from error
    if not stored:
        raise ValueError(missing)
    if stored.get("model_type") == HYBRID:
        return _read_hybrid(name, stored)
    foreign = open_foreign(name, {})
    if foreign is None:
        raise ValueError(f"{name} is a model of this package already; there is nothing to convert.")
    if _kind(foreign.weights) is not VitMaeModel:
        foreign = foreign.without_pooler()
    return _converted(name, foreign.fields, foreign.weights, foreign.lines)


def write(
    model: VitMaePreTrainedModel, processor: VitMaeImageProcessor | None, folder: str | Path
) -> list[str]:
    """Save a model so that transformers opens it without this package: -> what did not travel.

    Raises:
        ValueError: if transformers has no model that computes the same.
    """
    _check_expressible(model)
    folder, kind = Path(folder), type(model)
    prefix = "" if kind is VitMaeModel else "vit."
    weights = to_theirs(
        model.state_dict(),
        [*encoder_rules(prefix), *HEAD_RULES[kind]],
        f"{WHAT} {COUNTERPARTS[kind]}",
    )
    options, lines = ({}, []) if processor is None else their_processor(processor)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    _their_config(model).save_pretrained(folder)
    if options:
        (folder / "preprocessor_config.json").write_text(json.dumps(options, indent=2) + "\n")
    if model.config.drop_path_rate:
        lines.append("`drop_path_rate`, which only training uses")
    if model.config.pooling == "mean":
        lines.append('`pooling` "mean": their model has no `pooler_output` like ours')
    return lines


def our_processor(stored: Mapping[str, Any], config: VitMaeConfig) -> VitMaeImageProcessor:
    """The image processor that a stored one of transformers describes; where it is silent, as the
    model is.
    """
    if not stored:
        return VitMaeImageProcessor.for_model(config)
    size, crop = stored.get("size") or config.image_size, stored.get("crop_size")
    geometry: dict[str, Any] = {"size": _pair(size), "do_center_crop": False}
    if stored.get("do_center_crop", False) and crop is not None:
        share = min(_pair(crop)) / min(_pair(size))
        geometry = {"size": _pair(crop), "do_center_crop": True, "crop_pct": min(share, 1.0)}
    names = ("do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    given = {name: stored[name] for name in names if stored.get(name) is not None}
    return VitMaeImageProcessor(
        **geometry,
        resample=stored.get("resample", BILINEAR),
        num_channels=config.num_channels,
        patch_size=config.patch_size,
        **given,
    )


def their_processor(processor: VitMaeImageProcessor) -> tuple[dict[str, Any], list[str]]:
    """What a processor of transformers that does the same is saved as, and what it cannot do.

    Theirs of ViT stretches a picture, as ours does without `do_center_crop`. CLIP's resizes the
    shorter side and crops, as ours does for a square.
    """
    names = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize")
    names += ("image_mean", "image_std")
    options = {name: getattr(processor, name) for name in names}
    options |= {"size": dict(processor.size), "image_processor_type": "ViTImageProcessor"}
    height, width = processor.size["height"], processor.size["width"]
    lines = []
    if processor.do_center_crop and height == width:
        options |= {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": round(height / processor.crop_pct)},
            "do_center_crop": True,
            "crop_size": dict(processor.size),
            "do_convert_rgb": processor.do_convert,
        }
    elif processor.do_center_crop:
        lines.append(f"the centre crop to {height}x{width}: pictures are stretched instead")
    return options, lines


def _kind(weights: Mapping[str, Tensor]) -> type[VitMaePreTrainedModel]:
    """The smallest class that has a place for what stands beside the encoder."""
    if any(key.startswith("decoder.") for key in weights):
        return VitMaeForPreTraining
    return VitMaeForImageClassification if "classifier.weight" in weights else VitMaeModel


def _converted(
    name: str, fields: dict[str, Any], weights: dict[str, Tensor], said: list[str]
) -> Converted:
    """A model of weights that stand behind `vit.`."""
    config, kind = VitMaeConfig(**fields), _kind(weights)
    if kind is VitMaeModel:
        weights = {key.removeprefix("vit."): value for key, value in weights.items()}
    stored = stored_processor(name, {})
    size = stored.get("size")
    by_edge = isinstance(size, Mapping) and "shortest_edge" in size
    if stored.get("do_center_crop", False) and not by_edge:
        said = [*said, "its pictures were stretched before the crop; here they keep their aspect"]
    return Converted(config, weights, kind, our_processor(stored, config), said)


def _read_hybrid(name: str, stored: Mapping[str, Any]) -> Converted:
    backbone = stored.get("backbone_config") or {}
    plain = {
        "layer_type": "bottleneck",
        "global_padding": "same",
        "embedding_dynamic_padding": True,
    }
    for field, value in plain.items():
        found = backbone.get(field, value)
        if (found.lower() if isinstance(found, str) else found) != value:
            raise ValueError(
                f"`{field}` of the stem of {name} is {found!r}; only {value!r} is read."
            )
    depths = backbone.get("depths", [3, 4, 9])
    stage = int((backbone.get("out_features") or ["stage3"])[-1].removeprefix("stage"))
    stride = 4 * 2 ** (stage - 1)
    fields = {field: stored[field] for field in ENCODER_FIELDS if field in stored}
    fields |= {
        "layer_norm_eps": stored.get("layer_norm_eps", 1e-12),
        "position_embedding": "learned",
        "stem_depths": depths[:stage],
        "stem_width": backbone.get("embedding_size", 64),
        "stem_num_groups": backbone.get("num_groups", 32),
        "patch_size": stored.get("patch_size", 1)
        * stride,  # theirs counts places of the stem's map
        "id2label": {int(key): label for key, label in stored.get("id2label", {}).items()} or None,
        "label2id": stored.get("label2id"),
    }
    rules = [*encoder_rules(), *stem_rules(), *HEAD_RULES[VitMaeForImageClassification]]
    weights = to_ours(_read_file(name), rules, name)
    said = [
        f"opened a former transformers vit_hybrid checkpoint, a stem of {depths[:stage]} blocks"
    ]
    return _converted(name, fields, weights, said)


def _read_file(name: str) -> dict[str, Tensor]:
    path = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise ValueError(f"There is no model.safetensors in {name}; save it with transformers 4.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _their_config(model: VitMaePreTrainedModel) -> PreTrainedConfig:
    config, kind = model.config, type(model)
    names = [*ENCODER_FIELDS]
    if kind is VitMaeForPreTraining:
        names += MAE_FIELDS
    if kind is VitMaeForImageClassification:
        names += LABEL_FIELDS
    if config.pooler_output_size is not None:
        names += POOLER_FIELDS
    fields = {name: getattr(config, name) for name in names}
    theirs = getattr(transformers, COUNTERPARTS[kind]).config_class(**fields)
    theirs.architectures, theirs.dtype = [COUNTERPARTS[kind]], model.dtype
    return theirs


def _check_expressible(model: VitMaePreTrainedModel) -> None:
    config, kind = model.config, type(model)
    name = kind.__name__
    has_pooler = config.pooler_output_size is not None
    if kind not in COUNTERPARTS:
        raise ValueError(
            f"{WHAT} has no counterpart of {name}; open the checkpoint as VitMaeModel and write "
            "the encoder alone."
        )
    obstacles = {
        "`stem_depths`": config.stem_depths is not None,
        "`is_causal` True": config.is_causal,
        "`layer_scale_init_value`": config.layer_scale_init_value is not None,
        '`pooling` "mean"': kind is VitMaeForImageClassification and config.pooling == "mean",
        'pooler after `pooling` "mean"': has_pooler and config.pooling == "mean",
        "an image or a patch that is no square": kind is VitMaeForPreTraining
        and len({*config.image_pair}) + len({*config.patch_pair}) > 2,
    }
    for what, is_there in obstacles.items():
        if is_there:
            raise ValueError(
                f"{WHAT}' {COUNTERPARTS[kind]} has no {what} and cannot express this {name}; "
                f"{_way_out(what)}."
            )


def _way_out(obstacle: str) -> str:
    if "pooler" in obstacle:
        return "open the checkpoint with add_pooling_layer=False and write the encoder alone"
    if "pooling" in obstacle or "square" in obstacle:
        return "open the checkpoint as VitMaeModel and write the encoder alone"
    return "it can only be used with this package"


def _pair(size: Any) -> tuple[int, int]:
    """A stored size as (height, width): a number, a pair, or one of transformers' dicts."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        return (edge, edge) if edge is not None else (size["height"], size["width"])
    return size[0], size[1]
