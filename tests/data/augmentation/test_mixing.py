"""Mixup and cutmix: pixels and labels mixed by the same share, drawn from the generator alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments, default_data_collator

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.augmentation.mixing import Mix, Mixing, MixingCollator
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification
from hf_vitmae.training.trainer import MixingTrainer

BOTH = AugmentConfig(mixup=0.8, cutmix=1.0)
MIXUP, CUTMIX = AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make_batch(size: int = 5, shape: tuple[int, int] = (12, 10), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size, 3, *shape), generator=generator, dtype=torch.uint8)
    return {"pixel_values": pixels.to(dtype), "labels": torch.arange(size) % 4}


def following(values: Tensor) -> Tensor:
    """Of each image the next one of the batch, of the last the first."""
    return torch.cat([values[1:], values[:1]])


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_mixup_blends_pixels_and_labels_by_the_drawn_share(size, seed):
    batch, mixing = make_batch(size), Mixing(MIXUP, 4)
    mix = mixing.draw(12, 10, rng(seed))
    assert mix.box is None and 0 < mix.kept < 1
    mixed = mixing(batch, rng(seed))
    images, labels = batch["pixel_values"], torch.eye(4)[batch["labels"]]
    blended = mix.kept * images + (1 - mix.kept) * following(images)
    assert torch.allclose(mixed["pixel_values"], blended, atol=1e-9)
    expected = mix.kept * labels + (1 - mix.kept) * following(labels)
    assert torch.allclose(mixed["labels"], expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", range(8))
def test_cutmix_takes_a_box_and_as_much_of_the_label_as_its_true_area(size, seed):
    batch, mixing = make_batch(size), Mixing(CUTMIX, 4)
    mixed = mixing(batch, rng(seed))
    images, labels = batch["pixel_values"], torch.eye(4).double()[batch["labels"]]
    box = mixing.draw(12, 10, rng(seed)).box
    assert box is not None
    top, left, height, width = box
    is_inside = torch.zeros(12, 10, dtype=torch.bool)
    is_inside[top : top + height, left : left + width] = True
    assert is_inside.sum() == height * width  # the box lies in the image
    expected = torch.where(is_inside, following(images), images)
    assert torch.equal(mixed["pixel_values"], expected)
    share = is_inside.double().mean()
    expected = (1 - share) * labels + share * following(labels)
    assert torch.allclose(mixed["labels"].double(), expected, atol=1e-6)


@pytest.mark.parametrize("config", [BOTH, MIXUP, CUTMIX, AugmentConfig()])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_are_distributions(config, smoothing):
    mixing, batch = Mixing(config, 7, smoothing), make_batch()
    for seed in range(20):
        labels = mixing(batch, rng(seed))["labels"]
        assert labels.shape == (5, 7) and labels.dtype == torch.float32
        assert torch.allclose(labels.sum(dim=1), torch.ones(5))
        assert labels.min() >= smoothing / 7 - 1e-7


def test_label_smoothing_spreads_its_share_over_all_classes():
    labels = Mixing(AugmentConfig(), 4, 0.2)(make_batch(1), rng())["labels"]
    assert labels[0].tolist() == pytest.approx([0.85, 0.05, 0.05, 0.05])


def test_without_mixing_images_are_as_they_were():
    batch = make_batch(dtype=torch.uint8)
    mixed = Mixing(AugmentConfig(), 4)(batch, rng())
    assert mixed["pixel_values"] is batch["pixel_values"]
    assert torch.equal(mixed["labels"], torch.eye(4)[batch["labels"]])


def test_a_batch_of_one_keeps_its_image_and_label():
    for dtype in (torch.uint8, torch.float32):
        batch = make_batch(1, dtype=dtype)
        for seed in range(20):
            mixed = Mixing(BOTH, 4)(batch, rng(seed))
            assert torch.equal(mixed["pixel_values"], batch["pixel_values"])
            assert torch.allclose(mixed["labels"], torch.eye(4)[:1])


def test_uint8_is_rounded_to_the_nearest_value():
    images = torch.tensor([10, 13, 250], dtype=torch.uint8)[:, None, None, None]
    mixed = Mix(0.75).of_images(images)
    assert mixed.dtype == torch.uint8
    assert mixed.flatten().tolist() == [11, 72, 190]  # 10.75, 72.25, 190.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [MIXUP, CUTMIX])
def test_dtype_stays_and_the_batch_given_is_not_changed(dtype, config):
    batch = {**make_batch(dtype=dtype), "noise": torch.rand(5, 9)}
    before = {name: values.clone() for name, values in batch.items()}
    mixed = Mixing(config, 4)(batch, rng(1))
    assert mixed["pixel_values"].dtype == dtype and mixed["noise"] is batch["noise"]
    assert not torch.equal(mixed["pixel_values"], batch["pixel_values"])
    assert all(torch.equal(values, before[name]) for name, values in batch.items())


def test_the_generator_alone_decides_what_is_drawn():
    mixing, batch = Mixing(BOTH, 4), make_batch()
    torch.manual_seed(0)
    results = [mixing(batch, rng(seed)) for seed in (1, 1, 2)]
    torch.manual_seed(1)
    results.append(mixing(batch, rng(1)))
    for name in ("pixel_values", "labels"):
        assert torch.equal(results[0][name], results[1][name])
        assert torch.equal(results[0][name], results[3][name])
        assert not torch.equal(results[0][name], results[2][name])


def draws(config: AugmentConfig, count: int = 2000) -> list[Mix]:
    generator = rng()
    return [Mixing(config, 4).draw(224, 224, generator) for _ in range(count)]


def test_shares_follow_their_beta_distribution():
    for alpha in (0.2, 0.8, 3.0):
        kept = np.array([mix.kept for mix in draws(AugmentConfig(mixup=alpha))])
        assert kept.mean() == pytest.approx(0.5, abs=0.03)
        assert kept.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_boxes_have_any_size_and_any_place():
    mixes = draws(CUTMIX)
    boxes = np.array([mix.box for mix in mixes])
    assert boxes[:, :2].min() == 0 and (boxes[:, :2] + boxes[:, 2:]).max() == 224
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    assert centres.mean(axis=0) == pytest.approx([112, 112], abs=5)
    assert boxes[:, 2].min() < 15 and boxes[:, 2].max() > 200
    kept = np.array([mix.kept for mix in mixes])
    # Before clipping uniform shares, of mean 0.5; what is cut off makes boxes smaller.
    assert 0.6 < kept.mean() < 0.72
    untouched = (boxes[:, :2] > 0).all(axis=1) & ((boxes[:, :2] + boxes[:, 2:]) < 224).all(axis=1)
    ratios = boxes[untouched, 2] / boxes[untouched, 3]
    assert ratios.size > 300 and ratios.min() == ratios.max() == 1  # of the image's shape


def test_one_of_both_by_their_share():
    assert all(mix.box is None and mix.kept < 1 for mix in draws(MIXUP, 200))
    assert all(mix.box is not None for mix in draws(CUTMIX, 200))
    for share in (0.5, 0.2):
        config = AugmentConfig(mixup=0.8, cutmix=1.0, cutmix_share=share)
        found = np.mean([mix.box is not None for mix in draws(config)])
        assert found == pytest.approx(share, abs=0.045)


def test_as_many_batches_are_mixed_as_asked_for():
    config = AugmentConfig(mixup=0.8, cutmix=1.0, mixing_probability=0.3)
    assert np.mean([mix != Mix() for mix in draws(config)]) == pytest.approx(0.3, abs=0.04)


def test_alphas_are_their_own():
    """Mixup of a small alpha keeps nearly all or nothing; cutmix is not touched by that."""
    mixes = draws(AugmentConfig(mixup=0.01, cutmix=50.0))
    blends = np.array([mix.kept for mix in mixes if mix.box is None])
    assert (np.minimum(blends, 1 - blends) < 0.01).mean() > 0.9
    sides = np.array([mix.box[2] for mix in mixes if mix.box is not None])
    assert 120 < np.quantile(sides, 0.9) < 180  # a side of the square root of a half


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (None, "none"),
        (torch.zeros(5, 12, 10, dtype=torch.int64), r"torch.int64 of shape \(5, 12, 10\)"),
        (torch.zeros(5), r"torch.float32 of shape \(5,\)"),
    ],
)
def test_labels_that_cannot_be_mixed_are_refused_in_one_line(labels, found):
    batch = {"pixel_values": make_batch()["pixel_values"]}
    if labels is not None:
        batch["labels"] = labels
    with pytest.raises(ValueError, match=f"not {found}; set augment.mixup") as error:
        Mixing(BOTH, 4)(batch, rng())
    assert "\n" not in str(error.value)


def test_label_smoothing_of_one_is_refused():
    with pytest.raises(ValueError, match="label_smoothing must be .* not 1.0"):
        Mixing(BOTH, 4, 1.0)


def samples_of(batch: dict[str, Tensor]) -> list[dict[str, Any]]:
    pairs = zip(batch["pixel_values"], batch["labels"].tolist(), strict=True)
    return [{"pixel_values": pixels, "label": label} for pixels, label in pairs]


def test_the_collator_draws_by_seed_and_batch():
    samples = samples_of(make_batch(6, (32, 40), torch.float32))
    collate, other_seed = MixingCollator(Mixing(BOTH, 4)), MixingCollator(Mixing(BOTH, 4), seed=1)
    batch = collate(samples)
    assert batch["pixel_values"].shape == (6, 3, 32, 40) and batch["labels"].shape == (6, 4)
    assert torch.equal(collate(samples)["pixel_values"], batch["pixel_values"])
    assert torch.equal(collate(samples)["labels"], batch["labels"])
    assert not torch.equal(other_seed(samples)["pixel_values"], batch["pixel_values"])
    soft = [collate(samples[:4])["labels"], collate(samples[2:])["labels"]]
    assert soft[0].max(dim=1).values[0] != soft[1].max(dim=1).values[0]
    brighter = [{**sample, "pixel_values": sample["pixel_values"] + 1} for sample in samples]
    assert not torch.equal(collate(brighter)["labels"], batch["labels"])
    relabelled = [{**sample, "label": 3 - sample["label"]} for sample in samples]
    assert not torch.equal(collate(relabelled)["pixel_values"], batch["pixel_values"])


def make_trainer(folder: Path, collator: Any) -> MixingTrainer:
    torch.manual_seed(0)
    config = VitMaeConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config.num_labels = 4
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    batch = make_batch(8, (16, 16), torch.float32)
    columns = {name: values.tolist() for name, values in batch.items()}
    dataset = Dataset.from_dict(columns).with_format("torch")
    return MixingTrainer(
        VitMaeForImageClassification(config),
        TrainingArguments(**options),
        data_collator=collator,
        train_dataset=dataset,
        eval_dataset=dataset,
    )


def weights_of(trainer: Trainer) -> Tensor:
    assert trainer.model is not None
    return torch.cat([values.detach().flatten() for values in trainer.model.parameters()])


def test_trainer_mixes_in_training_alone_and_resumes_exactly(tmp_path: Path):
    collator = MixingCollator(Mixing(BOTH, 4, 0.1))
    plain = make_trainer(tmp_path / "plain", default_data_collator)
    loss = Trainer.evaluate(make_trainer(tmp_path / "mixed", collator))["eval_loss"]
    plain.get_eval_dataloader = lambda *_: Trainer.get_eval_dataloader(plain)  # type: ignore
    assert plain.evaluate()["eval_loss"] == loss

    unbroken = make_trainer(tmp_path / "mixed", collator)
    unbroken.train()
    plain.train()
    assert not torch.equal(weights_of(unbroken), weights_of(plain))
    resumed = make_trainer(tmp_path / "mixed", collator)
    resumed.train(resume_from_checkpoint=str(tmp_path / "mixed" / "checkpoint-2"))
    assert torch.equal(weights_of(resumed), weights_of(unbroken))
