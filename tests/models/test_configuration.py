"""The configuration: what it refuses, what it keeps, and the named sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hf_vitmae.models import modeling_vitmae
from hf_vitmae.models.configuration_vitmae import AUTO_MAP, SIZES, VitMaeConfig
from hf_vitmae.models.modeling_vitmae import VitMaeModel, VitMaePreTrainedModel

from .tiny import tiny_config

WRONG = [
    ({"hidden_size": 0}, "`hidden_size` must be a positive integer, got 0"),
    ({"num_hidden_layers": -1}, "`num_hidden_layers` .* got -1"),
    (
        {"num_attention_heads": 5},
        r"`hidden_size` must be a multiple of `num_attention_heads` \(5\), got 32",
    ),
    (
        {"hidden_size": 30, "num_attention_heads": 3},
        "`hidden_size` must be a multiple of 4.* got 30",
    ),
    ({"intermediate_size": True}, "`intermediate_size` .* got True"),
    ({"num_channels": 0}, "`num_channels` .* got 0"),
    ({"decoder_hidden_size": 0}, "`decoder_hidden_size` .* got 0"),
    ({"decoder_num_hidden_layers": 0}, "`decoder_num_hidden_layers` .* got 0"),
    (
        {"decoder_num_attention_heads": 3},
        r"`decoder_hidden_size` must be a multiple .* \(3\), got 16",
    ),
    ({"decoder_hidden_size": 6}, "`decoder_hidden_size` must be a multiple of 4.* got 6"),
    ({"decoder_intermediate_size": 0}, "`decoder_intermediate_size` .* got 0"),
    ({"mask_ratio": 1.0}, "`mask_ratio` must be at least 0 and below 1, got 1.0"),
    ({"mask_ratio": -0.5}, "`mask_ratio` .* got -0.5"),
    ({"drop_path_rate": 1}, "`drop_path_rate` .* got 1"),
    ({"hidden_dropout_prob": 2.0}, "`hidden_dropout_prob` .* got 2.0"),
    ({"attention_probs_dropout_prob": -1.0}, "`attention_probs_dropout_prob` .* got -1.0"),
    ({"initializer_range": 0.0}, "`initializer_range` must be a positive number, got 0.0"),
    ({"layer_norm_eps": -1e-6}, "`layer_norm_eps` .* got -1e-06"),
    ({"layer_scale_init_value": 0.0}, "`layer_scale_init_value` .* got 0.0"),
    ({"pooling": "max"}, "`pooling` must be one of cls, mean, got 'max'"),
    (
        {"position_embedding": "rope"},
        "`position_embedding` must be one of sincos, learned, got 'rope'",
    ),
    ({"hidden_act": "gelo"}, "`hidden_act` must be one of .*gelu.*, got 'gelo'"),
    ({"image_size": (16, 16, 16)}, r"`image_size` .* \(height, width\), got \(16, 16, 16\)"),
    ({"image_size": (16, -4)}, r"`image_size` .* got \(16, -4\)"),
    ({"patch_size": 0}, "`patch_size` .* got 0"),
    ({"image_size": (16, 18)}, "`image_size` .* of 4x4 .* nearest smaller is 16x16, got '16x18'"),
    (
        {"patch_size": (4, 8), "image_size": (8, 20)},
        "`image_size` .* of 4x8 .* nearest smaller is 8x16, got '8x20'",
    ),
    (
        {"patch_size": (4, 32)},
        "`image_size` .* of 4x32 .* the patch is larger than the image, got '16x16'",
    ),
    ({"corruption_ratio": 1.0}, "`corruption_ratio` must be at least 0 and below 1, got 1.0"),
    ({"patch_target": "colour"}, "`patch_target` must be one of mean_color, .*, got 'colour'"),
    ({"segmentation_head": "big"}, "`segmentation_head` must be one of linear, .*, got 'big'"),
    ({"segmentation_hidden_size": 0}, "`segmentation_hidden_size` .* got 0"),
    ({"pyramid_hidden_size": -1}, "`pyramid_hidden_size` .* got -1"),
    (
        {"patch_target": "colors_4x4", "patch_size": 2},
        "`patch_size` must be at least 4 for 4x4 colours, got 2",
    ),
    ({"feature_pyramid": True, "patch_size": 2}, "`patch_size` must be one of .*, got 2"),
    (
        {"feature_pyramid": True, "patch_size": (4, 8)},
        r"`patch_size` must be one of \(4, 8, 16, 32\) with `feature_pyramid`, got \(4, 8\)",
    ),
    ({"stem_depths": ()}, r"`stem_depths` must be None or positive integers.* got \(\)"),
    ({"stem_depths": (3, 0)}, r"`stem_depths` .* got \(3, 0\)"),
    ({"stem_depths": 3}, "`stem_depths` .* got 3"),
    (
        {"stem_depths": (3, 4, 9), "patch_size": 8},
        r"`patch_size` must be a multiple of the stem's stride \(16 pixels for 3 stages\), got 8",
    ),
    (
        {"stem_depths": (1,), "stem_width": 48},
        r"`stem_width` must be a multiple of `stem_num_groups` \(32\).* got 48",
    ),
    ({"stem_depths": (1,), "stem_width": 32}, "`stem_width` .* more than that, got 32"),
    (
        {"image_mean": [0.5, 0.5]},
        r"`image_mean` must be one number or as many as `num_channels` \(3\).* got \[0.5, 0.5\]",
    ),
    ({"image_std": 0.0}, "`image_std` .* std above 0, got 0.0"),
    ({"image_mean": "imagenet"}, "`image_mean` .* got 'imagenet'"),
    (
        {"is_causal": True, "pooling": "mean"},
        "`mask_ratio` must be 0.0 where `is_causal` is True.* got 0.75",
    ),
    (
        {"is_causal": True, "mask_ratio": 0.0},
        "`pooling` must be \"mean\" where `is_causal` is True.* got 'cls'",
    ),
    ({"out_features": ["stage9"]}, "stage9"),
    ({"hiden_size": 32}, "no field `hiden_size`; did you mean `hidden_size`"),
    ({"mask_ration": 0.5}, "no field `mask_ration`; did you mean `mask_ratio`"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_named_with_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny_config(**fields)
    assert "\n" not in str(caught.value)


def test_sides_are_height_then_width() -> None:
    config = tiny_config(image_size=(16, 24), patch_size=(4, 8))
    assert (config.image_pair, config.patch_pair) == ((16, 24), (4, 8))
    assert (config.grid, config.num_patches) == ((4, 3), 12)
    assert tiny_config().image_pair == (16, 16)


def test_json_keeps_every_field(tmp_path: Path) -> None:
    changed = {
        "image_size": (16, 24),
        "patch_size": (4, 8),
        "num_channels": 5,
        "mask_ratio": 0.6,
        "norm_pix_loss": True,
        "pooling": "mean",
        "position_embedding": "learned",
        "drop_path_rate": 0.1,
        "layer_scale_init_value": 1e-5,
        "qkv_bias": False,
        "id2label": {0: "cat", 1: "dog", 2: "owl"},
        "label2id": {"cat": 0, "dog": 1, "owl": 2},
    }
    config = tiny_config(**changed)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, VitMaeConfig)
    assert (loaded.image_pair, loaded.patch_pair) == ((16, 24), (4, 8))
    assert loaded.num_labels == 3 and loaded.label2id == config.label2id
    assert json.loads(loaded.to_json_string()) == json.loads(config.to_json_string())


def test_fields_can_be_changed_on_loading(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    config: Any
    config, unused = AutoConfig.from_pretrained(
        tmp_path, mask_ratio=0.25, num_labels=7, dtype="auto", other=1, return_unused_kwargs=True
    )
    assert (config.mask_ratio, config.num_labels) == (0.25, 7)
    assert unused == {"other": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"mask_ratio": 2}, "`mask_ratio` .* got 2"), ({"pooling": "max"}, "`pooling` .* got 'max'")],
)
def test_fields_changed_on_loading_are_checked(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path, **fields)


def test_the_auto_map_names_every_class_and_is_on_disk(tmp_path: Path) -> None:
    classes = {
        name
        for name, value in vars(modeling_vitmae).items()
        if isinstance(value, type) and issubclass(value, VitMaePreTrainedModel)
    }
    targets = dict(target.split(".") for target in AUTO_MAP.values())  # file and class
    named = {target.split(".")[1] for target in AUTO_MAP.values()}
    without_auto_class = {"VitMaePreTrainedModel", "VitMaeForNextPatchPrediction"}
    assert named == classes - without_auto_class | {"VitMaeConfig"}
    assert targets.keys() == {"configuration_vitmae", "modeling_vitmae"}
    tiny_config().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes_have_the_papers_parameter_counts(size: str) -> None:
    # What an encoder with a CLS token, learned positions and no head counts at 224 pixels.
    expected = {
        "tiny": 5_524_416,
        "small": 21_665_664,
        "base": 85_798_656,
        "large": 303_301_632,
        "huge": 630_764_800,
    }
    config: VitMaeConfig = getattr(VitMaeConfig, size)(position_embedding="learned")
    with torch.device("meta"):
        model = VitMaeModel(config)
    assert model.num_parameters() == expected[size]


def test_a_named_size_takes_other_fields() -> None:
    config = VitMaeConfig.tiny(image_size=32, patch_size=4, num_channels=1)
    assert (config.hidden_size, config.num_patches, config.num_channels) == (192, 64, 1)
