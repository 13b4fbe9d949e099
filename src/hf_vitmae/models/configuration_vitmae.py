"""One configuration for the encoder, the MAE decoder and every head.

Field names are those of transformers' `ViTMAEConfig`; sizes are Table 1 of arXiv:2010.11929 and,
for the decoder, arXiv:2111.06377.
"""

import copy
import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .checks import is_number, is_positive_integer, require
from .patches import as_pair, grid_size

# What `trust_remote_code=True` resolves. Every checkpoint carries the whole table, because every
# checkpoint opens as any class of the family.
AUTO_MAP = {
    "AutoConfig": "configuration_vitmae.VitMaeConfig",
    "AutoModel": "modeling_vitmae.VitMaeModel",
    "AutoModelForPreTraining": "modeling_vitmae.VitMaeForPreTraining",
    "AutoModelForImageClassification": "modeling_vitmae.VitMaeForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_vitmae.VitMaeForSemanticSegmentation",
    "AutoModelForMaskedImageModeling": "modeling_vitmae.VitMaeForMaskedPatchPrediction",
    "AutoBackbone": "modeling_vitmae.VitMaeBackbone",
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

PYRAMID_STRIDES = (4, 8, 16, 32)  # what detection frameworks expect, in pixels

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
    "stem_width",
    "stem_num_groups",
    "segmentation_hidden_size",
    "pyramid_hidden_size",
)
_PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "mask_ratio",
    "corruption_ratio",
)
_POSITIVE_NUMBERS = ("initializer_range", "layer_norm_eps", "layer_scale_init_value")
_CHOICES = {
    "pooling": ("cls", "mean"),
    "position_embedding": ("sincos", "learned"),
    "hidden_act": tuple(ACT2FN),
    "pooler_act": tuple(ACT2FN),
    "patch_target": ("mean_color", "colors_4x4", "pixels"),
    "segmentation_head": ("linear", "multi_layer"),
}


class VitMaeConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a Vision Transformer, its MAE decoder and its heads.

    Args:
        image_size, patch_size: in pixels, an int or (height, width); the patch must divide the
            image.
        num_channels: channels of the images, any positive number.
        mask_ratio: share of the patches that pretraining hides, in [0, 1).
        norm_pix_loss: predict patches normalised by their own mean and deviation (arXiv:2111.06377,
            Table 1d).
        predict_visible_patches: False computes only what the loss needs, and no logits (set it in
            training; it is an argument of `VitMaeForPreTraining` too).
        recompute_activations: compute the activations of the MLPs again in the backward pass
            instead of keeping them: about a quarter less memory for a few per cent of time.
        pooling: what an image-level head sees: the CLS token, or the mean of the patch tokens,
            either of them through the encoder's last layer norm.
        pooler_output_size, pooler_act: width and activation of a trained map through which
            `VitMaeModel` sends what `pooling` gives; None has no map. Other classes never have one.
        position_embedding: "sincos" is fixed, "learned" is trained and starts from the same values.
        drop_path_rate: stochastic depth of the last encoder block; it grows linearly from 0 in the
            first.
        layer_scale_init_value: start of a learned per-channel scale on both branches of a block;
            None has no scale.
        is_causal: every patch attends only to itself and those before it in raster order, in every
            class. (`VitMaeForNextPatchPrediction` does so whatever this says.)
        stem_depths: blocks of each stage of a ResNet v2 stem, (3, 4, 9) for the R50 hybrids of
            arXiv:2010.11929, (2, 2, 2, 2) for R26; None has no stem. Patches are then cut from its
            feature map, and `patch_size`, in pixels, is a multiple of its stride.
        stem_width, stem_num_groups: channels of the stem's first convolution, and groups of its
            group norms.
        corruption_ratio: share of the patches that masked patch prediction corrupts.
        patch_target: what masked patch prediction predicts (arXiv:2010.11929, B.1.2): a patch's
            mean colour or its 4x4 colours, 3 bits a channel, or its pixels.
        image_mean, image_std: what pixel values were normalised with, one number or one a channel;
            colour targets undo it.
        segmentation_head, segmentation_hidden_size: a linear map, or a light head of that width on
            several layers.
        semantic_loss_ignore_index: label of pixels that do not count.
        feature_pyramid, pyramid_hidden_size: `VitMaeBackbone` returns maps of strides 4, 8, 16 and
            32 of that width instead of the layers' own.
        out_features, out_indices: which maps `VitMaeBackbone` returns, the last by default.

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
    predict_visible_patches: bool = True
    recompute_activations: bool = False
    pooling: str = "cls"
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    position_embedding: str = "sincos"
    drop_path_rate: float = 0.0
    layer_scale_init_value: float | None = None
    is_causal: bool = False
    stem_depths: Sequence[int] | None = None
    stem_width: int = 64
    stem_num_groups: int = 32
    corruption_ratio: float = 0.5
    patch_target: str = "mean_color"
    image_mean: float | Sequence[float] = 0.5
    image_std: float | Sequence[float] = 0.5
    segmentation_head: str = "linear"
    segmentation_hidden_size: int = 256
    semantic_loss_ignore_index: int = 255
    feature_pyramid: bool = False
    pyramid_hidden_size: int = 256
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        out_features, out_indices = (
            kwargs.pop("out_features", None),
            kwargs.pop("out_indices", None),
        )
        self._refuse_misspelt(kwargs)
        super().__post_init__(**kwargs)
        self._check()
        if out_features is not None or out_indices is not None:
            self.set_output_features_output_indices(out_features, out_indices)

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
        # Other maps are asked for, or the stored names are no longer those of any.
        if kwargs.keys() & {"out_features", "out_indices", "feature_pyramid"}:
            given |= {"out_features": None, "out_indices": None}
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

    @property
    def stem_stride(self) -> int:
        """Pixels for one place of the map that patches are cut from: 1 without a stem."""
        return 1 if self.stem_depths is None else 4 * 2 ** (len(self.stem_depths) - 1)

    @property
    def stage_names(self) -> list[str]:
        """The feature maps of `VitMaeBackbone`: the stem's and each layer's, or the pyramid's."""
        if self.feature_pyramid:
            return [f"stride{stride}" for stride in PYRAMID_STRIDES]
        return ["stem", *(f"stage{layer + 1}" for layer in range(self.num_hidden_layers))]

    def with_fields(self, **fields: Any) -> "VitMaeConfig":
        """A copy with other values, checked together."""
        changed = copy.deepcopy(self)
        for name, value in fields.items():
            setattr(changed, name, value)
        changed._check()
        return changed

    def without_pooler(self) -> "VitMaeConfig":
        """Of a model that has none, so that what is saved says which weights are there; itself, if
        it asks for none.
        """
        return (
            self if self.pooler_output_size is None else self.with_fields(pooler_output_size=None)
        )

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

    def _check(self) -> None:
        self._check_values()
        self._check_widths()
        self._check_geometry()
        self._check_stem()
        self._check_heads()

    def _check_values(self) -> None:
        for name in _POSITIVE_INTEGERS:
            value = getattr(self, name)
            require(is_positive_integer(value), name, value, "a positive integer")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            require(is_number(value) and 0 <= value < 1, name, value, "at least 0 and below 1")
        for name in _POSITIVE_NUMBERS:
            value = getattr(self, name)
            allowed = value is None or (is_number(value) and value > 0)
            require(allowed, name, value, "a positive number")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            require(value in choices, name, value, f"one of {', '.join(choices)}")

    def _check_widths(self) -> None:
        for part in ("", "decoder_"):
            width = getattr(self, f"{part}hidden_size")
            heads = getattr(self, f"{part}num_attention_heads")
            multiple = f"a multiple of `{part}num_attention_heads` ({heads})"
            require(width % heads == 0, f"{part}hidden_size", width, multiple)
            quarter = "a multiple of 4: sin-cos positions are sine and cosine of two axes"
            require(width % 4 == 0, f"{part}hidden_size", width, quarter)

    def _check_geometry(self) -> None:
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            pair = (value, value) if isinstance(value, int) else value
            is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
            allowed = is_pair and all(isinstance(side, int) and side > 0 for side in pair)
            require(allowed, name, value, "a positive integer or (height, width)")
        (height, width), (patch_height, patch_width) = self.image_pair, self.patch_pair
        whole = (height - height % patch_height, width - width % patch_width)
        smaller = f"the nearest smaller is {whole[0]}x{whole[1]}"
        if 0 in whole:
            smaller = "the patch is larger than the image"
        require(
            height % patch_height == 0 and width % patch_width == 0,
            "image_size",
            f"{height}x{width}",
            f"a whole number of patches of {patch_height}x{patch_width} (height x width); "
            f"{smaller}",
        )

    def _check_stem(self) -> None:
        if self.stem_depths is None:
            return
        depths = self.stem_depths
        allowed = isinstance(depths, (tuple, list)) and len(depths) > 0
        allowed = allowed and all(isinstance(depth, int) and depth > 0 for depth in depths)
        require(allowed, "stem_depths", depths, "None or positive integers, one for each stage")
        groups, width = self.stem_num_groups, self.stem_width
        multiple = f"a multiple of `stem_num_groups` ({groups}), and more than that"
        require(width % groups == 0 and width > groups, "stem_width", width, multiple)
        stride = self.stem_stride
        multiple = f"a multiple of the stem's stride ({stride} pixels for {len(depths)} stages)"
        whole = all(side % stride == 0 for side in self.patch_pair)
        require(whole, "patch_size", self.patch_size, multiple)

    def _check_heads(self) -> None:
        size = self.pooler_output_size
        allowed = size is None or is_positive_integer(size)
        require(allowed, "pooler_output_size", size, "None or a positive integer")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            numbers = value if isinstance(value, (tuple, list)) else [value] * self.num_channels
            allowed = len(numbers) == self.num_channels and all(map(is_number, numbers))
            allowed = allowed and (name == "image_mean" or min(numbers) > 0)
            channels = f"`num_channels` ({self.num_channels})"
            require(allowed, name, value, f"one number or as many as {channels}; std above 0")
        if self.is_causal:
            alternative = (
                "0.0 where `is_causal` is True: causal attention sees a whole image in order"
            )
            require(self.mask_ratio == 0, "mask_ratio", self.mask_ratio, alternative)
            alternative = (
                '"mean" where `is_causal` is True: the CLS token, being first, sees no patch'
            )
            require(self.pooling == "mean", "pooling", self.pooling, alternative)
        if self.patch_target == "colors_4x4":
            require(
                min(self.patch_pair) >= 4,
                "patch_size",
                self.patch_size,
                "at least 4 for 4x4 colours",
            )
        if self.feature_pyramid:
            height, width = self.patch_pair
            allowed = height == width and height in PYRAMID_STRIDES
            strides = f"one of {PYRAMID_STRIDES} with `feature_pyramid`"
            require(allowed, "patch_size", self.patch_size, strides)
