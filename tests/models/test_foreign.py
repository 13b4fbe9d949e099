"""`from_pretrained` of our classes on checkpoints of transformers' own models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    SwinConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)
from transformers.utils import logging

from hf_vitmae.models.embeddings import sincos_positions
from hf_vitmae.models.foreign import rename_starts
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
)

from .tiny import random_images, random_noise
from .transformers_models import fix_positions, save_with_old_names, their_model, write_processor


def opened(kind: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    return kind.from_pretrained(folder, output_loading_info=True, **options)


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_pooler", [True, False])
def test_vit_model_opens_as_our_encoder(with_pooler: bool, tmp_path: Path) -> None:
    theirs = their_model(ViTModel)
    if not with_pooler:
        theirs.pooler = None
    theirs.save_pretrained(tmp_path)
    ours, report = opened(VitMaeModel, tmp_path)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    parts = "with its pooler" if with_pooler else "alone"
    assert report["adaptations"] == [f"opened a transformers vit checkpoint of an encoder {parts}"]
    assert ours.config.position_embedding == "learned" and not ours.training
    assert ours.name_or_path == ours.config._name_or_path == str(tmp_path)
    pixel_values = random_images(ours.config)
    with torch.no_grad():
        expected = theirs(pixel_values).last_hidden_state
        assert_same(ours(pixel_values).last_hidden_state, expected)


@pytest.mark.parametrize("old_names", [True, False])
def test_vit_classifier_opens_with_its_labels(old_names: bool, tmp_path: Path) -> None:
    labels = {0: "cat", 1: "dog", 2: "emu"}
    theirs = their_model(ViTForImageClassification, id2label=labels, qkv_bias=False)
    if old_names:
        save_with_old_names(theirs, tmp_path)
        assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(
            tmp_path / "model.safetensors"
        )
    else:
        theirs.save_pretrained(tmp_path, save_original_format=False)
    ours, report = opened(VitMaeForImageClassification, tmp_path)
    assert not report["missing_keys"]
    assert report["adaptations"] == [
        "opened a transformers vit checkpoint with a classifier of 3 classes"
    ]
    assert ours.config.id2label == labels and ours.config.label2id["emu"] == 2
    pixel_values = random_images(ours.config)
    with torch.no_grad():
        assert_same(ours(pixel_values).logits, theirs(pixel_values).logits)


@pytest.mark.parametrize("is_fixed", [True, False])
@pytest.mark.parametrize("old_names", [True, False])
def test_vit_mae_opens_with_its_decoder(old_names: bool, is_fixed: bool, tmp_path: Path) -> None:
    theirs = their_model(ViTMAEForPreTraining, mask_ratio=0.5, norm_pix_loss=True)
    if is_fixed:
        fix_positions(theirs)
    save_with_old_names(theirs, tmp_path) if old_names else theirs.save_pretrained(tmp_path)
    ours, report = opened(VitMaeForPreTraining, tmp_path)
    assert not report["missing_keys"]
    assert report["adaptations"] == ["opened a transformers vit_mae checkpoint with decoder"]
    assert ours.config.position_embedding == ("sincos" if is_fixed else "learned")
    assert (ours.config.mask_ratio, ours.config.norm_pix_loss) == (0.5, True)
    pixel_values, noise = random_images(ours.config), random_noise(ours.config)
    with torch.no_grad():
        expected, got = theirs(pixel_values, noise=noise), ours(pixel_values, noise=noise)
    assert_same(got.logits, expected.logits)
    assert_same(got.loss, expected.loss)


def test_one_moved_table_makes_all_positions_learned(tmp_path: Path) -> None:
    theirs = their_model(ViTMAEForPreTraining)
    fix_positions(theirs)
    with torch.no_grad():
        theirs.decoder.decoder_pos_embed[0, -1, -1] += 1e-4
    theirs.save_pretrained(tmp_path)
    assert VitMaeForPreTraining.from_pretrained(tmp_path).config.position_embedding == "learned"


@pytest.mark.parametrize(
    ("source", "kind", "fresh"),
    [
        (ViTMAEModel, VitMaeForPreTraining, "decoder"),
        (ViTModel, VitMaeForPreTraining, "decoder"),
        (ViTMAEForPreTraining, VitMaeForImageClassification, "classifier"),
        (ViTForMaskedImageModeling, VitMaeForPreTraining, "decoder"),
        (ViTForImageClassification, VitMaeForSemanticSegmentation, "segmentation_head"),
        (ViTMAEForPreTraining, VitMaeModel, None),
    ],
)
def test_what_a_checkpoint_lacks_starts_afresh_and_is_reported(
    source: type[PreTrainedModel], kind: Any, fresh: str | None, tmp_path: Path
) -> None:
    theirs = their_model(source)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, report = opened(kind, tmp_path)
    expected = {name for name in ours.state_dict() if name.split(".")[0] == fresh}
    assert set(report["missing_keys"]) == expected and not report["unexpected_keys"]
    encoder, their_encoder = getattr(ours, "vit", ours), getattr(theirs, "vit", theirs)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, their_encoder.state_dict()[name]), name
    assert all(value.isfinite().all() for value in ours.state_dict().values())
    said = " ".join(report["adaptations"])
    assert ("convolution" in said) == (source is ViTForMaskedImageModeling)


@pytest.mark.parametrize(
    "source", [DeiTForImageClassification, DeiTForImageClassificationWithTeacher]
)
def test_deit_opens_without_its_distillation_token(
    source: type[PreTrainedModel], tmp_path: Path
) -> None:
    theirs = their_model(source, num_labels=3)
    theirs.save_pretrained(tmp_path)
    ours, report = opened(VitMaeForImageClassification, tmp_path)
    has_teacher = source is DeiTForImageClassificationWithTeacher
    assert ["distillation token" in line for line in report["adaptations"]][1:] == [True] * (
        1 + has_teacher
    )
    assert not report["missing_keys"]
    pixel_values = random_images(ours.config)
    with torch.no_grad():
        tokens = theirs.deit.embeddings(pixel_values)
        tokens = torch.cat([tokens[:, :1], tokens[:, 2:]], dim=1)
        for layer in theirs.deit.layers:
            tokens = layer(tokens)
        classifier = theirs.cls_classifier if has_teacher else theirs.classifier
        expected = classifier(theirs.deit.layernorm(tokens)[:, 0])
        assert_same(ours(pixel_values).logits, expected)


def test_geometry_precision_and_fields_may_be_asked_for(tmp_path: Path) -> None:
    theirs = their_model(ViTForImageClassification, num_labels=3)
    theirs.save_pretrained(tmp_path)
    ours, report = opened(
        VitMaeForImageClassification,
        tmp_path,
        image_size=(24, 8),
        num_channels=1,
        dtype=torch.bfloat16,
        attn_implementation="eager",
        drop_path_rate=0.1,
    )
    assert report["adaptations"][0].startswith("opened a transformers vit checkpoint")
    assert report["adaptations"][1:] == [
        "position table 4x4 -> 6x2 patches (learned, bicubic in two dimensions)",
        "patch projection 3 -> 1 channels (summed)",
    ]
    assert {value.dtype for value in ours.state_dict().values()} == {torch.bfloat16}
    assert ours.config._attn_implementation == "eager" and ours.config.drop_path_rate == 0.1
    assert ours(random_images(ours.config)).logits.shape == (3, 3)


def test_a_fixed_table_is_recomputed_for_another_size(tmp_path: Path) -> None:
    theirs = their_model(ViTMAEForPreTraining)
    fix_positions(theirs)
    theirs.save_pretrained(tmp_path)
    ours = VitMaeForPreTraining.from_pretrained(tmp_path, image_size=(24, 8))
    table = ours.vit.embeddings.position_embeddings
    assert torch.equal(table, sincos_positions((6, 2), 32)) and not table.requires_grad


def test_a_config_of_the_caller_decides(tmp_path: Path) -> None:
    their_model(ViTMAEForPreTraining).save_pretrained(tmp_path)
    config = VitMaeForPreTraining.from_pretrained(tmp_path).config
    config = config.with_fields(image_size=24, id2label={0: "a"}, label2id={"a": 0})
    ours = VitMaeForImageClassification.from_pretrained(tmp_path, config=config)
    assert (ours.config.image_pair, ours.config.num_labels) == ((24, 24), 1)
    config.save_pretrained(tmp_path / "config")
    ours = VitMaeForImageClassification.from_pretrained(tmp_path, config=tmp_path / "config")
    assert (ours.config.image_pair, ours.config.num_labels) == ((24, 24), 1)


def test_another_number_of_labels_makes_a_new_classifier_when_allowed(tmp_path: Path) -> None:
    their_model(ViTForImageClassification, num_labels=3).save_pretrained(tmp_path)
    ours, report = opened(
        VitMaeForImageClassification, tmp_path, num_labels=5, ignore_mismatched_sizes=True
    )
    assert ours.classifier.weight.shape == (5, 32)
    assert {key for key, *_ in report["mismatched_keys"]} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_stored_precision_and_statistics_travel(tmp_path: Path) -> None:
    their_model(ViTModel).to(torch.float16).save_pretrained(tmp_path)
    write_processor(tmp_path, image_mean=[0.4, 0.5, 0.6], image_std=[0.1, 0.2, 0.3])
    ours = VitMaeModel.from_pretrained(tmp_path)
    assert ours.dtype == torch.float16
    told: Any = VitMaeModel.from_pretrained(tmp_path, dtype="auto")
    assert told.dtype == told.config.dtype == torch.float16
    assert ours.config.image_mean == [0.4, 0.5, 0.6] and ours.config.image_std == [0.1, 0.2, 0.3]
    one = VitMaeModel.from_pretrained(tmp_path, num_channels=1, image_mean=0.5, image_std=0.5)
    assert one.config.image_mean == 0.5


def test_saved_again_it_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    their_model(ViTModel).save_pretrained(tmp_path / "theirs")
    first = VitMaeModel.from_pretrained(tmp_path / "theirs")
    first.save_pretrained(tmp_path / "ours")
    again, report = opened(AutoModel, tmp_path / "ours")
    assert type(again) is VitMaeModel and "adaptations" not in report
    for name, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_only_what_was_done_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    their_model(ViTModel).save_pretrained(tmp_path)  # transformers would report two parts of it
    logging.enable_propagation()
    level = logging.get_verbosity()
    logging.set_verbosity_warning()
    shown = logging.get_verbosity()
    try:
        caplog.clear()
        lines = opened(VitMaeBackbone, tmp_path)[1]["adaptations"]
        said = [record.getMessage() for record in caplog.records]
        assert logging.get_verbosity() == shown
    finally:
        logging.disable_propagation()
        logging.set_verbosity(level)
    assert len(lines) == 2 and said == [f"VitMaeBackbone from {tmp_path}: {line}" for line in lines]


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    SwinConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is a `swin` model; .* opens vit, vit_mae, deit"
    ) as caught:
        VitMaeModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "lacks 1 weights of ViTMAEForPreTraining, `vit.layernorm.weight` the first"),
        ("part of a part", "lacks 1 weights of .*, `decoder.mask_token` the first"),
        ("surplus", "has 1 weights that its model_type does not have, `vit.gate` the first"),
        ("shape", r"`decoder.mask_token` .* is \(1, 1, 7\) where .* says \(1, 1, 16\)"),
    ],
)
def test_a_damaged_checkpoint_is_refused(change: str, message: str, tmp_path: Path) -> None:
    save_with_old_names(their_model(ViTMAEForPreTraining), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if change == "missing":
        del weights["vit.layernorm.weight"]
    elif change == "part of a part":
        del weights["decoder.mask_token"]
    else:
        name = "vit.gate" if change == "surplus" else "decoder.mask_token"
        weights[name] = torch.zeros(1, 1, 7)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message) as caught:
        VitMaeForPreTraining.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_architectures_opens_with_all_it_has(tmp_path: Path) -> None:
    their_model(ViTMAEForPreTraining).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not opened(VitMaeForPreTraining, tmp_path)[1]["missing_keys"]


def test_names_are_replaced_at_their_beginning_only() -> None:
    one = torch.zeros(1)
    renamed = rename_starts({"a.b.a.c": one, "b.a.c": one}, [("a.", "x.")])
    assert list(renamed) == ["x.b.a.c", "b.a.c"]
