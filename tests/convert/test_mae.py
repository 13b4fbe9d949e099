"""Checkpoints with the names and shapes of the original MAE, against its equations written out.

The files are made here and the reference works on their own names: it shares nothing with the
converter.
"""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_vitmae.convert.converted import build
from hf_vitmae.convert.from_mae import read, recognises, write
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.embeddings import sincos_positions
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaeModel,
)

from ..models.reference import cut, gelu, layer_norm, linear, target
from ..models.tiny import random_images, random_noise, tiny_config

WIDTH, DEPTH, HEADS, MLP, SIDE, PATCH, LABELS = 24, 2, 3, 40, 3, 4, 5
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS, DECODER_MLP = 16, 1, 4, 28
OPTIONS = Namespace(
    num_heads=HEADS, decoder_num_heads=DECODER_HEADS, norm_pix_loss=True, mask_ratio=0.5
)
EPS = 1e-6
KINDS = {
    "pretraining, encoder only": VitMaeModel,
    "pretraining, with decoder": VitMaeForPreTraining,
    "visualisation, with decoder": VitMaeForPreTraining,
    "fine-tuned classifier on the mean of the patches": VitMaeForImageClassification,
    "fine-tuned classifier on the CLS token": VitMaeForImageClassification,
}
WRAPPED = {"optimizer": {}, "epoch": 7, "scaler": {}}


def block_shapes(name: str, depth: int, width: int, mlp: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in (f"{name}.{index}" for index in range(depth)):
        for layer, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", mlp, width),
            ("mlp.fc2", width, mlp),
        ):
            shapes |= linear_shapes(f"{block}.{layer}", outputs, inputs)
        for norm in ("norm1", "norm2"):
            shapes |= norm_shapes(f"{block}.{norm}", width)
    return shapes


def linear_shapes(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def shapes_of(kind: str, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Every tensor that a file of a kind has."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, channels, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "pos_embed": (1, 1 + SIDE**2, WIDTH),
        **block_shapes("blocks", DEPTH, WIDTH, MLP),
        **norm_shapes("fc_norm" if "mean" in kind else "norm", WIDTH),
    }
    if "decoder" in kind:
        shapes |= {
            "mask_token": (1, 1, DECODER_WIDTH),
            "decoder_pos_embed": (1, 1 + SIDE**2, DECODER_WIDTH),
            **linear_shapes("decoder_embed", DECODER_WIDTH, WIDTH),
            **block_shapes("decoder_blocks", DECODER_DEPTH, DECODER_WIDTH, DECODER_MLP),
            **norm_shapes("decoder_norm", DECODER_WIDTH),
            **linear_shapes("decoder_pred", PATCH * PATCH * channels, DECODER_WIDTH),
        }
    if "classifier" in kind:
        shapes |= linear_shapes("head", LABELS, WIDTH)
    return shapes


def random_state(kind: str, channels: int = 3) -> dict[str, Tensor]:
    """Random tensors; a pretraining file's positions are the fixed ones, as they were."""
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.randn(shape, generator=generator) * 0.2 + ("norm" in name and name[-1] == "t")
        for name, shape in shapes_of(kind, channels).items()
    }
    for name in ("pos_embed", "decoder_pos_embed"):
        if "classifier" not in kind and name in state:
            state[name] = sincos_positions((SIDE, SIDE), state[name].shape[-1])
    return state


def save(tmp_path: Path, state: Mapping[str, Any], options: Any = OPTIONS, **others: Any) -> Path:
    path = tmp_path / others.pop("name", "checkpoint.pth")
    torch.save({"model": dict(state), "args": options, **others}, path)
    return path


