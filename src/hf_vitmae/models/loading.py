"""`from_pretrained` for another geometry than the checkpoint's, and for checkpoints of
transformers' own models: the weights are adapted, and what was done is said.
"""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .adaptation import adapt_weights
from .configuration_vitmae import VitMaeConfig
from .foreign import WHERE_TO_LOOK, Foreign, open_foreign
from .patches import as_pair

logger = logging.get_logger(__name__)

GEOMETRY = ("image_size", "patch_size", "num_channels")
_STATISTICS = ("image_mean", "image_std")  # one number a channel, so they may go with the geometry
_FIELDS = (*GEOMETRY, *_STATISTICS)
_OF_THE_MODEL = ("dtype", "torch_dtype", "attn_implementation")  # no fields to be set in advance


def _check_files(folder: Path, is_ours: bool) -> None:
    """Refuse a folder of this family whose weights are a pickle, or lie outside of it.

    Raises:
        ValueError: naming the file and the mend.
    """
    if not is_ours:
        return
    index, pickled = folder / "model.safetensors.index.json", folder / "pytorch_model.bin"
    if pickled.is_file() and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{pickled} is a pickle, which may hold anything; this family reads safetensors: save "
            "the model again with save_pretrained."
        )
    shards = json.loads(index.read_text())["weight_map"].values() if index.is_file() else ()
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ValueError(f"{index} names {outside[0]}, which lies outside; save the model again.")


class LoadsAnyGeometry:
    """Before `PreTrainedModel` among the bases of a model."""

    config_class: type[VitMaeConfig]
    _takes_pooler = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; `image_size`, `patch_size` and `num_channels`, given by keyword or in
        `config`, may differ from the checkpoint's: its weights are then adapted. A checkpoint of
        transformers' own ViT, ViT-MAE or DeiT opens as well, and what it lacks starts afresh.

        What was done is logged and, with `output_loading_info`, in the report as "adaptations".

        Raises:
            ValueError: if they do not make a model, the weights lie on several devices, or the
            checkpoint is of another kind of model or damaged.
        """
        load = super().from_pretrained  # type: ignore[misc]
        name, options = pretrained_model_name_or_path, kwargs
        by_name = name is not None and kwargs.get("state_dict") is None
        foreign = open_foreign(name, kwargs) if by_name else None
        _check_files(Path(str(name)), is_ours=by_name and foreign is None)
        if foreign is not None:
            if isinstance(config, str | os.PathLike):
                config = cls.config_class.from_pretrained(config)
            if not (cls._takes_pooler and _wants_pooler(config, kwargs)):
                foreign = foreign.without_pooler()
            load = _from_weights(load, foreign, cls.config_class)
        asked = _asked(config, kwargs) if by_name else {}
        stored = _stored_config(cls.config_class, name, kwargs, foreign) if asked else None
        if stored is not None and config is None:
            stored.with_fields(**asked)  # refuses what makes no model before weights are read
        if stored is not None and not any(_differs(stored, asked, field) for field in GEOMETRY):
            stored = None
        if foreign is None and stored is None:
            loading = {"config": config, "output_loading_info": output_loading_info}
            return load(name, *model_args, **loading, **kwargs)

        if stored is not None:
            config, options = _as_stored(stored, config, kwargs)
        loading = {"config": config, "output_loading_info": True}
        model, report = load(name, *model_args, **loading, **options)
        lines = [] if foreign is None else list(foreign.lines)
        if stored is not None:
            model, changes, fresh = _adapt(model, model.config.with_fields(**asked))
            lines += changes
            report |= {"missing_keys": {*report["missing_keys"], *fresh}}
        for line in lines:
            logger.warning(f"{cls.__name__} from {name}: {line}")
        report |= {"adaptations": lines}
        return (model, report) if output_loading_info else model


def _from_weights(
    load: Callable[..., Any], foreign: Foreign, config_class: type[VitMaeConfig]
) -> Callable[..., Any]:
    """`from_pretrained` of weights that have been read already; the name is only noted."""

    def from_weights(
        name: Any, *model_args: Any, config: Any, output_loading_info: bool, **kwargs: Any
    ) -> Any:
        if config is None:
            options = {key: kwargs.pop(key) for key in _OF_THE_MODEL if key in kwargs}
            config, kwargs = config_class.from_dict(
                dict(foreign.fields), return_unused_kwargs=True, **kwargs
            )
            kwargs |= options
        loading = {"config": config, "output_loading_info": output_loading_info}
        loaded = load(None, *model_args, state_dict=dict(foreign.weights), **loading, **kwargs)
        model = loaded[0] if output_loading_info else loaded
        model.name_or_path = model.config._name_or_path = str(name)
        return loaded

    return from_weights


def _wants_pooler(config: Any, options: dict[str, Any]) -> bool:
    """Whether a checkpoint's pooler has a place in what the caller describes."""
    if not options.get("add_pooling_layer", True):
        return False
    if config is not None:
        return config.pooler_output_size is not None
    return options.get("pooler_output_size", True) is not None


def _asked(config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Geometry and statistics that the caller named; empty where no geometry is among them."""
    if not (isinstance(config, VitMaeConfig) or options.keys() & set(GEOMETRY)):
        return {}
    asked = {} if config is None else {field: getattr(config, field) for field in _FIELDS}
    return asked | {field: options[field] for field in _FIELDS if field in options}


def _stored_config(
    config_class: type[VitMaeConfig], name: Any, options: dict[str, Any], foreign: Foreign | None
) -> VitMaeConfig:
    """The configuration beside the weights, before anything is changed."""
    if foreign is not None:
        return config_class(**foreign.fields)
    where = {option: options[option] for option in WHERE_TO_LOOK if option in options}
    return config_class.from_pretrained(name, **where)


def _as_stored(
    stored: VitMaeConfig, config: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What the caller gave, with the geometry of the weights in place of the one asked for."""
    options = {option: value for option, value in options.items() if option not in _FIELDS}
    if config is not None:
        config = copy.deepcopy(config)
        for field in _FIELDS:
            setattr(config, field, getattr(stored, field))
    return config, options


def _differs(stored: VitMaeConfig, asked: dict[str, Any], field: str) -> bool:
    if field not in asked:
        return False
    values = (getattr(stored, field), asked[field])
    if field == "num_channels":
        return values[0] != values[1]
    return as_pair(values[0]) != as_pair(values[1])


def _adapt(model: Any, new: VitMaeConfig) -> tuple[Any, list[str], list[str]]:
    """A model of the new geometry with the weights of `model`, what was done to them, and the names
    of those that start afresh.
    """
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise ValueError(
            "Weights on several devices cannot be adapted to another geometry; load without "
            "`device_map`, save the adapted model, and load that."
        )
    weights, lines = adapt_weights(old := model.state_dict(), model.config, new)
    adapted = type(model)(new).to(device=model.device, dtype=model.dtype)
    fresh, unexpected = adapted.load_state_dict(weights, strict=False)
    left_out = {name.split(".")[0] for name in old.keys() - weights.keys()}
    assert not unexpected and {name.split(".")[0] for name in fresh} <= left_out
    return adapted.eval(), lines, fresh
