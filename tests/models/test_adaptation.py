"""Weights of another geometry: exact where they can be, the least error where not, and said."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hf_vitmae.models.adaptation import (
    adapt_weights,
    mix_input_channels,
    resample_kernel,
    resize_matrix,
    resize_predictions,
)
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.embeddings import resize_positions
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
)
from hf_vitmae.models.patches import patchify, unpatchify

from .tiny import RECTANGULAR, random_images, random_noise, stir, tiny_config

# Every part of the geometry changes, height and width differently: a grid of 4x3 becomes 2x5.
CHANGED: dict[str, Any] = {"image_size": (12, 20), "patch_size": (6, 4), "num_channels": 1}
CLASSES = (
    VitMaeModel,
    VitMaeForPreTraining,
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeBackbone,
)
STEM: dict[str, Any] = {"stem_depths": (1,), "stem_width": 4, "stem_num_groups": 2}


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W) as the image processor resizes them."""
    return functional.interpolate(pictures, size=size, mode="bicubic", antialias=True)


def responses(kernel: Tensor, patches: Tensor) -> Tensor:
    """(D, C, p_h, p_w), (B, C, p_h, p_w) -> (B, D)."""
    return torch.einsum("dchw,bchw->bd", kernel, patches)


def smooth_pictures(count: int, size: tuple[int, int]) -> Tensor:
    """Pictures with amplitudes of 1 / frequency, as photographs have: float64 (B, 1, H, W)."""
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.fftfreq(size[1])[None]
    frequency = (rows**2 + columns**2).sqrt().clamp(min=1 / max(size))
    spectrum = torch.randn(count, 1, *size, dtype=torch.complex128) / frequency
    return torch.fft.ifft2(spectrum).real


def drawing(size: tuple[int, int]) -> Tensor:
    """The same gentle waves at any size, differing between three channels: (1, 3, H, W)."""
    y = ((torch.arange(size[0]) + 0.5) / size[0])[:, None]
    x = ((torch.arange(size[1]) + 0.5) / size[1])[None]
    waves = [(phase + 2 * y).sin() + (3 * x + y + phase).cos() for phase in (0.0, 0.7, 1.9)]
    return torch.stack(waves)[None]


def stirred_weights(
    config: VitMaeConfig, kind: type[VitMaeModel] | type[VitMaeForPreTraining] = VitMaeModel
) -> dict[str, Tensor]:
    model = kind(config)
    stir(model)
    return model.state_dict()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": (32, 8)},
        {"patch_size": (8, 4), "patch_target": "pixels"},
        {"num_channels": 5, "patch_target": "colors_4x4"},
        CHANGED,
        {"image_size": 96, "patch_size": 16, **STEM},
        {"image_size": 96, "patch_size": (8, 24), "num_channels": 1, **STEM},
    ],
)
def test_adapted_weights_are_a_whole_model_of_the_new_geometry(
    kind: type, position_embedding: str, changes: dict[str, Any]
) -> None:
    same = {key: changes[key] for key in changes if key not in CHANGED}
    same["position_embedding"] = position_embedding
    old = tiny_config(**(RECTANGULAR | same))
    new = tiny_config(**(RECTANGULAR | changes | same))
    adapted, lines = adapt_weights(kind(old).state_dict(), old, new)
    model = kind(new).eval()
    missing = model.load_state_dict(adapted, strict=False)
    assert missing.unexpected_keys == []
    has_colors = kind is VitMaeForMaskedPatchPrediction and new.patch_target != "pixels"
    starts_afresh = has_colors and old.num_channels != new.num_channels
    assert missing.missing_keys == ["patch_head.weight", "patch_head.bias"] * starts_afresh
    assert any("starts afresh" in line for line in lines) == starts_afresh
    model(random_images(new))


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
def test_the_same_geometry_changes_nothing(position_embedding: str) -> None:
    config = tiny_config(**RECTANGULAR, position_embedding=position_embedding)
    weights = stirred_weights(config, VitMaeForPreTraining)
    adapted, lines = adapt_weights(weights, config, config)
    assert lines == []
    assert adapted.keys() == weights.keys()
    assert all(adapted[name] is weights[name] for name in weights)


def test_what_goes_in_is_not_modified_and_the_rest_is_passed_on() -> None:
    old, new = tiny_config(**RECTANGULAR), tiny_config(**CHANGED)
    weights = stirred_weights(old, VitMaeForPreTraining)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    adapted, _ = adapt_weights(weights, old, new)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert {name for name in weights if adapted[name] is not weights[name]} == {
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "decoder.position_embeddings",
        "decoder.predict.weight",
        "decoder.predict.bias",
    }


