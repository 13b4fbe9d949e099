"""PEFT's LoRA on the classifier: train with transformers' Trainer, save, load and merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining

from .tiny import random_images, tiny_config

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": ["classifier"],
}


def small_dataset(images: Tensor) -> list[dict[str, Any]]:
    return [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of pretraining: the classifier on top of it is new."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("peft") / "pretrained"
    VitMaeForPreTraining(tiny_config()).save_pretrained(folder)
    return folder


def adapted(pretrained: Path) -> PeftModel:
    torch.manual_seed(1)
    base = VitMaeForImageClassification.from_pretrained(pretrained, num_labels=3)
    model = get_peft_model(base, LoraConfig(**LORA))
    assert isinstance(model, PeftModel)
    return model


def train(model: PeftModel, folder: Path) -> None:
    """Two steps that move every adapter: its second matrix starts at zero."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        save_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    dataset: Any = small_dataset(random_images(tiny_config(), batch=8))
    Trainer(model, arguments, train_dataset=dataset).train()


def test_only_adapters_and_the_classifier_are_trained_and_saved(
    pretrained: Path, tmp_path: Path
) -> None:
    model = adapted(pretrained)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, tmp_path)
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert len([name for name in changed if ".lora_B." in name]) == 2 * 2  # q and v of both layers
    for name in changed:
        assert ".lora_" in name or ".modules_to_save." in name, name
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert len(saved) == 2 * 2 * 2 + 2
    assert {name.rsplit(".", 2)[-2] for name in saved} == {"lora_A", "lora_B", "classifier"}


def test_saved_loaded_and_merged_it_gives_the_same_logits(pretrained: Path, tmp_path: Path) -> None:
    model = adapted(pretrained)
    train(model, tmp_path / "run")
    model.eval()
    images = random_images(tiny_config(), seed=3)
    expected = model(images).logits
    with model.disable_adapter():
        assert (model(images).logits - expected).abs().max() > 1e-2

    model.save_pretrained(str(tmp_path / "adapter"))
    torch.manual_seed(2)  # the new base's classifier is another one, until the adapter's comes in
    base = VitMaeForImageClassification.from_pretrained(pretrained, num_labels=3)
    assert not torch.equal(base(images).logits, expected)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(images).logits, expected, rtol=0, atol=0)

    merged: Any = loaded.merge_and_unload()
    assert type(merged) is VitMaeForImageClassification
    assert merged.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(merged(images).logits, expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    plain, report = AutoModelForImageClassification.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(report.values())
    assert torch.equal(plain(images).logits, merged(images).logits)


@pytest.mark.skipif(
    transformers.__version__.startswith("5.17."),
    reason="load_adapter of transformers 5.17 leaves out modules_to_save, of its own ViT too",
)
def test_transformers_opens_an_adapter_by_itself(pretrained: Path, tmp_path: Path) -> None:
    model = adapted(pretrained)
    train(model, tmp_path / "run")
    model.eval().save_pretrained(str(tmp_path / "adapter"))
    images = random_images(tiny_config(), seed=3)
    base = VitMaeForImageClassification.from_pretrained(pretrained, num_labels=3)
    base.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(base(images).logits, model(images).logits, rtol=0, atol=1e-6)
