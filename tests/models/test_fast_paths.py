"""What is computed in another way to be fast gives what the plain way gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_vitmae.models import matmul_attention
from hf_vitmae.models.layers import eager_attention
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
)

from .test_reference import reference_gradients, scale_of
from .tiny import RECTANGULAR, enable_checkpointing, random_images, random_noise, stir, tiny_config

LEARNED = {"position_embedding": "learned"}
LOSS_ALONE = {"predict_visible_patches": False}
RECOMPUTED = {"recompute_activations": True}


def stirred(kind: Any, **overrides: Any) -> Any:
    torch.manual_seed(0)
    model = kind(tiny_config(**overrides))
    stir(model)
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_gradients_are(
    got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    assert got.keys() == expected.keys()
    errors = {
        name: float((gradient - expected[name]).norm()) / scale_of(expected, name)
        for name, gradient in got.items()
    }
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize(
    "fast", [LOSS_ALONE, RECOMPUTED, LOSS_ALONE | RECOMPUTED], ids=lambda fast: " ".join(fast)
)
def test_fast_pretraining_equals_the_plain_reference(
    fast: dict[str, bool], norm_pix_loss: bool
) -> None:
    model = stirred(
        VitMaeForPreTraining, **LEARNED, **RECTANGULAR, **fast, norm_pix_loss=norm_pix_loss
    ).train()
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    loss, _, expected = reference_gradients(model, pixel_values, noise)
    output = model(pixel_values, noise=noise)
    output.loss.backward()
    assert abs(output.loss.item() - loss.item()) < 1e-6
    assert (output.logits is None) == ("predict_visible_patches" in fast)
    assert_gradients_are(gradients(model), expected, 1e-5)


def test_the_loss_alone_is_the_loss_in_training_and_evaluation() -> None:
    model = stirred(VitMaeForPreTraining)
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    for mode in (model.train, model.eval):
        mode()
        whole = model(pixel_values, noise=noise)
        alone = model(pixel_values, noise=noise, predict_visible_patches=False)
        assert whole.logits.shape == (3, 16, 48) and alone.logits is None
        torch.testing.assert_close(alone.loss, whole.loss, rtol=0, atol=1e-6)
        assert torch.equal(alone.mask, whole.mask)
        assert torch.equal(alone.ids_restore, whole.ids_restore)


def test_an_argument_overrides_the_field() -> None:
    model = stirred(VitMaeForPreTraining, **LOSS_ALONE).eval()
    pixel_values = random_images(model.config)
    assert model(pixel_values).logits is None
    asked = model(pixel_values, predict_visible_patches=True)
    model.config.predict_visible_patches = True
    assert torch.equal(asked.logits, model(pixel_values).logits)


def some_padding() -> Tensor:
    padding = torch.zeros(3, 16, dtype=torch.bool)
    padding[1, 10:] = True
    return padding


def uneven_mask() -> Tensor:
    return torch.arange(16) < torch.tensor([[4], [9], [12]])


@pytest.mark.parametrize(
    "asked",
    [
        {"mask": uneven_mask()},
        {"padding_mask": some_padding(), "noise": random_noise(tiny_config())},
        {"mask": uneven_mask(), "padding_mask": some_padding()},
        {"mask_ratio": 0.0},
        {"mask_ratio": 0.99},
        {"mask": torch.zeros(3, 16, dtype=torch.bool)},
    ],
    ids=["uneven masks", "padding", "both", "ratio 0", "nothing visible", "empty mask"],
)
def test_the_loss_alone_of_uncommon_masks(asked: dict[str, Any]) -> None:
    model = stirred(VitMaeForPreTraining).train()
    pixel_values = random_images(model.config)
    whole = model(pixel_values, **asked)
    whole.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    alone = model(pixel_values, **asked, predict_visible_patches=False)
    alone.loss.backward()
    assert alone.logits is None
    torch.testing.assert_close(alone.loss, whole.loss, rtol=0, atol=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_images_do_not_mix_where_masks_are_uneven() -> None:
    model = stirred(VitMaeForPreTraining).eval()
    pixel_values, mask = random_images(model.config), uneven_mask()
    together = model(pixel_values, mask=mask).logits
    for number in range(3):
        alone = model(pixel_values[number : number + 1], mask=mask[number : number + 1]).logits
        torch.testing.assert_close(together[number], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stem", [None, (1, 1)])
def test_a_classifier_by_cls_equals_the_whole_encoder(stem: tuple[int, ...] | None) -> None:
    sizes: dict[str, Any] = {"image_size": 64, "patch_size": 16} if stem else {}
    model = stirred(
        VitMaeForImageClassification,
        num_labels=3,
        stem_depths=stem,
        stem_width=8,
        stem_num_groups=4,
        **sizes,
    ).eval()
    pixel_values = random_images(model.config)
    encoder: VitMaeModel = model.vit
    for extra in ({}, {"padding_mask": some_padding()}):
        expected = model.classifier(encoder(pixel_values, **extra).pooler_output)
        torch.testing.assert_close(
            model(pixel_values, **extra).logits, expected, rtol=1e-5, atol=1e-6
        )
    whole = model(pixel_values, output_hidden_states=True, output_attentions=True)
    assert [state.shape[1] for state in whole.hidden_states] == [17, 17, 17]
    assert [weights.shape[2:] for weights in whole.attentions] == [(17, 17), (17, 17)]
    torch.testing.assert_close(whole.logits, model(pixel_values).logits, rtol=1e-5, atol=1e-6)


def test_the_last_block_computes_no_patch_token_that_nobody_asks_for() -> None:
    model = stirred(VitMaeForImageClassification, num_labels=3).eval()
    seen: list[int] = []
    for block in model.vit.layers:
        block.mlp.fc1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    model(random_images(model.config))
    assert seen == [17, 2]
    seen.clear()
    model.config.pooling = "mean"
    model(random_images(model.config))
    assert seen == [17, 17]


def test_the_loss_alone_predicts_hidden_patches_alone() -> None:
    model = stirred(VitMaeForPreTraining)
    seen: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: seen.__setitem__(name, output.shape[1])

    for name in ("decoder.predict", "decoder.layers.0.mlp", "decoder.layers.1.mlp"):
        model.get_submodule(name).register_forward_hook(watch(name))
    model(random_images(model.config), predict_visible_patches=False)
    assert list(seen.values()) == [17, 12, 12] and list(seen)[-1] == "decoder.predict"


# bfloat16 attention


def attend(function: Callable[..., Any], tokens: list[Tensor], arriving: Tensor) -> list[Tensor]:
    """Context and the three gradients, in float32."""
    leaves = [token.detach().clone().requires_grad_() for token in tokens]
    heads = [leaf.transpose(1, 2) for leaf in leaves]
    context = function(heads)
    context.backward(arriving.to(context.dtype))
    return [
        context.detach().float(),
        *(leaf.grad.float() for leaf in leaves if leaf.grad is not None),
    ]


@pytest.mark.parametrize("weights_of_a_group", [1, 400, 2**20], ids=["each", "some", "all"])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (1, 9), (70, 70)])
def test_matmul_attention_is_as_exact_as_fused_attention(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, weights_of_a_group: int
) -> None:
    monkeypatch.setattr(matmul_attention, "WEIGHTS_OF_A_GROUP", weights_of_a_group)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, queries, 2, 16, generator=generator)
    key, value = torch.randn(2, 5, keys, 2, 16, generator=generator).unbind()
    arriving = torch.randn(5, queries, 2, 16, generator=generator)
    module, scaling = nn.Module(), 0.3

    def plain(heads: list[Tensor]) -> Tensor:
        return eager_attention(module, heads[0], heads[1], heads[2], None, scaling)[0]

    def fused(heads: list[Tensor]) -> Tensor:
        return nn.functional.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], scale=scaling
        ).transpose(1, 2)

    def ours(heads: list[Tensor]) -> Tensor:
        return matmul_attention.matmul_attention(
            module, heads[0], heads[1], heads[2], None, scaling
        )[0]

    tokens = [query, key, value]
    exact = attend(plain, tokens, arriving)
    for got, expected in zip(attend(ours, tokens, arriving), exact, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    short = [token.bfloat16() for token in tokens]
    for got, others, expected in zip(
        attend(ours, short, arriving), attend(fused, short, arriving), exact, strict=True
    ):
        assert (got - expected).norm() < 2 * (others - expected).norm() + 1e-3 * expected.norm()


@pytest.mark.parametrize("mode", ["autocast", "bfloat16 weights"])
def test_bfloat16_training_on_a_cpu_takes_it_and_gives_the_same_loss(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    calls = []
    apply = matmul_attention.matmul_attention

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return apply(*arguments, **options)

    monkeypatch.setattr("hf_vitmae.models.layers.matmul_attention", counted)
    monkeypatch.setattr(matmul_attention, "FEWEST_IN_TRAINING", 0)
    dtype = torch.bfloat16 if mode == "bfloat16 weights" else torch.float32
    losses = {}
    for attention in ("eager", "sdpa"):
        model = stirred(VitMaeForPreTraining).to(dtype).train()
        model.set_attn_implementation(attention)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            pixel_values = random_images(model.config).to(dtype)
            output = model(pixel_values, noise=random_noise(model.config))
        output.loss.backward()
        losses[attention] = output.loss.item()
        assert all(g.isfinite().all() for g in gradients(model).values())
        assert len(calls) == (4 if attention == "sdpa" else 0)
    exact = stirred(VitMaeForPreTraining)
    exact = exact(random_images(exact.config), noise=random_noise(exact.config)).loss.item()
    tolerance = 1e-4 if mode == "autocast" else 1e-2
    assert losses["sdpa"] == pytest.approx(losses["eager"], rel=tolerance)
    assert losses["sdpa"] == pytest.approx(exact, rel=1e-2)


def test_float32_masks_and_dropout_keep_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("matmul_attention was called")

    monkeypatch.setattr("hf_vitmae.models.layers.matmul_attention", refuse)
    monkeypatch.setattr(matmul_attention, "FEWEST_IN_TRAINING", 0)
    model = stirred(VitMaeModel).train()
    pixel_values = random_images(model.config)
    model(pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        model(pixel_values, padding_mask=some_padding())
        model(pixel_values, output_attentions=True)
        dropping = stirred(VitMaeModel, attention_probs_dropout_prob=0.1).train()
        dropping(pixel_values)
        causal = stirred(VitMaeModel, is_causal=True, pooling="mean", mask_ratio=0.0)
        causal(pixel_values)


# Saved activations


def saved_bytes(model: nn.Module, pixel_values: Tensor, noise: Tensor) -> int:
    """Bytes of activations that autograd keeps of a pretraining step: weights, and what autocast
    made of them, are left out.
    """
    weights = {
        shape
        for p in model.parameters()
        for shape in (p.shape, p.t().shape if p.ndim == 2 else p.shape)
    }
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.shape not in weights:
            kept[storage.data_ptr()] = storage  # alive, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(pixel_values=pixel_values, noise=noise).loss
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_less_is_saved_than_by_transformers(recompute: bool, precision: torch.dtype) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "decoder_hidden_size": 48,
        "decoder_num_hidden_layers": 3,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 192,
        "image_size": 64,
        "patch_size": 8,
    }
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**sizes)).train()
    ours = stirred(VitMaeForPreTraining, **sizes, **LOSS_ALONE).train()
    pixel_values, noise = random_images(ours.config, batch=4), random_noise(ours.config, batch=4)
    kept = {}
    ours.config.recompute_activations = recompute
    for name, model in (("ours", ours), ("theirs", theirs)):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            kept[name] = saved_bytes(model, pixel_values, noise)
    assert kept["ours"] <= (0.80 if recompute else 1.0) * kept["theirs"], kept


def test_recomputed_activations_give_the_same_gradients_to_the_bit() -> None:
    model = stirred(VitMaeForPreTraining, hidden_dropout_prob=0.1).train()
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    results = []
    for recompute in (False, True):
        model.config.recompute_activations = recompute
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            model(pixel_values, noise=noise).loss.backward()
        results.append(gradients(model))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


def test_recomputed_activations_under_gradient_checkpointing() -> None:
    model = stirred(VitMaeForPreTraining, **RECOMPUTED).train()
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    model(pixel_values, noise=noise).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    enable_checkpointing(model)
    model(pixel_values, noise=noise).loss.backward()
    assert_gradients_are(gradients(model), expected, 1e-6)
