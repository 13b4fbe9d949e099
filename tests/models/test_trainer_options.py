"""Options of transformers' Trainer that people reach for, each against what it promises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaePreTrainedModel,
)
from hf_vitmae.training.metrics import compute_metrics

from .family import TRAINABLE
from .tiny import random_images, tiny_config

NUM_IMAGES = 32


def labelled_images(kind: type[VitMaePreTrainedModel]) -> list[dict[str, Any]]:
    """Images, and what the class learns of them: 8 classes, or light and dark places."""
    images = random_images(tiny_config(), batch=NUM_IMAGES)
    if kind is VitMaeForImageClassification:
        return [{"pixel_values": x, "labels": i % 8} for i, x in enumerate(images)]
    if kind is VitMaeForSemanticSegmentation:
        return [{"pixel_values": x, "labels": (x.mean(dim=0) > 0).long()} for x in images]
    return [{"pixel_values": x} for x in images]


def make_trainer(
    kind: type[VitMaePreTrainedModel], folder: Path, metrics: Any = None, **arguments: Any
) -> Trainer:
    """Two steps of plain gradient descent, from the same weights each time."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": NUM_IMAGES,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    dataset: Any = labelled_images(kind)
    return Trainer(
        kind(tiny_config(num_labels=8)),
        TrainingArguments(**(options | arguments)),
        train_dataset=dataset,
        eval_dataset=dataset,
        compute_metrics=metrics,
    )


def model_of(trainer: Trainer) -> VitMaePreTrainedModel:
    assert isinstance(trainer.model, VitMaePreTrainedModel)
    return trainer.model


def train(trainer: Trainer) -> tuple[list[float], dict[str, Tensor]]:
    """The logged losses, and the weights at the end."""
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: value.clone() for name, value in model_of(trainer).state_dict().items()}


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image hides the same patches, so that any batches see the same problem."""
    monkeypatch.setattr(
        torch, "rand", lambda *size, **_: torch.linspace(0, 1, size[-1]).expand(size)
    )


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("kind", TRAINABLE, ids=lambda kind: kind.__name__)
def test_four_times_eight_images_are_once_thirty_two(
    kind: type[VitMaePreTrainedModel], tmp_path: Path
) -> None:
    losses, weights = train(make_trainer(kind, tmp_path))
    parts = make_trainer(
        kind, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4
    )
    start = {name: value.clone() for name, value in model_of(parts).state_dict().items()}
    parts_losses, parts_weights = train(parts)
    assert len(losses) == 2 and losses[0] != losses[1]
    assert parts_losses == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(parts_weights, weights, rtol=0, atol=1e-6)
    assert max((weights[name] - start[name]).abs().max() for name in start) > 1e-4


def test_label_smoothing_is_that_of_cross_entropy(tmp_path: Path) -> None:
    trainer = make_trainer(
        VitMaeForImageClassification, tmp_path, label_smoothing_factor=0.1, learning_rate=0.01
    )
    pixel_values, labels = random_images(tiny_config()), torch.tensor([5, 0, 7])
    model = model_of(trainer)
    loss = trainer.compute_loss(model, {"pixel_values": pixel_values, "labels": labels})
    logits = model(pixel_values).logits
    smooth = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, smooth)
    assert abs(smooth - functional.cross_entropy(logits, labels)) > 1e-3
    losses, _ = train(trainer)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("with_states", [False, True])
def test_compute_metrics_sees_all_logits(with_states: bool, tmp_path: Path) -> None:
    trainer = make_trainer(
        VitMaeForImageClassification, tmp_path, compute_metrics, per_device_eval_batch_size=5
    )
    model = model_of(trainer)
    model.config.output_hidden_states = with_states
    found = trainer.evaluate()
    logits = model(random_images(tiny_config(), batch=NUM_IMAGES)).logits
    ranks = logits.argsort(dim=1, descending=True)  # (B, classes)
    right = ranks == (torch.arange(NUM_IMAGES) % 8)[:, None]
    assert found["eval_accuracy"] == pytest.approx(right[:, :1].sum().item() / NUM_IMAGES)
    assert found["eval_top_5_accuracy"] == pytest.approx(right[:, :5].sum().item() / NUM_IMAGES)
    assert found["eval_top_5_accuracy"] > found["eval_accuracy"]


def test_the_batch_size_is_found_by_trying(tmp_path: Path) -> None:
    trainer = make_trainer(
        VitMaeForPreTraining, tmp_path, auto_find_batch_size=True, per_device_train_batch_size=12
    )
    tried = []

    def small_memory(_: nn.Module, args: tuple, inputs: dict[str, Tensor]) -> None:
        tried.append(len(inputs["pixel_values"]))
        if tried[-1] > 10:
            raise RuntimeError("CUDA out of memory.")

    model_of(trainer).register_forward_pre_hook(small_memory, with_kwargs=True)
    losses, _ = train(trainer)
    assert tried[0] == 12 and tried == sorted(tried, reverse=True)
    assert 0 < tried[-1] <= 10 and tried[-2:] == [tried[-1]] * 2
    assert len(losses) == trainer.state.global_step == 2


@pytest.fixture
def clean_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch_compile` speaks to accelerate through the environment; nothing of it stays."""
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("clean_compiler", "same_noise")
@pytest.mark.parametrize("kind", TRAINABLE, ids=lambda kind: kind.__name__)
def test_compiled_training_takes_the_same_steps(
    kind: type[VitMaePreTrainedModel], tmp_path: Path
) -> None:
    losses, weights = train(make_trainer(kind, tmp_path))
    compiled = make_trainer(kind, tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    compiled_losses, compiled_weights = train(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled_losses == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(compiled_weights, weights, rtol=0, atol=1e-6)