@pytest.mark.parametrize("num_channels", [1, 5])
def test_dtype_and_layout_are_kept_and_no_gradient_is_recorded(num_channels: int) -> None:
    changes = CHANGED | {"num_channels": num_channels}
    old = tiny_config(**RECTANGULAR, position_embedding="learned")
    new = tiny_config(**changes, position_embedding="learned")
    model = VitMaeForPreTraining(old).bfloat16()
    adapted, _ = adapt_weights(dict(model.named_parameters()), old, new)
    for name, tensor in model.named_parameters():
        assert adapted[name].dtype == torch.bfloat16
        assert adapted[name].is_contiguous()
        assert adapted[name] is tensor or not adapted[name].requires_grad


def test_every_kind_of_change_is_told_once_with_both_sizes() -> None:
    old = tiny_config(**RECTANGULAR)
    new = tiny_config(**CHANGED)
    _, lines = adapt_weights(stirred_weights(old, VitMaeForPreTraining), old, new)
    assert lines == [
        "position table 4x3 -> 2x5 patches (sin-cos, recomputed exactly)",
        "patch projection 4x8 -> 6x4 pixels (pseudo-inverse resampling)",
        "patch projection 3 -> 1 channels (summed)",
        "pixel predictions 4x8 -> 6x4 (resized)",
        "pixel predictions 3 -> 1 channels (averaged)",
    ]


@pytest.mark.parametrize(
    ("before", "after", "inputs", "predictions"),
    [
        (3, 5, "repeated and scaled", "repeated in turn"),
        (1, 3, "repeated and scaled", "repeated"),
        (4, 3, "the first 3 kept, the rest shared among them", "the first 3 kept"),
    ],
)
def test_the_rule_for_channels_is_told(
    before: int, after: int, inputs: str, predictions: str
) -> None:
    old = tiny_config(num_channels=before, position_embedding="learned")
    new = tiny_config(num_channels=after, image_size=(16, 32), position_embedding="learned")
    _, lines = adapt_weights(stirred_weights(old, VitMaeForPreTraining), old, new)
    assert lines == [
        "position table 4x4 -> 4x8 patches (learned, bicubic in two dimensions)",
        f"patch projection {before} -> {after} channels ({inputs})",
        f"pixel predictions {before} -> {after} channels ({predictions})",
    ]


def test_only_what_is_there_is_told() -> None:
    old, new = tiny_config(**RECTANGULAR), tiny_config(**CHANGED)
    assert len(adapt_weights(stirred_weights(old), old, new)[1]) == 3  # no predictions
    assert adapt_weights({"vit.layernorm.weight": torch.ones(32)}, old, new)[1] == []


def test_sincos_positions_are_those_of_a_fresh_model() -> None:
    old, new = tiny_config(**RECTANGULAR), tiny_config(**RECTANGULAR | {"image_size": (40, 16)})
    weights = stirred_weights(old, VitMaeForPreTraining)
    adapted, _ = adapt_weights(weights, old, new)
    fresh = VitMaeForPreTraining(new).state_dict()
    for name in ("vit.embeddings.position_embeddings", "decoder.position_embeddings"):
        assert torch.equal(adapted[name], fresh[name])


def test_learned_positions_are_resized_in_encoder_and_decoder() -> None:
    old = tiny_config(**RECTANGULAR, position_embedding="learned")
    new = tiny_config(image_size=(40, 16), patch_size=(4, 8), position_embedding="learned")
    weights = stirred_weights(old, VitMaeForPreTraining)
    adapted, _ = adapt_weights(weights, old, new)
    for name in ("vit.embeddings.position_embeddings", "decoder.position_embeddings"):
        assert torch.equal(adapted[name], resize_positions(weights[name], (4, 3), (10, 2)))


