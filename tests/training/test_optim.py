"""Parameter groups: who decays, at which learning rate; AdamW repeats itself bit for bit."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from hf_vitmae import VitMaeConfig, VitMaeForImageClassification, VitMaeForPreTraining, VitMaeModel
from hf_vitmae.training.optim import OptimConfig, build_optimizer, effective_lr, parameter_groups

SIZES: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
    image_size=32,
    patch_size=8,
)


def small_config(**changes: Any) -> VitMaeConfig:
    return VitMaeConfig(**(SIZES | changes))


def by_name(model: nn.Module, **options) -> dict[str, dict]:
    """Parameter name -> its group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, **options)
    return {names[parameter]: group for group in groups for parameter in group["params"]}


def test_effective_lr_is_quoted_for_256_images():
    assert effective_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_biases_norms_tokens_and_positions_do_not_decay():
    model = VitMaeForPreTraining(small_config(position_embedding="learned"))
    groups = by_name(model, weight_decay=0.1)
    decayed = {name for name, group in groups.items() if group["weight_decay"] == 0.1}
    matrices = ("_proj.weight", "projection.weight", "fc1.weight", "fc2.weight")
    wanted = {n for n in groups if n.endswith((*matrices, "embed.weight", "predict.weight"))}
    assert decayed == wanted
    undecayed = groups.keys() - decayed
    assert {"vit.embeddings.cls_token", "decoder.mask_token"} <= undecayed
    assert "vit.embeddings.position_embeddings" in undecayed
    assert all(groups[name]["weight_decay"] == 0 for name in undecayed)


def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = VitMaeForPreTraining(small_config())
    model.vit.layers[0].requires_grad_(False)
    parameters = [p for g in parameter_groups(model, 0.05, layer_decay=0.5) for p in g["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(parameters) == len(set(parameters)) == len(trainable)
    assert set(parameters) == set(trainable)


@pytest.mark.parametrize("prefix, model_class", [("vit.", VitMaeForPreTraining), ("", VitMaeModel)])
def test_layer_decay_follows_the_encoder(prefix: str, model_class: type):
    model = model_class(small_config())
    groups = by_name(model, weight_decay=0.05, layer_decay=0.5, lr=1.0)
    scales = {
        f"{prefix}embeddings.cls_token": 0.5**3,
        f"{prefix}layers.0.mlp.fc1.weight": 0.5**2,
        f"{prefix}layers.1.mlp.fc1.bias": 0.5,
        f"{prefix}layernorm.weight": 1.0,
    }
    if prefix:
        scales |= {"decoder.layers.0.mlp.fc1.weight": 1.0, "decoder.mask_token": 1.0}
    assert {name: groups[name]["lr_scale"] for name in scales} == scales
    assert all(group["lr"] == group["lr_scale"] for group in groups.values())


def test_the_depth_counts_frozen_layers_too():
    model = VitMaeForImageClassification(small_config(num_labels=3))
    model.vit.layers[1].requires_grad_(False)
    groups = by_name(model, weight_decay=0.05, layer_decay=0.5)
    assert groups["vit.layers.0.mlp.fc1.weight"]["lr_scale"] == 0.25


# PEFT asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix, model_class", [("vit.", VitMaeForPreTraining), ("", VitMaeModel)])
def test_an_adapter_counts_with_the_weight_it_adapts(wrapped: bool, prefix: str, model_class: type):
    config = LoraConfig(r=2, target_modules=["q_proj", "fc1"], lora_bias=True)
    model = model_class(small_config())
    model = get_peft_model(model, config) if wrapped else inject_adapter_in_model(config, model)
    prefix = f"base_model.model.{prefix}" if wrapped else prefix
    groups = by_name(model, weight_decay=0.05, layer_decay=0.5, lr=1.0)
    assert all(".lora_" in name for name in groups)
    for layer, scale in ((0, 0.25), (1, 0.5)):
        for name in ("attention.q_proj", "mlp.fc1"):
            path = f"{prefix}layers.{layer}.{name}"
            assert model.get_parameter(f"{path}.base_layer.weight").requires_grad is False
            for part in "AB":
                group = groups[f"{path}.lora_{part}.default.weight"]
                assert (group["lr"], group["weight_decay"]) == (scale, 0.05)
            bias = groups[f"{path}.lora_B.default.bias"]
            assert (bias["lr"], bias["weight_decay"]) == (scale, 0.0)


def test_layer_decay_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"layer_decay is 0.5 but Linear has no parameters"):
        parameter_groups(nn.Linear(2, 2), 0.05, layer_decay=0.5)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.05)


@pytest.mark.parametrize(
    "field, value",
    [("base_lr", 0.0), ("layer_decay", 1.5), ("warmup_steps", -1), ("clip_grad_norm", 0.0)],
)
def test_a_wrong_value_is_named(field: str, value: Any):
    with pytest.raises(ValueError, match=rf"optim\.{field} is {value}"):
        OptimConfig(**{field: value})


def test_warmup_in_steps_takes_the_place_of_the_share():
    assert OptimConfig(warmup_share=0.1).num_warmup_steps(200) == 20
    assert OptimConfig(warmup_share=0.1, warmup_steps=0).num_warmup_steps(200) == 0


def test_optimizer_scales_the_learning_rate_and_repeats_bit_for_bit():
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(17, 33), nn.GELU(), nn.Linear(33, 5))
        optimizer = build_optimizer(model, OptimConfig(base_lr=1e-2), effective_batch=512)
        assert {group["initial_lr"] for group in optimizer.param_groups} == {2e-2}
        for _ in range(5):
            model(torch.randn(8, 17)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
