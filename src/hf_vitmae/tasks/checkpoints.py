"""Open a saved model for a task, and say in one line what is wrong with it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig
from transformers.utils import logging

from hf_vitmae.convert import from_transformers
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.foreign import FULLEST, stored_processor
from hf_vitmae.models.image_processing_vitmae import (
    VitMaeImageProcessor,
    VitMaeImageProcessorKwargs,
)
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.whole_or_absent import whole_or_absent

Model = TypeVar("Model", bound=VitMaePreTrainedModel)
ENCODER = VitMaePreTrainedModel.base_model_prefix


def load_config(name: str) -> VitMaeConfig:
    """The configuration of a checkpoint: a folder, a Hub id, or user/name@revision.

    One of transformers' own ViT, ViT-MAE or DeiT gets that of the model of this family with the
    same parts, which is named in `architectures`.

    Raises:
        FileNotFoundError: if there is no checkpoint of that name; a run's `model` folder is pointed
        out. ValueError: if it is a model of another family, or damaged.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").exists():
        found = (folder / "model" / "config.json").exists()
        mend = f"did you mean {folder / 'model'}?" if found else "name the folder of a saved model."
        raise FileNotFoundError(f"{name} holds no model (no config.json); {mend}")
    place, revision = _at_revision(name)
    try:
        with quiet_transformers():  # without a network the Hub's client tells of each attempt
            config = AutoConfig.from_pretrained(place, **revision)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"{name}/config.json cannot be used: {first_line(error)}") from error
        raise FileNotFoundError(
            f"There is no model {name!r}: no such folder, and not to be had from the Hub; "
            "check the name."
        ) from error
    if config.model_type in FULLEST:
        return _foreign_config(name)
    if not isinstance(config, VitMaeConfig):
        raise ValueError(
            f"{name} is a `{config.model_type}` model, and this task takes "
            f"`{VitMaeConfig.model_type}`, or {', '.join(FULLEST)} of transformers."
        )
    return config


def _at_revision(name: str) -> tuple[str, dict[str, str]]:
    """A checkpoint's folder or Hub id, and `revision` where the name says one behind an @."""
    place, _, revision = name.partition("@")
    if not revision or Path(name).expanduser().exists():
        return name, {}
    return place, {"revision": revision}


def _foreign_config(name: str) -> VitMaeConfig:
    """Of a checkpoint of transformers; its weights are read, as they tell more than its own."""
    try:
        with quiet_transformers():
            converted = from_transformers.read(name)
    except Exception as error:  # safetensors and transformers raise of every kind on damaged files
        raise ValueError(f"{name} cannot be used: {first_line(error)}") from error
    converted.config.architectures = [converted.kind.__name__]
    return converted.config


def load_model(
    model_class: type[Model], name: str, config: VitMaeConfig, *, new_head: bool = False
) -> tuple[Model, set[str], list[str]]:
    """A checkpoint as a class of the family, in float32.

    Args:
        config: with another geometry than the checkpoint's, its weights are adapted.
        new_head: the checkpoint's encoder is used and nothing else; the rest starts afresh.

    Returns:
        The model; the top-level parts of it that the checkpoint did not have and that are new; and
        what was done to the weights, in words.

    Raises:
        ValueError: if the weights are unreadable, or some of the encoder's are missing.
    """
    if not new_head:
        return _load(model_class, name, config)
    encoder, _, adaptations = _load(VitMaeModel, name, config, add_pooling_layer=False)
    model = model_class(config).eval()
    model.get_submodule(ENCODER).load_state_dict(encoder.state_dict())
    parts = {key.split(".")[0] for key in model.state_dict()}
    return model, parts - {ENCODER}, adaptations


