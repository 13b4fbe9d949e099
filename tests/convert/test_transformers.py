"""transformers' models to ours and ours to theirs: the same results, and the same bytes back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    BitBackbone,
    BitConfig,
    PreTrainedModel,
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vitmae.convert.converted import build
from hf_vitmae.convert.from_transformers import our_processor, read, their_processor, write
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from ..models.tiny import RECTANGULAR, random_images, random_noise, stir, tiny_config
from ..models.transformers_models import (
    fix_positions,
    old_name,
    save_with_old_names,
    their_model,
    write_processor,
)

PAIRS: list[tuple[type[PreTrainedModel], type[VitMaePreTrainedModel], Any]] = [
    (ViTModel, VitMaeModel, AutoModel),
    (ViTForImageClassification, VitMaeForImageClassification, AutoModelForImageClassification),
    (ViTMAEForPreTraining, VitMaeForPreTraining, AutoModelForPreTraining),
]
LABELS = {0: "cat", 1: "dog", 2: "emu"}
both_ways = pytest.mark.parametrize(("their_kind", "our_kind", "auto"), PAIRS)


def our_model(kind: type[VitMaePreTrainedModel], **fields: Any) -> Any:
    """A model whose every weight is random; positions are fixed unless said otherwise."""
    model = kind(tiny_config(layer_norm_eps=1e-5, **fields))
    stir(model)
    return model.eval()


POOLERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "tanh": {},
    "narrow": {"pooler_output_size": 24, "pooler_act": "gelu"},
}
with_and_without_pooler = pytest.mark.parametrize("pooler", POOLERS.values(), ids=POOLERS)


def results(model: Any, pixel_values: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Output, loss where there is one, and the gradients of all parts under their own names."""
    model.zero_grad()
    has_decoder = hasattr(model, "decoder")
    if has_decoder:
        output = model(pixel_values, noise=noise)
        values = {"logits": output.logits, "loss": output.loss}
    elif hasattr(model, "classifier"):
        output = model(pixel_values, labels=torch.tensor([1, 0, 2]))
        values = {"logits": output.logits, "loss": output.loss}
    else:
        tokens = model(pixel_values).last_hidden_state
        values = {"tokens": tokens, "loss": tokens.square().mean()}
    values["loss"].backward()
    gradients = {
        common_name(name): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not (has_decoder and "pos" in name)  # theirs are frozen
    }
    assert len(gradients) > 30
    return values | gradients


def common_name(name: str) -> str:
    """Their name of a parameter as ours, without the table of the package."""
    name = name.replace("decoder.decoder_", "decoder.")
    name = name.replace("decoder.norm.", "decoder.layernorm.")
    return name.replace("decoder.pred.", "decoder.predict.")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@both_ways
