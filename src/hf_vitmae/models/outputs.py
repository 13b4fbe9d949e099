"""What the models return."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass
class VitMaeModelOutput(ModelOutput):
    """What the encoder returns.

    Args:
        last_hidden_state: (B, 1 + N, D), or (B, 1 + K, D) when patches were hidden: [CLS |
            patches], normalised. K is the largest number of visible patches of any image (in a
            compiled graph, with a mask by hand or padding: that is possible); what an image has
            beyond its own is padding.
        pooler_output: (B, D), pooled as `config.pooling` says, normalised; through the pooler where
            there is one: (B, `config.pooler_output_size`).
        mask: bool (B, N), True = hidden; None when nothing was asked to be hidden.
        ids_restore: (B, N), the place of each patch in [visible | hidden]; None likewise.
        hidden_states: the input and the output of every block, before the last norm.
        attentions: (B, heads, L, L) of every block.
    """

    last_hidden_state: Tensor
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
            with `norm_pix_loss` in units of the patch's own deviation. None without
            `predict_visible_patches`.
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


@dataclass
class VitMaePatchPredictionOutput(ModelOutput):
    """What masked and next patch prediction return.

    Args:
        loss: (), over the patches of `mask`.
        logits: (B, N, outputs), the prediction for every patch.
        mask: bool (B, N), True = corrupted, or predicted from those before it.
        hidden_states, attentions: of the encoder, over [CLS | patches].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
