"""The pooler of `VitMaeModel`: transformers' results, and no trace of it in any other class."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTModel,
)

from hf_vitmae.convert.converted import build
from hf_vitmae.convert.from_transformers import read
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeModel,
)

from .family import CLASSES, HEAD_PARTS, OPENERS, STEMS, family_config, family_inputs
from .tiny import random_images, stir, tiny_config
from .transformers_models import save_with_old_names, their_model

POOLER: dict[str, Any] = {"pooler_output_size": 24, "pooler_act": "gelu"}
NAMES = {"pooler.dense.weight", "pooler.dense.bias"}
OTHERS = [kind for kind in CLASSES if kind is not VitMaeModel]
LEFT_OUT = (
    "left out its pooler (a trained map and activation on the CLS token), which only VitMaeModel "
    "has"
)
every_other_class = pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)


def pooled_model(stem: str = "linear", **fields: Any) -> VitMaeModel:
    """A stirred encoder with a pooler, in evaluation mode."""
    model = VitMaeModel(family_config(stem, **(POOLER | fields)))
    stir(model)
    return model.eval()


def opened(kind: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    return kind.from_pretrained(folder, output_loading_info=True, **options)


def assert_close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def assert_same_encoder(model: Any, saved: Any) -> None:
    """Every weight of the encoder is the saved one."""
    expected = saved.state_dict()
    for name, value in getattr(model, "vit", model).state_dict().items():
        assert torch.equal(value, expected[name]), name


def results(model: Any, pixel_values: Tensor, with_pooler: bool) -> dict[str, Tensor]:
    """What the model returns, and the gradients of all of it under their names."""
    model.zero_grad()
    output = model(pixel_values)
    values = {"tokens": output.last_hidden_state}
    if with_pooler:
        values["pooled"] = output.pooler_output
    torch.stack([(value**3).sum() for value in values.values()]).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return values | gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [None, {}, POOLER], ids=["none", "tanh", "narrow gelu"])
@pytest.mark.parametrize("old_names", [True, False])
def test_results_and_gradients_are_those_of_transformers(
    old_names: bool, fields: dict[str, Any] | None, attention: str, tmp_path: Path
) -> None:
    theirs = their_model(ViTModel, **(fields or {}))
    if fields is None:
        theirs.pooler = None
    save_with_old_names(theirs, tmp_path) if old_names else theirs.save_pretrained(tmp_path)
    ours, report = opened(VitMaeModel, tmp_path)
    assert not report["missing_keys"] and len(report["adaptations"]) == 1
    asked = {"pooler_output_size": None if fields is None else 32, "pooler_act": "tanh"}
    asked |= fields or {}
    assert {name: getattr(ours.config, name) for name in asked} == asked
    for model in (ours, theirs):
        model.set_attn_implementation(attention)
    pixel_values, with_pooler = random_images(ours.config), fields is not None
    expected = results(theirs, pixel_values, with_pooler)
    got = results(ours, pixel_values, with_pooler)
    assert got.keys() == expected.keys()
    assert (expected.keys() >= NAMES) == with_pooler
    for name, value in expected.items():
        assert_close(got[name], value)
    output = ours(pixel_values)
    assert with_pooler or torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


@pytest.mark.parametrize("with_teacher", [True, False])
def test_deit_keeps_its_pooler(with_teacher: bool, tmp_path: Path) -> None:
    """On tokens without the distillation token: a part of theirs, put together once more."""
    theirs = their_model(DeiTModel, **POOLER)
    theirs.save_pretrained(tmp_path)
    if with_teacher:  # its classifiers are beside, and its encoder is behind `deit.`
        whole = their_model(DeiTForImageClassificationWithTeacher, num_labels=3, **POOLER)
        whole.deit = theirs
        whole.save_pretrained(tmp_path)
    ours, report = opened(VitMaeModel, tmp_path)
    assert not report["missing_keys"]
    assert not any("pooler" in line for line in report["adaptations"][1:])
    pixel_values = random_images(ours.config)
    with torch.no_grad():
        tokens = theirs.embeddings(pixel_values)
        tokens = torch.cat([tokens[:, :1], tokens[:, 2:]], dim=1)
        for layer in theirs.layers:
            tokens = layer(tokens)
        assert_close(ours(pixel_values).pooler_output, theirs.pooler(theirs.layernorm(tokens)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("stem", STEMS)
def test_it_maps_what_pooling_gives(stem: str, pooling: str) -> None:
    model = pooled_model(stem, pooling=pooling)
    plain = VitMaeModel(model.config.without_pooler()).eval()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if n not in NAMES})
    pixel_values = random_images(model.config)
    with torch.no_grad():
        got, expected = model(pixel_values), plain(pixel_values)
        weight, bias = (model.get_parameter(f"pooler.dense.{name}") for name in ("weight", "bias"))
        pooled = expected.pooler_output.double() @ weight.double().T + bias.double()
        pooled = pooled * (1 + torch.erf(pooled / 2**0.5)) / 2  # the Gaussian error linear unit
    assert got.pooler_output.shape == (3, 24)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    assert_close(got.pooler_output, pooled.float())


def test_saved_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    model = pooled_model()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() >= NAMES
    loaded, report = opened(AutoModel, tmp_path)
    assert type(loaded) is VitMaeModel and not any(report.values())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert_same_encoder(loaded, model)
    pixel_values = random_images(model.config)
    assert torch.equal(loaded(pixel_values).pooler_output, model(pixel_values).pooler_output)


@pytest.mark.parametrize("geometry", [{}, {"num_channels": 1, "image_size": (32, 48)}])
@every_other_class
def test_other_classes_open_such_a_checkpoint_and_have_none(
    kind: Any, geometry: dict[str, Any], tmp_path: Path
) -> None:
    saved = pooled_model()
    saved.save_pretrained(tmp_path / "saved")
    model, report = opened(OPENERS[kind], tmp_path / "saved", **geometry)
    assert not any("pooler" in name for name, _ in model.named_modules())
    assert {name.split(".")[0] for name in report["missing_keys"]} == HEAD_PARTS[kind]
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.pooler_output_size is None
    if not geometry:
        assert_same_encoder(model, saved)
    model.save_pretrained(tmp_path / "again")  # and back: nothing is asked for that is not there
    back, report = opened(VitMaeModel, tmp_path / "again")
    assert not any(report.values()) and back.pooler is None
    assert_same_encoder(back, model.vit)


@every_other_class
def test_other_classes_have_one_configuration_and_leave_the_callers(kind: Any) -> None:
    config = family_config("linear", **POOLER)
    model = kind(config).eval()
    assert config.pooler_output_size == 24
    held = [part.config for part in model.modules() if hasattr(part, "config")]
    assert len(held) > 2 and all(one is model.config for one in held)
    inputs = family_inputs(kind, config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    output = model(**inputs)
    if "loss" in output:
        output.loss.backward()
        assert trained == {n for n, p in model.named_parameters() if p.grad is not None}


def test_a_classifier_sees_the_cls_token_alone(tmp_path: Path) -> None:
    """As transformers' own does with a checkpoint of its encoder with pooler."""
    theirs = their_model(ViTModel)
    theirs.save_pretrained(tmp_path)
    ours = VitMaeForImageClassification.from_pretrained(tmp_path, num_labels=3)
    expected = ViTForImageClassification.from_pretrained(tmp_path, num_labels=3)
    expected.classifier.load_state_dict(ours.classifier.state_dict())
    pixel_values = random_images(ours.config)
    assert_close(ours(pixel_values).logits, expected(pixel_values).logits)


