"""What holds for every class with every stem."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitmae.models.embeddings import PositionTable, sincos_positions
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForMaskedPatchPrediction,
    VitMaeForSemanticSegmentation,
    VitMaePreTrainedModel,
)

from .family import AUTO_CLASSES, CLASSES, OPENERS, STEMS, TRAINABLE, family_config, family_inputs
from .tiny import enable_checkpointing, stir

ALL = {"output_hidden_states": True, "output_attentions": True}

every_stem = pytest.mark.parametrize("stem", STEMS)
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
every_trainable = pytest.mark.parametrize("kind", TRAINABLE, ids=lambda kind: kind.__name__)


def make(
    kind: type[VitMaePreTrainedModel], stem: str, **overrides: Any
) -> tuple[VitMaePreTrainedModel, dict[str, Any]]:
    """A stirred model in evaluation mode, and its inputs."""
    model = kind(family_config(stem, **overrides)).eval()
    stir(model, scale=0.02)
    return model, family_inputs(kind, model.config)


def result(output: Any) -> Tensor:
    """The main result: logits, the last feature map, or the tokens."""
    if "logits" in output:
        return output.logits
    return output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state


def gradients(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Of the loss, or of the result's square where there is none."""
    model.zero_grad()
    output = model(**inputs)
    (output.loss if "loss" in output else result(output).square().mean()).backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@every_stem
@every_class
def test_results_have_the_promised_shapes_and_are_repeatable(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem)
    config, output = model.config, model(**inputs)
    height, width = config.image_pair
    num_pixels = config.patch_pair[0] * config.patch_pair[1] * config.num_channels
    shapes = {
        "VitMaeModel": (3, 1 + config.num_patches, 32),
        "VitMaeForPreTraining": (3, config.num_patches, num_pixels),
        "VitMaeForImageClassification": (3, 3),
        "VitMaeForSemanticSegmentation": (3, 3, height, width),
        "VitMaeForMaskedPatchPrediction": (3, config.num_patches, 512),
        "VitMaeForNextPatchPrediction": (3, config.num_patches, num_pixels),
        "VitMaeBackbone": (3, 32, *config.grid),
    }
    assert result(output).shape == shapes[kind.__name__]
    assert torch.isfinite(result(output)).all()
    assert torch.equal(result(model(**inputs)), result(output))
    if kind in TRAINABLE:
        assert output.loss.shape == () and output.loss > 0


@every_stem
@every_trainable
def test_the_gradient_reaches_every_parameter(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem, position_embedding="learned", segmentation_head="multi_layer")
    found = gradients(model, inputs)
    still = {name for name, _ in model.named_parameters() if name not in found}
    assert not still
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all(), name
        if not name.endswith("k_proj.bias"):  # its true gradient is zero: softmax ignores it
            assert gradient.abs().max() > 0, name