@pytest.mark.parametrize(("size", "new_size"), [(8, 8), (8, 13), (13, 8), (1, 4), (4, 1), (16, 4)])
def test_resize_matrix_is_the_resizing(size: int, new_size: int) -> None:
    pictures = torch.randn(1, 1, size, 3, dtype=torch.float64)
    got = resize_matrix(size, new_size) @ pictures[0, 0]
    torch.testing.assert_close(got, resize(pictures, (new_size, 3))[0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "new_size"),
    [((4, 8), (8, 16)), ((4, 8), (5, 9)), ((3, 5), (3, 7)), ((16, 16), (18, 32)), ((1, 2), (2, 3))],
)
def test_a_larger_kernel_responds_to_larger_patches_exactly_as_before(
    size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    kernel = torch.randn(6, 3, *size, dtype=torch.float64)
    patches = torch.randn(10, 3, *size, dtype=torch.float64)
    larger = resample_kernel(kernel, new_size)
    assert larger.shape == (6, 3, *new_size)
    torch.testing.assert_close(
        responses(larger, resize(patches, new_size)), responses(kernel, patches)
    )


@pytest.mark.parametrize(
    ("size", "new_size"), [((8, 6), (4, 3)), ((4, 8), (6, 5)), ((5, 5), (3, 5))]
)
def test_a_smaller_kernel_has_the_least_squared_error(
    size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    kernel = torch.randn(2, 3, *size, dtype=torch.float64)
    pixels = size[0] * size[1]
    basis = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *size)
    resizing = resize(basis, new_size).flatten(1)  # (p_h*p_w, p_h'*p_w'): both axes at once
    best = torch.linalg.lstsq(resizing, kernel.reshape(6, -1).T, driver="gelsd").solution
    got = resample_kernel(kernel, new_size).reshape(6, -1).T
    torch.testing.assert_close(got, best, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("size", "new_size"), [((16, 16), (8, 8)), ((8, 16), (6, 12))])
def test_a_smaller_kernel_is_better_than_a_resized_one(
    size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    patches, kernel = smooth_pictures(200, size), smooth_pictures(40, size)
    expected, small = responses(kernel, patches), resize(patches, new_size)
    area = size[0] * size[1] / (new_size[0] * new_size[1])
    resized = (responses(resize(kernel, new_size) * area, small) - expected).norm()
    resampled = (responses(resample_kernel(kernel, new_size), small) - expected).norm()
    assert resampled < 0.9 * resized
    assert resampled < 0.2 * expected.norm()


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
def test_a_model_for_larger_patches_encodes_enlarged_patches_as_before(
    position_embedding: str,
) -> None:
    old = tiny_config(**RECTANGULAR, position_embedding=position_embedding)
    new = tiny_config(
        image_size=(24, 48), patch_size=(6, 16), position_embedding=position_embedding
    )
    weights = stirred_weights(old)
    model, larger = VitMaeModel(old).eval(), VitMaeModel(new).eval()
    model.load_state_dict(weights)
    larger.load_state_dict(adapt_weights(weights, old, new)[0])
    pictures = random_images(old)
    patches = patchify(pictures, old.patch_pair).reshape(-1, 4, 8, 3).permute(0, 3, 1, 2)
    patches = resize(patches, new.patch_pair).permute(0, 2, 3, 1)  # (B*N, p_h', p_w', C)
    enlarged = unpatchify(patches.reshape(len(pictures), 12, -1), new.patch_pair, new.grid)
    torch.testing.assert_close(
        larger(enlarged).last_hidden_state, model(pictures).last_hidden_state
    )


@pytest.mark.parametrize(
    ("before", "after"), [(3, 1), (1, 3), (1, 5), (3, 6), (3, 9), (4, 3), (3, 2), (5, 2)]
)
def test_the_response_to_gray_stays_whatever_the_channels(before: int, after: int) -> None:
    kernel, gray = torch.randn(6, before, 4, 8), torch.randn(10, 1, 4, 8)
    got = responses(mix_input_channels(kernel, after), gray.expand(-1, after, -1, -1))
    expected = responses(kernel, gray.expand(-1, before, -1, -1))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_response_to_gray_nearly_stays_where_some_channels_come_oftener() -> None:
    filters = torch.randn(6, 1, 4, 8)
    kernel = filters + 0.1 * torch.randn(6, 3, 4, 8)  # the channels of a filter look alike
    gray = torch.randn(10, 1, 4, 8)
    got = responses(mix_input_channels(kernel, 5), gray.expand(-1, 5, -1, -1))
    expected = responses(kernel, gray.expand(-1, 3, -1, -1))
    assert 0 < (got - expected).norm() < 0.1 * expected.norm()


def test_more_channels_repeat_in_turn_and_fewer_keep_the_first() -> None:
    kernel = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(mix_input_channels(kernel, 5), kernel[:, [0, 1, 2, 0, 1]] * 3 / 5)
    torch.testing.assert_close(mix_input_channels(kernel, 1), kernel.sum(dim=1, keepdim=True))
    torch.testing.assert_close(mix_input_channels(kernel, 2), kernel[:, :2] + kernel[:, 2:] / 2)


def test_constant_predictions_stay_constant() -> None:
    rows = torch.tensor([0.5, -2.0, 3.0]).repeat(32)  # a patch of 4x8, each channel one colour
    got = resize_predictions(rows, (4, 8), (6, 3), (3, 3))
    torch.testing.assert_close(got, torch.tensor([0.5, -2.0, 3.0]).repeat(18))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (3, 1, [2.0]),
        (1, 3, [1.0, 1.0, 1.0]),
        (3, 5, [1.0, 2.0, 3.0, 1.0, 2.0]),
        (3, 2, [1.0, 2.0]),
    ],
)
def test_predictions_of_other_channels(before: int, after: int, expected: list[float]) -> None:
    rows = torch.arange(1.0, 1 + before).repeat(32)[:, None] * torch.tensor([1.0, -4.0])
    got = resize_predictions(rows, (4, 8), (4, 8), (before, after))
    wanted = torch.tensor(expected).repeat(32)[:, None] * torch.tensor([1.0, -4.0])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("image_size", "patch_size"), [((64, 96), (16, 32)), ((16, 24), (4, 8)), ((24, 72), (6, 24))]
)
def test_a_predicted_picture_is_the_same_picture_at_another_size(
    image_size: tuple[int, int], patch_size: tuple[int, int]
) -> None:
    # Column n of the output holds patch n of the drawing, as if token n were the n-th unit vector.
    patches = patchify(drawing((32, 48)), (8, 16))[0]  # (N, P)
    rows = resize_predictions(patches.T, (8, 16), patch_size, (3, 3))  # (P', N)
    got = unpatchify(rows.T[None], patch_size, (4, 3))
    difference = got - drawing(image_size)
    assert got.shape == (1, 3, *image_size)
    assert difference.abs().max() < 0.06  # at the edges of patches, which are resized one by one
    assert difference.square().mean().sqrt() < 0.015


