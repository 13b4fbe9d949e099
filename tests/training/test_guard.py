"""The guard fires on models that are blind to positions, ours or not, and on no other."""

import operator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel, ViTModel

from hf_vitmae import VitMaeConfig, VitMaeForImageClassification, VitMaeForPreTraining, VitMaeModel
from hf_vitmae.training.guard import check_positions

SIZES: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
)
DECODER: dict[str, Any] = dict(
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
)


def table(module: nn.Module, name: str) -> torch.Tensor:
    """The position table, be it a parameter or a buffer."""
    return operator.attrgetter(name)(module).data


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize(
    "model_class", [VitMaeModel, VitMaeForPreTraining, VitMaeForImageClassification]
)
def test_our_fresh_models_pass(model_class: type, positions: str):
    model = model_class(VitMaeConfig(**SIZES, **DECODER, position_embedding=positions))
    check_positions(model, 32, 3)


def test_rectangular_images_of_other_channels_pass():
    sizes = SIZES | dict(image_size=(32, 64), patch_size=(8, 16), num_channels=5)
    check_positions(VitMaeForPreTraining(VitMaeConfig(**sizes, **DECODER)), (32, 64), 5)


@pytest.mark.parametrize("fill", [0.0, 0.3])
@pytest.mark.parametrize("model_class", [VitMaeModel, VitMaeForPreTraining])
def test_an_encoder_with_equal_rows_is_blind(model_class: type, fill: float):
    model = model_class(VitMaeConfig(**SIZES, **DECODER))
    prefix = "vit." if model_class is VitMaeForPreTraining else ""
    table(model, f"{prefix}embeddings.position_embeddings").fill_(fill)
    with pytest.raises(ValueError, match=f"encoder of this {model_class.__name__} cannot tell"):
        check_positions(model, (32, 32), 3)


def test_a_blind_decoder_is_named():
    model = VitMaeForPreTraining(VitMaeConfig(**SIZES, **DECODER))
    table(model, "decoder.position_embeddings").zero_()
    with pytest.raises(ValueError, match="decoder of this VitMaeForPreTraining cannot tell"):
        check_positions(model, (32, 32), 3)


def filled_vit_mae() -> ViTMAEForPreTraining:
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER))
    table(model, "vit.embeddings.position_embeddings").normal_()
    table(model, "decoder.decoder_pos_embed").normal_()
    return model


def test_a_fresh_vit_mae_of_transformers_is_blind():
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER))
    table(model, "vit.embeddings.position_embeddings").zero_()  # as transformers 5.23 leaves them
    table(model, "decoder.decoder_pos_embed").zero_()
    with pytest.raises(ValueError, match="encoder of this ViTMAEForPreTraining"):
        check_positions(model, (32, 32), 3)


@pytest.mark.parametrize(
    "name, part",
    [("vit.embeddings.position_embeddings", "encoder"), ("decoder.decoder_pos_embed", "decoder")],
)
def test_each_part_of_a_filled_vit_mae_is_tested(name: str, part: str):
    model = filled_vit_mae()
    check_positions(model, (32, 32), 3)
    table(model, name).zero_()
    with pytest.raises(ValueError, match=f"The {part} of this ViTMAEForPreTraining"):
        check_positions(model, (32, 32), 3)


def test_bare_encoders_of_transformers():
    check_positions(filled_vit_mae().vit, (32, 32), 3)
    vit = ViTModel(ViTConfig(**SIZES))
    check_positions(vit, (32, 32), 3)
    table(vit, "embeddings.position_embeddings").zero_()
    with pytest.raises(ValueError, match="encoder of this ViTModel"):
        check_positions(vit, (32, 32), 3)
    with pytest.raises(ValueError, match="encoder of this ViTMAEModel"):
        blind = ViTMAEModel(ViTMAEConfig(**SIZES))
        table(blind, "embeddings.position_embeddings").zero_()
        check_positions(blind, (32, 32), 3)


def test_half_precision_weights_are_judged_in_full_precision():
    model = VitMaeForPreTraining(VitMaeConfig(**SIZES, **DECODER)).bfloat16()
    check_positions(model, (32, 32), 3)
    assert model.dtype == torch.bfloat16
    table(model, "vit.embeddings.position_embeddings").zero_()
    with pytest.raises(ValueError, match="encoder"):
        check_positions(model, (32, 32), 3)


def test_the_model_and_the_random_state_are_left_alone():
    model = filled_vit_mae().train()
    model.vit.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    check_positions(model, (32, 32), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


def test_a_size_that_the_patch_does_not_divide_is_named():
    with pytest.raises(ValueError, match="30x32"):
        check_positions(VitMaeModel(VitMaeConfig(**SIZES)), (30, 32), 3)
