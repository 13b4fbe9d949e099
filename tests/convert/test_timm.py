"""timm's models in ours and ours in timm's: the same outputs and gradients, the same bytes back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_vitmae.convert.converted import build
from hf_vitmae.convert.from_timm import read, write, write_folder
from hf_vitmae.convert.to_timm import architecture, model_arguments
from hf_vitmae.models.embeddings import sincos_positions
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeModel,
)

from ..models.timm_models import import_timm, timm_model
from ..models.tiny import random_images, stir

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
HYBRID: dict[str, Any] = {"embed_dim": 48, "depth": 1, "num_heads": 4, "num_classes": 5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("vit_tiny_patch16_224", {"img_size": 64}),
    "base": ("vit_base_patch16_224", {"img_size": 32}),
    "large_14": ("vit_large_patch14_224", {"img_size": 56}),
    "rectangular": ("vit_base_patch16_224", {"img_size": (32, 80)}),
    "rectangular patches": ("vit_base_patch16_224", {"img_size": (32, 48), "patch_size": (8, 16)}),
    "mean": ("vit_base_patch16_224", {"img_size": 32, "global_pool": "avg"}),
    "norm after token": (
        "vit_base_patch16_224",
        {"img_size": 32, "global_pool": "token", "fc_norm": True},
    ),
    "no class position": ("deit3_small_patch16_224", {"img_size": 32}),
    "layer scale": ("vit_base_patch16_224", {"img_size": 32, "init_values": 0.1}),
    "no bias": ("vit_base_patch16_224", {"img_size": 32, "qkv_bias": False}),
    "gelu_tanh": ("vit_base_patch16_224", {"img_size": 32, "act_layer": "gelu_tanh"}),
    "channels": ("vit_base_patch16_224", {"img_size": 32, "in_chans": 5, "mlp_ratio": 3.5}),
}
HYBRID_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "r50": ("vit_base_r50_s16_224", HYBRID | {"img_size": (32, 64)}),
    "r26": ("vit_small_r26_s32_224", HYBRID | {"img_size": 64, "in_chans": 1}),
}
ALL = {name: (kind, SMALL | options) for name, (kind, options) in MODELS.items()} | HYBRID_MODELS
STATED = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}


def timm_config(options: dict[str, Any], **pretrained: Any) -> dict[str, Any]:
    """What a `config.json` says of a model made with these options."""
    return {"model_args": options, "pretrained_cfg": pretrained}


def example(name: str) -> tuple[Any, Any]:
    """A timm model, and ours read from its tensors."""
    kind, options = ALL[name]
    theirs = timm_model(kind, **options)
    return theirs, build(read(theirs.state_dict(), model_name=kind, config=timm_config(options)))


def plain_model() -> Any:
    """The simplest timm model: 4 heads are what its width gives under no name."""
    return timm_model("vit_base_patch16_224", **SMALL | {"img_size": 32, "embed_dim": 256})


def assert_same_bytes(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("name", ALL)
def test_logits_equal_timm(name: str) -> None:
    theirs, ours = example(name)
    pixel_values = random_images(ours.config, batch=2)
    with torch.no_grad():
        expected, got = theirs(pixel_values), ours(pixel_values).logits
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_gradients_equal_timm(name: str) -> None:
    """Of every tensor; in float64, because those of standardised filters are rounded in float32."""
    theirs, ours = (model.double() for model in example(name))
    pixel_values = random_images(ours.config, batch=2).double()
    theirs(pixel_values)[:, 1].sum().backward()
    ours(pixel_values).logits[:, 1].sum().backward()
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    expected = read(gradients, config=timm_config(ALL[name][1])).weights
    for key, parameter in ours.named_parameters():
        got, wanted = parameter.grad, expected[key]
        if name == "no class position" and key.endswith("position_embeddings"):
            got, wanted = got[:, 1:], wanted[:, 1:]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", [name for name in ALL if name != "no class position"])
def test_there_and_back_is_the_same(name: str) -> None:
    theirs, ours = example(name)
    expected = theirs.state_dict()
    if name == "norm after token":  # written before the token is taken, where timm has it too
        expected = {key.removeprefix("fc_"): value for key, value in expected.items()}
    assert_same_bytes(write(ours), expected)


@pytest.mark.parametrize("name", ALL)
def test_ours_opens_in_timm(name: str) -> None:
    _, ours = example(name)
    stir(ours, seed=7, scale=0.02)
    theirs = timm_model(architecture(ours.config), **model_arguments(ours.config), num_classes=5)
    theirs.load_state_dict(write(ours), strict=True)
    pixel_values = random_images(ours.config, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(pixel_values).logits, theirs(pixel_values), rtol=0, atol=1e-5
        )
    back = read(write(ours), model_name=architecture(ours.config), config=timm_config(ALL[name][1]))
    assert_same_bytes(back.weights, dict(ours.state_dict()))


def test_geometry_is_read_from_the_tensors_alone() -> None:
    converted = read(plain_model().state_dict())
    config = converted.config
    assert (config.hidden_size, config.num_hidden_layers) == (256, 2)
    assert (config.intermediate_size, config.num_attention_heads) == (1024, 4)
    assert (config.image_size, config.patch_size, config.num_channels) == (32, 16, 3)
    assert (config.num_labels, config.pooling, config.layer_norm_eps) == (5, "cls", 1e-6)
    assert config.position_embedding == "learned"
    assert converted.kind is VitMaeForImageClassification
    assert converted.processor.crop_pct == 0.9
    assert converted.processor.image_mean == converted.processor.image_std == [0.5] * 3
    assert any("4 attention heads, by its width of 256" in line for line in converted.said)


def test_a_hybrid_is_read_from_the_tensors_alone() -> None:
    kind, options = HYBRID_MODELS["r50"]
    weights = timm_model(kind, **options | {"img_size": 64}).state_dict()
    converted = read(weights, model_name=kind)
    assert tuple(converted.config.stem_depths or ()) == (3, 4, 9)
    assert (converted.config.patch_size, converted.config.image_size) == (16, 64)
    assert converted.config.num_attention_heads == 12
    assert "hybrid" in converted.said[0]


def test_an_encoder_without_a_head_is_the_encoder() -> None:
    options = SMALL | {"img_size": 32, "num_classes": 0}
    for pool in ("token", "avg"):
        theirs = timm_model("vit_base_patch16_224", **options, global_pool=pool)
        converted = read(theirs.state_dict(), config=timm_config(options))
        ours = build(converted)
        assert converted.kind is VitMaeModel
        pixel_values = random_images(ours.config)
        with torch.no_grad():
            got, expected = ours(pixel_values).pooler_output, theirs(pixel_values)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert_same_bytes(write(ours), theirs.state_dict())


def test_a_fixed_table_is_recognised() -> None:
    weights = plain_model().state_dict()
    weights["pos_embed"] = sincos_positions((2, 2), 256)
    converted = read(weights)
    assert converted.config.position_embedding == "sincos"
    assert any("sin-cos" in line for line in converted.said)
    assert_same_bytes(write(build(converted)), weights)
    weights["pos_embed"] = weights["pos_embed"] + 1e-4
    assert read(weights).config.position_embedding == "learned"


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("vit_tiny_patch16_224", 3),
        ("vit_base_patch16_224.augreg", 12),
        ("vit_huge_patch14_224", 16),
    ],
)
def test_heads_come_from_the_name(name: str, heads: int) -> None:
    theirs = name.split(".")[0]
    weights = timm_model(theirs, embed_dim=48, depth=1, num_heads=2, img_size=56, num_classes=2)
    converted = read(weights.state_dict(), model_name=name)
    assert converted.config.num_attention_heads == heads


@pytest.mark.parametrize("name", ["mean", "rectangular patches", "gelu_tanh", "r26"])
def test_a_folder_goes_there_and_back(name: str, tmp_path: Path) -> None:
    _, ours = example(name)
    ours.config.id2label = {label: f"kind {label}" for label in range(5)}
    config = ours.config
    processor = VitMaeImageProcessor(
        size=config.image_size,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        resample=2,
        crop_pct=0.75,
        image_mean=0.25,
        image_std=0.125,
    )
    write_folder(ours, processor, tmp_path / "folder")
    theirs = import_timm().create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    pixel_values = random_images(config, batch=2)
    with torch.no_grad():
        got, expected = ours(pixel_values).logits, theirs(pixel_values)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert theirs.pretrained_cfg["crop_pct"] == 0.75
    assert tuple(theirs.pretrained_cfg["input_size"][1:]) == config.image_pair
    again = read(tmp_path / "folder")
    assert again.processor.to_dict() == processor.to_dict()
    assert again.config.id2label == config.id2label
    assert_same_bytes(dict(build(again).state_dict()), dict(ours.state_dict()))


def test_timm_reads_a_file_of_weights(tmp_path: Path) -> None:
    ours = build(read(plain_model().state_dict()))
    save_file(write(ours), tmp_path / "weights.safetensors")
    theirs = import_timm().create_model(
        architecture(ours.config),
        **model_arguments(ours.config),
        num_classes=5,
        checkpoint_path=str(tmp_path / "weights.safetensors"),
    )
    assert_same_bytes(theirs.state_dict(), write(ours))
    assert_same_bytes(read(tmp_path / "weights.safetensors").weights, dict(ours.state_dict()))


def test_a_loader_opens_other_files(tmp_path: Path) -> None:
    weights = plain_model().state_dict()
    opened = []

    def load(path: Path) -> dict[str, Tensor]:
        opened.append(path)
        return weights

    read(tmp_path / "weights.pth", load=load)
    assert opened == [tmp_path / "weights.pth"]


def test_labels_and_preparation_are_read() -> None:
    stated = STATED | {"interpolation": "bilinear", "input_size": [3, 32, 32]}
    stated |= {"label_names": ["n1", "n2", "n3", "n4"], "label_descriptions": {"n2": "a tench"}}
    converted = read(plain_model().state_dict(), config={"pretrained_cfg": stated})
    labels = converted.config.id2label or {}
    assert list(labels.values()) == ["n1", "a tench", "n3", "n4", "LABEL_4"]
    assert (converted.config.label2id or {})["a tench"] == 1
    assert converted.processor.image_mean == converted.config.image_mean == STATED["mean"]
    assert converted.processor.image_std == STATED["std"]
    assert (converted.processor.resample, converted.processor.crop_pct) == (2, 0.8)
    squashed = read(
        plain_model().state_dict(), config=stated | {"crop_mode": "squash", "crop_pct": 1.0}
    )
    assert not squashed.processor.do_center_crop


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("vit_base_patch16_224", {"reg_tokens": 2}, "register tokens"),
        ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}, "no class token"),
        ("vit_base_patch16_224", {"qk_norm": True}, "norms of queries and keys"),
        ("vit_base_patch16_224", {"scale_attn_norm": True}, "a norm inside attention"),
        ("vit_base_patch16_224", {"pre_norm": True}, "a norm before its blocks"),
        ("vit_base_patch16_224", {"global_pool": "map"}, "attention pooling"),
        ("deit_tiny_distilled_patch16_224", {}, "a distillation token"),
        ("vit_tiny_r_s16_p8_224", {}, "a stem of another kind"),
        ("vit_small_patch16_18x2_224", {}, "`blocks.0.mlp.fc1.weight` is missing"),
        ("vit_giant_patch14_dinov2", {"img_size": 28}, "MLPs are gated"),
    ],
)
def test_other_models_are_refused_by_name(name: str, options: dict[str, Any], told: str) -> None:
    options = SMALL | {"img_size": 32, "depth": 1} | options
    weights = timm_model(name, **options).state_dict()
    with pytest.raises(ValueError, match=told) as error:
        build(read(weights, config=timm_config({"num_heads": 4})))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"global_pool": "avgmax"}, "global_pool='avgmax'"),
        ({"global_pool": "avg"}, "norm comes before the mean"),
        ({"act_layer": "silu"}, "act_layer='silu'"),
        ({"pool_include_prefix": True}, "pool_include_prefix"),
        ({"norm_layer": "rmsnorm"}, "norm_layer='rmsnorm'"),
        ({"img_size": 64}, "5 positions are not those of images of 64x64"),
    ],
)
def test_what_tensors_do_not_tell_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(plain_model().state_dict(), config=timm_config(arguments))


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"crop_mode": "border"}, "crop_mode='border' is not one of center, squash"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos' is not one of nearest"),
    ],
)
def test_preparation_that_we_have_no_word_for(stated: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(plain_model().state_dict(), config={"pretrained_cfg": stated})


def test_heads_of_the_largest_widths() -> None:
    options = SMALL | {"img_size": 14, "depth": 1, "embed_dim": 1280, "num_heads": 16}
    weights = timm_model("vit_huge_patch14_224", **options | {"mlp_ratio": 0.1}).state_dict()
    assert read(weights).config.num_attention_heads == 16


def test_what_cannot_be_told_is_asked_for() -> None:
    weights = plain_model().state_dict()
    wide = {**weights, "pos_embed": torch.zeros(1, 8, 256)}
    with pytest.raises(ValueError, match="no square grid; pass config="):
        read(wide)
    narrow = timm_model("vit_base_patch16_224", **SMALL | {"img_size": 32}).state_dict()
    with pytest.raises(ValueError, match="how many heads share its width of 48; pass config="):
        read(narrow)


def test_missing_and_surplus_tensors_are_named() -> None:
    weights = plain_model().state_dict()
    with pytest.raises(ValueError, match="`extra`.*the first"):
        read({**weights, "extra": torch.zeros(2)})
    for name in weights:
        left = {key: value for key, value in weights.items() if key != name}
        if name in ("head.weight", "blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"):
            continue  # without these it is another model, tried below
        with pytest.raises(ValueError, match="missing|lacks|no class token"):
            build(read(left))
    left = {key: value for key, value in weights.items() if key != "head.weight"}
    with pytest.raises(ValueError, match="no place for.*`classifier.bias`"):
        build(read(left))
    left = {key: value for key, value in weights.items() if key != "blocks.1.attn.qkv.bias"}
    with pytest.raises(ValueError, match=r"lacks.*layers.1.attention.k_proj.bias"):
        build(read(left))
    with pytest.raises(ValueError, match="`model` is a OrderedDict and no tensor"):
        read({"model": weights})  # type: ignore[dict-item]


def test_folders_that_are_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no config.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no `architecture`"):
        read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        read(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="truncated") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