def test_the_decoder_predicts_the_same_color_at_another_geometry() -> None:
    old = tiny_config(**RECTANGULAR)
    new = tiny_config(image_size=(24, 12), patch_size=(6, 4), num_channels=1)
    weights = stirred_weights(old, VitMaeForPreTraining)
    weights["decoder.predict.weight"].zero_()
    weights["decoder.predict.bias"].copy_(torch.tensor([1.0, 2.0, 6.0]).repeat(32))
    model = VitMaeForPreTraining(new).eval()
    model.load_state_dict(adapt_weights(weights, old, new)[0])
    logits = model(random_images(new), noise=random_noise(new)).logits
    torch.testing.assert_close(logits, torch.full((3, 12, 24), 3.0))


def test_a_hybrid_changes_channels_in_its_stem_and_patch_size_on_its_map() -> None:
    old = tiny_config(image_size=(16, 48), patch_size=(4, 8), **STEM)
    new = tiny_config(image_size=(32, 48), patch_size=(8, 16), num_channels=1, **STEM)
    weights = stirred_weights(old)
    adapted, lines = adapt_weights(weights, old, new)
    stem = "embeddings.patch_embeddings.stem.convolution.weight"
    projection = "embeddings.patch_embeddings.projection.weight"
    assert lines == [
        "position table 4x6 -> 4x3 patches (sin-cos, recomputed exactly)",
        "patch projection 4x8 -> 8x16 pixels (pseudo-inverse resampling)",
        "stem convolution 3 -> 1 channels (summed)",
    ]
    torch.testing.assert_close(adapted[stem], weights[stem].sum(dim=1, keepdim=True))
    assert weights[projection].shape == (32, 16, 1, 2)  # the stem's stride is 4
    assert torch.equal(adapted[projection], resample_kernel(weights[projection], (2, 4)))


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 6)])
def test_a_hybrid_encodes_gray_pictures_as_before(before: int, after: int) -> None:
    old = tiny_config(num_channels=before, **STEM)
    new = tiny_config(num_channels=after, **STEM)
    weights = stirred_weights(old)
    model, wider = VitMaeModel(old).eval(), VitMaeModel(new).eval()
    model.load_state_dict(weights)
    wider.load_state_dict(adapt_weights(weights, old, new)[0])
    gray = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(
        wider(gray.expand(-1, after, -1, -1)).last_hidden_state,
        model(gray.expand(-1, before, -1, -1)).last_hidden_state,
        rtol=1e-3,
        atol=1e-3,  # the norm's epsilon is no longer in the same proportion
    )


