"""A fresh model knows positions, however it was made.

A masked autoencoder whose position tables are all zero trains without complaint; each path by which
weights come into being is therefore walked here.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForPreTraining

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.embeddings import PositionTable, sincos_positions
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from .family import CLASSES, HEAD_PARTS, OPENERS, STEMS, family_config
from .tiny import RECTANGULAR, random_images, random_noise, tiny_config


def assert_knows_positions(model: nn.Module) -> None:
    """Every position table is the fresh one: no row of a patch is zero, no two are alike."""
    tables = [module for module in model.modules() if isinstance(module, PositionTable)]
    assert len(tables) == (2 if isinstance(model, VitMaeForPreTraining) else 1)
    for module in tables:
        table = module.position_embeddings.detach()
        rows = table[0, 1:]
        distances = torch.cdist(rows, rows) + torch.eye(len(rows)) * 9
        assert rows.norm(dim=1).min() > 0.1
        assert distances.min() > 0.1
        assert torch.equal(table, sincos_positions(module.grid, table.shape[-1]))


def assert_initialised(model: nn.Module) -> None:
    """Every parameter is finite and in the range of its start; tokens are not zero."""
    assert_knows_positions(model)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.ndim in (2, 4):
            fan_out, fan_in = parameter.shape[0], parameter[0].numel()
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.8 * bound < parameter.abs().max() <= bound, name
        elif name.endswith("token"):
            assert 0.01 < parameter.std() < 0.03, name


def from_constructor(config: VitMaeConfig, folder: Path) -> nn.Module:
    return VitMaeForPreTraining(config)


def from_auto_config(config: VitMaeConfig, folder: Path) -> nn.Module:
    return AutoModelForPreTraining.from_config(config)


def from_meta_device(config: VitMaeConfig, folder: Path) -> nn.Module:
    with torch.device("meta"):
        model = VitMaeForPreTraining(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(torch.nan)
    model.init_weights()
    return model


def from_checkpoint(config: VitMaeConfig, folder: Path) -> nn.Module:
    VitMaeForPreTraining(config).save_pretrained(folder)
    return AutoModelForPreTraining.from_pretrained(folder)


def from_checkpoint_without_tables(config: VitMaeConfig, folder: Path) -> nn.Module:
    VitMaeForPreTraining(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "position_embeddings" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return VitMaeForPreTraining.from_pretrained(folder)


def from_encoder_checkpoint(config: VitMaeConfig, folder: Path) -> nn.Module:
    VitMaeModel(config).save_pretrained(folder)
    return VitMaeForPreTraining.from_pretrained(folder)


PATHS = (
    from_constructor,
    from_auto_config,
    from_meta_device,
    from_checkpoint,
    from_checkpoint_without_tables,
    from_encoder_checkpoint,
)


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
@pytest.mark.parametrize("make", PATHS, ids=lambda make: make.__name__)
def test_fresh_weights_on_every_path(
    make: Callable[[VitMaeConfig, Path], nn.Module], position_embedding: str, tmp_path: Path
) -> None:
    config = tiny_config(**RECTANGULAR, position_embedding=position_embedding)
    model = make(config, tmp_path)
    assert_initialised(model)
    for module in model.modules():
        if isinstance(module, PositionTable):
            is_trained = module.position_embeddings.requires_grad
            assert is_trained == (position_embedding == "learned")


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_fresh_weights_in_every_class(kind: type[VitMaePreTrainedModel], stem: str) -> None:
    heads = {"segmentation_head": "multi_layer", "num_labels": 30}
    assert_initialised(kind(family_config(stem, layer_scale_init_value=0.1, **heads)))


def test_fresh_weights_in_a_feature_pyramid() -> None:
    config = tiny_config(feature_pyramid=True, patch_size=16, image_size=32)
    assert_initialised(VitMaeBackbone(config))


def test_the_check_sees_a_zeroed_and_a_repeated_table() -> None:
    model = VitMaeModel(tiny_config())
    table = model.embeddings.position_embeddings.data
    for spoilt in (torch.zeros_like(table), table[:, 1:2].expand_as(table)):
        model.embeddings.position_embeddings.data = spoilt
        with pytest.raises(AssertionError):
            assert_knows_positions(model)


def test_predictions_at_hidden_patches_differ_from_the_first_step() -> None:
    config = tiny_config()
    model = VitMaeForPreTraining(config).eval()
    output = model(random_images(config, batch=1), noise=random_noise(config, batch=1))
    hidden = output.logits[0][output.mask[0]]
    distances = torch.cdist(hidden, hidden) + torch.eye(len(hidden)) * 9
    assert distances.min() > 1e-3


def encoder_weights(model: nn.Module) -> dict[str, Tensor]:
    """The encoder's weights, under the names they have inside `VitMaeModel`."""
    return getattr(model, "vit", model).state_dict()


@pytest.mark.parametrize("source", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_checkpoint_opens_as_any_class_and_only_the_head_is_new(
    source: type[VitMaePreTrainedModel], kind: type[VitMaePreTrainedModel], tmp_path: Path
) -> None:
    saved = source(tiny_config())
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.5)
    saved.save_pretrained(tmp_path)

    model, report = OPENERS[kind].from_pretrained(tmp_path, output_loading_info=True)

    assert type(model) is kind
    weights = encoder_weights(saved)
    for name, value in encoder_weights(model).items():
        assert torch.equal(value, weights[name]), name
    assert not report["mismatched_keys"] and not report["unexpected_keys"]
    assert not report["error_msgs"]
    fresh = {name.split(".")[0] for name in report["missing_keys"]}
    assert fresh == (set() if source is kind else HEAD_PARTS[kind])
    if fresh == {"classifier"}:
        assert model.state_dict()["classifier.weight"].any()
        assert not model.state_dict()["classifier.bias"].any()
