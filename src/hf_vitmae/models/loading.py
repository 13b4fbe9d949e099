"""`from_pretrained` for another geometry than the checkpoint's: the weights are adapted, and what
was done is said.
"""

import copy
from typing import Any

from transformers.utils import logging

from .adaptation import adapt_weights
from .configuration_vitmae import VitMaeConfig
from .patches import as_pair

logger = logging.get_logger(__name__)

GEOMETRY = ("image_size", "patch_size", "num_channels")
_STATISTICS = ("image_mean", "image_std")  # one number a channel, so they may go with the geometry
_WHERE_TO_LOOK = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


class LoadsAnyGeometry:
    """Before `PreTrainedModel` among the bases of a model."""

    config_class: type[VitMaeConfig]

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
        `config`, may differ from the checkpoint's: its weights are then adapted.

        What was done is logged and, with `output_loading_info`, in the report as "adaptations".

        Raises:
            ValueError: if they do not make a model, or the weights lie on several devices.
        """
        load = super().from_pretrained  # type: ignore[misc]
        loading = {"config": config, "output_loading_info": output_loading_info}
        name = pretrained_model_name_or_path
        if name is None or not (isinstance(config, VitMaeConfig) or kwargs.keys() & set(GEOMETRY)):
            return load(name, *model_args, **loading, **kwargs)
        stored = _stored_config(cls.config_class, name, kwargs)
        fields = (*GEOMETRY, *_STATISTICS)
        asked = {} if config is None else {field: getattr(config, field) for field in fields}
        asked |= {field: kwargs[field] for field in fields if field in kwargs}
        if config is None:
            stored.with_fields(**asked)  # refuses what makes no model before weights are read
        if not any(_differs(stored, asked, field) for field in GEOMETRY):
            return load(name, *model_args, **loading, **kwargs)

        kwargs = {option: value for option, value in kwargs.items() if option not in fields}
        if config is not None:
            config = copy.deepcopy(config)
            for field in fields:
                setattr(config, field, getattr(stored, field))
        loading = {"config": config, "output_loading_info": True}
        model, report = load(name, *model_args, **loading, **kwargs)
        adapted, lines, fresh = _adapt(model, model.config.with_fields(**asked))
        for line in lines:
            logger.warning(f"{cls.__name__} from {name}: {line}")
        report |= {"missing_keys": {*report["missing_keys"], *fresh}, "adaptations": lines}
        return (adapted, report) if output_loading_info else adapted


def _stored_config(config_class: type[VitMaeConfig], name: Any, options: dict) -> VitMaeConfig:
    """The configuration beside the weights, before anything is changed."""
    where = {option: options[option] for option in _WHERE_TO_LOOK if option in options}
    return config_class.from_pretrained(name, **where)


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