@every_other_class
def test_other_classes_open_theirs_and_say_what_they_leave_out(kind: Any, tmp_path: Path) -> None:
    theirs = their_model(ViTModel)
    theirs.save_pretrained(tmp_path)
    model, report = opened(kind, tmp_path)
    assert report["adaptations"][1:] == [LEFT_OUT]
    assert {name.split(".")[0] for name in report["missing_keys"]} == HEAD_PARTS[kind]
    assert model.config.pooler_output_size is None
    assert_same_encoder(model, theirs)


def test_a_pooler_beside_a_classifier_is_the_encoders(tmp_path: Path) -> None:
    theirs = their_model(ViTForImageClassification, num_labels=3)
    theirs.vit = their_model(ViTModel)
    theirs.save_pretrained(tmp_path)
    encoder, report = opened(VitMaeModel, tmp_path)
    assert LEFT_OUT not in report["adaptations"] and NAMES <= encoder.state_dict().keys()
    assert_same_encoder(encoder, theirs.vit)
    _, report = opened(VitMaeForImageClassification, tmp_path)
    assert report["adaptations"][1:] == [LEFT_OUT]
    converted = read(str(tmp_path))
    assert converted.kind is VitMaeForImageClassification and converted.said[1:] == [LEFT_OUT]
    assert converted.config.pooler_output_size is None
    build(converted)


@pytest.mark.parametrize("is_foreign", [True, False])
def test_a_configuration_of_the_caller_decides(is_foreign: bool, tmp_path: Path) -> None:
    saved: Any = their_model(ViTModel) if is_foreign else pooled_model()
    saved.save_pretrained(tmp_path)
    config = VitMaeModel.from_pretrained(tmp_path).config.without_pooler()
    config.save_pretrained(tmp_path / "config")
    asked = ({"config": config}, {"config": tmp_path / "config"}, {"pooler_output_size": None})
    for options in asked:
        model, report = opened(VitMaeModel, tmp_path, **options)
        assert model.pooler is None
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert (LEFT_OUT in report.get("adaptations", [])) == is_foreign
    config = config.with_fields(pooler_output_size=32)
    model, report = opened(VitMaeModel, tmp_path, config=config, ignore_mismatched_sizes=True)
    assert model.pooler is not None and LEFT_OUT not in report.get("adaptations", [])


