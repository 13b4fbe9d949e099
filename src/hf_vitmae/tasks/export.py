"""Write a model as a graph that runs without this package: ONNX, or a program of `torch.export`.

transformers' exporters trace the model with a batch of any size. What was written is run again and
compared with the model before the folder gets its name.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from transformers.utils import logging

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.tasks.checkpoints import load_config, load_model, load_processor
from hf_vitmae.whole_or_absent import whole_or_absent

Format = Literal["onnx", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
WITH_LOGITS = {
    kind.__name__: kind for kind in (VitMaeForImageClassification, VitMaeForSemanticSegmentation)
}
TOLERANCE = 1e-4  # of the largest value, where that is above 1
CHECKED_BATCHES = (1, 7)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Write a model as a graph for batches of any size, with its configuration and image
    processor.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or Hub id of a model."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New folder for the graph and what belongs to it."""
    format: Format = "onnx"
    """ONNX (model.onnx, its weights beside it), or a program of torch.export (model.pt2)."""
    what: Literal["logits", "features"] = "logits"
    """Class scores of a fine-tuned model, or the encoder's tokens and pooled output of any."""


def run(request: ExportRequest) -> Path:
    """Write the folder and return where it is; it is whole or absent.

    Raises:
        ValueError, FileNotFoundError: for a model that has no such output or cannot be exported, or
        a result that differs from it. FileExistsError: rather than write over anything.
        ImportError: if what writes the format is not installed.
    """
    _check_output(request.output)
    _check_packages(request.format)
    config = load_config(request.model)
    model = _load(request, config)
    with whole_or_absent(request.output) as folder:
        folder.mkdir()
        try:
            with _quiet():
                _write(model, request.format, folder)
        except Exception as error:  # the exporters raise of every kind, over many lines
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{request.model} cannot be exported: {reason}") from error
        load_processor(request.model, config).save_pretrained(folder)
        checked = _check(model, request.format, folder)
    print(f"{request.output}: {_describe(model)}; {checked}.")
    return request.output


def _check_output(output: Path) -> None:
    if output.suffix in (".onnx", ".pt2"):
        raise ValueError(
            f"{output} is to be a folder, since weights and configuration lie beside the graph; "
            f"name it {output.with_suffix('')}."
        )
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise FileExistsError(f"{output} exists already; name a new folder, or remove it.")


def _check_packages(format: Format) -> None:
    needed = ("onnx", "onnxscript") if format == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Writing ONNX takes {' and '.join(missing)}; run: pip install 'hf-vitmae[export]'."
        )


def _load(request: ExportRequest, config: VitMaeConfig) -> VitMaePreTrainedModel:
    name = (config.architectures or ["a model without architecture"])[0]
    if request.what == "features":
        name = VitMaeModel.__name__
    elif name not in WITH_LOGITS:
        raise ValueError(
            f"{request.model} is {name}, and logits are written of {' and '.join(WITH_LOGITS)}; "
            "pass --what features for the encoder's."
        )
    kind = WITH_LOGITS.get(name, VitMaeModel)
    model, new, adaptations = load_model(kind, request.model, config)
    if new:
        raise ValueError(
            f"{request.model} lacks the weights of its {' and '.join(sorted(new))}; pass --what "
            "features for the encoder's output, or fine-tune it first."
        )
    for line in adaptations:
        print(f"{request.model}: {line}.")
    return model


def _write(model: VitMaePreTrainedModel, format: Format, folder: Path) -> None:
    """Trace and write the graph, its batch free, and the configuration."""
    from transformers.exporters.configs import DynamoConfig, OnnxConfig
    from transformers.exporters.exporter_dynamo import DynamoExporter
    from transformers.exporters.exporter_onnx import OnnxExporter

    batch = {"pixel_values": {0: torch.export.Dim("batch")}}
    exporter, options = {
        "onnx": (OnnxExporter, OnnxConfig),
        "torch": (DynamoExporter, DynamoConfig),
    }[format]
    images = {"pixel_values": _images(model.config, batch=2)}
    exported: Any = exporter().export(model, images, options(dynamic_shapes=batch))
    if hasattr(exported, "save_pretrained"):
        exported.save_pretrained(folder)  # with what transformers' `ExportedModel` opens it by
        return
    model.config.save_pretrained(folder)  # older exporters return the bare program
    path = str(folder / FILES[format])
    if format == "onnx":
        exported.save(path, external_data=True)
    else:
        torch.export.save(exported, path)


@torch.no_grad()
def _check(model: VitMaePreTrainedModel, format: Format, folder: Path) -> str:
    """Run what was written on batches of several sizes; says in words how far it is off.

    Raises:
        ValueError: if it is further off than `TOLERANCE`.
    """
    if format == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        return "not compared with the model, since onnxruntime is not installed"
    largest = 0.0
    for batch in CHECKED_BATCHES:
        images = _images(model.config, batch)
        found, expected = run_exported(folder, images), model(images).to_tuple()
        for got, value in zip(found.values(), expected, strict=True):
            off = float((got - value).abs().max())
            if not off <= TOLERANCE * max(1.0, float(value.abs().max())):  # NaN is off as well
                raise ValueError(
                    f"What was written differs from the model by {off:.1e} on a batch of {batch}, "
                    f"and {TOLERANCE:.0e} is allowed; nothing was kept."
                )
            largest = max(largest, off)
    sizes = " and ".join(map(str, CHECKED_BATCHES))
    return f"off the model by {largest:.1e} at most on batches of {sizes}"


@torch.no_grad()
def run_exported(folder: Path, images: Tensor) -> dict[str, Tensor]:
    """Run an exported folder on normalised images: (B, C, H, W) -> outputs by name."""
    path = folder / FILES["onnx"]
    if not path.exists():
        with _quiet():
            program = torch.export.load(folder / FILES["torch"])
        return dict(program.module()(pixel_values=images))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {"pixel_values": images.numpy()})
    return {name: torch.as_tensor(value) for name, value in zip(names, values, strict=True)}


def _images(config: VitMaeConfig, batch: int) -> Tensor:
    """Noise of the size that the model takes: (B, C, H, W), always the same."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, config.num_channels, *config.image_pair, generator=generator)


def _describe(model: VitMaePreTrainedModel) -> str:
    height, width = model.config.image_pair
    images = f"pixel_values (batch, {model.config.num_channels}, {height}, {width})"
    outputs = "last_hidden_state, pooler_output" if type(model) is VitMaeModel else "logits"
    return f"{type(model).__name__} from {images} to {outputs}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No word of the exporters on their progress, their tested versions and their own insides."""
    level, torch_logger = logging.get_verbosity(), getLogger("torch.onnx")
    torch_level = torch_logger.level
    logging.set_verbosity_error()
    torch_logger.setLevel(ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        torch_logger.setLevel(torch_level)
