"""Losses, by hand and through the models."""

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.losses import (
    classification_loss,
    color_targets,
    masked_patch_loss,
    masked_pixel_loss,
    num_color_classes,
    num_patch_outputs,
    pixel_targets,
    unnormalized,
)
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification, VitMaeForPreTraining

from .tiny import RECTANGULAR, random_images, tiny_config

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


def test_a_color_has_three_bits_a_channel() -> None:
    values = torch.tensor([-0.1, 0.0, 0.124, 0.125, 0.5, 0.874, 0.875, 1.0, 1.2])
    assert color_targets(values[:, None])[:, 0].tolist() == [0, 0, 0, 1, 4, 6, 7, 7, 7]


def test_up_to_three_channels_make_one_class_and_more_are_separate() -> None:
    values = torch.tensor([1.0, 0.55, 0.3, 0.0, 0.9])  # 7, 4, 2, 0, 7
    classes = {channels: color_targets(values[:channels]).tolist() for channels in range(1, 6)}
    assert classes == {1: [7], 2: [60], 3: [482], 4: [7, 4, 2, 0], 5: [7, 4, 2, 0, 7]}
    counts = {channels: num_color_classes(channels) for channels in range(1, 6)}
    assert counts == {1: 8, 2: 64, 3: 512, 4: 8, 5: 8}


@pytest.mark.parametrize(
    ("target", "channels", "outputs"),
    [
        ("mean_color", 1, 8),
        ("mean_color", 3, 512),
        ("mean_color", 5, 5 * 8),
        ("colors_4x4", 1, 16 * 8),
        ("colors_4x4", 3, 16 * 512),
        ("colors_4x4", 5, 16 * 5 * 8),
        ("pixels", 3, 4 * 8 * 3),
    ],
)
def test_a_patch_has_an_output_for_each_class_of_each_color(
    target: str, channels: int, outputs: int
) -> None:
    config = tiny_config(**RECTANGULAR, num_channels=channels, patch_target=target)
    assert num_patch_outputs(config) == outputs


def test_pixels_are_unnormalised_channel_by_channel() -> None:
    pixel_values = torch.tensor([-1.0, 0.0, 2.0])[None, :, None, None].expand(1, 3, 2, 2)
    config = tiny_config(image_mean=(0.5, 0.4, 0.3), image_std=(0.1, 0.2, 0.3))
    expected = torch.tensor([0.4, 0.4, 0.9])[None, :, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(unnormalized(pixel_values, config), expected)
    config = tiny_config(image_mean=0.5, image_std=0.1)
    expected = torch.tensor([0.4, 0.5, 0.7])[None, :, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(unnormalized(pixel_values, config), expected)


def test_color_loss_is_the_mean_over_colors_then_over_corrupted_patches() -> None:
    logits, targets = torch.randn(2, 3, 4 * 8), torch.randint(8, (2, 3, 4))  # 4 colours of 8
    mask = torch.tensor([[True, False, True], [False, False, True]])
    patches = []
    for image, patch in mask.nonzero().tolist():
        log = logits[image, patch].double().reshape(4, 8).log_softmax(dim=1)
        errors = [-log[color, targets[image, patch, color]] for color in range(4)]
        patches.append(sum(errors) / 4)
    expected = float(sum(patches)) / 3
    assert masked_patch_loss(logits, targets, mask).item() == pytest.approx(expected, abs=1e-6)
    assert masked_patch_loss(logits, targets, torch.zeros_like(mask)).item() == 0.0
    half = masked_patch_loss(logits.bfloat16(), targets, mask)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(expected, rel=0.01)


def test_floating_point_patch_targets_are_pixels() -> None:
    logits, targets = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    loss = masked_patch_loss(logits, targets, mask)
    expected = (logits.double() - targets.double()).square().mean(dim=2)[mask].mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
