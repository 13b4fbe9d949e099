"""One configuration for the encoder, the MAE decoder and every head.

Field names are those of transformers' `ViTMAEConfig`; sizes are Table 1 of arXiv:2010.11929 and,
for the decoder, arXiv:2111.06377.
"""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .patches import as_pair, grid_size

# What `trust_remote_code=True` resolves. Every checkpoint carries the whole table, because every
# checkpoint opens as any class of the family.
AUTO_MAP = {
    "AutoConfig": "configuration_vitmae.VitMaeConfig",
    "AutoModel": "modeling_vitmae.VitMaeModel",
    "AutoModelForPreTraining": "modeling_vitmae.VitMaeForPreTraining",
    "AutoModelForImageClassification": "modeling_vitmae.VitMaeForImageClassification",
}

# Encoder sizes: (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size,
# patch_size).
SIZES = {
    "tiny": (192, 12, 3, 768, 16),
    "small": (384, 12, 6, 1536, 16),
    "base": (768, 12, 12, 3072, 16),
    "large": (1024, 24, 16, 4096, 16),
    "huge": (1280, 32, 16, 5120, 14),
}

_POSITIVE_INTEGERS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_channels",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)
_PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "mask_ratio",
)
_POSITIVE_NUMBERS = ("initializer_range", "layer_norm_eps", "layer_scale_init_value")
_CHOICES = {
    "pooling": ("cls", "mean"),
    "position_embedding": ("sincos", "learned"),
    "hidden_act": tuple(ACT2FN),
}


class VitMaeConfig(PreTrainedConfig):
    """Configuration of a Vision Transformer, its MAE decoder and its heads.

    Args:
        image_size, patch_size: in pixels, an int or (height, width); the patch must divide the
            image.
        num_channels: channels of the images, any positive number.
        mask_ratio: share of the patches that pretraining hides, in [0, 1).
        norm_pix_loss: predict patches normalised by their own mean and deviation (arXiv:2111.06377,
            Table 1d).
        pooling: what an image-level head sees: the CLS token, or the mean of the patch tokens,
            either of them through the encoder's last layer norm.
        position_embedding: "sincos" is fixed, "learned" is trained and starts from the same values.
        drop_path_rate: stochastic depth of the last encoder block; it grows linearly from 0 in the
            first.
        layer_scale_init_value: start of a learned per-channel scale on both branches of a block;
            None has no scale.

    Raises:
        ValueError: for a value that is not allowed; the message names field, value and what is
        allowed.
    """

    model_type = "hf_vitmae"
    # What HF Trainer need not gather over an evaluation set.
    keys_to_ignore_at_inference: ClassVar = ["mask", "ids_restore", "hidden_states", "attentions"]
    _auto_class: ClassVar = "AutoConfig"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | Sequence[int] = 224
    patch_size: int | Sequence[int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    pooling: str = "cls"
    position_embedding: str = "sincos"
    drop_path_rate: float = 0.0
    layer_scale_init_value: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt(kwargs)
        super().__post_init__(**kwargs)
        self._check_values()
        self._check_widths()
        self._check_geometry()

    @classmethod
    def tiny(cls, **overrides: Any) -> "VitMaeConfig":
        """ViT-Ti/16."""
        return cls._sized("tiny", overrides)

    @classmethod
    def small(cls, **overrides: Any) -> "VitMaeConfig":
        """ViT-S/16."""
        return cls._sized("small", overrides)

    @classmethod
    def base(cls, **overrides: Any) -> "VitMaeConfig":
        """ViT-B/16."""
        return cls._sized("base", overrides)

    @classmethod
    def large(cls, **overrides: Any) -> "VitMaeConfig":
        """ViT-L/16."""
        return cls._sized("large", overrides)

    @classmethod
    def huge(cls, **overrides: Any) -> "VitMaeConfig":
        """ViT-H/14."""
        return cls._sized("huge", overrides)

    @classmethod
    def _sized(cls, size: str, overrides: dict[str, Any]) -> "VitMaeConfig":
        width, layers, heads, mlp, patch = SIZES[size]
        values: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": mlp,
            "patch_size": patch,
        }
        return cls(**(values | overrides))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; a field given by keyword is checked like the stored ones."""
        own = {field.name for field in fields(cls)} - {
            field.name for field in fields(PreTrainedConfig)
        }
        given = {name: value for name, value in kwargs.items() if name in own}
        return super().from_dict(config_dict | given, **kwargs)

    @property
    def image_pair(self) -> tuple[int, int]:
        """Image size as (height, width) in pixels."""
        return as_pair(self.image_size)

    @property
    def patch_pair(self) -> tuple[int, int]:
        """Patch size as (p_h, p_w) in pixels."""
        return as_pair(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width, (h, w)."""
        return grid_size(self.image_pair, self.patch_pair)

    @property
    def num_patches(self) -> int:
        """N = h * w."""
        return self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, with the whole `AUTO_MAP`."""
        return super().to_dict() | {"auto_map": dict(AUTO_MAP)}

    def _refuse_misspelt(self, unknown: dict[str, Any]) -> None:
        # transformers keeps unknown keys as attributes, so that configs of other versions load; a
        # key that is nearly one of our fields is a mistake all the same.
        names = [field.name for field in fields(self)]
        for key in unknown:
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.85)
            if close and key not in ("num_labels", "torch_dtype"):
                raise ValueError(f"VitMaeConfig has no field `{key}`; did you mean `{close[0]}`?")

    def _check_values(self) -> None:
        for name in _POSITIVE_INTEGERS:
            value = getattr(self, name)
            allowed = isinstance(value, int) and not isinstance(value, bool) and value > 0
            _require(allowed, name, value, "a positive integer")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value < 1, name, value, "at least 0 and below 1")
        for name in _POSITIVE_NUMBERS:
            value = getattr(self, name)
            allowed = value is None or (_is_number(value) and value > 0)
            _require(allowed, name, value, "a positive number")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            _require(value in choices, name, value, f"one of {', '.join(choices)}")

    def _check_widths(self) -> None:
        for part in ("", "decoder_"):
            width = getattr(self, f"{part}hidden_size")
            heads = getattr(self, f"{part}num_attention_heads")
            multiple = f"a multiple of `{part}num_attention_heads` ({heads})"
            _require(width % heads == 0, f"{part}hidden_size", width, multiple)
            quarter = "a multiple of 4: sin-cos positions are sine and cosine of two axes"
            _require(width % 4 == 0, f"{part}hidden_size", width, quarter)

    def _check_geometry(self) -> None:
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            pair = (value, value) if isinstance(value, int) else value
            is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
            allowed = is_pair and all(isinstance(side, int) and side > 0 for side in pair)
            _require(allowed, name, value, "a positive integer or (height, width)")
        (height, width), (patch_height, patch_width) = self.image_pair, self.patch_pair
        nearest = f"{height - height % patch_height}x{width - width % patch_width}"
        _require(
            height % patch_height == 0 and width % patch_width == 0,
            "image_size",
            f"{height}x{width}",
            f"a whole number of patches of {patch_height}x{patch_width} (height x width); "
            f"the nearest smaller is {nearest}",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"`{field}` must be {allowed}, got {value!r}.")
