"""The backbone: maps that are its layers' own, pyramids of the promised strides, any checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_vitmae.models.configuration_vitmae import PYRAMID_STRIDES
from hf_vitmae.models.embeddings import sincos_positions
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from .tiny import RECTANGULAR, random_images, stir, tiny_config

PYRAMID: dict[str, Any] = {"feature_pyramid": True, "pyramid_hidden_size": 8}
FAMILY = (
    VitMaeModel,
    VitMaeForPreTraining,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
)
UPERNET: dict[str, Any] = {"hidden_size": 8, "pool_scales": (1, 2), "num_labels": 3}
UPERNET |= {"auxiliary_channels": 8, "auxiliary_in_channels": None}


def backbone(**overrides: Any) -> VitMaeBackbone:
    """A stirred backbone in evaluation mode, of a grid of 4 x 3 patches unless told otherwise."""
    values = RECTANGULAR | {"num_hidden_layers": 3}
    model = VitMaeBackbone(tiny_config(**(values | overrides))).eval()
    stir(model)
    return model


def saved(kind: type[VitMaePreTrainedModel], folder: Path, **overrides: Any) -> Any:
    """A stirred model in evaluation mode, and its checkpoint in the folder."""
    model = kind(tiny_config(**(RECTANGULAR | overrides))).eval()
    stir(model)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("asked", "layers"),
    [
        ({}, [3]),
        ({"out_features": ["stem", "stage1", "stage3"]}, [0, 1, 3]),
        ({"out_features": ["stage2"]}, [2]),
        ({"out_indices": [0, 2]}, [0, 2]),
        ({"out_indices": (1, 2, 3)}, [1, 2, 3]),
        ({"out_indices": [-2, -1]}, [2, 3]),
    ],
    ids=str,
)
def test_maps_are_the_states_of_their_layers_through_the_last_norm(
    asked: dict[str, Any], layers: list[int]
) -> None:
    model = backbone(**asked)
    pixel_values = random_images(model.config)
    maps = model(pixel_values).feature_maps
    assert model.channels == [32] * len(layers)
    assert [feature_map.shape for feature_map in maps] == [(3, 32, 4, 3)] * len(layers)
    states = model.vit(pixel_values, output_hidden_states=True).hidden_states
    for layer, feature_map in zip(layers, maps, strict=True):
        tokens = model.vit.layernorm(states[layer])
        for row in range(4):
            for column in range(3):
                token = tokens[:, 1 + 3 * row + column]
                assert torch.equal(feature_map[:, :, row, column], token)


def test_hidden_states_and_attentions_come_only_when_asked_for() -> None:
    model = backbone()
    pixel_values = random_images(model.config)
    output = model(pixel_values)
    assert output.hidden_states is None and output.attentions is None
    output = model(pixel_values, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == 4 * [(3, 13, 32)]
    assert [weights.shape for weights in output.attentions] == 3 * [(3, 4, 13, 13)]


@pytest.mark.parametrize("size", [(64, 96), (64, 32)], ids=str)
@pytest.mark.parametrize("patch_size", PYRAMID_STRIDES)
def test_the_pyramid_has_strides_4_8_16_and_32(patch_size: int, size: tuple[int, int]) -> None:
    model = backbone(image_size=size, patch_size=patch_size, **PYRAMID)
    assert model.out_features == ["stride4", "stride8", "stride16", "stride32"]
    assert model.channels == [8, 8, 8, 8]
    maps = model(random_images(model.config)).feature_maps
    expected = [(3, 8, size[0] // stride, size[1] // stride) for stride in (4, 8, 16, 32)]
    assert [feature_map.shape for feature_map in maps] == expected


@pytest.mark.parametrize("patch_size", PYRAMID_STRIDES)
def test_levels_of_the_pyramid_are_chosen_by_name_or_place(patch_size: int) -> None:
    model = backbone(image_size=(64, 96), patch_size=patch_size, **PYRAMID)
    pixel_values = random_images(model.config)
    levels = model(pixel_values).feature_maps
    for asked in ({"out_features": ["stride8", "stride32"]}, {"out_indices": [1, 3]}):
        chosen = backbone(image_size=(64, 96), patch_size=patch_size, **PYRAMID, **asked)
        chosen.load_state_dict(model.state_dict())
        assert chosen.channels == [8, 8]
        maps = chosen(pixel_values).feature_maps
        assert len(maps) == 2
        assert torch.equal(maps[0], levels[1]) and torch.equal(maps[1], levels[3])


@torch.no_grad()
def keep_tokens_apart(model: VitMaeBackbone) -> None:
    """Let each patch's token depend on its own pixels alone."""
    blocks: Any = model.vit.layers
    for block in blocks:
        nn.init.zeros_(block.attention.o_proj.weight)
        nn.init.zeros_(block.attention.o_proj.bias)


