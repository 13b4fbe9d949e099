"""Checkpoints of transformers' own ViT, ViT-MAE and DeiT, in this family's terms.

transformers itself reads them: old and new names on disk, shards and Hub ids are its business.
Their encoder has the same architecture and, in memory, the same names; the table below holds what
differs.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from .configuration_vitmae import VitMaeConfig
from .embeddings import sincos_positions

WHERE_TO_LOOK = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
_HOW_TO_READ = ("use_safetensors", "variant")

# The class of each `model_type` with the most parts; a checkpoint may lack all of a part.
FULLEST = {
    "vit": "ViTForImageClassification",
    "vit_mae": "ViTMAEForPreTraining",
    "deit": "DeiTForImageClassification",
}
# The class of those that may have a pooler, which the fullest has no place for.
WITH_POOLER = {"vit": "ViTModel", "deit": "DeiTModel"}
WITH_TEACHER = "DeiTForImageClassificationWithTeacher"  # has classifiers of other names

ENCODER_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
MAE_FIELDS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
)
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
POOLER_FIELDS = ("pooler_output_size", "pooler_act")

# Beginnings of names in memory, theirs and ours; all other names are the same.
NAMES = (
    ("decoder.decoder_pos_embed", "decoder.position_embeddings"),
    ("decoder.decoder_embed.", "decoder.embed."),
    ("decoder.decoder_layers.", "decoder.layers."),
    ("decoder.decoder_norm.", "decoder.layernorm."),
    ("decoder.decoder_pred.", "decoder.predict."),
)
POOLER = "vit.pooler."
DEIT_NAMES = (("deit.", "vit."), ("cls_classifier.", "classifier."))

# What a checkpoint may have besides, and why it has no place here.
LEFT_OUT = {
    "pooler": "its pooler (a trained map and activation on the CLS token), which only VitMaeModel "
    "has",
    "mask_token": "its mask token in the encoder, which other objectives use",
    "decoder": "its decoder of masked pixels, a convolution",
    "distillation_classifier": "its classifier on the distillation token",
    "distillation_token": "its distillation token, to which the other tokens attended: outputs "
    "differ until the model is trained again",
}


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of transformers in our terms.

    Args:
        fields: of a `VitMaeConfig`; those that its model does not have keep their defaults.
        weights: under our names, the encoder's with `vit.` in front.
        lines: for the user, what was opened and what was left out.
    """

    fields: dict[str, Any]
    weights: dict[str, Tensor]
    lines: list[str]

    def without_pooler(self) -> "Foreign":
        """For a class that has none; a line says so, if the checkpoint has one."""
        if "pooler_output_size" not in self.fields:
            return self
        fields = {name: self.fields[name] for name in self.fields if name not in POOLER_FIELDS}
        weights = {
            name: value for name, value in self.weights.items() if not name.startswith(POOLER)
        }
        lines = [*self.lines, f"left out {LEFT_OUT['pooler']}"]
        return replace(self, fields=fields, weights=weights, lines=lines)


def open_foreign(name: Any, options: Mapping[str, Any]) -> Foreign | None:
    """Read a folder or Hub id; None, if it is of this family or has no configuration.

    Args:
        options: of `from_pretrained`; where to look for the files is taken from them.

    Raises:
        ValueError: if it is a model of another kind, or not all of its weights are there and fit.
    """
    where = {key: options[key] for key in WHERE_TO_LOOK if key in options}
    how = {key: options[key] for key in _HOW_TO_READ if key in options}
    stored = _stored_config(name, where)
    model_type = stored.get("model_type", VitMaeConfig.model_type)
    if model_type == VitMaeConfig.model_type:
        return None
    if model_type not in FULLEST:
        raise ValueError(
            f"{name} is a `{model_type}` model; of transformers' own models this family opens "
            f"{', '.join(FULLEST)}."
        )
    has_teacher = WITH_TEACHER in (stored.get("architectures") or ())
    kind = getattr(transformers, WITH_TEACHER if has_teacher else FULLEST[model_type])
    model, report = _open_as(kind, name, where | how)
    weights = _stored_weights(name, model, report)
    left_out = _left_out(name, report["unexpected_keys"])
    if "pooler" in left_out and model_type in WITH_POOLER:
        left_out.remove("pooler")
        weights |= _stored_pooler(name, model_type, where | how)
    if model_type == "deit":
        weights, without = _without_distillation(rename_starts(weights, DEIT_NAMES))
        left_out |= without
    weights = rename_starts(weights, NAMES)
    fields = _our_fields(model.config, weights)
    fields |= _statistics(stored_processor(name, where), model.config.num_channels)
    lines = [f"opened a transformers {model_type} checkpoint {_parts(weights)}"]
    lines += [f"left out {why}" for part, why in LEFT_OUT.items() if part in left_out]
    return Foreign(fields, weights, lines)


def rename_starts(
    weights: Mapping[str, Tensor], names: Iterable[tuple[str, str]]
) -> dict[str, Tensor]:
    """The same tensors, with each first beginning of a name replaced by the second."""
    table, renamed = list(names), {}
    for name, value in weights.items():
        found = [pair for pair in table if name.startswith(pair[0])]
        renamed[name.replace(*found[0], 1) if found else name] = value
    return renamed


