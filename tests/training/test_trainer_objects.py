"""Our objects in transformers' `Trainer`: what they do there is what they do in our own loop."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_vitmae import VitMaeConfig, VitMaeForImageClassification, VitMaeForPreTraining
from hf_vitmae.data.augmentation.augmented import train_transform
from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.augmentation.mixing import Mixing, MixingCollator
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.order import Stream, place_of, random_stream
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.tasks.finetune import FinetuneRecipe, make_targets
from hf_vitmae.training import trainer as trainer_module
from hf_vitmae.training.metrics import compute_metrics, top_k_accuracy
from hf_vitmae.training.optim import OptimConfig, build_optimizer
from hf_vitmae.training.trainer import MixingTrainer, PictureCallback, ReconstructionCallback
from hf_vitmae.visualize import attention_panel

NUM_CLASSES, NUM_IMAGES = 4, 12
LAYER_WISE = OptimConfig(base_lr=0.05, layer_decay=0.5)
MIXED = AugmentConfig(mixup=0.8, cutmix=1.0)
QUIET: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "remove_unused_columns": False,
}


def make_config(**fields: Any) -> VitMaeConfig:
    sizes: dict[str, Any] = {
        "image_size": (8, 16),
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "num_labels": NUM_CLASSES,
    }
    return VitMaeConfig(**(sizes | fields))


def make_model(kind: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(make_config())


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(NUM_IMAGES, 3, 8, 16, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(NUM_IMAGES) % NUM_CLASSES}


def make_dataset(*columns: str) -> Any:
    """The images of `make_batch`, with these of its columns."""
    batch = make_batch()
    values = {name: batch[name].tolist() for name in columns}
    return Dataset.from_dict(values).with_format("torch")


def model_of(trainer: Trainer) -> Any:
    assert trainer.model is not None
    return trainer.model


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


# Mixing: the Trainer's collator and our own path


@pytest.mark.parametrize("config", [MIXED, AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_the_collator_makes_of_a_draw_what_our_loop_makes_of_it(
    config: AugmentConfig, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collator = MixingCollator(Mixing(config, NUM_CLASSES, 0.1))
    in_our_loop = make_targets(
        FinetuneRecipe(steps=1, augment=config, label_smoothing=0.1), NUM_CLASSES
    )
    make_generator = np.random.default_rng  # both draw from the same one now, whatever its seed
    monkeypatch.setattr(np.random, "default_rng", lambda *_: make_generator(seed))
    theirs = collator(list(make_dataset("pixel_values", "labels")))
    ours = in_our_loop(make_batch())
    assert torch.equal(theirs["pixel_values"], ours["pixel_values"])
    assert torch.equal(theirs["labels"], ours["labels"])
    assert torch.allclose(ours["labels"].sum(dim=1), torch.ones(NUM_IMAGES))
    assert (ours["labels"] >= 0.1 / NUM_CLASSES - 1e-7).all()
    assert not torch.equal(ours["pixel_values"], make_batch()["pixel_values"])


@pytest.mark.parametrize("seed", range(6))
def test_the_share_of_a_label_is_the_pasted_area_exactly(seed: int) -> None:
    """Counted in the pixels that came out, not taken from what was drawn."""
    images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 8, 16)  # image i is all i
    samples = [{"pixel_values": image, "labels": i} for i, image in enumerate(images)]
    batch = MixingCollator(Mixing(AugmentConfig(cutmix=1.0), 3), seed)(samples)
    for number, (pixels, target) in enumerate(
        zip(batch["pixel_values"], batch["labels"], strict=True)
    ):
        shares = [(pixels == other).float().mean().item() for other in range(3)]
        assert target.tolist() == pytest.approx(shares, abs=1e-6)
        assert shares[(number + 2) % 3] == 0 and sum(shares) == pytest.approx(1)


def test_smoothing_without_mixing_is_that_of_our_loop() -> None:
    recipe = FinetuneRecipe(steps=1, label_smoothing=0.2)
    ours = make_targets(recipe, NUM_CLASSES)(make_batch())
    collator = MixingCollator(Mixing(AugmentConfig(), NUM_CLASSES, 0.2))
    theirs = collator(list(make_dataset("pixel_values", "labels")))
    torch.testing.assert_close(theirs["labels"], ours["labels"], rtol=0, atol=1e-7)
    assert theirs["labels"][0].tolist() == pytest.approx([0.85, 0.05, 0.05, 0.05])
    assert torch.equal(theirs["pixel_values"], make_batch()["pixel_values"])


def test_erased_boxes_in_a_trainers_data_set_are_those_of_our_loader(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 256, (12, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    files = sorted(map(str, tmp_path.glob("*.png")))
    source = ImageSource.from_dataset(Dataset.from_dict({"image": files}), "pictures")
    erase = AugmentConfig(crop_scale=(1.0, 1.0), horizontal_flip=0.0, erasing=0.7)
    transform = train_transform(erase, (12, 20), 3, (0.5,) * 3, (0.5,) * 3)
    batch = next(train_batches(source, transform, seed=7, batch_size=6))

    def of_a_trainer(slot: int) -> Tensor:
        """The image at a place of the order, as the transform of a user's data set makes it."""
        place = place_of(slot, 7, len(files))
        draw = random_stream(Stream.TRAIN, 7, place.epoch, place.slot)
        draw.random(0, dtype=np.float32)
        return transform.read(Path(files[place.index]).read_bytes(), draw, files[place.index])

    plain = train_transform(
        AugmentConfig(crop_scale=(1.0, 1.0), horizontal_flip=0.0), (12, 20), 3, 0.5, 0.5
    )
    changed = 0
    for slot, ours in enumerate(batch["pixel_values"]):
        assert torch.equal(of_a_trainer(slot), ours)
        file = files[place_of(slot, 7, len(files)).index]
        untouched = plain.read(Path(file).read_bytes(), np.random.default_rng(0), file)
        changed += not torch.equal(untouched, ours)
    assert 0 < changed < 6