def attention(state: Mapping[str, Tensor], name: str, x: Tensor, num_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with q, k and v in one matrix: (L, D) -> (L, D)."""
    query, key, value = linear(state, f"{name}.qkv", x).split(x.shape[1], dim=1)
    width, heads = x.shape[1] // num_heads, []
    for own in (slice(head * width, (head + 1) * width) for head in range(num_heads)):
        scores = (query[:, own] @ key[:, own].T / math.sqrt(width)).exp()  # (L, L)
        heads.append(scores / scores.sum(dim=1, keepdim=True) @ value[:, own])
    return linear(state, f"{name}.proj", torch.cat(heads, dim=1))


def blocks(state: Mapping[str, Tensor], name: str, x: Tensor, depth: int, heads: int) -> Tensor:
    for block in (f"{name}.{index}" for index in range(depth)):
        normed = layer_norm(state, f"{block}.norm1", x, EPS)
        x = x + attention(state, f"{block}.attn", normed, heads)
        normed = layer_norm(state, f"{block}.norm2", x, EPS)
        x = x + linear(state, f"{block}.mlp.fc2", gelu(linear(state, f"{block}.mlp.fc1", normed)))
    return x


def encode(state: Mapping[str, Tensor], image: Tensor, visible: list[int] | None = None) -> Tensor:
    """CLS and the visible patches before the last norm: (C, H, W) -> (1 + K, D)."""
    patches, positions = cut(image, (PATCH, PATCH)), state["pos_embed"][0]
    weight, bias = state["patch_embed.proj.weight"].flatten(1), state["patch_embed.proj.bias"]
    visible = list(range(len(patches))) if visible is None else visible
    tokens = [state["cls_token"][0, 0] + positions[0]]
    tokens += [weight @ patches[n].flatten() + bias + positions[1 + n] for n in visible]
    return blocks(state, "blocks", torch.stack(tokens), DEPTH, HEADS)


def logits_of(state: Mapping[str, Tensor], image: Tensor, pooling: str) -> Tensor:
    """Class scores: of the normalised CLS token, or of the normalised mean of the patches."""
    tokens = encode(state, image)
    if pooling == "cls":
        return linear(state, "head", layer_norm(state, "norm", tokens[:1], EPS))[0]
    mean = tokens[1:].mean(dim=0, keepdim=True)
    return linear(state, "head", layer_norm(state, "fc_norm", mean, EPS))[0]


def predict(
    state: Mapping[str, Tensor], image: Tensor, noise: Tensor, mask_ratio: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Loss and predictions of one image: (C, H, W), (N,) -> (), (N, P)."""
    ranked = noise.argsort().tolist()
    visible = ranked[: int(len(ranked) * (1 - mask_ratio))]
    latent = layer_norm(state, "norm", encode(state, image, visible), EPS)
    embedded, rows = (
        linear(state, "decoder_embed", latent),
        [state["mask_token"][0, 0]] * len(noise),
    )
    for place, n in enumerate(visible):
        rows[n] = embedded[1 + place]
    x = torch.stack([embedded[0], *rows]) + state["decoder_pos_embed"][0]
    x = blocks(state, "decoder_blocks", x, DECODER_DEPTH, DECODER_HEADS)
    predicted = linear(state, "decoder_pred", layer_norm(state, "decoder_norm", x, EPS))[1:]
    patches = cut(image, (PATCH, PATCH))
    errors = [
        ((predicted[n] - target(patches[n], normalize)) ** 2).mean()
        for n in set(ranked) - set(visible)
    ]
    return torch.stack(errors).mean(), predicted


def double(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in state.items()}


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, shapes, types and bytes."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


@pytest.mark.parametrize(("kind", "target_class"), KINDS.items(), ids=KINDS)
def test_every_kind_is_recognised_and_said(kind: str, target_class: type, tmp_path: Path) -> None:
    name = "mae_visualize_tiny.pth" if "visualisation" in kind else "checkpoint.pth"
    converted = read(save(tmp_path, random_state(kind), name=name))
    assert converted.kind is target_class
    assert converted.said == [f"The original MAE: {kind}."]
    assert converted.config.position_embedding == ("learned" if "class" in kind else "sincos")
    assert converted.config.pooling == ("mean" if "mean" in kind else "cls")
    assert type(build(converted)) is target_class


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_are_the_same_bytes(kind: str, tmp_path: Path) -> None:
    state = random_state(kind)
    assert_same(write(build(read(save(tmp_path, state)))), state)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_loss_predictions_and_gradients_of_pretraining(
    normalize: bool, channels: int, tmp_path: Path
) -> None:
    state = random_state("pretraining, with decoder", channels)
    options = Namespace(**vars(OPTIONS) | {"norm_pix_loss": normalize})
    model = build(read(save(tmp_path, state, options)))
    pixels, noise = random_images(model.config, batch=2), random_noise(model.config, batch=2)
    reference = {name: value.requires_grad_() for name, value in double(state).items()}
    predicted = [
        predict(reference, image, values, 0.5, normalize)
        for image, values in zip(pixels.double(), noise, strict=True)
    ]
    loss, logits = (torch.stack(parts) for parts in zip(*predicted, strict=True))
    loss.mean().backward()
    output = model(pixels, noise=noise)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss.mean().item(), abs=1e-5)
    torch.testing.assert_close(output.logits.double(), logits, rtol=0, atol=1e-5)
    for ours, theirs in {
        "vit.embeddings.cls_token": "cls_token",
        "vit.layers.1.mlp.fc1.weight": "blocks.1.mlp.fc1.weight",
        "decoder.mask_token": "mask_token",
        "decoder.layers.0.attention.o_proj.weight": "decoder_blocks.0.attn.proj.weight",
    }.items():
        got, expected = model.get_parameter(ours).grad, reference[theirs].grad
        assert got is not None and expected is not None
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


