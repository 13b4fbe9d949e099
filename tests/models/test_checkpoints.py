"""What is on disk: names, equality after loading, files that open without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, ViTConfig, ViTModel

import hf_vitmae
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from .family import AUTO_CLASSES, CLASSES, HYBRID, OPENERS
from .tiny import RECTANGULAR, random_images, stir, tiny_config

GOLDEN = json.loads(Path(__file__).with_name("golden_parameter_names.json").read_text())


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_importing_the_package_registers_the_auto_classes(
    kind: type[VitMaePreTrainedModel],
) -> None:
    assert getattr(hf_vitmae, kind.__name__) is kind
    assert type(AutoConfig.for_model("hf_vitmae")) is hf_vitmae.VitMaeConfig
    if AUTO_CLASSES[kind] is not None:
        assert type(AUTO_CLASSES[kind].from_config(tiny_config())) is kind


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_names_in_memory_and_on_disk_are_the_golden_ones(
    kind: type[VitMaePreTrainedModel], tmp_path: Path
) -> None:
    model = kind(tiny_config(num_hidden_layers=1, decoder_num_hidden_layers=1))
    model.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert sorted(on_disk) == sorted(model.state_dict()) == GOLDEN[kind.__name__]
    scaled = kind(
        tiny_config(
            num_hidden_layers=1,
            decoder_num_hidden_layers=1,
            layer_scale_init_value=0.1,
            position_embedding="learned",
        )
    )
    assert sorted(name for name in scaled.state_dict() if "layer_scale" not in name) == sorted(
        on_disk
    )


@pytest.mark.parametrize(
    ("part", "kind", "fields"),
    [
        ("stem", VitMaeModel, HYBRID),
        ("pooler", VitMaeModel, {"pooler_output_size": 24}),
        ("multi_layer", VitMaeForSemanticSegmentation, {"segmentation_head": "multi_layer"}),
        ("pyramid", VitMaeBackbone, {"feature_pyramid": True, "patch_size": 16}),
    ],
)
def test_names_of_optional_parts_are_the_golden_ones(
    part: str, kind: type[VitMaePreTrainedModel], fields: dict[str, Any]
) -> None:
    config = tiny_config(num_hidden_layers=1)
    plain = kind(config).state_dict().keys()
    with_part = kind(tiny_config(num_hidden_layers=1, **fields)).state_dict().keys()
    assert sorted(with_part - plain) == GOLDEN[part]


def test_encoder_names_are_those_of_transformers_vit() -> None:
    config = tiny_config()
    theirs = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16)
    plain, pooled = (ViTModel(theirs, add_pooling_layer=answer) for answer in (False, True))
    assert VitMaeModel(config).state_dict().keys() == plain.state_dict().keys()
    config = config.with_fields(pooler_output_size=32)
    assert VitMaeModel(config).state_dict().keys() == pooled.state_dict().keys()


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_saved_and_loaded_is_the_same_model(
    kind: type[VitMaePreTrainedModel], position_embedding: str, tmp_path: Path
) -> None:
    config = tiny_config(
        **RECTANGULAR, position_embedding=position_embedding, layer_scale_init_value=0.1
    )
    model = kind(config).eval()
    stir(model)
    model.save_pretrained(tmp_path)
    loaded, report = OPENERS[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is kind
    assert not any(report.values())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == trained
    pixel_values = random_images(config)
    got, expected = loaded(pixel_values).to_tuple(), model(pixel_values).to_tuple()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "auto"])
def test_loading_in_another_precision(dtype: torch.dtype | str, tmp_path: Path) -> None:
    VitMaeForPreTraining(tiny_config()).bfloat16().save_pretrained(tmp_path)
    loaded = VitMaeForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}
    output = loaded(random_images(loaded.config))
    assert torch.isfinite(output.logits).all() and output.loss.dtype == torch.float32


# Run in a process of its own, from a folder that holds nothing else.
REMOTE_CODE = """
import sys
from pathlib import Path
import torch
from transformers import (AutoConfig, AutoModel, AutoModelForImageClassification,
                          AutoModelForMaskedImageModeling, AutoModelForPreTraining,
                          AutoModelForSemanticSegmentation)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder, again, values = sys.argv[1], sys.argv[2], torch.load(sys.argv[3])
trust = {"trust_remote_code": True}

def assert_fresh(table):
    distances = torch.cdist(table[0, 1:], table[0, 1:]) + torch.eye(table.shape[1] - 1) * 9
    assert distances.min() > 0.1 and table[0, 1:].norm(dim=1).min() > 0.1

model = AutoModelForPreTraining.from_pretrained(folder, **trust)
assert torch.equal(model(values["pixels"]).logits, values["logits"])
fresh = AutoModelForPreTraining.from_config(AutoConfig.from_pretrained(folder, **trust), **trust)
assert_fresh(fresh.vit.embeddings.position_embeddings)
assert_fresh(fresh.decoder.position_embeddings)
model.save_pretrained(again)
again_files = {path.name for path in Path(again).iterdir()}
assert again_files >= {path.name for path in Path(folder).iterdir()}, again_files

model = AutoModelForPreTraining.from_pretrained(again, **trust)
assert torch.equal(model(values["pixels"]).logits, values["logits"])
encoder = AutoModel.from_pretrained(again, **trust)
assert type(encoder).__name__ == "VitMaeModel"
assert torch.equal(encoder.layernorm.weight, model.vit.layernorm.weight)
classifier = AutoModelForImageClassification.from_pretrained(again, num_labels=4, **trust)
assert classifier(values["pixels"]).logits.shape == (3, 4)
maps = AutoModelForSemanticSegmentation.from_pretrained(again, num_labels=4, **trust)
assert maps(values["pixels"]).logits.shape == (3, 4, 16, 24)
assert AutoModelForMaskedImageModeling.from_pretrained(again, **trust)(values["pixels"]).loss > 0
maps.save_pretrained("maps")
for name in ("VitMaeBackbone", "VitMaeForNextPatchPrediction"):  # no Auto class opens these here
    kind = get_class_from_dynamic_module(f"modeling_vitmae.{name}", "maps")
    kind.from_pretrained("maps", image_size=(32, 24))(torch.randn(1, 3, 32, 24))
assert "hf_vitmae" not in sys.modules
"""


@pytest.mark.slow
def test_a_checkpoint_opens_without_the_package_also_after_it_is_saved_again(
    tmp_path: Path,
) -> None:
    config = tiny_config(**RECTANGULAR)
    model = VitMaeForPreTraining(config).eval()
    model.save_pretrained(tmp_path / "first")
    pixels = random_images(config)
    torch.save({"pixels": pixels, "logits": model(pixels).logits.detach()}, tmp_path / "values.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REMOTE_CODE, "first", "again", "values.pt"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