# The example, and what a run of it promises


def example_code() -> str:
    """The fine-tuning example of the module, as it is written there."""
    (code,) = re.findall(
        r"Fine-tuning a classifier:\n\n(.*?)\n\nPretraining", trainer_module.__doc__ or "", re.S
    )
    return re.sub(r"^    ", "", code, flags=re.MULTILINE)


def test_the_example_of_the_module_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is left open is set: a short quiet run on a CPU. The rest is run as it is written.
    start: Callable = TrainingArguments.__init__
    monkeypatch.setattr(
        TrainingArguments,
        "__init__",
        lambda self, *a, **k: start(self, *a, **(k | QUIET | {"num_train_epochs": 2})),
    )
    dataset = make_dataset("pixel_values", "labels")
    names: dict[str, Any] = {
        "model": make_model(VitMaeForImageClassification),
        "folder": str(tmp_path),
        "num_classes": NUM_CLASSES,
        "train_dataset": dataset,
        "eval_dataset": dataset,
    }
    exec(example_code(), names)
    trainer = names["trainer"]
    trainer.train()
    accuracies = [log["eval_accuracy"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(accuracies) == 2 and trainer.state.best_metric == max(accuracies)
    lrs = {group["lr_scale"] for group in trainer.optimizer.param_groups}
    assert sorted(lrs) == pytest.approx([0.65**3, 0.65**2, 0.65, 1.0])


class Snapshot(TrainerCallback):
    """The weights that training starts from, and the learning rates of every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights = weights_of(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])


def make_classifier_trainer(folder: Path, seed: int = 0, **arguments: Any) -> MixingTrainer:
    """Four steps of three images with all objects in use, saved and evaluated at every second."""
    model = make_model(VitMaeForImageClassification, seed)
    options: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "max_steps": 4,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "lr_scheduler_type": "linear",
        "warmup_steps": 1,
        "seed": 0,
    }
    dataset = make_dataset("pixel_values", "labels")
    return MixingTrainer(
        model,
        TrainingArguments(str(folder), **(QUIET | options | arguments)),
        data_collator=MixingCollator(Mixing(MIXED, NUM_CLASSES, 0.1), seed=5),
        train_dataset=dataset,
        eval_dataset=dataset,
        compute_metrics=compute_metrics,
        optimizers=(build_optimizer(model, LAYER_WISE, effective_batch=256), None),  # type: ignore
    )


def make_pretraining_trainer(
    folder: Path, seed: int = 0, *, draws: bool = True, **arguments: Any
) -> Trainer:
    """Four steps of a masked autoencoder with pictures."""
    model = make_model(VitMaeForPreTraining, seed)
    options: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "max_steps": 4,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "seed": 0,
    }
    dataset = make_dataset("pixel_values")
    processor = VitMaeImageProcessor.for_model(model.config)
    pictures = [Image.new("RGB", (20, 12), color) for color in ("red", "olive")]
    return Trainer(
        model,
        TrainingArguments(str(folder), **(QUIET | options | arguments)),
        train_dataset=dataset,
        eval_dataset=dataset,
        optimizers=(build_optimizer(model, LAYER_WISE, effective_batch=256), None),  # type: ignore
        callbacks=[ReconstructionCallback(pictures, processor)] if draws else [],
    )


@pytest.mark.parametrize("make_trainer", [make_classifier_trainer, make_pretraining_trainer])
def test_with_them_in_use_resuming_restores_every_tensor_and_ends_alike(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    unbroken = make_trainer(tmp_path)
    unbroken.train()
    checkpoint = tmp_path / "checkpoint-2"
    saved = load_file(checkpoint / "model.safetensors")
    resumed, snapshot = make_trainer(tmp_path, seed=1), Snapshot()
    resumed.add_callback(snapshot)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_equal(snapshot.weights, saved)
    ended = weights_of(model_of(unbroken))
    assert_equal(weights_of(model_of(resumed)), ended)
    assert any(not torch.equal(saved[name], value) for name, value in ended.items())


class FirstIsBest(TrainerCallback):
    """Adds a metric that falls from evaluation to evaluation."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_turn"] = -state.global_step


@pytest.mark.parametrize("make_trainer", [make_classifier_trainer, make_pretraining_trainer])
def test_with_them_in_use_the_best_model_comes_back_with_every_tensor(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "turn"}
    trainer = make_trainer(tmp_path, greater_is_better=True, **best)
    trainer.add_callback(FirstIsBest())
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint or "").name == "checkpoint-2"
    first, last = (
        load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4)
    )
    assert_equal(weights_of(model_of(trainer)), first)
    assert any(not torch.equal(first[name], value) for name, value in last.items())