def test_tokens_of_an_encoder(tmp_path: Path) -> None:
    state = random_state("pretraining, encoder only")
    model = build(read(save(tmp_path, state)))
    pixels, reference = random_images(model.config, batch=2), double(state)
    expected = [
        layer_norm(reference, "norm", encode(reference, image), EPS) for image in pixels.double()
    ]
    got = model(pixels).last_hidden_state.double()
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_logits_of_a_fine_tuned_classifier(pooling: str, tmp_path: Path) -> None:
    token = "CLS token" if pooling == "cls" else "mean of the patches"
    state = random_state(f"fine-tuned classifier on the {token}")
    converted = read(save(tmp_path, state))
    model = build(converted)
    pixels = random_images(model.config, batch=2)
    expected = [logits_of(double(state), image, pooling) for image in pixels.double()]
    got = model(pixels).logits.double()
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-5)
    assert converted.config.num_labels == LABELS
    assert converted.processor.crop_pct == 0.875


def probe_state() -> dict[str, Tensor]:
    """A linear probe: a batch norm without weights, then a linear map."""
    generator = torch.Generator().manual_seed(5)
    state = random_state("pretraining, encoder only")
    return state | {
        "head.0.running_mean": torch.randn(WIDTH, generator=generator),
        "head.0.running_var": torch.rand(WIDTH, generator=generator) + 0.1,
        "head.0.num_batches_tracked": torch.tensor(9),
        "head.1.weight": torch.randn(LABELS, WIDTH, generator=generator),
        "head.1.bias": torch.randn(LABELS, generator=generator),
    }


def test_a_linear_probe_keeps_its_logits_without_its_batch_norm(tmp_path: Path) -> None:
    state = probe_state()
    converted = read(save(tmp_path, state))
    assert "linear probe" in converted.said[0] and "folded" in converted.said[0]
    model, reference = build(converted), double(state)
    pixels = random_images(model.config, batch=2)
    head = torch.nn.Sequential(
        torch.nn.BatchNorm1d(WIDTH, affine=False, eps=EPS), torch.nn.Linear(WIDTH, LABELS)
    )
    head.load_state_dict(
        {name.removeprefix("head."): value for name, value in state.items() if "head" in name}
    )
    features = [
        layer_norm(reference, "norm", encode(reference, image), EPS)[0] for image in pixels.double()
    ]
    expected = head.double().eval()(torch.stack(features))
    torch.testing.assert_close(model(pixels).logits.double(), expected, rtol=0, atol=1e-5)
    assert converted.config.position_embedding == "sincos"


@pytest.mark.parametrize(
    ("name", "said"), [("head.0.running_var", "missing"), ("head.0.weight", "surplus")]
)
def test_a_probe_of_another_kind_is_refused(name: str, said: str, tmp_path: Path) -> None:
    state = probe_state()
    state = state | {name: torch.ones(WIDTH)} if said == "surplus" else without(state, name)
    with pytest.raises(ValueError, match=f"`{name}` is {said}"):
        read(save(tmp_path, state))


def without(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


def test_options_of_training_are_read(tmp_path: Path) -> None:
    state = random_state("pretraining, with decoder")
    config = read(save(tmp_path, state)).config
    assert config.norm_pix_loss and config.mask_ratio == 0.5
    assert (config.num_attention_heads, config.decoder_num_attention_heads) == (3, 4)
    assert (config.image_size, config.patch_size) == (SIDE * PATCH, PATCH)
    assert (config.intermediate_size, config.decoder_intermediate_size) == (MLP, DECODER_MLP)
    assert config.image_mean == (0.485, 0.456, 0.406)
    options = {"num_heads": HEADS}
    converted = read(save(tmp_path, state, options))
    assert converted.config.decoder_num_attention_heads == 16
    assert not converted.config.norm_pix_loss
    assert "norm_pix_loss" in converted.said[-1]


@pytest.mark.parametrize("name", ["pos_embed", "decoder_pos_embed"])
def test_one_trained_table_makes_both_trainable(name: str, tmp_path: Path) -> None:
    state = random_state("pretraining, with decoder")
    state[name] = state[name] + 1e-4
    converted = read(save(tmp_path, state))
    assert converted.config.position_embedding == "learned"
    assert_same(write(build(converted)), state)


def test_images_of_other_channels_have_no_imagenet_statistics(tmp_path: Path) -> None:
    converted = read(save(tmp_path, random_state("pretraining, encoder only", channels=2)))
    assert (converted.config.image_mean, converted.config.image_std) == (0.5, 0.5)
    assert converted.processor.num_channels == 2 and converted.processor.crop_pct == 1


@pytest.mark.parametrize(
    ("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16), (128, 2)]
)
def test_heads_of_the_standard_widths(width: int, heads: int, tmp_path: Path) -> None:
    config = VitMaeConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=1,
        intermediate_size=8,
        image_size=8,
        patch_size=8,
    )
    path = save(tmp_path, write(VitMaeModel(config)), options=None)
    assert read(path).config.num_attention_heads == heads


def test_heads_of_another_width_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path, random_state("pretraining, encoder only"), options=None)
    with pytest.raises(ValueError, match="width of 24; add `num_heads`"):
        read(path)


