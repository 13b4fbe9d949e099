"""What turns images into one vector each: a checkpoint's encoder, a fresh one, or the pixels.

All three are used alike, so that a probe of one can be held against a probe of another.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeModel
from hf_vitmae.models.modes import evaluating
from hf_vitmae.tasks.checkpoints import load_config, load_model, load_processor

Pooling = Literal["cls", "mean"]
MOST_PIXELS = 32  # height and width of what `PixelEncoder` keeps


class Encoder(Protocol):
    """Images to features, with what both depend on.

    Args:
        name: what people know it by.
        digest: the same for the same weights, configuration and image processor.
        processor: makes the images that `embed` takes.
        config: the geometry.
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def processor(self) -> VitMaeImageProcessor: ...

    @property
    def config(self) -> VitMaeConfig: ...

    @property
    def device(self) -> torch.device: ...

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Features of normalised images on its device: (B, C, H, W) -> float32 (B, D)."""
        ...


@dataclass(frozen=True)
class NetworkEncoder:
    """A Vision Transformer that is not trained; its features are those a classifier would see."""

    name: str
    model: VitMaeModel
    processor: VitMaeImageProcessor
    digest: str

    @property
    def config(self) -> VitMaeConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Pooled tokens, as `config.pooling` says: (B, C, H, W) -> float32 (B, D)."""
        with evaluating(self.model):
            return self.model(pixel_values).pooler_output.float()


@dataclass(frozen=True)
class PixelEncoder:
    """No network: the normalised pixels themselves, reduced by area to at most 32x32."""

    config: VitMaeConfig
    processor: VitMaeImageProcessor
    digest: str
    name: str = "pixels"
    device: torch.device = torch.device("cpu")

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> float32 (B, C * h * w)."""
        height, width = (min(side, MOST_PIXELS) for side in pixel_values.shape[2:])
        return functional.adaptive_avg_pool2d(pixel_values.float(), (height, width)).flatten(1)


def trained_encoder(name: str, pooling: Pooling = "cls") -> NetworkEncoder:
    """The encoder of a checkpoint, a folder or Hub id, on the device that there is.

    Raises:
        ValueError, FileNotFoundError: if it cannot be used, or its CLS token sees nothing.
    """
    stored = load_config(name)
    refuse_blind_cls(name, stored, pooling)
    config = stored.without_pooler().with_fields(pooling=pooling)
    loaded: Any = load_model(VitMaeModel, name, config)
    model, _, adaptations = loaded
    for line in adaptations:
        print(f"{name}: {line}.")
    return _network(name, model, load_processor(name, config))


def random_encoder(
    config: VitMaeConfig,
    seed: int,
    pooling: Pooling = "cls",
    processor: VitMaeImageProcessor | None = None,
) -> NetworkEncoder:
    """The architecture of a checkpoint with fresh weights, drawn by the seed.

    Args:
        processor: the checkpoint's own, for the same images; by default a new one of its geometry.

    Raises:
        ValueError: if the CLS token sees nothing.
    """
    refuse_blind_cls("The model", config, pooling)
    config = config.without_pooler().with_fields(pooling=pooling)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VitMaeModel(config)
    return _network("random", model, processor or VitMaeImageProcessor.for_model(config))


def pixel_encoder(
    config: VitMaeConfig, processor: VitMaeImageProcessor | None = None
) -> PixelEncoder:
    """The pixels that a model of this geometry sees.

    Args:
        processor: as of `random_encoder`.
    """
    processor = processor or VitMaeImageProcessor.for_model(config)
    asked = {"pixels": MOST_PIXELS, "processor": processor.to_dict()}
    return PixelEncoder(config, processor, digest_of(asked))


def refuse_blind_cls(name: str, config: VitMaeConfig, pooling: str) -> None:
    """Raise `ValueError` for the CLS token of a model where it sees no patch."""
    if config.is_causal and pooling == "cls":
        raise ValueError(
            f"{name} has causal attention, where the CLS token, being first, sees no patch; take "
            "--pooling mean."
        )


def model_digest(model: VitMaeModel, processor: VitMaeImageProcessor) -> str:
    """The same for the same weights, configuration and image processor, wherever they lie."""
    config = {k: v for k, v in model.config.to_dict().items() if k != "transformers_version"}
    weights = (value.cpu().contiguous().numpy() for value in model.state_dict().values())
    return digest_of([config, processor.to_dict()], *weights)


def digest_of(settings: Any, *buffers: Any) -> str:
    """16 hexadecimal digits of plain values and of bytes or arrays."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()[:16]


def _network(name: str, model: VitMaeModel, processor: VitMaeImageProcessor) -> NetworkEncoder:
    digest = model_digest(model, processor)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    moved: Any = model.eval()  # transformers' `to` has no types
    return NetworkEncoder(name, moved.to(device), processor, digest)
