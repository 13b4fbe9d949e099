"""Loss, predictions and every gradient of the masked autoencoder against `reference.py`."""

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining

from .reference import masked_autoencoder
from .tiny import random_images, random_noise, stir, tiny_config

GEOMETRIES = {
    "square, 3 channels": {"image_size": 12, "patch_size": 4, "num_channels": 3},
    "rectangular image, 1 channel": {"image_size": (8, 20), "patch_size": 4, "num_channels": 1},
    "rectangular patch, 5 channels": {
        "image_size": (12, 16),
        "patch_size": (2, 8),
        "num_channels": 5,
    },
}


def reference_gradients(
    model: VitMaeForPreTraining, pixel_values: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The reference in float64 on the model's weights: loss, predictions, gradients by name."""
    config: VitMaeConfig = model.config
    state = {
        name: parameter.detach().double().requires_grad_(parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
    loss, logits = masked_autoencoder(
        state,
        pixel_values.double(),
        noise,
        patch=config.patch_pair,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        num_heads=config.num_attention_heads,
        decoder_num_heads=config.decoder_num_attention_heads,
        eps=config.layer_norm_eps,
    )
    loss.backward()
    gradients = {name: value.grad for name, value in state.items() if value.grad is not None}
    return loss.detach(), logits.detach(), gradients


def scale_of(gradients: dict[str, Tensor], name: str) -> float:
    """The norm that an error is measured by.

    A key bias adds the same to all scores of a query, which softmax ignores: its true gradient is
    zero, so the key weight's is taken.
    """
    return float(gradients[name.replace("k_proj.bias", "k_proj.weight")].norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_loss_and_gradients_equal_the_plain_reference(
    geometry: dict, norm_pix_loss: bool, dtype: torch.dtype
) -> None:
    config = tiny_config(
        **geometry, norm_pix_loss=norm_pix_loss, mask_ratio=0.6, position_embedding="learned"
    )
    model = VitMaeForPreTraining(config)
    stir(model)
    pixel_values, noise = random_images(config, batch=2), random_noise(config, batch=2)
    loss, logits, gradients = reference_gradients(model, pixel_values, noise)

    model = model.double() if dtype == torch.float64 else model
    output = model(pixel_values.to(dtype), noise=noise)
    output.loss.backward()

    assert abs(output.loss.item() - loss.item()) < 1e-6
    assert (output.logits.double() - logits).norm() < 1e-5 * logits.norm()
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    errors = {
        name: float((parameter.grad.double() - gradients[name]).norm()) / scale_of(gradients, name)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert errors.keys() == gradients.keys()
    assert max(errors.values()) < 1e-5, max(errors.items(), key=lambda item: item[1])


def test_every_parameter_gets_a_gradient_and_fixed_positions_are_none() -> None:
    config = tiny_config(position_embedding="sincos")
    model = VitMaeForPreTraining(config)
    model(random_images(config), noise=random_noise(config)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    fixed = model.state_dict().keys() - dict(model.named_parameters()).keys()
    assert fixed == {"vit.embeddings.position_embeddings", "decoder.position_embeddings"}