@pytest.mark.parametrize("is_foreign", [True, False])
def test_it_is_left_out_when_not_wanted(is_foreign: bool, tmp_path: Path) -> None:
    saved: Any = their_model(ViTModel) if is_foreign else pooled_model()
    saved.save_pretrained(tmp_path)
    options: dict[str, Any] = {"add_pooling_layer": False}
    for geometry in ({}, {"num_channels": 1}):
        model, report = opened(VitMaeModel, tmp_path, **options, **geometry)
        assert model.pooler is None and model.config.pooler_output_size is None
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert (LEFT_OUT in report.get("adaptations", [])) == is_foreign
    assert VitMaeModel(tiny_config(**POOLER), add_pooling_layer=False).pooler is None


def test_another_geometry_keeps_it(tmp_path: Path) -> None:
    model = pooled_model()
    model.save_pretrained(tmp_path)
    adapted, report = opened(VitMaeModel, tmp_path, num_channels=1, image_size=(32, 48))
    assert not report["missing_keys"] and report["adaptations"]
    for name in NAMES:
        assert torch.equal(adapted.state_dict()[name], model.state_dict()[name])


def test_a_new_one_may_be_asked_for(tmp_path: Path) -> None:
    VitMaeForImageClassification(tiny_config()).save_pretrained(tmp_path)
    model, report = opened(VitMaeModel, tmp_path, **POOLER)
    assert set(report["missing_keys"]) == NAMES
    weight = model.pooler.dense.weight
    assert weight.shape == (24, 32) and weight.isfinite().all() and weight.abs().amin() > 0
    assert not model.pooler.dense.bias.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "lacks 1 weights of ViTModel, `pooler.dense.weight` the first"),
        ("shape", r"`pooler.dense.weight` of .* is \(3, 32\) where its .* says \(32, 32\)"),
    ],
)
def test_a_damaged_one_is_named(change: str, message: str, tmp_path: Path) -> None:
    their_model(ViTModel).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["pooler.dense.weight"] = weights["pooler.dense.weight"][:3].clone()
    if change == "missing":
        del weights["pooler.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message) as caught:
        VitMaeModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_in_a_model_that_has_none_is_left_out(tmp_path: Path) -> None:
    their_model(ViTMAEForPreTraining).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    extra = {f"vit.{name}": torch.zeros(2, 2) for name in NAMES}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    model, report = opened(VitMaeModel, tmp_path)
    assert report["adaptations"][1:] == [LEFT_OUT] and model.pooler is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooler_output_size": 0}, "`pooler_output_size` must be None or a positive .*, got 0"),
        ({"pooler_output_size": True}, "`pooler_output_size` .* got True"),
        ({"pooler_act": "tan"}, "`pooler_act` must be one of .*tanh.*, got 'tan'"),
        ({"pooler_output_sise": 8}, "no field `pooler_output_sise`; did you mean"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny_config(**fields)
    assert "\n" not in str(caught.value)


def test_a_compiled_model_gives_the_same() -> None:
    torch.compiler.reset()
    model = pooled_model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    pixel_values = random_images(model.config)
    assert_close(compiled(pixel_values).to_tuple(), model(pixel_values).to_tuple())
    torch.compiler.reset()


# Run in a process of its own that cannot import the package, from a folder with one encoder.
REMOTE_CODE = """
import sys
sys.modules["hf_vitmae"] = None
import torch
from transformers import AutoModel, AutoModelForImageClassification

values, trust = torch.load("values.pt"), {"trust_remote_code": True}
model = AutoModel.from_pretrained("encoder", **trust)
assert torch.equal(model(values["pixels"]).pooler_output, values["pooled"])
model.save_pretrained("again")
model = AutoModel.from_pretrained("again", **trust)
assert torch.equal(model(values["pixels"]).pooler_output, values["pooled"])
classifier = AutoModelForImageClassification.from_pretrained("again", num_labels=4, **trust)
assert classifier(values["pixels"]).logits.shape == (3, 4)
assert type(model).__module__.startswith("transformers_modules.")
print("all opened")
"""


@pytest.mark.slow
def test_it_opens_without_the_package(tmp_path: Path) -> None:
    model = pooled_model()
    model.save_pretrained(tmp_path / "encoder")
    pixels = random_images(model.config)
    with torch.no_grad():
        pooled = model(pixels).pooler_output
    torch.save({"pixels": pixels, "pooled": pooled}, tmp_path / "values.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", REMOTE_CODE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "all opened" in done.stdout, done.stderr
