"""Blocks and what is around them: states, attention, drop path, layer scale, precision, pooling."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitmae.models.heads import pool_tokens
from hf_vitmae.models.layers import DropPath
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from .tiny import enable_checkpointing, random_images, random_noise, stir, tiny_config

ALL = {"output_hidden_states": True, "output_attentions": True}


def assert_same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def stirred(kind: type[VitMaePreTrainedModel], attention: str, **overrides: Any) -> Any:
    torch.manual_seed(0)
    model = kind(tiny_config(**overrides)).eval()
    stir(model)
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_run_from_the_embeddings_to_the_last_block(attention: str) -> None:
    model = stirred(VitMaeModel, attention)
    pixel_values = random_images(model.config)
    output = model(pixel_values, **ALL)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    patches = model.embeddings.patch_embeddings(pixel_values)
    assert torch.equal(output.hidden_states[0], model.embeddings(patches, (4, 4)))
    assert torch.equal(model.layernorm(output.hidden_states[-1]), output.last_hidden_state)
    state = output.hidden_states[0]
    for block, expected in zip(model.layers, output.hidden_states[1:], strict=True):
        state, _ = block(state)
        assert_same(state, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attentions_are_what_mixed_the_values(attention: str) -> None:
    model = stirred(VitMaeModel, attention, num_hidden_layers=1)
    output = model(random_images(model.config), **ALL)
    (weights,) = output.attentions  # (B, heads, L, L)
    assert weights.shape == (3, 4, 17, 17)
    assert_same(weights.sum(dim=-1), torch.ones(3, 4, 17))
    block = model.layers[0]
    value = block.attention.v_proj(block.layernorm_before(output.hidden_states[0]))
    value = value.unflatten(-1, (4, 8)).transpose(1, 2)  # (B, heads, L, d)
    mixed = block.attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    after = output.hidden_states[0] + mixed
    assert_same(after + block.mlp(block.layernorm_after(after)), output.hidden_states[1])


@pytest.mark.parametrize("kind", [VitMaeForPreTraining, VitMaeForImageClassification])
def test_sdpa_and_eager_agree_and_both_produce_what_is_asked(
    kind: type[VitMaePreTrainedModel],
) -> None:
    eager, sdpa = stirred(kind, "eager"), stirred(kind, "sdpa")
    pixel_values = random_images(eager.config)
    expected = eager(pixel_values, **ALL)
    assert_same(sdpa(pixel_values).logits, expected.logits)
    got = sdpa(pixel_values, **ALL)
    assert len(got.attentions) == 2 and len(got.hidden_states) == 3
    assert_same(got.attentions, expected.attentions)
    assert_same(got.hidden_states, expected.hidden_states)


def test_nothing_is_returned_that_was_not_asked_for_and_the_config_can_ask() -> None:
    model = stirred(VitMaeForPreTraining, "sdpa")
    pixel_values = random_images(model.config)
    output = model(pixel_values)
    assert output.hidden_states is None and output.attentions is None
    model.config.output_hidden_states = True
    assert len(model(pixel_values).hidden_states) == 3
    assert model(pixel_values, output_hidden_states=False).hidden_states is None


def test_a_tuple_holds_the_same_values() -> None:
    model = stirred(VitMaeForPreTraining, "sdpa")
    pixel_values = random_images(model.config)
    output, values = model(pixel_values), model(pixel_values, return_dict=False)
    assert isinstance(values, tuple)
    for got, expected in zip(values, output.to_tuple(), strict=True):
        assert torch.equal(got, expected)


def gradients(model: VitMaeForPreTraining) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(random_images(model.config), noise=random_noise(model.config)).loss
    loss.backward()
    return loss.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def test_gradient_checkpointing_changes_nothing() -> None:
    model = stirred(VitMaeForPreTraining, "sdpa").train()
    loss, expected = gradients(model)
    calls = []
    model.vit.layers[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    enable_checkpointing(model)
    checkpointed_loss, got = gradients(model)
    assert len(calls) == 2  # once forward, once more for the gradient
    assert torch.equal(checkpointed_loss, loss)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_runs_close_to_float32(autocast: bool) -> None:
    model = stirred(VitMaeForPreTraining, "sdpa").train()
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    expected = model(pixel_values, noise=noise).loss.item()
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(pixel_values, noise=noise)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected, rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_drop_path_is_the_identity_in_evaluation_and_keeps_the_mean_in_training() -> None:
    drop_path, ones = DropPath(0.25), torch.ones(4000, 2, 3)
    assert drop_path.eval()(ones) is ones
    dropped = drop_path.train()(ones)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert (dropped == dropped[:, :1, :1]).all()  # whole samples
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_grows_linearly_with_depth_and_spares_the_decoder() -> None:
    model = VitMaeForPreTraining(tiny_config(num_hidden_layers=5, drop_path_rate=0.4))
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4] + [0.0, 0.0])


def test_drop_path_drops_both_branches_of_a_block() -> None:
    model = stirred(VitMaeModel, "sdpa", num_hidden_layers=2, drop_path_rate=0.5).train()
    state = torch.randn(64, 3, 32)
    last = model.layers[1]
    out, _ = last(state)
    unchanged = (out == state).all(dim=(1, 2)).float().mean().item()
    assert unchanged == pytest.approx(0.25, abs=0.15)  # both dropped: one half of one half


def test_layer_scale_multiplies_each_branch() -> None:
    plain = stirred(VitMaeModel, "sdpa")
    scaled = VitMaeModel(tiny_config(layer_scale_init_value=0.5)).eval()
    missing = scaled.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".", 2)[2] for name in missing} == {
        "layer_scale1.gamma",
        "layer_scale2.gamma",
    }
    with torch.no_grad():  # the same as halving what each branch writes
        for block in plain.layers:
            for layer in (block.attention.o_proj, block.mlp.fc2):
                layer.weight.mul_(0.5)
                layer.bias.mul_(0.5)
    pixel_values = random_images(plain.config)
    assert_same(scaled(pixel_values).last_hidden_state, plain(pixel_values).last_hidden_state)


def test_hidden_dropout_acts_in_training_alone() -> None:
    model = stirred(VitMaeModel, "sdpa", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    pixel_values = random_images(model.config)
    first = model(pixel_values).last_hidden_state
    assert torch.equal(first, model(pixel_values).last_hidden_state)
    assert not torch.equal(first, model.train()(pixel_values).last_hidden_state)


def test_pooling_takes_cls_or_the_norm_of_the_mean() -> None:
    pixel_values = random_images(tiny_config())
    for pooling in ("cls", "mean"):
        model = stirred(VitMaeForImageClassification, "sdpa", pooling=pooling)
        output = model(pixel_values, output_hidden_states=True)
        tokens = output.hidden_states[-1]
        pooled = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].sum(dim=1) / 16
        expected = nn.functional.linear(
            model.vit.layernorm(pooled), model.classifier.weight, model.classifier.bias
        )
        assert_same(output.logits, expected)


def test_padding_does_not_count_in_the_mean() -> None:
    tokens = torch.tensor([[9.0, 1, 3, 100], [9, 2, 4, 6], [9, 100, 100, 100]])[..., None]
    is_visible = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    assert pool_tokens(tokens, "mean", is_visible).flatten().tolist() == [2.0, 4.0, 0.0]