@every_stem
@every_class
def test_saved_and_loaded_is_the_same_model(kind: Any, stem: str, tmp_path: Path) -> None:
    model, inputs = make(kind, stem)
    model.save_pretrained(tmp_path)
    loaded, report = OPENERS[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is kind
    assert not any(report.values()), report
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(result(loaded(**inputs)), result(model(**inputs)))


@every_stem
@every_class
def test_gradient_checkpointing_changes_no_gradient(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem)
    model.train()
    torch.manual_seed(0)
    expected = gradients(model, inputs)
    enable_checkpointing(model)
    encoder: Any = getattr(model, "vit", model)
    calls = []
    encoder.layers[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    got = gradients(model, inputs)
    assert len(calls) == 2  # once forward, once more for the gradient
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


@every_stem
@every_class
def test_eager_and_sdpa_attention_agree(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem)
    results = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        results[attention] = result(model(**inputs))
    torch.testing.assert_close(results["eager"], results["sdpa"], rtol=1e-5, atol=1e-5)


@every_stem
@every_class
def test_bfloat16_is_close_to_float32(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem)
    expected = result(model(**inputs))
    output = copy.deepcopy(model).bfloat16()(**inputs)
    got = result(output)
    assert got.dtype == torch.bfloat16
    difference = (got.float() - expected).norm() / expected.norm()
    assert difference < 0.05
    if kind in TRAINABLE:
        assert output.loss.dtype == torch.float32


@every_stem
@every_class
@pytest.mark.parametrize("num_channels", [1, 3, 5])
def test_any_number_of_channels(kind: Any, stem: str, num_channels: int) -> None:
    if kind is VitMaeForMaskedPatchPrediction:
        model, inputs = make(kind, stem, num_channels=num_channels)
        outputs = {1: 8, 3: 512, 5: 5 * 8}[num_channels]
        assert result(model(**inputs)).shape[-1] == outputs
    else:
        model, inputs = make(kind, stem, num_channels=num_channels)
    assert inputs["pixel_values"].shape[1] == num_channels
    for name, gradient in gradients(model, inputs).items():
        assert torch.isfinite(gradient).all(), name
    with pytest.raises(ValueError, match=rf"must be \(batch, {num_channels}, height, width\)"):
        model(inputs["pixel_values"][:, :1].repeat(1, num_channels + 1, 1, 1))


@every_stem
@every_class
def test_from_config_and_from_the_meta_device_weights_are_fresh(kind: Any, stem: str) -> None:
    config = family_config(stem)
    auto = AUTO_CLASSES[kind]
    fresh = kind(config) if auto is None else auto.from_config(config)
    with torch.device("meta"):
        materialised = kind(config)
    materialised.to_empty(device="cpu")
    with torch.no_grad():
        for value in materialised.state_dict().values():
            value.fill_(torch.nan)
    materialised.init_weights()
    for model in (fresh, materialised):
        assert type(model) is kind
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
        for module in model.modules():
            if isinstance(module, PositionTable):
                table = module.position_embeddings
                assert torch.equal(table, sincos_positions(module.grid, table.shape[-1]))
        model.eval()
        assert torch.isfinite(result(model(**family_inputs(kind, config)))).all()


@every_stem
@every_class
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_and_attentions(kind: Any, stem: str, attention: str) -> None:
    model, inputs = make(kind, stem)
    model.set_attn_implementation(attention)
    plain, output = model(**inputs), model(**inputs, **ALL)
    assert plain.get("hidden_states") is None and plain.get("attentions") is None
    torch.testing.assert_close(result(output), result(plain), rtol=1e-5, atol=1e-5)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    length = output.hidden_states[0].shape[1]
    assert all(state.shape == (3, length, 32) for state in output.hidden_states)
    for weights in output.attentions:
        assert weights.shape == (3, 4, length, length)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, length))
    tuples = model(**inputs, **ALL, return_dict=False)
    assert isinstance(tuples, tuple) and len(tuples) == len(output.to_tuple())


@every_stem
@every_class
def test_images_of_another_size_are_refused_or_interpolated(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem)
    patch_height, patch_width = model.config.patch_pair
    pixel_values = torch.randn(2, 3, 3 * patch_height, 2 * patch_width)
    if kind is not VitMaeBackbone:  # which takes any size
        with pytest.raises(ValueError, match=r"Images of \d+x\d+ .* do not fit a model for 16x"):
            model(pixel_values)
    asked = {} if kind is VitMaeBackbone else {"interpolate_pos_encoding": True}
    output = result(model(pixel_values, **asked))
    assert torch.isfinite(output).all()
    if kind is VitMaeForSemanticSegmentation:
        assert output.shape == (2, 3, 3 * patch_height, 2 * patch_width)


@every_class
def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(kind: Any) -> None:
    model, inputs = make(kind, "linear")
    whole = result(model(**inputs))
    alone = result(model(inputs["pixel_values"][1:2]))
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-5, atol=1e-5)
