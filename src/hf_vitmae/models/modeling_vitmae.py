"""The models: one encoder, and a head for each thing that people do with it.

`VitMaeModel` is the encoder (arXiv:2010.11929). Three objectives pretrain it: the masked
autoencoder (arXiv:2111.06377), masked patch prediction (arXiv:2010.11929, B.1.2) and next patch
prediction. Every class holds the encoder as `vit`, so that any checkpoint of the family opens as
any class.

Arguments that all classes share:
    pixel_values: (B, C, H, W), normalised.
    padding_mask: bool (B, N) over patches or (B, H, W) over pixels, True = no data there; a patch
        with such a pixel is kept out of attention, targets and loss.
    interpolate_pos_encoding: accept images of another size than the model's.
    output_hidden_states, output_attentions: return these too.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_vitmae import VitMaeConfig
from .corruption import draw_corruption_noise, make_corruption
from .decoder import Decoder
from .embeddings import Embeddings
from .heads import FeaturePyramid, make_pooler, make_segmentation_head, pool_tokens, token_map
from .layers import BlockStack, LayerScale, make_attention_mask, with_cls
from .loading import LoadsAnyGeometry
from .losses import (
    classification_loss,
    masked_patch_loss,
    masked_pixel_loss,
    num_patch_outputs,
    patch_targets,
    pixel_targets,
    segmentation_loss,
)
from .masking import PatchOrder, gather_tokens, make_order, over_pixels, patch_mask
from .next_patch import NextPatchGeneration, newest_tokens, prefix_lengths
from .outputs import (
    VitMaeForPreTrainingOutput,
    VitMaeModelOutput,
    VitMaePatchPredictionOutput,
)
from .reconstruction import PixelReconstruction
from .sliding import SlidingWindowSegmentation

HEADS = (
    r"^(decoder|classifier|segmentation_head|patch_head|mask_token|next_patch_head|pyramid"
    r"|pooler)\b"
)


class VitMaePreTrainedModel(LoadsAnyGeometry, PreTrainedModel):
    """What all classes share: configuration, initialisation, what transformers may do."""

    config: VitMaeConfig
    config_class = VitMaeConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Embeddings", "Block"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [HEADS]  # what a checkpoint has for other classes

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform linear maps and convolutions; normal tokens; positions that differ."""
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            init.constant_(module.gamma, module.initial)
        elif isinstance(module, (Embeddings, Decoder)):
            init.copy_(module.position_embeddings, module.initial_positions())
        for name, token in module.named_parameters(recurse=False):
            if name.endswith("_token"):
                init.normal_(token, std=self.config.initializer_range)


