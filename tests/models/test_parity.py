"""The same weights in transformers' ViT-MAE and ViT give the same results.

Every weight is random, the position tables too: all of them must be in their place.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining

from .tiny import random_images, random_noise, stir, tiny_config

ENCODER_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
MAE_FIELDS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
)
DECODER_NAMES = {
    "decoder.decoder_pos_embed": "decoder.position_embeddings",
    "decoder.decoder_embed": "decoder.embed",
    "decoder.decoder_layers": "decoder.layers",
    "decoder.decoder_norm": "decoder.layernorm",
    "decoder.decoder_pred": "decoder.predict",
}


def same_fields(config: VitMaeConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def share_weights(source: PreTrainedModel, target: PreTrainedModel, attention: str) -> None:
    """The same random weights in both; a name or a shape that does not fit is an error."""
    stir(source)
    weights = {}
    for name, value in source.state_dict().items():
        for theirs, ours in DECODER_NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    target.load_state_dict(weights, strict=True)
    for model in (source, target):
        model.set_attn_implementation(attention)


def assert_same(ours: tuple[Tensor, ...] | Tensor, theirs: tuple[Tensor, ...] | Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_pretraining_equals_transformers_vit_mae(norm_pix_loss: bool, attention: str) -> None:
    config = tiny_config(norm_pix_loss=norm_pix_loss, layer_norm_eps=1e-5, num_channels=2)
    fields = same_fields(config, ENCODER_FIELDS + MAE_FIELDS)
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**fields)).eval()
    ours = VitMaeForPreTraining(config).eval()
    share_weights(theirs, ours, attention)
    pixel_values, noise = random_images(config), random_noise(config)

    with torch.no_grad():
        expected = theirs(pixel_values, noise=noise, output_hidden_states=True)
        got = ours(pixel_values, noise=noise, output_hidden_states=True)

    assert_same(got.loss, expected.loss)
    assert_same(got.logits, expected.logits)
    assert torch.equal(got.mask, expected.mask.bool())
    assert torch.equal(got.ids_restore, expected.ids_restore)
    assert len(got.hidden_states) == len(expected.hidden_states)
    assert_same(got.hidden_states[:-1], expected.hidden_states[:-1])


def test_patchify_and_unpatchify_equal_transformers_vit_mae() -> None:
    config = tiny_config()
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**same_fields(config, ENCODER_FIELDS + MAE_FIELDS)))
    ours = VitMaeForPreTraining(config)
    pixel_values = random_images(config)
    patches = ours.patchify(pixel_values)
    assert torch.equal(patches, theirs.patchify(pixel_values))
    assert torch.equal(ours.unpatchify(patches), pixel_values)
    assert torch.equal(theirs.unpatchify(patches), pixel_values)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_classification_equals_transformers_vit(qkv_bias: bool, attention: str) -> None:
    config = tiny_config(
        layer_norm_eps=1e-12, qkv_bias=qkv_bias, num_labels=5, position_embedding="learned"
    )
    fields = same_fields(config, (*ENCODER_FIELDS, "num_labels"))
    theirs = ViTForImageClassification(ViTConfig(**fields)).eval()
    ours = VitMaeForImageClassification(config).eval()
    share_weights(theirs, ours, attention)
    pixel_values, labels = random_images(config), torch.tensor([4, 0, 2])
    wanted = {"output_hidden_states": True, "output_attentions": attention == "eager"}

    with torch.no_grad():
        expected = theirs(pixel_values, labels=labels, **wanted)
        got = ours(pixel_values, labels=labels, **wanted)

    assert_same(got.loss, expected.loss)
    assert_same(got.logits, expected.logits)
    assert_same(got.hidden_states, expected.hidden_states)
    if attention == "eager":
        assert_same(got.attentions, expected.attentions)