def test_what_resumes_training_is_left_out_and_said(tmp_path: Path) -> None:
    converted = read(save(tmp_path, random_state("pretraining, encoder only"), **WRAPPED))
    assert "epoch, optimizer, scaler" in converted.said[1]


def test_an_encoder_of_any_file(tmp_path: Path) -> None:
    for kind in KINDS:
        state = random_state(kind)
        converted = read(save(tmp_path, state), VitMaeModel)
        for part in ("decoder", "classifier"):
            assert (part in kind) == any(f"the {part}." in line for line in converted.said)
        encoder = {
            name: value
            for name, value in state.items()
            if not name.startswith(("decoder", "mask_token", "head"))
        }
        assert_same(write(build(converted)), encoder)


def test_parts_that_a_file_lacks_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, random_state("pretraining, encoder only"))
    with pytest.raises(ValueError, match="no decoder, which VitMaeForPreTraining needs"):
        read(path, VitMaeForPreTraining)
    with pytest.raises(ValueError, match="no classifier, which VitMaeForImageClassification"):
        read(path, VitMaeForImageClassification)
    with pytest.raises(ValueError, match="makes no VitMaeForNextPatchPrediction"):
        read(path, VitMaeForNextPatchPrediction)


@pytest.mark.parametrize(
    "name",
    ["cls_token", "pos_embed", "blocks.1.attn.qkv.bias", "decoder_blocks.0.mlp.fc1.weight"],
)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    state = without(random_state("pretraining, with decoder"), name)
    with pytest.raises(ValueError) as caught:
        build(read(save(tmp_path, state)))
    ours = {"blocks.1.attn.qkv.bias": "vit.layers.1.attention.k_proj.bias"}
    assert ours.get(name, name) in str(caught.value) and "\n" not in str(caught.value)


def test_surplus_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    state = random_state("pretraining, encoder only")
    with pytest.raises(ValueError, match="`dist_token` .* the first"):
        read(save(tmp_path, state | {"dist_token": torch.ones(1, 1, WIDTH)}))
    with pytest.raises(ValueError, match="8 patches, which are no square"):
        read(save(tmp_path, state | {"pos_embed": torch.ones(1, 9, WIDTH)}))
    with pytest.raises(ValueError, match="`pos_embed` has not 3 dimensions"):
        read(save(tmp_path, state | {"pos_embed": torch.ones(9, WIDTH)}))
    with pytest.raises(ValueError, match="`epoch` is a int"):
        read(save(tmp_path, state | {"epoch": 3}))
    with pytest.raises(ValueError, match="`norm.bias`|layernorm.bias"):
        build(read(save(tmp_path, state | {"norm.bias": torch.ones(2)})))


def test_plain_state_dicts_of_the_same_names_are_told_apart() -> None:
    encoder = random_state("pretraining, encoder only")
    assert recognises({"model": encoder}) and not recognises(encoder)
    assert recognises(random_state("pretraining, with decoder"))
    assert recognises(probe_state())
    assert not recognises({"model": {"conv1.weight": torch.ones(3)}})
    assert not recognises({"model": torch.ones(3)})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stem_depths": (1,), "stem_width": 64}, "stem_depths"),
        ({"is_causal": True, "pooling": "mean", "mask_ratio": 0.0}, "is_causal"),
        ({"layer_scale_init_value": 0.1}, "layer_scale_init_value=0.1"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"image_size": (16, 24)}, "16x24"),
    ],
)
def test_what_the_original_cannot_express_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write(VitMaeModel(tiny_config(**fields)))


def test_a_class_that_the_original_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no VitMaeForNextPatchPrediction"):
        write(VitMaeForNextPatchPrediction(tiny_config()))