class VitMaeModel(VitMaePreTrainedModel):
    """The encoder: every patch, in raster order, never hidden unless asked.

    Args:
        add_pooling_layer: False leaves the pooler out that `config.pooler_output_size` asks for, as
            the other classes do.
    """

    _auto_class = "AutoModel"
    _takes_pooler = True

    def __init__(self, config: VitMaeConfig, add_pooling_layer: bool = True) -> None:
        config = config if add_pooling_layer else config.without_pooler()
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = BlockStack(
            config,
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.drop_path_rate,
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = make_pooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings."""
        return self.embeddings.patch_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        mask_ratio: float | None = None,
        padding_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VitMaeModelOutput:
        """Encode images: (B, C, H, W) -> tokens (B, 1 + N, D).

        Args:
            noise: (B, N); the patches with the highest values are hidden, `mask_ratio` of them.
            mask: bool (B, N) over patches or (B, H, W) over pixels, True = hidden.
            mask_ratio: share of patches to hide; 0 is legal. Without `noise`, training draws it and
                evaluation uses a fixed one.

        Raises:
            ValueError: for images or masks that do not fit, a mask given together with noise or a
            ratio, or anything hidden under causal attention.
        """
        pixel_values, grid, padding = self.check_inputs(
            pixel_values, padding_mask, interpolate_pos_encoding
        )
        order = self.patch_order(pixel_values, grid, noise, mask, mask_ratio, padding)
        return self.encode(
            self.embed(pixel_values, order),
            grid,
            order=order,
            padding=padding,
            is_causal=self.config.is_causal,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )

    def embed(self, pixel_values: Tensor, order: PatchOrder | None) -> Tensor:
        """Patches before their positions: (B, C, H, W) -> (B, N, D), or the visible (B, K, D)."""
        embed, is_causal = self.embeddings.patch_embeddings, self.config.is_causal
        if order is None:
            return embed(pixel_values, one_by_one=is_causal)
        return embed.visible(pixel_values, order, one_by_one=is_causal)

    def encode(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        *,
        order: PatchOrder | None = None,
        padding: Tensor | None = None,
        is_causal: bool = False,
        num_prefix: Tensor | None = None,
        only_cls: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VitMaeModelOutput:
        """Run embedded patches through the blocks: (B, N or K, D) -> tokens (B, 1 + N or K, D).

        Args:
            padding: bool (B, N), True = no data.
            num_prefix: (B,) patches that see each other both ways under causal attention.
            only_cls: the last block need not compute what only patches' tokens want; without states
                and weights: -> (B, 2, D), CLS and a patch.
        """
        with_states = _asked(output_hidden_states, self.config.output_hidden_states)
        with_attentions = _asked(output_attentions, self.config.output_attentions)
        is_data = None if padding is None else ~padding  # (B, N)
        if order is not None:
            is_data = order.is_visible  # (B, K)
        tokens = self.embeddings(patches, grid, order, padding)  # (B, L, D)
        attention_mask = make_attention_mask(
            self.config,
            tokens,
            None if is_data is None else with_cls(is_data),
            is_causal=is_causal,
            num_prefix=num_prefix,
            for_eager=with_attentions,
        )
        # Two, since a product of one row has other last bits where the weights lie otherwise.
        few = slice(2) if only_cls and not (with_states or with_attentions) else None
        tokens, hidden_states, attentions = self.layers(
            tokens, attention_mask, with_states, with_attentions, is_causal, queries=few
        )
        pooled = self.layernorm(pool_tokens(tokens, self.config.pooling, is_data))  # (B, D)
        return VitMaeModelOutput(
            last_hidden_state=self.layernorm(tokens),
            pooler_output=pooled if self.pooler is None else self.pooler(pooled),
            mask=None if order is None else order.mask,
            ids_restore=None if order is None else order.restore,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def check_inputs(
        self, pixel_values: Tensor, padding_mask: Tensor | None, interpolate_pos_encoding: bool
    ) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """The images with zeros for padding, be it NaN, their grid (h, w), and which patches are
        padding, bool (B, N).
        """
        grid = self.embeddings.input_grid(pixel_values, interpolate_pos_encoding)
        if padding_mask is None:
            return pixel_values, grid, None
        patch_size, batch = self.config.patch_pair, pixel_values.shape[0]
        padding = patch_mask(padding_mask, grid, patch_size, "padding_mask", batch)
        pixels = over_pixels(padding, grid, patch_size)[:, None]  # (B, 1, H, W)
        return pixel_values.masked_fill(pixels, 0.0), grid, padding

    def patch_order(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int],
        noise: Tensor | None,
        mask: Tensor | None,
        mask_ratio: float | None,
        padding: Tensor | None,
    ) -> PatchOrder | None:
        """What to hide, however the caller said it; None when nothing was asked."""
        if mask is not None and (noise is not None or mask_ratio is not None):
            raise ValueError("Pass either `mask`, or `noise` and `mask_ratio`, not both.")
        if noise is None and mask is None and mask_ratio is None:
            return None
        if self.config.is_causal and (mask is not None or mask_ratio != 0):
            raise ValueError("No patch can be hidden where `is_causal` is True; leave masks out.")
        batch = pixel_values.shape[0]
        if mask is not None:
            mask = patch_mask(mask, grid, self.config.patch_pair, batch=batch)
        return make_order(
            (batch, grid[0] * grid[1]),
            noise=noise,
            mask=mask,
            mask_ratio=self.config.mask_ratio if mask_ratio is None else mask_ratio,
            padding=padding,
            training=self.training,
            device=pixel_values.device,
        )


class VitMaeForPreTraining(PixelReconstruction, VitMaePreTrainedModel):
    """The masked autoencoder: hide patches, encode the rest, predict the pixels of those hidden.

    With a hybrid stem, whose convolutions see beyond a patch, the pixels of hidden patches are
    erased before the stem and their tokens dropped after it: nothing of them reaches the encoder.
    """

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: VitMaeConfig) -> None:
        _refuse_causal(config, type(self).__name__)
        config = config.without_pooler()
        super().__init__(config)
        self.vit = VitMaeModel(config)
        self.decoder = Decoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        mask_ratio: float | None = None,
        padding_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        predict_visible_patches: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VitMaeForPreTrainingOutput:
        """Predict hidden patches: (B, C, H, W) -> loss (), logits (B, N, P).

        Args:
            noise: (B, N); the patches with the highest values are hidden. Without it, training
                draws it and evaluation uses a fixed one.
            mask: bool (B, N) over patches or (B, H, W) over pixels, True = hidden; instead of noise
                and ratio.
            mask_ratio: share of patches to hide, `config.mask_ratio` by default; 0 is legal.
            return_loss: False leaves the loss out.
            predict_visible_patches: False computes what the loss needs and no logits, which are
                then None; `config.predict_visible_patches` by default.
        """
        vit = self.vit
        if mask is None and mask_ratio is None:
            mask_ratio = self.config.mask_ratio
        pixel_values, grid, padding = vit.check_inputs(
            pixel_values, padding_mask, interpolate_pos_encoding
        )
        order = vit.patch_order(pixel_values, grid, noise, mask, mask_ratio, padding)
        assert order is not None
        encoded = vit.encode(
            vit.embed(pixel_values, order),
            grid,
            order=order,
            padding=padding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        with_logits = _asked(predict_visible_patches, self.config.predict_visible_patches)
        only_hidden = not with_logits and padding is None and order.hides_as_many
        predicted = self.decoder(encoded.last_hidden_state, order, grid, padding, only_hidden)
        logits = None if only_hidden else gather_tokens(predicted, order.restore)  # (B, N, P)
        return VitMaeForPreTrainingOutput(
            loss=self.any_loss(pixel_values, predicted, logits, order) if return_loss else None,
            logits=logits if with_logits else None,
            mask=order.mask,
            ids_restore=order.restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class VitMaeForMaskedPatchPrediction(VitMaePreTrainedModel):
    """Predict corrupted patches from all the others (arXiv:2010.11929, B.1.2).

    `config.patch_target` says what: `logits` are (B, N, 8**C) for a patch's mean colour, (B, N,
    16 * 8**C) for its 4x4 colours, (B, N, P) for its pixels in 0..1; with more than three channels
    each has 8 classes of its own. With a hybrid stem the pixels of the patches that are replaced
    are erased before it, so that a patch that stands in for another may be an erased one itself.
    """

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: VitMaeConfig) -> None:
        _refuse_causal(config, type(self).__name__)
        config = config.without_pooler()
        super().__init__(config)
        self.vit = VitMaeModel(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_head = nn.Linear(config.hidden_size, num_patch_outputs(config))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        corruption_noise: Tensor | None = None,
        mask: Tensor | None = None,
        mask_ratio: float | None = None,
        padding_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VitMaePatchPredictionOutput:
        """Predict corrupted patches: (B, C, H, W) -> loss (), logits (B, N, outputs).

        Args:
            noise: (B, N); the patches with the highest values are corrupted.
            corruption_noise: (B, N) in [0, 1): below 0.8 a corrupted patch becomes the mask token,
                below 0.9 another patch, else it stays.
            mask: bool (B, N) or (B, H, W), True = corrupted; instead of noise and ratio.
            mask_ratio: share of patches to corrupt, `config.corruption_ratio` by default.
            return_loss: False leaves the loss out.
        """
        vit = self.vit
        pixel_values, grid, padding = vit.check_inputs(
            pixel_values, padding_mask, interpolate_pos_encoding
        )
        if mask is None and mask_ratio is None:
            mask_ratio = self.config.corruption_ratio
        order = vit.patch_order(pixel_values, grid, noise, mask, mask_ratio, padding)
        assert order is not None
        if corruption_noise is None:
            corruption_noise = draw_corruption_noise(order.mask, self.training)
        corruption = make_corruption(order.mask, corruption_noise, padding)
        patches = vit.embeddings.patch_embeddings(
            pixel_values, corruption.masked | corruption.swapped
        )
        encoded = vit.encode(
            corruption.apply(patches, self.mask_token),
            grid,
            padding=padding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.patch_head(encoded.last_hidden_state[:, 1:])  # (B, N, outputs)
        loss = None
        if return_loss:
            targets = patch_targets(pixel_values, self.config)
            loss = masked_patch_loss(logits, targets, order.mask)
        return VitMaePatchPredictionOutput(
            loss=loss,
            logits=logits,
            mask=order.mask,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class VitMaeForNextPatchPrediction(NextPatchGeneration, VitMaePreTrainedModel):
    """Predict each patch's pixels from those before it in raster order, the first from CLS alone.

    Attention is causal whatever `config.is_causal` says, which is for the other classes. A hybrid
    stem sees every patch by itself here, since its convolutions would see later ones.
    """

    _auto_class = "AutoModel"  # so that its code travels with it; the auto map is the family's

    def __init__(self, config: VitMaeConfig) -> None:
        config = config.without_pooler()
        super().__init__(config)
        self.vit = VitMaeModel(config)
        patch_height, patch_width = config.patch_pair
        outputs = patch_height * patch_width * config.num_channels
        self.next_patch_head = nn.Linear(config.hidden_size, outputs)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        num_prefix_patches: int | Tensor = 0,
        padding_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VitMaePatchPredictionOutput:
        """Predict every patch from those before it: (B, C, H, W) -> loss (), logits (B, N, P).

        Args:
            num_prefix_patches: so many first patches, one number or int64 (B,), see each other both
                ways; those after them are predicted and count in the loss.
            return_loss: False leaves the loss out.
        """
        vit = self.vit
        pixel_values, grid, padding = vit.check_inputs(
            pixel_values, padding_mask, interpolate_pos_encoding
        )
        has_prefix = isinstance(num_prefix_patches, Tensor) or num_prefix_patches > 0
        num_patches, device = grid[0] * grid[1], pixel_values.device
        num_prefix = prefix_lengths(num_prefix_patches, len(pixel_values), num_patches, device)
        encoded = vit.encode(
            vit.embeddings.patch_embeddings(pixel_values, one_by_one=True),
            grid,
            padding=padding,
            is_causal=True,
            num_prefix=num_prefix if has_prefix else None,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.next_patch_head(newest_tokens(encoded.last_hidden_state, padding))
        places = torch.arange(num_patches, device=device)
        mask = places >= num_prefix[:, None]  # (B, N)
        mask = mask if padding is None else mask & ~padding
        loss = None
        if return_loss:
            targets = pixel_targets(pixel_values, self.config.patch_pair, self.config.norm_pix_loss)
            loss = masked_pixel_loss(logits, targets, mask)
        return VitMaePatchPredictionOutput(
            loss=loss,
            logits=logits,
            mask=mask,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class VitMaeForImageClassification(VitMaePreTrainedModel):
    """A linear classifier on the pooled encoder output (`config.pooling`)."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: VitMaeConfig) -> None:
        config = config.without_pooler()
        super().__init__(config)
        self.vit = VitMaeModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        padding_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classify images: (B, C, H, W) -> logits (B, num_labels).

        Args:
            labels: (B,) integer classes; (B, num_labels) floating-point distributions; or what
                `config.problem_type` says: "regression", "multi_label_classification".
        """
        vit = self.vit
        pixel_values, grid, padding = vit.check_inputs(
            pixel_values, padding_mask, interpolate_pos_encoding
        )
        encoded = vit.encode(
            vit.embed(pixel_values, None),
            grid,
            padding=padding,
            is_causal=self.config.is_causal,
            only_cls=self.config.pooling == "cls",
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.classifier(encoded.pooler_output)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class VitMaeForSemanticSegmentation(SlidingWindowSegmentation, VitMaePreTrainedModel):
    """Class scores of every pixel: of patches, by `config.segmentation_head`, then enlarged."""

    _auto_class = "AutoModelForSemanticSegmentation"

    def __init__(self, config: VitMaeConfig) -> None:
        config = config.without_pooler()
        super().__init__(config)
        self.vit = VitMaeModel(config)
        self.segmentation_head = make_segmentation_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        padding_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """Segment images: (B, C, H, W) -> logits (B, num_labels, H, W).

        Args:
            labels: int64 (B, H, W) classes; `config.semantic_loss_ignore_index` does not count.
        """
        with_states = _asked(output_hidden_states, self.config.output_hidden_states)
        pixel_values, grid, padding = self.vit.check_inputs(
            pixel_values, padding_mask, interpolate_pos_encoding
        )
        encoded = self.vit(
            pixel_values,
            padding_mask=padding,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=True,
            output_attentions=output_attentions,
        )
        logits = self._enlarge(self._patch_logits(encoded.hidden_states, grid))
        loss = None
        if labels is not None:
            loss = self.forward_loss(logits, labels, padding, grid)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states if with_states else None,
            attentions=encoded.attentions,
        )

    def forward_loss(
        self, logits: Tensor, labels: Tensor, padding: Tensor | None, grid: tuple[int, int]
    ) -> Tensor:
        """The loss on labelled pixels outside padding: (B, num_labels, H, W), (B, H, W) -> ()."""
        shape, ignore_index = logits[:, 0].shape, self.config.semantic_loss_ignore_index
        if labels.shape != shape:
            raise ValueError(
                f"`labels` must be {tuple(shape)}, a class for each pixel, "
                f"got {tuple(labels.shape)}."
            )
        if padding is not None:
            labels = labels.masked_fill(
                over_pixels(padding, grid, self.config.patch_pair), ignore_index
            )
        return segmentation_loss(logits, labels, ignore_index)

    def _patch_logits(self, hidden_states: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Class scores at the head's own resolution: -> (B, num_labels, h, w) or a multiple."""
        states = [hidden_states[layer] for layer in self.segmentation_head.layers]
        maps = [token_map(self.vit.layernorm(state), grid) for state in states]
        return self.segmentation_head(maps)

    def _enlarge(self, logits: Tensor) -> Tensor:
        """From the head's resolution to pixels: -> (B, num_labels, H, W)."""
        scale, sides = (
            self.segmentation_head.scale,
            zip(logits.shape[2:], self.config.patch_pair, strict=True),
        )
        size = [places * patch // scale for places, patch in sides]
        return functional.interpolate(logits, size=size, mode="bilinear")


class VitMaeBackbone(BackboneMixin, VitMaePreTrainedModel):
    """Feature maps for detection and segmentation frameworks.

    Each layer's patch tokens, through the encoder's last norm, as a map; or with
    `config.feature_pyramid` maps of strides 4, 8, 16 and 32 made of the last. Images may have any
    size: positions are interpolated, and what is no whole patch is filled up with zeros.
    """

    _auto_class = "AutoBackbone"

    def __init__(self, config: VitMaeConfig) -> None:
        if config.out_features is None:
            config = copy.deepcopy(config)  # the caller's stays what other classes are made from
            names = config.stage_names
            config.out_features = names if config.feature_pyramid else names[-1:]
        config = config.without_pooler()
        super().__init__(config)
        self.vit = VitMaeModel(config)
        self.pyramid = FeaturePyramid(config) if config.feature_pyramid else None
        width = config.pyramid_hidden_size if config.feature_pyramid else config.hidden_size
        self.num_features = [width] * len(config.stage_names)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        padding_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """Encode images: (B, C, H, W) -> a map (B, D, h, w) for each of `out_features`."""
        with_states = _asked(output_hidden_states, self.config.output_hidden_states)
        self.vit.embeddings.check_images(pixel_values)
        patch_height, patch_width = self.config.patch_pair
        height, width = pixel_values.shape[2:]
        fill_up = (0, -width % patch_width, 0, -height % patch_height)  # on the right and below
        pixel_values = functional.pad(pixel_values, fill_up)
        if padding_mask is not None and padding_mask.ndim == 3:
            padding_mask = functional.pad(padding_mask, fill_up)
        grid = self.vit.embeddings.input_grid(pixel_values, interpolate_pos_encoding=True)
        encoded = self.vit(
            pixel_values,
            padding_mask=padding_mask,
            interpolate_pos_encoding=True,
            output_hidden_states=True,
            output_attentions=output_attentions,
        )
        if self.pyramid is None:
            layers = [self.stage_names.index(name) for name in self.out_features]
            states = [encoded.hidden_states[layer] for layer in layers]
            maps = [token_map(self.vit.layernorm(state), grid) for state in states]
        else:
            levels = self.pyramid(token_map(encoded.last_hidden_state, grid))
            maps = [levels[self.stage_names.index(name)] for name in self.out_features]
        return BackboneOutput(
            feature_maps=tuple(maps),  # type: ignore[arg-type]
            hidden_states=encoded.hidden_states if with_states else None,
            attentions=encoded.attentions,
        )


def _refuse_causal(config: VitMaeConfig, name: str) -> None:
    if config.is_causal:
        raise ValueError(
            f"{name} hides patches, which `is_causal` True excludes; open the checkpoint with "
            "is_causal=False, or as VitMaeForNextPatchPrediction."
        )


def _asked(argument: bool | None, default: bool | None) -> bool:
    return bool(default if argument is None else argument)