def test_read_computes_the_same(
    their_kind: type[PreTrainedModel], our_kind: Any, auto: Any, attention: str, tmp_path: Path
) -> None:
    theirs = their_model(their_kind, num_labels=3)
    theirs.save_pretrained(tmp_path)
    converted = read(str(tmp_path))
    ours: Any = build(converted)
    assert converted.kind is our_kind and type(ours) is our_kind
    assert converted.said[0].startswith("opened a transformers vit")
    assert_equal_results(ours, theirs, attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@both_ways
def test_written_computes_the_same(
    their_kind: type[PreTrainedModel], our_kind: Any, auto: Any, attention: str, tmp_path: Path
) -> None:
    ours = our_model(our_kind, position_embedding="learned", id2label=LABELS, norm_pix_loss=True)
    assert write(ours, None, tmp_path) == []
    theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is their_kind
    assert {key.split(".")[0] for key in report["missing_keys"]} <= {"pooler"}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_equal_results(ours, theirs.eval(), attention)


def assert_equal_results(ours: Any, theirs: Any, attention: str) -> None:
    for model in (ours, theirs):
        model.set_attn_implementation(attention)
    inputs = random_images(ours.config), random_noise(ours.config)
    expected, got = results(theirs, *inputs), results(ours, *inputs)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@both_ways
def test_ours_there_and_back_is_the_same_bytes(
    their_kind: Any, our_kind: Any, auto: Any, positions: str, dtype: Any, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"mask_ratio": 0.5} if our_kind is VitMaeForPreTraining else {}
    ours = our_model(our_kind, position_embedding=positions, hidden_act="relu", **fields).to(dtype)
    write(ours, VitMaeImageProcessor.for_model(ours.config), tmp_path)
    converted = read(str(tmp_path))
    assert converted.kind is our_kind and converted.config.dtype == dtype
    assert_same_bytes(converted.weights, ours.state_dict())
    changed = {
        name: value
        for name, value in ours.config.to_dict().items()
        if converted.config.to_dict().get(name) != value
    }
    assert changed.keys() <= {"dtype", "architectures", "image_mean", "image_std"} | (
        set() if our_kind is VitMaeForPreTraining else set(decoder_fields(ours.config))
    )


@with_and_without_pooler
def test_theirs_here_and_back_keeps_the_pooler(
    pooler: dict[str, Any] | None, tmp_path: Path
) -> None:
    theirs = their_model(ViTModel, **(pooler or {}))
    if pooler is None:
        theirs.pooler = None
    save_with_old_names(theirs, tmp_path / "theirs")
    converted = read(str(tmp_path / "theirs"))
    assert ("pooler.dense.weight" in converted.weights) == (pooler is not None)
    assert len(converted.said) == 1
    assert write(build(converted), None, tmp_path / "back") == []
    before, after = (tmp_path / name for name in ("theirs", "back"))
    names = ("model.safetensors", "config.json")
    assert_same_bytes(load_file(after / names[0]), load_file(before / names[0]))
    assert json.loads((after / names[1]).read_text()) == json.loads((before / names[1]).read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@with_and_without_pooler
def test_ours_there_and_back_keeps_the_pooler(
    pooler: dict[str, Any] | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    fields = None if pooler is None else {"pooler_output_size": 32} | pooler
    ours = our_model(VitMaeModel, position_embedding="learned", **(fields or {})).to(dtype)
    assert write(ours, None, tmp_path) == []
    converted = read(str(tmp_path))
    assert converted.kind is VitMaeModel
    assert_same_bytes(converted.weights, ours.state_dict())
    names = ("pooler_output_size", "pooler_act")
    assert all(getattr(converted.config, n) == getattr(ours.config, n) for n in names)
    theirs, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is ViTModel and not report["unexpected_keys"]
    assert ("pooler.dense.weight" in report["missing_keys"]) == (pooler is None)
    if pooler is not None and dtype == torch.float32:
        pixel_values = random_images(ours.config)
        expected, got = ours(pixel_values).pooler_output, theirs(pixel_values).pooler_output
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def decoder_fields(config: VitMaeConfig) -> list[str]:
    return [name for name in config.to_dict() if name.startswith("decoder_")]


@both_ways
def test_theirs_here_and_back_is_the_same_file(
    their_kind: Any, our_kind: Any, auto: Any, tmp_path: Path
) -> None:
    labels = {"num_labels": 3} if their_kind is ViTForImageClassification else {}
    theirs = their_model(their_kind, **labels)
    if their_kind is ViTMAEForPreTraining:
        fix_positions(theirs)
    save_with_old_names(theirs, tmp_path / "theirs")
    write(build(read(str(tmp_path / "theirs"))), None, tmp_path / "back")
    names = [tmp_path / folder / "model.safetensors" for folder in ("theirs", "back")]
    assert_same_bytes(load_file(names[1]), load_file(names[0]))
    before, after = (json.loads((name.parent / "config.json").read_text()) for name in names)
    assert after == before


def assert_same_bytes(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def test_labels_and_processor_travel_both_ways(tmp_path: Path) -> None:
    theirs = their_model(ViTForImageClassification, id2label=LABELS)
    theirs.save_pretrained(tmp_path)
    options = {"size": {"height": 16, "width": 16}, "resample": 3, "rescale_factor": 0.01}
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    write_processor(tmp_path, do_normalize=True, **options, **statistics)
    converted = read(str(tmp_path))
    assert converted.config.id2label == LABELS
    assert converted.config.image_mean == [0.1, 0.2, 0.3]
    write(build(converted), converted.processor, tmp_path / "back")
    back = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    stored = {name: back[name] for name in (*options, *statistics)}
    assert stored == options | statistics and back["do_normalize"] is True
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "back")
    assert again.config.id2label == LABELS and again.config.label2id["emu"] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"do_center_crop": False},
        {"do_center_crop": True, "crop_pct": 0.8},
        {"do_center_crop": False, "do_normalize": False, "rescale_factor": 1 / 127.5},
    ],
)
def test_the_written_processor_makes_the_same_pixels(
    options: dict[str, Any], tmp_path: Path
) -> None:
    ours = VitMaeImageProcessor(size=16, patch_size=4, **options)
    written, lines = their_processor(ours)
    assert lines == []
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    theirs: Any = AutoImageProcessor.from_pretrained(tmp_path)
    assert "hf_vitmae" not in type(theirs).__module__
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
    expected = ours(picture, return_tensors="pt")["pixel_values"]
    got = theirs(picture, return_tensors="pt")["pixel_values"]
    step = 2 * (expected.amax() - expected.amin()) / 255  # two values of 8 bits
    torch.testing.assert_close(got, expected, rtol=0, atol=step.item())
    back = our_processor(written, VitMaeConfig(image_size=16, patch_size=4))
    assert back.to_dict() == ours.to_dict()


