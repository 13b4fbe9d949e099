"""Open a saved model for a task, and say in one line what is wrong with it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig
from transformers.utils import logging

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel

Model = TypeVar("Model", bound=VitMaePreTrainedModel)


def load_config(name: str) -> VitMaeConfig:
    """The configuration of a checkpoint: a folder or a Hub id.

    Raises:
        FileNotFoundError: if there is no checkpoint of that name; a run's `model` folder is pointed
        out. ValueError: if it is a model of another family.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").exists():
        found = (folder / "model" / "config.json").exists()
        mend = f"did you mean {folder / 'model'}?" if found else "name the folder of a saved model."
        raise FileNotFoundError(f"{name} holds no model (no config.json); {mend}")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"{name}/config.json cannot be used: {first_line(error)}") from error
        raise FileNotFoundError(
            f"There is no model {name!r}: no such folder, and not to be had from the Hub; "
            "check the name."
        ) from error
    if not isinstance(config, VitMaeConfig):
        raise ValueError(
            f"{name} is a `{config.model_type}` model, and this task takes "
            f"`{VitMaeConfig.model_type}`."
        )
    return config


def load_model(
    model_class: type[Model], name: str, config: VitMaeConfig, *, new_head: bool = False
) -> tuple[Model, set[str], list[str]]:
    """A checkpoint as a class of the family, in float32.

    Args:
        config: with another geometry than the checkpoint's, its weights are adapted.
        new_head: a head of another size is left in the checkpoint and starts afresh.

    Returns:
        The model; the top-level parts of it that the checkpoint did not have and that are new; and
        what was done to the weights, in words.

    Raises:
        ValueError: if the weights are unreadable, or some of the encoder's are missing.
    """
    try:
        with quiet_transformers():
            loaded: Any = model_class.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=new_head,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors and transformers raise of every kind on damaged files
        raise ValueError(f"The weights of {name} cannot be used: {first_line(error)}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    encoder = [key for key in missing if key.startswith("vit.")]
    if encoder:
        raise ValueError(
            f"{name} lacks {len(encoder)} weights of the encoder, {encoder[0]} the first; it is "
            "damaged or of another model."
        )
    changed = {key for key, *_ in report["mismatched_keys"]}
    new = {key.split(".")[0] for key in (*missing, *changed)}
    return model, new, report.get("adaptations", [])


def load_processor(name: str, config: VitMaeConfig, **options: Any) -> VitMaeImageProcessor:
    """The checkpoint's image processor for the model's geometry, or where it has none, a new one.

    Args:
        options: of the processor, in place of the stored ones.

    Raises:
        ValueError: if its statistics are for another number of channels.
    """
    geometry = {"patch_size": config.patch_size, "num_channels": config.num_channels}
    options |= geometry | {"size": config.image_size}
    try:
        return VitMaeImageProcessor.from_pretrained(name, **options)
    except OSError:
        statistics = {"image_mean": config.image_mean, "image_std": config.image_std}
        return VitMaeImageProcessor(**statistics, **options)


def save_model(folder: Path, model: VitMaePreTrainedModel, processor: VitMaeImageProcessor) -> None:
    """Write model and processor in Hugging Face format; the folder is whole or absent."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no loading report: the task says in its own words what was loaded."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    own, own_level = getLogger("hf_vitmae"), getLogger("hf_vitmae").level
    own.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        own.setLevel(own_level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
