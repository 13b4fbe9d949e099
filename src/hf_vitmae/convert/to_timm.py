"""Our encoders and classifiers as timm's Vision Transformers: a state dict, or a Hub folder.

A timm model is a named architecture and the arguments that differ from it; both are written, so
that any geometry opens.
"""

import json
import math
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor

from hf_vitmae.convert.rules import to_theirs
from hf_vitmae.convert.timm_rules import (
    ACTIVATIONS,
    BACKBONE,
    CROP_MODES,
    INTERPOLATIONS,
    LAYER_NORM_EPS,
    STEM_NUM_GROUPS,
    STEM_WIDTH,
    timm_rules,
)
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeModel,
    VitMaePreTrainedModel,
)

PLAIN = {  # by width and patch size
    (192, 16): "vit_tiny_patch16_224",
    (384, 16): "vit_small_patch16_224",
    (384, 32): "vit_small_patch32_224",
    (768, 8): "vit_base_patch8_224",
    (768, 32): "vit_base_patch32_224",
    (1024, 14): "vit_large_patch14_224",
    (1024, 16): "vit_large_patch16_224",
    (1024, 32): "vit_large_patch32_224",
    (1280, 14): "vit_huge_patch14_224",
}
ANY_PLAIN = "vit_base_patch16_224"
HYBRIDS = {(3, 4, 9): "vit_base_r50_s16_224", (2, 2, 2, 2): "vit_small_r26_s32_224"}


def write(model: VitMaePreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors under timm's names, for a timm model of the same geometry.

    Raises:
        ValueError: for a model that timm cannot express, and any but the encoder and classifier.
    """
    if type(model) not in (VitMaeModel, VitMaeForImageClassification):
        raise ValueError(
            f"timm has nothing like {type(model).__name__}; convert its encoder `model.vit` alone."
        )
    _check(model.config)
    prefix = "" if isinstance(model, VitMaeModel) else "vit."
    norm = "fc_norm" if model.config.pooling == "mean" else "norm"
    return to_theirs(model.state_dict(), timm_rules(prefix, norm), "timm")


def write_folder(
    model: VitMaePreTrainedModel, processor: VitMaeImageProcessor, folder: str | Path
) -> None:
    """Write `model.safetensors` and `config.json`, which timm opens as "local-dir:FOLDER".

    Raises:
        ValueError: as `write` and `hub_config` do; nothing is written then.
    """
    weights, config = write(model), hub_config(model, processor)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def hub_config(model: VitMaePreTrainedModel, processor: VitMaeImageProcessor) -> dict[str, Any]:
    """The `config.json` with which timm builds a model of this geometry and prepares its images.

    Raises:
        ValueError: for images prepared in a way that timm has no word for.
    """
    config = model.config
    is_classifier = isinstance(model, VitMaeForImageClassification)
    num_classes = (config.num_labels or 0) if is_classifier else 0
    labels = cast("dict[int, str]", config.id2label or {})
    names = [labels[label] for label in range(num_classes)]
    is_named = any(name != f"LABEL_{label}" for label, name in enumerate(names))
    return {
        "architecture": architecture(config),
        "num_classes": num_classes,
        "num_features": config.hidden_size,
        "global_pool": _global_pool(config),
        **({"label_names": names} if is_named else {}),
        "model_args": model_arguments(config),
        "pretrained_cfg": {
            **_preparation(processor, config),
            "input_size": [config.num_channels, *config.image_pair],
            "fixed_input_size": True,
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": f"{BACKBONE}stem.conv" if config.stem_depths else "patch_embed.proj",
            "classifier": "head",
        },
    }


def architecture(config: VitMaeConfig) -> str:
    """The name of the timm model nearest to a configuration; `model_arguments` say the rest.

    Raises:
        ValueError: for a model that timm cannot express.
    """
    _check(config)
    if config.stem_depths is not None:
        return HYBRIDS[tuple(config.stem_depths)]
    height, width = config.patch_pair
    return PLAIN.get((config.hidden_size, height if height == width else 0), ANY_PLAIN)


def model_arguments(config: VitMaeConfig) -> dict[str, Any]:
    """What `timm.create_model` takes beside the architecture, as plain values."""
    activations = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    has_default = config.hidden_act == "gelu"
    return {
        "img_size": list(config.image_pair),
        "patch_size": [side // config.stem_stride for side in config.patch_pair],
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": _mlp_ratio(config.hidden_size, config.intermediate_size),
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale_init_value,
        "global_pool": _global_pool(config),
        **({} if has_default else {"act_layer": activations[config.hidden_act]}),
    }


def _global_pool(config: VitMaeConfig) -> str:
    return "avg" if config.pooling == "mean" else "token"


def _mlp_ratio(width: int, inner: int) -> float:
    """A ratio whose product with the width, rounded down as timm does, is the inner width."""
    ratio = inner / width
    while int(width * ratio) < inner:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _check(config: VitMaeConfig) -> None:
    """Raise `ValueError`, naming field and value, for what timm's models do not have."""
    allowed: dict[str, tuple[Any, ...]] = {
        "hidden_act": tuple(ACTIVATIONS.values()),
        "layer_norm_eps": (LAYER_NORM_EPS,),
        "is_causal": (False,),
    }
    if config.stem_depths is not None:
        allowed |= {"stem_width": (STEM_WIDTH,), "stem_num_groups": (STEM_NUM_GROUPS,)}
        if tuple(config.stem_depths) not in HYBRIDS:
            _refuse("stem_depths", config.stem_depths, tuple(HYBRIDS))
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            _refuse(name, getattr(config, name), values)


def _refuse(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    choices = " or ".join(map(repr, allowed))
    raise ValueError(f"timm cannot express this model: its `{name}` is {value!r}, not {choices}.")


def _preparation(processor: VitMaeImageProcessor, config: VitMaeConfig) -> dict[str, Any]:
    """How timm's own transforms prepare images alike."""
    size = (processor.size["height"], processor.size["width"])
    if size != config.image_pair:
        raise ValueError(
            f"The image processor makes images of {size[0]}x{size[1]} pixels (height x width), and "
            f"the model takes {config.image_pair[0]}x{config.image_pair[1]}."
        )
    if not (processor.do_resize and processor.do_rescale and processor.rescale_factor == 1 / 255):
        raise ValueError(
            "timm resizes every image and brings it to 0..1; set do_resize and do_rescale to True "
            "and rescale_factor to 1 / 255 in the image processor."
        )
    channels = processor.num_channels
    interpolations = {ours: theirs for theirs, ours in INTERPOLATIONS.items()}
    crop_modes = {ours: theirs for theirs, ours in CROP_MODES.items()}
    return {
        "mean": processor.image_mean if processor.do_normalize else [0.0] * channels,
        "std": processor.image_std if processor.do_normalize else [1.0] * channels,
        "interpolation": interpolations[processor.resample],
        "crop_pct": processor.crop_pct,
        "crop_mode": crop_modes[processor.do_center_crop],
    }
