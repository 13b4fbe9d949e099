"""The models: one encoder, and a head for each thing that people do with it.

`VitMaeModel` is the encoder (arXiv:2010.11929), `VitMaeForPreTraining` the masked autoencoder
(arXiv:2111.06377), `VitMaeForImageClassification` what one fine-tunes. Every head holds the encoder
as `vit`, so that any checkpoint of the family opens as any class.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_vitmae import VitMaeConfig
from .decoder import Decoder
from .embeddings import Embeddings
from .heads import pool_tokens
from .layers import BlockStack, LayerScale
from .losses import classification_loss, masked_pixel_loss, pixel_targets
from .masking import PatchOrder, fixed_noise, order_from_mask, order_from_noise, patch_mask
from .patches import patchify, unpatchify


@dataclass
class VitMaeModelOutput(ModelOutput):
    """What the encoder returns.

    Args:
        last_hidden_state: (B, 1 + N, D), or (B, 1 + K, D) when patches were hidden: [CLS |
            patches], normalised. K is the largest number of visible patches of any image; what an
            image has beyond its own is padding.
        pooler_output: (B, D), pooled as `config.pooling` says, normalised.
        mask: bool (B, N), True = hidden; None when nothing was asked to be hidden.
        ids_restore: (B, N), the place of each patch in [visible | hidden]; None likewise.
        hidden_states: the input and the output of every block, before the last norm.
        attentions: (B, heads, L, L) of every block.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class VitMaeForPreTrainingOutput(ModelOutput):
    """What the masked autoencoder returns.

    Args:
        loss: (), mean squared error on the hidden patches.
        logits: (B, N, p_h*p_w*C), the prediction for every patch, pixels in (p_h, p_w, C) order;
            with `norm_pix_loss` in units of the patch's own deviation.
        mask: bool (B, N), True = hidden.
        ids_restore: (B, N), the place of each patch in [visible | hidden].
        hidden_states, attentions: of the encoder, over [CLS | visible].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class VitMaePreTrainedModel(PreTrainedModel):
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform linear maps and patch projection; normal tokens; positions that differ."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            init.constant_(module.gamma, module.initial)
        elif isinstance(module, (Embeddings, Decoder)):
            init.copy_(module.position_embeddings, module.initial_positions())
            token = module.cls_token if isinstance(module, Embeddings) else module.mask_token
            init.normal_(token, std=self.config.initializer_range)


class VitMaeModel(VitMaePreTrainedModel):
    """The encoder: every patch, in raster order, never hidden unless asked."""

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\."]  # other classes' heads

    def __init__(self, config: VitMaeConfig) -> None:
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
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VitMaeModelOutput:
        """Encode images: (B, C, H, W) -> tokens (B, 1 + N, D).

        Args:
            pixel_values: (B, C, H, W), normalised.
            noise: (B, N); the patches with the highest values are hidden, `mask_ratio` of them.
            mask: bool (B, N) over patches or (B, H, W) over pixels, True = hidden.
            mask_ratio: share of patches to hide; 0 is legal. Without `noise`, training draws it and
                evaluation uses a fixed one.
            interpolate_pos_encoding: accept images of another size than the model's.

        Raises:
            ValueError: for images or masks that do not fit, or a mask given together with noise or
            a ratio.
        """
        grid = self.embeddings.input_grid(pixel_values, interpolate_pos_encoding)
        order = self._patch_order(pixel_values, grid, noise, mask, mask_ratio)
        is_visible = None if order is None else order.is_visible
        with_states = _asked(output_hidden_states, self.config.output_hidden_states)
        with_attentions = _asked(output_attentions, self.config.output_attentions)
        tokens = self.embeddings(pixel_values, grid, order)  # (B, L, D)
        attention_mask = self._attention_mask(tokens, is_visible, with_attentions)
        tokens, hidden_states, attentions = self.layers(
            tokens, attention_mask, with_states, with_attentions
        )
        return VitMaeModelOutput(
            last_hidden_state=self.layernorm(tokens),
            pooler_output=self.layernorm(pool_tokens(tokens, self.config.pooling, is_visible)),
            mask=None if order is None else order.mask,
            ids_restore=None if order is None else order.restore,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def _patch_order(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int],
        noise: Tensor | None,
        mask: Tensor | None,
        mask_ratio: float | None,
    ) -> PatchOrder | None:
        """What to hide, however the caller said it; None when nothing was asked."""
        batch, num_patches = pixel_values.shape[0], grid[0] * grid[1]
        if mask is not None:
            if noise is not None or mask_ratio is not None:
                raise ValueError("Pass either `mask`, or `noise` and `mask_ratio`, not both.")
            if mask.shape[0] != batch:
                raise ValueError(
                    f"`mask` must have one row for each of the {batch} images, "
                    f"got {tuple(mask.shape)}."
                )
            return order_from_mask(patch_mask(mask, grid, self.config.patch_pair))
        if noise is None and mask_ratio is None:
            return None
        if noise is None and self.training:
            noise = torch.rand(batch, num_patches, device=pixel_values.device)
        elif noise is None:
            noise = fixed_noise(num_patches, pixel_values.device).expand(batch, -1)
        if noise.shape != (batch, num_patches):
            raise ValueError(
                f"`noise` must be ({batch}, {num_patches}), one value a patch, "
                f"got {tuple(noise.shape)}."
            )
        if mask_ratio is None:
            mask_ratio = self.config.mask_ratio
        return order_from_noise(noise, mask_ratio)

    def _attention_mask(
        self, tokens: Tensor, is_visible: Tensor | None, with_attentions: bool
    ) -> Tensor | None:
        """Keep padding out of attention where images hide different numbers of patches."""
        if is_visible is None:
            return None
        attend = torch.cat([is_visible.new_ones(tokens.shape[0], 1), is_visible], dim=1)  # (B, L)
        if with_attentions:  # computed by eager attention, whatever the implementation
            return attend[:, None, None]  # (B, 1, 1, L)
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=tokens, attention_mask=attend
        )


class VitMaeForPreTraining(VitMaePreTrainedModel):
    """The masked autoencoder: hide patches, encode the rest, predict the pixels of those hidden."""

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: VitMaeConfig) -> None:
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
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VitMaeForPreTrainingOutput:
        """Predict hidden patches: (B, C, H, W) -> loss (), logits (B, N, P).

        Args:
            pixel_values: (B, C, H, W), normalised.
            noise: (B, N); the patches with the highest values are hidden. Without it, training
                draws it and evaluation uses a fixed one.
            mask: bool (B, N) over patches or (B, H, W) over pixels, True = hidden; instead of noise
                and ratio.
            mask_ratio: share of patches to hide, `config.mask_ratio` by default; 0 is legal.
            interpolate_pos_encoding: accept images of another size than the model's.
            return_loss: False leaves the loss out.
        """
        if mask is None and mask_ratio is None:
            mask_ratio = self.config.mask_ratio
        encoded = self.vit(
            pixel_values,
            noise=noise,
            mask=mask,
            mask_ratio=mask_ratio,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        grid = self.vit.embeddings.input_grid(pixel_values, interpolate_pos_encoding)
        logits = self.decoder(encoded.last_hidden_state, encoded.ids_restore, encoded.mask, grid)
        return VitMaeForPreTrainingOutput(
            loss=self.forward_loss(pixel_values, logits, encoded.mask) if return_loss else None,
            logits=logits,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def forward_loss(self, pixel_values: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """The loss on the hidden patches: (B, C, H, W), (B, N, P), bool (B, N) -> ()."""
        targets = pixel_targets(pixel_values, self.config.patch_pair, self.config.norm_pix_loss)
        return masked_pixel_loss(logits, targets, mask)

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, P), pixels in (p_h, p_w, C) order."""
        return patchify(pixel_values, self.config.patch_pair)

    def unpatchify(
        self, patches: Tensor, original_image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, N, P) -> (B, C, H, W) of `original_image_size` (height, width) or the model's."""
        height, width = original_image_size or self.config.image_pair
        patch_height, patch_width = self.config.patch_pair
        grid = (height // patch_height, width // patch_width)
        return unpatchify(patches, self.config.patch_pair, grid)


class VitMaeForImageClassification(VitMaePreTrainedModel):
    """A linear classifier on the pooled encoder output (`config.pooling`)."""

    _auto_class = "AutoModelForImageClassification"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]  # another class's head

    def __init__(self, config: VitMaeConfig) -> None:
        super().__init__(config)
        self.vit = VitMaeModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classify images: (B, C, H, W) -> logits (B, num_labels).

        Args:
            pixel_values: (B, C, H, W), normalised.
            labels: (B,) integer classes; (B, num_labels) floating-point distributions; or what
                `config.problem_type` says: "regression", "multi_label_classification".
            interpolate_pos_encoding: accept images of another size than the model's.
        """
        encoded = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
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


def _asked(argument: bool | None, default: bool | None) -> bool:
    return bool(default if argument is None else argument)