def head_weights(config: VitMaeConfig) -> dict[str, Tensor]:
    """Of both heads that predict patches from the encoder's tokens."""
    models = (VitMaeForMaskedPatchPrediction(config), VitMaeForNextPatchPrediction(config))
    weights = {name: tensor for model in models for name, tensor in model.state_dict().items()}
    return {name: torch.randn_like(weights[name]) for name in weights if "patch_head" in name}


@pytest.mark.parametrize(
    ("target", "channels", "classes"),
    [
        ("mean_color", (3, 1), "512 -> 8"),
        ("colors_4x4", (1, 2), "128 -> 1024"),
        ("mean_color", (3, 5), "512 -> 40"),  # beyond three channels each has its own classes
    ],
)
def test_color_classes_start_afresh_for_other_channels(
    target: str, channels: tuple[int, int], classes: str
) -> None:
    old, new = (
        tiny_config(**RECTANGULAR, patch_target=target, num_channels=count) for count in channels
    )
    weights = head_weights(old)
    adapted, lines = adapt_weights(weights, old, new)
    assert lines[-1] == f"patch head starts afresh: {classes} colour classes"
    assert {name: tensor.shape[0] for name, tensor in adapted.items()} == {
        "next_patch_head.weight": 32 * channels[1],
        "next_patch_head.bias": 32 * channels[1],
    }
    assert len(weights) == 4


def test_color_classes_stay_for_another_patch_size() -> None:
    old = tiny_config(**RECTANGULAR)
    weights = head_weights(old)
    adapted, lines = adapt_weights(weights, old, tiny_config(patch_size=(8, 4), image_size=16))
    assert lines == ["pixel predictions 4x8 -> 8x4 (resized)"]
    for kind in ("weight", "bias"):
        assert adapted[f"patch_head.{kind}"] is weights[f"patch_head.{kind}"]
        resized = resize_predictions(weights[f"next_patch_head.{kind}"], (4, 8), (8, 4), (3, 3))
        assert torch.equal(adapted[f"next_patch_head.{kind}"], resized)


def test_a_patch_head_of_pixels_is_resized_like_other_predictions() -> None:
    old = tiny_config(**RECTANGULAR, patch_target="pixels")
    new = tiny_config(**CHANGED, patch_target="pixels")
    weights = head_weights(old)
    adapted, lines = adapt_weights(weights, old, new)
    assert lines == [
        "pixel predictions 4x8 -> 6x4 (resized)",
        "pixel predictions 3 -> 1 channels (averaged)",
    ]
    for name, rows in weights.items():
        assert torch.equal(adapted[name], resize_predictions(rows, (4, 8), (6, 4), (3, 1)))


def test_a_feature_pyramid_starts_afresh_for_another_patch_size() -> None:
    pyramid = {"feature_pyramid": True, "pyramid_hidden_size": 8, "image_size": 64}
    old, new = (tiny_config(**pyramid, patch_size=patch) for patch in (16, 8))
    weights, model = VitMaeBackbone(old).state_dict(), VitMaeBackbone(new)
    adapted, lines = adapt_weights(weights, old, new)
    assert lines[-1] == "feature pyramid starts afresh: patches of 16x16 -> 8x8 pixels"
    missing = model.load_state_dict(adapted, strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == [name for name in model.state_dict() if "pyramid" in name]
    adapted, lines = adapt_weights(
        weights, old, tiny_config(**pyramid | {"image_size": 96}, patch_size=16)
    )
    assert len(lines) == 1
    assert adapted.keys() == weights.keys()


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("vit.embeddings.position_embeddings", (1, 17, 32), "1, 13, any"),
        ("embeddings.patch_embeddings.projection.weight", (32, 3, 4, 4), "any, 3, 4, 8"),
        ("embeddings.patch_embeddings.projection.weight", (32, 4, 4, 8), "any, 3, 4, 8"),
        ("decoder.predict.weight", (96,), "96, any"),
        ("decoder.predict.bias", (48,), "96"),
    ],
)
def test_weights_of_another_configuration_are_refused(
    name: str, shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        adapt_weights({name: torch.zeros(shape)}, tiny_config(**RECTANGULAR), tiny_config())
    assert str(refusal.value) == (
        f"`{name}` is {shape} where its configuration says ({said}); adapt weights together with "
        "the configuration that they were saved with."
    )
