"""Next patch prediction: what sees what, the loss, and the continuation of images."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.layers import make_attention_mask
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaeModel,
)

from .reference import State, cut, gelu, layer_norm, linear, target
from .tiny import RECTANGULAR, random_images, random_noise, stir, tiny_config

HYBRID: dict[str, Any] = {  # a grid of 4 x 2 patches of 8 x 8 pixels
    "stem_depths": (1, 1),
    "stem_width": 8,
    "stem_num_groups": 4,
    "patch_size": 8,
    "image_size": (32, 16),
}
STEMS = pytest.mark.parametrize("stem", [RECTANGULAR, HYBRID], ids=["linear", "hybrid"])
ATTENTIONS = pytest.mark.parametrize("attention", ["eager", "sdpa"])
NORM_PIX = pytest.mark.parametrize("norm_pix_loss", [False, True])
CAUSAL: dict[str, Any] = {"is_causal": True, "mask_ratio": 0.0, "pooling": "mean"}


def stirred(
    kind: type[Any] = VitMaeForNextPatchPrediction, attention: str = "sdpa", **overrides: Any
) -> Any:
    torch.manual_seed(0)
    model = kind._from_config(tiny_config(**overrides), attn_implementation=attention).eval()
    stir(model)
    return model


def one_patch_changed(config: VitMaeConfig) -> tuple[Tensor, Tensor]:
    """N images, and the same where of image n the patch n is another: (N, C, H, W) twice."""
    before, other = (random_images(config, config.num_patches, seed) for seed in (6, 7))
    after = before.clone()
    for n in range(config.num_patches):
        new, old = (cut(images[n], config.patch_pair)[n] for images in (other, after))
        old.copy_(new)  # a view of the image
    return before, after


def assert_only_later_ones_changed(before: Tensor, after: Tensor, delay: int) -> None:
    """Of image n those from n + delay on, all of them: (N, N, D) twice."""
    for n in range(len(before)):
        assert torch.equal(before[n, : n + delay], after[n, : n + delay])
        assert (before[n, n + delay :] != after[n, n + delay :]).any(dim=-1).all()


def loss_by_hand(config: VitMaeConfig, images: Tensor, logits: Tensor, prefix: list[int]) -> float:
    """The squared error in float64 of every patch after the prefixes, patch by patch."""
    errors = []
    for image, predicted, first in zip(
        images.double(), logits.detach().double(), prefix, strict=True
    ):
        patches = cut(image, config.patch_pair)
        for n in range(first, len(patches)):
            errors.append((predicted[n] - target(patches[n], config.norm_pix_loss)) ** 2)
    return float(torch.stack(errors).mean())


@NORM_PIX
@STEMS
@ATTENTIONS
def test_a_patch_changes_later_predictions_only(
    attention: str, stem: dict[str, Any], norm_pix_loss: bool
) -> None:
    model = stirred(attention=attention, **stem, norm_pix_loss=norm_pix_loss)
    before, after = (model(images).logits for images in one_patch_changed(model.config))
    assert_only_later_ones_changed(before, after, delay=1)


@STEMS
@ATTENTIONS
def test_the_first_prediction_does_not_depend_on_the_image(
    attention: str, stem: dict[str, Any]
) -> None:
    model = stirred(attention=attention, **stem)
    first, second = (model(random_images(model.config, seed=seed)).logits for seed in (6, 7))
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.equal(first[:, 1], second[:, 1])


@ATTENTIONS
def test_no_attention_goes_to_a_later_token(attention: str) -> None:
    model = stirred(attention=attention)
    for weights in model(random_images(model.config), output_attentions=True).attentions:
        assert (weights.triu(1) == 0).all()
        assert (weights.tril() > 0).sum() == 3 * 4 * 17 * 18 / 2


@STEMS
@ATTENTIONS
def test_the_patches_of_a_prefix_see_each_other_both_ways(
    attention: str, stem: dict[str, Any]
) -> None:
    model, prefix = stirred(attention=attention, **stem), 5
    before, after = (
        model(images, num_prefix_patches=prefix).logits
        for images in one_patch_changed(model.config)
    )
    for n in range(prefix):
        assert (before[n] != after[n]).any(dim=-1).all()
    assert_only_later_ones_changed(before[prefix:], after[prefix:], delay=1 + prefix)


def test_only_patches_after_the_prefix_count_in_the_loss() -> None:
    model = stirred(**RECTANGULAR)
    images = random_images(model.config)
    for norm_pix_loss in (False, True):
        model.config.norm_pix_loss = norm_pix_loss
        for prefix in (0, 1, 5, 11):
            output = model(images, num_prefix_patches=prefix)
            assert output.mask.tolist() == [[n >= prefix for n in range(12)]] * 3
            expected = loss_by_hand(model.config, images, output.logits, [prefix] * 3)
            assert output.loss.item() == pytest.approx(expected, rel=1e-6)


@ATTENTIONS
def test_each_image_may_have_a_prefix_of_its_own(attention: str) -> None:
    model = stirred(attention=attention, **RECTANGULAR)
    images, prefixes = random_images(model.config, batch=4), [0, 7, 1, 12]
    output = model(images, num_prefix_patches=torch.tensor(prefixes))
    for image, prefix in enumerate(prefixes):
        alone = model(images[image : image + 1], num_prefix_patches=prefix)
        torch.testing.assert_close(output.logits[image], alone.logits[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(output.mask[image], alone.mask[0])
    expected = loss_by_hand(model.config, images, output.logits, prefixes)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert alone.loss.item() == 0.0  # nothing comes after the last prefix


@ATTENTIONS
def test_a_prefix_of_zero_is_none(attention: str) -> None:
    model = stirred(attention=attention)
    images = random_images(model.config)
    plain = model(images)
    zeros = model(images, num_prefix_patches=torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(zeros.logits, plain.logits, rtol=1e-5, atol=1e-6)
    assert zeros.mask.all() and plain.mask.all()
    assert zeros.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("prefix", "got"),
    [
        (-1, "-1"),
        (17, "17"),
        (torch.tensor([0, 17, 1]), "17"),
        (torch.tensor([0, 1]), r"\(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "torch.float32"),
    ],
    ids=str,
)
def test_a_wrong_prefix_is_refused(prefix: int | Tensor, got: str) -> None:
    model = stirred()
    with pytest.raises(ValueError, match=f"`num_prefix_patches` must be .*got.*{got}") as caught:
        model(random_images(model.config), num_prefix_patches=prefix)
    assert "\n" not in str(caught.value)


def causal_attention(state: State, name: str, x: Tensor, num_heads: int, num_prefix: int) -> Tensor:
    """One head and one query at a time, over the tokens that it may see: (L, D) -> (L, D)."""
    query, key, value = (linear(state, f"{name}.{part}_proj", x) for part in "qkv")
    width, rows = x.shape[1] // num_heads, []
    for place in range(len(x)):
        seen = 1 + max(place, num_prefix if place <= num_prefix else 0)
        heads = []
        for head in range(num_heads):
            own = slice(head * width, (head + 1) * width)
            scores = (key[:seen, own] @ query[place, own] / width**0.5).exp()  # (seen,)
            heads.append(scores / scores.sum() @ value[:seen, own])
        rows.append(torch.cat(heads))
    return linear(state, f"{name}.o_proj", torch.stack(rows))


def reference_logits(model: Any, image: Tensor, num_prefix: int) -> Tensor:
    """One image in float64: (C, H, W) -> (N, P)."""
    config = model.config
    state: State = {name: value.double() for name, value in model.state_dict().items()}
    weight = state["vit.embeddings.patch_embeddings.projection.weight"].flatten(1)
    bias = state["vit.embeddings.patch_embeddings.projection.bias"]
    patches = [weight @ patch.double().flatten() + bias for patch in cut(image, config.patch_pair)]
    x = torch.stack([state["vit.embeddings.cls_token"][0, 0], *patches])
    x = x + state["vit.embeddings.position_embeddings"][0]
    eps, num_heads = config.layer_norm_eps, config.num_attention_heads
    for block in (f"vit.layers.{depth}" for depth in range(config.num_hidden_layers)):
        normed = layer_norm(state, f"{block}.layernorm_before", x, eps)
        x = x + causal_attention(state, f"{block}.attention", normed, num_heads, num_prefix)
        normed = layer_norm(state, f"{block}.layernorm_after", x, eps)
        x = x + linear(state, f"{block}.mlp.fc2", gelu(linear(state, f"{block}.mlp.fc1", normed)))
    return linear(state, "next_patch_head", layer_norm(state, "vit.layernorm", x[:-1], eps))


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@ATTENTIONS
def test_predictions_equal_a_reference_that_attends_by_hand(
    attention: str, num_prefix: int
) -> None:
    model = stirred(attention=attention, **RECTANGULAR, position_embedding="learned")
    images = random_images(model.config, batch=2)
    output = model(images, num_prefix_patches=num_prefix)
    expected = torch.stack([reference_logits(model, image, num_prefix) for image in images])
    torch.testing.assert_close(output.logits.double(), expected, rtol=0, atol=1e-5)


def test_an_image_with_padding_on_the_right_is_predicted_as_without() -> None:
    # The first patch of a row follows the last patch with data, not the padding between them.
    model = stirred(**RECTANGULAR)
    images = random_images(model.config)
    padding = torch.zeros(3, 16, 24, dtype=torch.bool)
    padding[:, :, 16:] = True  # the last of three columns
    padded = model(images, padding_mask=padding)
    alone = model(images[..., :16].contiguous(), interpolate_pos_encoding=True)
    assert torch.equal(padded.mask, ~padding[:, ::4, ::8].flatten(1))
    torch.testing.assert_close(
        padded.logits[padded.mask], alone.logits.flatten(0, 1), rtol=1e-5, atol=1e-6
    )
    assert padded.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5)


@STEMS
@ATTENTIONS
def test_a_causal_encoder_is_causal(attention: str, stem: dict[str, Any]) -> None:
    model = stirred(VitMaeModel, attention, **stem, **CAUSAL)
    before, after = (
        model(images).last_hidden_state[:, 1:] for images in one_patch_changed(model.config)
    )
    assert_only_later_ones_changed(before, after, delay=0)


def test_next_patch_prediction_is_causal_whatever_the_config_says() -> None:
    model, causal = stirred(), stirred(**CAUSAL)
    images = random_images(model.config)
    assert torch.equal(model(images).logits, causal(images).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"is_causal": True, "pooling": "mean"},
            "`mask_ratio` must be 0.0 where `is_causal` is True.* got 0.75",
        ),
        (
            {"is_causal": True, "mask_ratio": 0.0},
            "`pooling` must be \"mean\" where `is_causal` is True.* got 'cls'",
        ),
    ],
)
def test_a_causal_config_that_contradicts_itself_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny_config(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [VitMaeForPreTraining, VitMaeForMaskedPatchPrediction])
def test_what_hides_patches_is_not_causal(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} hides patches, .*is_causal=False"):
        kind(tiny_config(**CAUSAL))


@pytest.mark.parametrize("what", ["noise", "mask", "mask_ratio"])
def test_a_causal_encoder_hides_nothing(what: str) -> None:
    model = stirred(VitMaeModel, **CAUSAL)
    hidden = {
        "noise": {"noise": random_noise(model.config), "mask_ratio": 0.5},
        "mask": {"mask": torch.zeros(3, 16, dtype=torch.bool)},
        "mask_ratio": {"mask_ratio": 0.5},
    }
    with pytest.raises(ValueError, match="`is_causal` is True; leave masks out") as caught:
        model(random_images(model.config), **hidden[what])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [VitMaeModel, VitMaeForImageClassification])
def test_causal_attention_is_refused_where_it_does_not_run(kind: type[Any]) -> None:
    model = stirred(kind, "flex_attention", **CAUSAL)
    with pytest.raises(ValueError, match='`flex_attention`; load .*="sdpa"') as caught:
        model(random_images(model.config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("implementation", "runs", "runs_with_more"),
    [
        ("eager", True, True),
        ("sdpa", True, True),
        ("flash_attention_2", True, False),
        ("flex_attention", False, False),
    ],
)
def test_a_prefix_or_padding_is_refused_where_it_does_not_run(
    implementation: str, runs: bool, runs_with_more: bool
) -> None:
    config, tokens = tiny_config(), torch.zeros(2, 17, 32)
    config._attn_implementation_internal = implementation  # set without the library behind it
    is_data, num_prefix = torch.ones(2, 17, dtype=torch.bool), torch.tensor([3, 4])
    for data, prefix in ((None, None), (is_data, None), (None, num_prefix)):
        is_plain = data is None and prefix is None
        if runs if is_plain else runs_with_more:
            mask = make_attention_mask(config, tokens, data, is_causal=True, num_prefix=prefix)
            assert (mask is None) == is_plain
            continue
        with pytest.raises(ValueError, match=f"Causal attention.*`{implementation}`") as caught:
            make_attention_mask(config, tokens, data, is_causal=True, num_prefix=prefix)
        assert ("prefix or padding" in str(caught.value)) != is_plain


CONTINUED = {
    "square": {},
    "rectangular": RECTANGULAR,
    "hybrid": HYBRID,
    "normalised": RECTANGULAR | {"norm_pix_loss": True},
    "learned positions": {"position_embedding": "learned"},
}


def continued_by_hand(model: Any, images: Tensor, num_given: int, num_prefix: int) -> Tensor:
    """Each patch from a whole forward pass over all before it: (B, C, H, W) -> (B, C, H, W)."""
    config, images = model.config, images.clone()
    columns = images.shape[3] // config.patch_pair[1]
    pieces = [cut(image, config.patch_pair) for image in images]  # views of the images
    for n in range(num_given, len(pieces[0])):
        logits = model(images, num_prefix_patches=num_prefix, interpolate_pos_encoding=True).logits
        for patches, predicted in zip(pieces, logits[:, n], strict=True):
            patch = predicted.unflatten(0, (*config.patch_pair, -1)).permute(2, 0, 1)
            if config.norm_pix_loss:
                neighbour = patches[n - columns] if n >= columns else patches[n - 1]
                patch = patch * (neighbour.var() + 1e-6).sqrt() + neighbour.mean()
            patches[n].copy_(patch)
    return images


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("fields", CONTINUED.values(), ids=CONTINUED)
def test_generate_feeds_back_what_it_predicts(
    fields: dict[str, Any], has_prefix: bool, use_cache: bool
) -> None:
    model = stirred(**fields).double()  # what is fed back takes its rounding along
    images = random_images(model.config).double()
    for num_given in (1, model.config.num_patches // 2, model.config.num_patches - 1):
        got = model.generate(
            images, num_given, bidirectional_prefix=has_prefix, use_cache=use_cache
        )
        expected = continued_by_hand(model, images, num_given, num_given if has_prefix else 0)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
def test_generate_continues_an_image_of_another_size(
    position_embedding: str, use_cache: bool
) -> None:
    model = stirred(position_embedding=position_embedding)
    images = torch.randn(2, 3, 12, 20)  # 3 x 5 patches
    with pytest.raises(ValueError, match="12x20 pixels .*`interpolate_pos_encoding=True"):
        model.generate(images)
    got = model.generate(images, use_cache=use_cache, interpolate_pos_encoding=True)
    torch.testing.assert_close(got, continued_by_hand(model, images, 10, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", CONTINUED.values(), ids=CONTINUED)
def test_generate_keeps_the_upper_half_and_does_not_read_the_lower(fields: dict[str, Any]) -> None:
    model = stirred(**fields)
    images = random_images(model.config)
    half = images.shape[2] // 2
    unreadable = images.clone()
    unreadable[:, :, half:] = torch.nan
    continued = model.generate(unreadable)
    assert torch.equal(continued[:, :, :half], images[:, :, :half])
    assert torch.equal(continued, model.generate(images))
    assert continued.isfinite().all() and not continued.requires_grad
    assert (continued[:, :, half:] != images[:, :, half:]).all()
    assert unreadable[:, :, half:].isnan().all()  # the argument stays as it was


def test_generate_may_begin_with_nothing() -> None:
    model = stirred()
    first, second = (model.generate(random_images(model.config, seed=seed), 0) for seed in (6, 7))
    torch.testing.assert_close(first, second)
    assert torch.equal(first, model.generate(torch.full((3, 3, 16, 16), torch.nan), 0))
    torch.testing.assert_close(first, model.generate(first, 0, use_cache=False))


@pytest.mark.parametrize(
    ("norm_pix_loss", "given", "message"),
    [
        (False, 16, "at least 0 and below 16, the patches of the image, got 16"),
        (False, -1, "at least 0 .* got -1"),
        (True, 0, "at least 1 and below 16, .* got 0"),
    ],
)
def test_a_wrong_number_of_given_patches_is_refused(
    norm_pix_loss: bool, given: int, message: str
) -> None:
    model = stirred(norm_pix_loss=norm_pix_loss)
    with pytest.raises(ValueError, match=f"`num_given_patches` must be {message}") as caught:
        model.generate(random_images(model.config), given)
    assert "\n" not in str(caught.value)


def test_generate_evaluates_and_gives_each_module_its_mode_back() -> None:
    model = stirred(hidden_dropout_prob=0.5, drop_path_rate=0.5)
    images = random_images(model.config)
    expected = model.generate(images)
    model.train()
    model.vit.embeddings.eval()
    before = [module.training for module in model.modules()]
    assert torch.equal(model.generate(images), expected)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError):
        model.generate(images, 16)
    assert [module.training for module in model.modules()] == before


def test_a_half_precision_model_continues_images_of_either_precision() -> None:
    model = stirred().bfloat16()
    images = random_images(model.config).bfloat16()
    continued = model.generate(images)
    assert continued.dtype == torch.bfloat16 and continued.isfinite().all()
    assert torch.equal(continued[:, :, :8], images[:, :, :8])
    assert model.generate(images.float()).dtype == torch.float32


def structured_images() -> Tensor:
    """Columns of four brightnesses, finely striped one way and the other by turns; the second image
    the other way round: (2, 3, 16, 16).
    """
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    stripes = torch.where((y // 4) % 2 == 0, x % 2, y % 2) - 0.5
    image = (x // 4) * 0.6 - 0.9 + stripes
    return torch.stack([image, -image.flip(1)])[:, None].expand(-1, 3, -1, -1).contiguous()


@NORM_PIX
@pytest.mark.parametrize("has_prefix", [False, True])
def test_a_trained_model_continues_what_it_has_seen(norm_pix_loss: bool, has_prefix: bool) -> None:
    images = structured_images()
    model = VitMaeForNextPatchPrediction(tiny_config(norm_pix_loss=norm_pix_loss)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model(images, num_prefix_patches=8 if has_prefix else 0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unknown = images.clone()
    unknown[:, :, 8:] = torch.nan
    continued = model.generate(unknown, bidirectional_prefix=has_prefix)
    lower, truth = continued[:, :, 8:], images[:, :, 8:]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    assert (lower - truth).square().mean() < 0.05 * (mean - truth).square().mean()