def load_autoencoder(name: str, config: VitMaeConfig) -> VitMaeForPreTraining:
    """A checkpoint of pretraining, with its decoder.

    Raises:
        ValueError: as `load_model`, or if it has no decoder.
    """
    model, new, _ = load_model(VitMaeForPreTraining, name, config)
    if "decoder" in new:
        raise ValueError(
            f"{name} has no decoder, so it predicts no pixels; name a checkpoint of pretraining."
        )
    return model


def load_fine_tuned(model_class: type[Model], name: str, config: VitMaeConfig) -> Model:
    """A checkpoint of fine-tuning, with the head that it learned.

    Raises:
        ValueError: as `load_model`, or if some of the head is not in the checkpoint.
    """
    model, new, _ = load_model(model_class, name, config)
    if new:
        stored = (config.architectures or ["a model without a head"])[0]
        raise ValueError(
            f"{name} ({stored}) has no trained {' and '.join(sorted(new)).replace('_', ' ')}; name "
            f"a model that was fine-tuned as {model_class.__name__}."
        )
    return model


def _load(
    model_class: type[Model], name: str, config: VitMaeConfig, **options: Any
) -> tuple[Model, set[str], list[str]]:
    """`load_model` with all that the checkpoint has; `options` are of `from_pretrained`."""
    try:
        with quiet_transformers():
            place, revision = _at_revision(name)
            options |= revision
            loaded: Any = model_class.from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
    except Exception as error:  # safetensors and transformers raise of every kind on damaged files
        raise ValueError(f"The weights of {name} cannot be used: {first_line(error)}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    prefix = "" if model_class is VitMaeModel else f"{ENCODER}."
    if lacking := [key for key in missing if key.startswith(prefix)]:
        raise ValueError(
            f"{name} lacks {len(lacking)} weights of the encoder, {lacking[0]} the first; it is "
            "damaged or of another model."
        )
    return model, {key.split(".")[0] for key in missing}, report.get("adaptations", [])


def on_device(model: Model) -> Model:
    """A model on the device that there is."""
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")  # pyright: ignore[reportArgumentType]


def load_processor(name: str, config: VitMaeConfig, **options: Any) -> VitMaeImageProcessor:
    """The checkpoint's image processor for the model's geometry, or where it has none, a new one.

    Args:
        options: of the processor, in place of the stored ones.

    Raises:
        ValueError: if its statistics are for another number of channels.
    """
    geometry = {"patch_size": config.patch_size, "num_channels": config.num_channels}
    options |= geometry | {"size": config.image_size}
    name, revision = _at_revision(name)
    stored = stored_processor(name, revision)
    if not stored:
        statistics = {"image_mean": config.image_mean, "image_std": config.image_std}
        return VitMaeImageProcessor(**statistics, **options)
    ours = VitMaeImageProcessor.__name__
    kind = stored.get("image_processor_type", stored.get("feature_extractor_type", ours))
    if kind == ours:
        return VitMaeImageProcessor.from_pretrained(name, **revision, **options)
    any_patch = copy.copy(config)
    any_patch.patch_size = 1  # the stored size need not fit the new patches
    processor = from_transformers.our_processor(stored, any_patch)
    known = VitMaeImageProcessorKwargs.__annotations__
    return VitMaeImageProcessor(**{name: getattr(processor, name) for name in known} | options)


def save_model(folder: Path, model: VitMaePreTrainedModel, processor: VitMaeImageProcessor) -> None:
    """Write model and processor in Hugging Face format; the folder is whole or as it was."""
    with whole_or_absent(folder, replace=True) as unfinished:
        with quiet_transformers():
            model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)


@contextmanager
def quiet_transformers(*, keep_bars: bool = False) -> Iterator[None]:
    """No bars and no loading report: the task says in its own words what was loaded."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    others = {logger: logger.level for logger in map(getLogger, ("hf_vitmae", "huggingface_hub"))}
    for logger in others:
        logger.setLevel(ERROR)
    logging.set_verbosity_error()
    if not keep_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        for logger, before in others.items():
            logger.setLevel(before)
        if bars and not keep_bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