def test_every_layer_has_its_learning_rate_on_the_trainers_schedule(tmp_path: Path) -> None:
    trainer, snapshot = make_classifier_trainer(tmp_path, save_strategy="no"), Snapshot()
    trainer.add_callback(snapshot)
    trainer.train()
    scales = [group["lr_scale"] for group in trainer.optimizer.param_groups]  # type: ignore
    assert set(scales) == {0.5**3, 0.5**2, 0.5, 1.0}
    schedule = (0.0, 1.0, 2 / 3, 1 / 3)  # a step of warm-up, then down to 0 at the end
    for rates, factor in zip(snapshot.rates, schedule, strict=True):
        assert rates == pytest.approx([0.05 * factor * scale for scale in scales])


def test_images_are_mixed_in_training_and_nowhere_else(tmp_path: Path) -> None:
    trainer, seen = make_classifier_trainer(tmp_path, save_strategy="no"), []
    model = model_of(trainer)
    model.register_forward_pre_hook(
        lambda module, _, inputs: seen.append((module.training, inputs["labels"])),
        with_kwargs=True,
    )
    batch = make_batch()
    found: Any = trainer.predict(make_dataset("pixel_values", "labels"))
    assert np.array_equal(found.label_ids, batch["labels"])
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    np.testing.assert_allclose(found.predictions, logits, atol=1e-5)
    accuracy = top_k_accuracy(logits.numpy(), batch["labels"].numpy(), 1)
    assert trainer.evaluate()["eval_accuracy"] == found.metrics["test_accuracy"] == accuracy
    trainer.train()
    assert {labels.ndim for training, labels in seen if training} == {2}
    assert {labels.ndim for training, labels in seen if not training} == {1}
    assert isinstance(trainer.data_collator, MixingCollator)


