"""Losses, by hand and through the models."""

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.losses import classification_loss, masked_pixel_loss, pixel_targets
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining

from .tiny import random_images, tiny_config

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -2.0]])


def test_pixel_loss_is_the_mean_over_hidden_patches() -> None:
    logits = torch.zeros(2, 3, 4)
    targets = torch.tensor([1.0, 2.0, 3.0])[None, :, None].expand(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert masked_pixel_loss(logits, targets, mask).item() == pytest.approx((1 + 9 + 9) / 3)
    assert masked_pixel_loss(logits, targets, torch.zeros_like(mask)).item() == 0.0


def test_normalised_targets_have_mean_zero_and_unbiased_variance_one() -> None:
    pixel_values = random_images(tiny_config()).double() * 50 + 20
    targets = pixel_targets(pixel_values, (4, 4), normalize=True)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.mean(dim=-1), torch.zeros(3, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(targets.var(dim=-1), torch.ones(3, 16), rtol=0, atol=1e-4)


def test_a_flat_patch_has_finite_normalised_targets() -> None:
    assert torch.isfinite(pixel_targets(torch.ones(1, 3, 8, 8), (4, 4), normalize=True)).all()


def log_softmax_by_hand(logits: Tensor) -> Tensor:
    return (logits.exp() / logits.exp().sum(dim=1, keepdim=True)).log()


def test_integer_labels_are_classes() -> None:
    log = log_softmax_by_hand(LOGITS)
    loss = classification_loss(LOGITS, torch.tensor([2, 0]), None)
    assert loss.item() == pytest.approx(-(log[0, 2] + log[1, 0]).item() / 2, abs=1e-6)


def test_floating_point_labels_are_distributions() -> None:
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]])
    expected = -(targets * log_softmax_by_hand(LOGITS)).sum().item() / 2
    assert classification_loss(LOGITS, targets, None).item() == pytest.approx(expected, abs=1e-6)
    rounded = classification_loss(LOGITS.bfloat16(), targets.bfloat16(), None)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(expected, rel=0.02)


def test_one_hot_distributions_are_classes() -> None:
    labels = torch.tensor([2, 0])
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(
        classification_loss(LOGITS, one_hot, None), classification_loss(LOGITS, labels, None)
    )


def test_multi_label_is_a_yes_or_no_for_each_class() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    yes = LOGITS.sigmoid()
    expected = -torch.where(labels.bool(), yes.log(), (1 - yes).log()).mean().item()
    loss = classification_loss(LOGITS, labels, "multi_label_classification")
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("labels", [torch.tensor([1.5, -1.0]), torch.tensor([[1.5], [-1.0]])])
@pytest.mark.parametrize("problem_type", ["regression", None])
def test_one_output_is_a_regression(labels: Tensor, problem_type: str | None) -> None:
    loss = classification_loss(torch.tensor([[1.0], [0.0]]), labels, problem_type)
    assert loss.item() == pytest.approx((0.25 + 1.0) / 2)


def test_regression_of_several_values() -> None:
    loss = classification_loss(LOGITS, LOGITS + 2.0, "regression")
    assert loss.item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"num_labels": 4}, torch.tensor([3, 0, 1])),
        ({"num_labels": 4}, torch.full((3, 4), 0.25)),
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, torch.ones(3, 4)),
        ({"num_labels": 4, "problem_type": "regression"}, torch.ones(3, 4)),
        ({"num_labels": 1}, torch.ones(3)),
    ],
)
def test_the_classifier_trains_on_each_kind_of_label(fields: dict, labels: Tensor) -> None:
    model = VitMaeForImageClassification(tiny_config(**fields))
    output = model(random_images(model.config), labels=labels)
    assert output.logits.shape == (3, fields["num_labels"])
    expected = classification_loss(output.logits, labels, fields.get("problem_type"))
    assert torch.equal(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_losses_come_only_when_they_can_and_should() -> None:
    pixel_values = random_images(tiny_config())
    assert VitMaeForImageClassification(tiny_config())(pixel_values).loss is None
    assert VitMaeForPreTraining(tiny_config())(pixel_values, return_loss=False).loss is None