def test_a_crop_that_theirs_do_not_make_is_said() -> None:
    written, lines = their_processor(VitMaeImageProcessor(size=(16, 32), do_center_crop=True))
    assert written["image_processor_type"] == "ViTImageProcessor"
    assert lines == ["the centre crop to 16x32: pictures are stretched instead"]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"size": 32}, {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
        (
            {
                "size": {"height": 40, "width": 40},
                "crop_size": {"height": 32, "width": 32},
                "do_center_crop": True,
            },
            {"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_pct": 0.8},
        ),
        ({"size": {"shortest_edge": 32}, "resample": 3}, {"resample": 3}),
        ({"size": 32, "image_mean": [0.1] * 3}, {"image_mean": [0.1] * 3, "resample": 2}),
    ],
)
def test_old_and_new_processor_files_are_understood(
    stored: dict[str, Any], expected: dict[str, Any]
) -> None:
    processor = our_processor(stored, VitMaeConfig(image_size=32, patch_size=4))
    assert {name: getattr(processor, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("size", "is_stretched"),
    [(20, True), ({"height": 20, "width": 20}, True), ({"shortest_edge": 20}, False)],
)
def test_a_stretch_before_a_crop_is_said(size: Any, is_stretched: bool, tmp_path: Path) -> None:
    their_model(ViTModel).save_pretrained(tmp_path)
    write_processor(tmp_path, size=size, crop_size=16, do_center_crop=True)
    converted = read(str(tmp_path))
    assert ("stretched" in converted.said[-1]) == is_stretched
    assert (converted.processor.crop_pct, converted.processor.size["height"]) == (0.8, 16)


@pytest.mark.parametrize(
    ("kind", "fields", "what"),
    [
        (VitMaeForImageClassification, {"pooling": "mean"}, '`pooling` "mean"'),
        (
            VitMaeModel,
            {"pooling": "mean", "pooler_output_size": 8},
            'pooler after `pooling` "mean"',
        ),
        (VitMaeModel, {"layer_scale_init_value": 0.1}, "`layer_scale_init_value`"),
        (VitMaeModel, {"is_causal": True, "mask_ratio": 0.0, "pooling": "mean"}, "`is_causal`"),
        (VitMaeForPreTraining, {"image_size": (16, 32)}, "that is no square"),
        (VitMaeForPreTraining, {"patch_size": (4, 8)}, "that is no square"),
        (VitMaeForSemanticSegmentation, {}, "no counterpart of VitMaeForSemanticSegmentation"),
        (
            VitMaeModel,
            {"stem_depths": (1,), "stem_width": 8, "stem_num_groups": 4},
            "`stem_depths`",
        ),
    ],
)
def test_what_theirs_cannot_express_is_refused(
    kind: Any, fields: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        write(kind(tiny_config(**fields)), None, tmp_path / "out")
    assert what in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_any_shape_is_written(tmp_path: Path) -> None:
    ours = our_model(VitMaeModel, pooling="mean", drop_path_rate=0.1, **RECTANGULAR)
    lines = write(ours, None, tmp_path)
    assert [line.split()[0] for line in lines] == ["`drop_path_rate`,", "`pooling`"]
    theirs = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
    pixel_values = random_images(ours.config)
    with torch.no_grad():
        expected = theirs(pixel_values).last_hidden_state
        torch.testing.assert_close(ours(pixel_values).last_hidden_state, expected)
    assert read(str(tmp_path)).config.position_embedding == "sincos"


def test_our_own_and_absent_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json in"):
        read(str(tmp_path))
    our_model(VitMaeModel).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a model of this package already"):
        read(str(tmp_path))


class Hybrid(nn.Module):
    """What transformers' ViT-Hybrid computed: BiT's map, projected, through its ViT."""

    def __init__(self, bit: BitBackbone, vit: ViTForImageClassification) -> None:
        super().__init__()
        self.bit, self.classifier = bit, vit
        self.projection = nn.Conv2d(bit.num_features[-1], 32, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_labels)."""
        vit = self.classifier.vit
        patches = self.projection(self.bit(pixel_values).feature_maps[-1])
        patches = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        cls = vit.embeddings.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([cls, patches], dim=1) + vit.embeddings.position_embeddings
        for layer in vit.layers:
            tokens = layer(tokens)
        return self.classifier.classifier(vit.layernorm(tokens)[:, 0])


def save_hybrid(folder: Path, **backbone_fields: Any) -> Hybrid:
    """A folder as transformers 4 saved it, and the model."""
    backbone: dict[str, Any] = {
        "embedding_size": 8,
        "hidden_sizes": [32, 64],
        "depths": [2, 1],
        "num_groups": 4,
        "layer_type": "bottleneck",
        "global_padding": "same",
        "embedding_dynamic_padding": True,
        "out_features": ["stage2"],
    }
    bit = BitBackbone(BitConfig(**backbone))
    vit = their_model(ViTForImageClassification, id2label=LABELS, image_size=32, patch_size=8)
    hybrid = Hybrid(bit, vit).eval()
    stir(bit)
    prefix = "vit.embeddings.patch_embeddings"
    weights = {old_name(name): value for name, value in vit.state_dict().items()}
    weights = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    weights |= {f"{prefix}.backbone.{name}": value for name, value in bit.state_dict().items()}
    weights |= {f"{prefix}.projection.{n}": v for n, v in hybrid.projection.state_dict().items()}
    folder.mkdir(exist_ok=True)
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    config = vit.config.to_dict() | {"model_type": "vit-hybrid", "patch_size": 1}
    config["backbone_config"] = backbone | {"model_type": "bit"} | backbone_fields
    config["id2label"] = {str(index): label for index, label in LABELS.items()}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return hybrid


def test_the_former_hybrid_computes_the_same(tmp_path: Path) -> None:
    theirs = save_hybrid(tmp_path)
    converted = read(str(tmp_path))
    ours: Any = build(converted)
    assert converted.kind is VitMaeForImageClassification and ours.config.id2label == LABELS
    assert list(ours.config.stem_depths) == [2, 1] and ours.config.patch_size == 8
    pixel_values = random_images(ours.config)
    with torch.no_grad():
        expected = theirs(pixel_values)
        torch.testing.assert_close(ours(pixel_values).logits, expected, rtol=1e-5, atol=1e-5)


def test_another_stem_than_the_hybrids_is_refused(tmp_path: Path) -> None:
    save_hybrid(tmp_path, layer_type="preactivation")
    with pytest.raises(ValueError, match="`layer_type` .* 'preactivation'; only 'bottleneck'"):
        read(str(tmp_path))


def test_a_hybrid_without_weights_or_with_damaged_ones_is_refused(tmp_path: Path) -> None:
    save_hybrid(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read") as caught:
        read(str(tmp_path))
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ValueError, match=r"There is no model\.safetensors in"):
        read(str(tmp_path))
