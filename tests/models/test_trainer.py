"""transformers' Trainer trains, evaluates and resumes the models as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaePreTrainedModel,
)

from .family import TRAINABLE
from .tiny import tiny_config


class Snapshot(TrainerCallback):
    """Keeps the weights that training starts from."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights = weights_of(kwargs["model"])


def weights_of(model: torch.nn.Module | None) -> dict[str, Tensor]:
    assert model is not None
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def image_dataset(kind: type[VitMaePreTrainedModel]) -> Dataset:
    """Eight images, turned into tensors on access; labelled where the class needs it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    columns: dict[str, Any] = {"image": images.tolist()}
    if kind is VitMaeForImageClassification:
        columns["labels"] = [i % 3 for i in range(8)]
    if kind is VitMaeForSemanticSegmentation:  # light places are one class, dark ones another
        columns["labels"] = (images.float().mean(dim=1) > 127).long().tolist()

    def to_tensors(batch: dict[str, list]) -> dict[str, list]:
        pixels = [torch.tensor(image).float() / 127.5 - 1 for image in batch["image"]]
        return {"pixel_values": pixels} | {k: v for k, v in batch.items() if k != "image"}

    return Dataset.from_dict(columns).with_transform(to_tensors)


def make_trainer(
    kind: type[VitMaePreTrainedModel],
    folder: Path,
    seed: int = 0,
    position_embedding: str = "sincos",
    **arguments: Any,
) -> Trainer:
    """Four steps, a checkpoint after each second one."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "remove_unused_columns": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    dataset = image_dataset(kind)
    return Trainer(
        kind(tiny_config(num_labels=3, position_embedding=position_embedding)),
        TrainingArguments(**(options | arguments)),
        train_dataset=dataset,
        eval_dataset=dataset,
    )


@pytest.mark.parametrize("kind", TRAINABLE, ids=lambda kind: kind.__name__)
def test_training_lowers_the_loss_that_evaluation_reports(
    kind: type[VitMaePreTrainedModel], tmp_path: Path
) -> None:
    trainer = make_trainer(kind, tmp_path, save_strategy="no", max_steps=10)
    before = trainer.evaluate()["eval_loss"]
    result = trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert result.training_loss > 0
    assert after < 0.95 * before
    assert trainer.evaluate()["eval_loss"] == after  # evaluation masks are fixed


def test_prediction_returns_one_row_for_each_image(tmp_path: Path) -> None:
    trainer = make_trainer(VitMaeForPreTraining, tmp_path)
    dataset: Any = image_dataset(VitMaeForPreTraining)
    output: Any = trainer.predict(dataset)
    assert output.predictions.shape == (8, 16, 48)
    assert "test_loss" in output.metrics


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
@pytest.mark.parametrize("kind", TRAINABLE, ids=lambda kind: kind.__name__)
def test_resuming_restores_every_tensor_and_ends_where_an_unbroken_run_does(
    kind: type[VitMaePreTrainedModel], position_embedding: str, tmp_path: Path
) -> None:
    unbroken = make_trainer(kind, tmp_path, 0, position_embedding)
    unbroken.train()
    checkpoint = tmp_path / "checkpoint-2"
    saved = load_file(checkpoint / "model.safetensors")

    resumed, snapshot = make_trainer(kind, tmp_path, 1, position_embedding), Snapshot()
    resumed.add_callback(snapshot)
    fresh = weights_of(resumed.model)
    assert any(not torch.equal(fresh[name], value) for name, value in saved.items())
    resumed.train(resume_from_checkpoint=str(checkpoint))

    assert_equal(snapshot.weights, saved)
    assert_equal(weights_of(resumed.model), weights_of(unbroken.model))


def test_the_best_model_is_loaded_at_the_end_with_every_tensor(tmp_path: Path) -> None:
    trainer = make_trainer(
        VitMaeForPreTraining,
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first, since the loss falls: not the one in memory at the end
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None and best.endswith("checkpoint-1")
    assert_equal(weights_of(trainer.model), load_file(Path(best) / "model.safetensors"))


@pytest.mark.parametrize("kind", TRAINABLE, ids=lambda kind: kind.__name__)
def test_two_accumulated_halves_are_one_batch(
    kind: type[VitMaePreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every image hides the same patches, so that both ways see the same problem.
    monkeypatch.setattr(
        torch, "rand", lambda *size, **_: torch.linspace(0, 1, size[-1]).expand(size)
    )
    fields = {"max_steps": 2, "save_strategy": "no", "optim": "sgd", "max_grad_norm": 0.0}
    whole = make_trainer(kind, tmp_path, **fields, per_device_train_batch_size=4)
    halves = make_trainer(
        kind, tmp_path, **fields, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    assert not whole.model_accepts_loss_kwargs
    start = weights_of(whole.model)
    assert_equal(weights_of(halves.model), start)
    whole.train()
    halves.train()
    got, expected = weights_of(halves.model), weights_of(whole.model)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-4