def test_without_a_mixing_collator_it_is_the_trainer(tmp_path: Path) -> None:
    dataset, losses = make_dataset("pixel_values", "labels"), []
    for kind in (Trainer, MixingTrainer):
        arguments = TrainingArguments(str(tmp_path), **QUIET)
        model = make_model(VitMaeForImageClassification)
        losses.append(kind(model, arguments, eval_dataset=dataset).evaluate()["eval_loss"])
    assert losses[0] == losses[1]


# Pictures


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_every_evaluation_leaves_a_picture_and_training_does_not_notice(tmp_path: Path) -> None:
    drawing = make_pretraining_trainer(tmp_path / "a")
    drawing.train()
    blind = make_pretraining_trainer(tmp_path / "b", draws=False)
    blind.train()
    assert_equal(weights_of(model_of(drawing)), weights_of(model_of(blind)))
    losses = [
        [log["loss"] for log in trainer.state.log_history if "loss" in log]
        for trainer in (drawing, blind)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    pictures = sorted((tmp_path / "a" / "samples").iterdir())
    names = [path.name for path in pictures]
    assert names == ["reconstruction-00000002.png", "reconstruction-00000004.png"]
    first, second = map(pixels_of, pictures)
    assert first.shape == second.shape and first.shape[1] > 300
    assert not np.array_equal(first, second)  # the model has learned meanwhile
    drawing.evaluate()  # the same model once more hides the same patches
    assert np.array_equal(pixels_of(pictures[1]), second)
    assert not (tmp_path / "a" / "runs").exists()


def test_pictures_go_to_tensorboard_where_the_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trainer = make_pretraining_trainer(tmp_path, report_to=["tensorboard"], save_strategy="no")
    trainer.train()
    logs = event_accumulator.EventAccumulator(str(tmp_path / "runs" / "samples")).Reload()
    events = logs.Images("reconstruction")
    assert [event.step for event in events] == [2, 4]
    drawn = pixels_of(tmp_path / "samples" / "reconstruction-00000004.png")
    assert (events[1].height, events[1].width) == drawn.shape[:2]


def test_any_panel_can_be_drawn_and_training_does_not_notice(tmp_path: Path) -> None:
    panel = partial(attention_panel, images=[Image.effect_noise((20, 12), 90).convert("RGB")])
    drawing = make_pretraining_trainer(tmp_path / "a", draws=False, save_strategy="no")
    drawing.add_callback(PictureCallback(panel, "attention"))
    drawing.train()
    blind = make_pretraining_trainer(tmp_path / "b", draws=False, save_strategy="no")
    blind.train()
    assert_equal(weights_of(model_of(drawing)), weights_of(model_of(blind)))
    first, second = sorted((tmp_path / "a" / "samples").iterdir())
    assert (first.name, second.name) == ("attention-00000002.png", "attention-00000004.png")
    expected = panel(model_of(drawing))
    assert np.array_equal(pixels_of(second), np.asarray(expected))


def test_a_model_held_in_parts_is_not_drawn(tmp_path: Path) -> None:
    trainer = make_pretraining_trainer(tmp_path, save_strategy="no")
    trainer.args.deepspeed = "config.json"  # as the callback sees it
    (callback,) = (
        c for c in trainer.callback_handler.callbacks if isinstance(c, ReconstructionCallback)
    )
    callback.on_evaluate(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert not (tmp_path / "samples").exists()


def test_a_model_without_decoder_is_refused_in_one_line(tmp_path: Path) -> None:
    trainer = make_classifier_trainer(tmp_path)
    trainer.add_callback(ReconstructionCallback([Image.new("RGB", (16, 8))]))
    with pytest.raises(ValueError, match="has no decoder and cannot reconstruct"):
        trainer.evaluate()