def _extent(changed: Tensor) -> tuple[int, int]:
    """First and last place where a vector is True."""
    places = changed.nonzero().flatten().tolist()
    return places[0], places[-1]


@pytest.mark.parametrize("patch_size", PYRAMID_STRIDES)
def test_the_pyramid_is_the_right_way_round(patch_size: int) -> None:
    model = backbone(image_size=(128, 192), patch_size=patch_size, **PYRAMID)
    keep_tokens_apart(model)
    pixel_values = random_images(model.config, batch=1)
    changed = pixel_values.clone()
    changed[:, :, 32:64, 96:128] += 1.0  # whole patches, and one place at stride 32
    with torch.no_grad():
        pairs = zip(model(pixel_values).feature_maps, model(changed).feature_maps, strict=True)
        differences = [(after != before).any(dim=1)[0] for before, after in pairs]
    for stride, differs in zip(PYRAMID_STRIDES, differences, strict=True):
        for axis, (first, last) in ((1, (32, 63)), (0, (96, 127))):
            start, end = _extent(differs.any(dim=axis))
            # A convolution of 3x3 carries a change by one place.
            assert (start, end) == (first // stride - 1, last // stride + 1)


def test_every_level_of_the_pyramid_trains_itself_and_the_encoder() -> None:
    for level in range(4):
        model = backbone(image_size=32, patch_size=16, **PYRAMID, out_indices=[level]).train()
        model(random_images(model.config)).feature_maps[0].square().mean().backward()
        trained = {name for name, value in model.named_parameters() if value.grad is not None}
        own = {name for name in trained if name.startswith("pyramid.")}
        assert own and all(name.startswith(f"pyramid.levels.{level}.") for name in own)
        assert {name for name, _ in model.vit.named_parameters(prefix="vit")} <= trained
        for name, value in model.named_parameters():
            if value.grad is not None:
                assert value.grad.isfinite().all() and value.grad.any(), name


@pytest.mark.parametrize("size", [(50, 70), (33, 8), (1, 1), (64, 65)], ids=str)
@pytest.mark.parametrize("patch_size", PYRAMID_STRIDES)
def test_images_of_no_whole_patches_are_filled_up_with_zeros(
    patch_size: int, size: tuple[int, int]
) -> None:
    model = backbone(image_size=64, patch_size=patch_size, **PYRAMID)
    pixel_values = torch.randn(2, 3, *size)
    bottom, right = (-side % patch_size for side in size)
    filled = functional.pad(pixel_values, (0, right, 0, bottom))
    maps = model(pixel_values).feature_maps
    for stride, got, expected in zip(
        PYRAMID_STRIDES, maps, model(filled).feature_maps, strict=True
    ):
        assert torch.equal(got, expected)
        rows, columns = (-(-side // stride) for side in filled.shape[2:])
        assert got.shape == (2, 8, rows, columns)


def test_patches_of_any_shape_are_filled_up() -> None:
    model = backbone()
    pixel_values = torch.randn(2, 3, 17, 33)
    filled = functional.pad(pixel_values, (0, 7, 0, 3))
    (got,), (expected,) = model(pixel_values).feature_maps, model(filled).feature_maps
    assert got.shape == (2, 32, 5, 5)
    assert torch.equal(got, expected)


def test_a_mask_over_the_pixels_is_filled_up_with_the_image() -> None:
    model = backbone()
    pixel_values = torch.randn(2, 3, 17, 33)
    padding = torch.zeros(2, 17, 33, dtype=torch.bool)
    padding[1, :, 20:] = True
    of_patches = torch.zeros(2, 5, 5, dtype=torch.bool)
    of_patches[1, :, 2:] = True  # pixel 20 is in the third patch of 8
    (got,) = model(pixel_values, padding_mask=padding).feature_maps
    (expected,) = model(pixel_values, padding_mask=of_patches.flatten(1)).feature_maps
    assert torch.equal(got, expected)
    (unpadded,) = model(pixel_values).feature_maps
    assert torch.equal(got[0], unpadded[0]) and not torch.allclose(got[1], unpadded[1])


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_checkpoint_of_the_family_opens(
    kind: type[VitMaePreTrainedModel], tmp_path: Path
) -> None:
    model = saved(kind, tmp_path, patch_size=8, image_size=(32, 16))
    loaded, report = VitMaeBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    pixel_values = random_images(model.config)
    encoder = model if kind is VitMaeModel else model.vit
    tokens = encoder(pixel_values).last_hidden_state[:, 1:]
    if kind is VitMaeForNextPatchPrediction:  # causal in itself only
        assert not loaded.config.is_causal
    (feature_map,) = loaded(pixel_values).feature_maps
    torch.testing.assert_close(feature_map, tokens.transpose(1, 2).reshape(3, 32, 4, 2))
    loaded, report = VitMaeBackbone.from_pretrained(tmp_path, output_loading_info=True, **PYRAMID)
    pyramid = {name for name in loaded.state_dict() if name.startswith("pyramid.")}
    assert pyramid and set(report.pop("missing_keys")) == pyramid
    assert not any(report.values())
    maps = loaded(pixel_values).feature_maps
    assert [feature_map.shape[1:] for feature_map in maps] == [
        (8, 8, 4),
        (8, 4, 2),
        (8, 2, 1),
        (8, 1, 1),
    ]
    assert all(feature_map.isfinite().all() for feature_map in maps)


def test_maps_are_chosen_while_loading(tmp_path: Path) -> None:
    saved(VitMaeForPreTraining, tmp_path, patch_size=8, image_size=(32, 16))
    chosen = VitMaeBackbone.from_pretrained(tmp_path, out_features=["stem", "stage1"])
    assert chosen.out_features == ["stem", "stage1"] and chosen.out_indices == [0, 1]
    chosen = VitMaeBackbone.from_pretrained(tmp_path, out_indices=[1, 2])
    assert chosen.out_features == ["stage1", "stage2"]
    chosen = VitMaeBackbone.from_pretrained(tmp_path, out_features=["stride8"], **PYRAMID)
    assert chosen.out_features == ["stride8"]
    (feature_map,) = chosen(torch.randn(1, 3, 32, 16)).feature_maps
    assert feature_map.shape == (1, 8, 4, 2)


@pytest.mark.parametrize("fields", [{"out_indices": [1, 2]}, PYRAMID], ids=["layers", "pyramid"])
def test_saved_and_loaded_is_the_same_backbone(fields: dict[str, Any], tmp_path: Path) -> None:
    model = saved(VitMaeBackbone, tmp_path, patch_size=8, image_size=(32, 16), **fields)
    loaded, report = VitMaeBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.out_features == model.out_features
    _weights_are_equal(loaded, model)
    pixel_values = random_images(model.config)
    torch.testing.assert_close(loaded(pixel_values).feature_maps, model(pixel_values).feature_maps)


def _weights_are_equal(first: nn.Module, second: nn.Module) -> None:
    weights = second.state_dict()
    assert first.state_dict().keys() == weights.keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_saved_backbone_opens_with_other_maps(tmp_path: Path) -> None:
    saved(VitMaeBackbone, tmp_path / "layers", patch_size=8)
    pyramid = VitMaeBackbone.from_pretrained(tmp_path / "layers", **PYRAMID)
    assert pyramid.out_features == ["stride4", "stride8", "stride16", "stride32"]
    pyramid.save_pretrained(tmp_path / "pyramid")
    one = VitMaeBackbone.from_pretrained(tmp_path / "pyramid", out_features=["stride16"])
    assert one.out_features == ["stride16"] and one.out_indices == [2]
    layers = VitMaeBackbone.from_pretrained(tmp_path / "pyramid", feature_pyramid=False)
    assert layers.out_features == ["stage2"] and layers.pyramid is None
    model, report = VitMaeForPreTraining.from_pretrained(
        tmp_path / "pyramid", output_loading_info=True
    )
    missing = report.pop("missing_keys")
    assert missing and all(name.startswith("decoder.") for name in missing)
    assert not any(report.values())
    assert torch.equal(model.vit.layernorm.weight, pyramid.vit.layernorm.weight)


def test_auto_backbone_from_config() -> None:
    model = AutoBackbone.from_config(tiny_config(out_features=["stage1", "stage2"]))
    assert type(model) is VitMaeBackbone and model.out_indices == [1, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"out_features": ["stage9"]}, r"stage_names: \['stem', 'stage1', 'stage2'\].*'stage9'"),
        ({"out_features": ["stride8"]}, "'stage2'.*'stride8'"),
        ({"out_features": ["stage1"], "feature_pyramid": True}, "'stride4'.*'stage1'"),
        ({"out_features": ["stage2", "stage1"]}, "same order"),
        ({"out_indices": [3]}, r"out_indices must be valid.* got \[3\]"),
        ({"patch_size": 2, "feature_pyramid": True}, r"`patch_size` .*\(4, 8, 16, 32\).* got 2"),
        ({"patch_size": (4, 8), "feature_pyramid": True}, r"`patch_size` .* got \(4, 8\)"),
    ],
)
def test_maps_that_are_not_there_are_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)
    if "patch_size" not in fields:
        VitMaeForPreTraining(tiny_config()).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            VitMaeBackbone.from_pretrained(tmp_path, **fields)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\), got \(2, 1, 16, 24\)"):
        backbone()(torch.zeros(2, 1, 16, 24))


