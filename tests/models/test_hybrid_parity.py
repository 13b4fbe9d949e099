"""The same weights in timm's hybrids of arXiv:2010.11929 give the same logits.

Every weight is random: stem, projection, positions, blocks and classifier must be in their place.
"""

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification

from .timm_models import HYBRIDS, stem_weights, timm_model
from .tiny import random_images

IMAGE_SIZE = (64, 96)
STEM, OUR_STEM = "patch_embed.backbone.", "vit.embeddings.patch_embeddings.stem."
NAMES = {
    "patch_embed.proj.": "vit.embeddings.patch_embeddings.projection.",
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "blocks.": "vit.layers.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.o_proj.",
    "head.": "classifier.",
}


def our_config(name: str) -> VitMaeConfig:
    is_base = name == "vit_base_r50_s16_224"
    make = VitMaeConfig.base if is_base else VitMaeConfig.small
    return make(
        patch_size=16 if is_base else 32,
        image_size=IMAGE_SIZE,
        num_labels=5,
        stem_depths=HYBRIDS[name],
        position_embedding="learned",
    )


def our_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm hybrid's state dict under the names of our classifier."""
    stem = {name.removeprefix(STEM): value for name, value in theirs.items() if STEM in name}
    weights = {OUR_STEM + name: value for name, value in stem_weights(stem).items()}
    for name, value in theirs.items():
        if STEM in name:
            continue
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if name.startswith("norm."):
            name = f"vit.layer{name}"
        weights |= split_attention(name, value)
    return weights


def split_attention(name: str, value: Tensor) -> dict[str, Tensor]:
    """Query, key and value, which timm has in one matrix; another weight stays as it is."""
    if ".attn.qkv." not in name:
        return {name: value}
    parts = zip("qkv", value.chunk(3), strict=True)
    return {name.replace("attn.qkv", f"attention.{part}_proj"): third for part, third in parts}


@pytest.mark.parametrize("name", HYBRIDS)
def test_logits_equal_timm(name: str) -> None:
    timm_hybrid = timm_model(name, img_size=IMAGE_SIZE, num_classes=5)
    model = VitMaeForImageClassification(our_config(name)).eval()
    model.load_state_dict(our_weights(timm_hybrid.state_dict()), strict=True)
    pixel_values = random_images(model.config, batch=2)
    with torch.no_grad():
        got, expected = model(pixel_values).logits, timm_hybrid(pixel_values)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