def stored_processor(name: Any, where: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the image processor beside the weights; empty where there is none."""
    try:
        return BaseImageProcessor.get_image_processor_dict(name, **where)[0]
    except OSError:
        return {}


def _stored_config(name: Any, where: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return PreTrainedConfig.get_config_dict(name, **where)[0]
    except OSError:  # weights alone, or nothing at all: `from_pretrained` says which
        return {}


def _open_as(kind: Any, name: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A checkpoint as a class of transformers, and what transformers reports of it."""
    with _quiet_transformers():
        return kind.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )


def _stored_pooler(name: Any, model_type: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The pooler of a checkpoint that has one, under our names."""
    model, report = _open_as(getattr(transformers, WITH_POOLER[model_type]), name, options)
    weights = _stored_weights(name, model, report)
    return {f"vit.{key}": weights[key] for key in weights if key.startswith("pooler.")}


def _stored_weights(name: Any, model: Any, report: dict[str, Any]) -> dict[str, Tensor]:
    """What the checkpoint held of the model, under the model's names.

    Raises:
        ValueError: naming a weight of another shape, or one missing in a part that is there.
    """
    for key, shape, expected in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"`{key}` of {name} is {tuple(shape)} where its configuration says {tuple(expected)}; "
            "the checkpoint is damaged, or its config.json of another model."
        )
    weights, missing = model.state_dict(), set(report["missing_keys"])
    for part in {key.split(".")[0] for key in missing}:
        of_part = {key for key in weights if key.split(".")[0] == part}
        lacking = missing & of_part
        if part == model.base_model_prefix or lacking != of_part:
            raise ValueError(
                f"{name} lacks {len(lacking)} weights of {type(model).__name__}, "
                f"`{min(lacking)}` the first; it is damaged, or of another model."
            )
    return {key: value for key, value in weights.items() if key not in missing}


def _left_out(name: Any, unexpected: Iterable[str]) -> set[str]:
    """Which parts of the checkpoint the model has no place for.

    Raises:
        ValueError: naming a weight of a part that is not known.
    """
    parts = {key: LEFT_OUT.keys() & key.split(".") for key in unexpected}
    unknown = [key for key, known in parts.items() if not known]
    if unknown:
        raise ValueError(
            f"{name} has {len(unknown)} weights that its model_type does not have, "
            f"`{min(unknown)}` the first; it is another model than its config.json says."
        )
    return set().union(*parts.values())


def _without_distillation(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """A DeiT without the token, its position (the second) and its classifier, and what they are."""
    names = {key for key in weights if "distillation" in key}
    kept = {key: value for key, value in weights.items() if key not in names}
    table = kept["vit.embeddings.position_embeddings"]  # (1, 2 + N, D)
    kept["vit.embeddings.position_embeddings"] = torch.cat([table[:, :1], table[:, 2:]], dim=1)
    return kept, {part for key in names for part in key.split(".") if part in LEFT_OUT}


def _our_fields(config: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    names = [*ENCODER_FIELDS, "dtype"]
    if config.model_type == "vit_mae":
        names += MAE_FIELDS
    if any(name.startswith(POOLER) for name in weights):
        names += POOLER_FIELDS
    if has_classifier := "classifier.weight" in weights:
        names += LABEL_FIELDS
    fields = {name: getattr(config, name) for name in names}
    if has_classifier and not fields["label2id"]:
        fields["label2id"] = {label: index for index, label in config.id2label.items()}
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        fields[name] = float(fields[name])  # old files have 0 there
    grid = VitMaeConfig(image_size=config.image_size, patch_size=config.patch_size).grid
    return fields | {"position_embedding": _position_kind(weights, grid)}


def _position_kind(weights: Mapping[str, Tensor], grid: tuple[int, int]) -> str:
    """Whether all tables are the fixed one, in their precision, or were trained."""
    for name, table in weights.items():
        if not name.endswith("position_embeddings"):
            continue
        fixed = sincos_positions(grid, table.shape[-1]).to(table.dtype)
        tolerance = max(1e-6, torch.finfo(table.dtype).eps)
        if not torch.allclose(table.cpu(), fixed, rtol=0, atol=tolerance):
            return "learned"
    return "sincos"


def _statistics(processor: Mapping[str, Any], num_channels: int) -> dict[str, Any]:
    """What the images were normalised with, where that is stored and fits."""
    if not processor.get("do_normalize", True):
        return {"image_mean": 0.0, "image_std": 1.0}
    names = ("image_mean", "image_std")
    known = {name: processor[name] for name in names if processor.get(name) is not None}
    fits = all(
        not isinstance(value, list) or len(value) == num_channels for value in known.values()
    )
    return known if fits else {}


def _parts(weights: Mapping[str, Tensor]) -> str:
    if "classifier.weight" in weights:
        return f"with a classifier of {len(weights['classifier.weight'])} classes"
    if "decoder.mask_token" in weights:
        return "with decoder"
    if any(name.startswith(POOLER) for name in weights):
        return "of an encoder with its pooler"
    return "of an encoder alone"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading report: its names are not the user's, who is told in `Foreign.lines`."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