@pytest.mark.parametrize(
    "fields", [PYRAMID, {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}], ids=str
)
def test_upernet_trains_on_it(fields: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(image_size=(32, 16), patch_size=8, **fields)
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, **UPERNET))
    encoder: Any = model.backbone
    assert type(encoder) is VitMaeBackbone
    assert torch.equal(encoder.vit.embeddings.position_embeddings, sincos_positions((4, 2), 32))
    pixel_values = torch.randn(2, 3, 40, 60)  # 60 is no whole number of patches
    labels = torch.randint(3, (2, 40, 60))
    output = model.train()(pixel_values, labels=labels)
    assert output.logits.shape == (2, 3, 40, 60)
    output.loss.backward()
    assert output.loss.isfinite()
    _every_gradient_is_there(encoder)
    model.eval().save_pretrained(tmp_path)
    loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.backbone.out_features == encoder.out_features
    _weights_are_equal(loaded, model)


def test_detr_runs_on_it() -> None:
    config = DetrConfig(
        backbone_config=tiny_config(**RECTANGULAR),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=4,
    )
    model = DetrForObjectDetection(config)
    output = model(torch.randn(2, 3, 17, 24))
    assert output.pred_boxes.shape == (2, 4, 4)
    (output.logits.square().mean() + output.pred_boxes.square().mean()).backward()
    _every_gradient_is_there(model.model.backbone.model)


def test_mask2former_runs_on_the_pyramid() -> None:
    config = Mask2FormerConfig(
        backbone_config=tiny_config(image_size=(32, 64), patch_size=8, **PYRAMID),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=4,
    )
    model = Mask2FormerModel(config)
    output = model(torch.randn(2, 3, 32, 60))
    masks = output.masks_queries_logits[-1]
    assert masks.shape == (2, 4, 8, 16)  # at stride 4
    (
        masks.square().mean() + output.transformer_decoder_last_hidden_state.square().mean()
    ).backward()
    _every_gradient_is_there(model.pixel_level_module.encoder)


def _every_gradient_is_there(encoder: nn.Module) -> None:
    for name, parameter in encoder.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name
