"""What is written for timm has its names, and what it cannot express is refused.

That timm's models take it and compute the same is tested where they are read.
"""

from pathlib import Path
from typing import Any

import pytest

from hf_vitmae.convert.to_timm import (
    ANY_PLAIN,
    HYBRIDS,
    PLAIN,
    architecture,
    model_arguments,
    write,
    write_folder,
)
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining, VitMaeModel

from ..models.timm_models import import_timm
from ..models.tiny import tiny_config


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_act": "relu"}, "`hidden_act` is 'relu', not 'gelu' or"),
        ({"layer_norm_eps": 1e-12}, "`layer_norm_eps` is 1e-12"),
        ({"is_causal": True, "mask_ratio": 0.0, "pooling": "mean"}, "`is_causal` is True"),
        ({"stem_depths": (1, 1), "patch_size": 8}, r"`stem_depths` is \(1, 1\)"),
        (
            {"stem_depths": (3, 4, 9), "patch_size": 16, "stem_width": 16, "stem_num_groups": 4},
            "`stem_width` is 16",
        ),
    ],
)
def test_what_timm_cannot_express_is_refused(fields: dict[str, Any], told: str) -> None:
    model = VitMaeModel(tiny_config(**fields))
    with pytest.raises(ValueError, match=told):
        write(model)
    with pytest.raises(ValueError, match="convert its encoder"):
        write(VitMaeForPreTraining(tiny_config()))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 32}, "makes images of 32x32 pixels"),
        ({"do_rescale": False}, "set do_resize and do_rescale"),
    ],
)
def test_preparation_that_timm_has_no_word_for(
    options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    model = VitMaeModel(tiny_config())
    all_options: dict[str, Any] = {"size": 16, "patch_size": 4} | options
    processor = VitMaeImageProcessor(**all_options)
    with pytest.raises(ValueError, match=told):
        write_folder(model, processor, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_every_named_architecture_is_timms() -> None:
    known = set(import_timm().list_models("vit_*"))
    assert {*PLAIN.values(), *HYBRIDS.values(), ANY_PLAIN} <= known
    for size, patch in (("tiny", 16), ("small", 16), ("base", 16), ("large", 16), ("huge", 14)):
        assert architecture(getattr(VitMaeConfig, size)()) == f"vit_{size}_patch{patch}_224"


def test_inner_widths_survive_the_ratio() -> None:
    for width in range(4, 200, 28):
        for inner in range(1, 4 * width, 5):
            config = tiny_config(hidden_size=width, intermediate_size=inner)
            assert int(width * model_arguments(config)["mlp_ratio"]) == inner
