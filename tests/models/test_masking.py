"""Masks: how many patches are hidden, from what, and that nothing hidden is seen."""

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.masking import fixed_noise, num_visible_patches, order_from_noise, patch_mask
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining, VitMaeModel

from .tiny import RECTANGULAR, random_images, random_noise, tiny_config


@pytest.fixture
def model() -> VitMaeForPreTraining:
    """Grid of 4 x 3 patches of 4 x 8 pixels, in evaluation mode."""
    return VitMaeForPreTraining(tiny_config(**RECTANGULAR)).eval()


def unequal_mask() -> Tensor:
    """Three images that hide 3, 7 and 0 of their 12 patches: bool (3, 12)."""
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[0, [0, 5, 11]] = True
    mask[1, 2:9] = True
    return mask


@pytest.mark.parametrize(("num_patches", "ratio"), [(196, 0.75), (12, 0.6), (7, 0.5), (10, 0.9)])
def test_visible_patches_are_rounded_as_in_the_paper(num_patches: int, ratio: float) -> None:
    noise = torch.rand(5, num_patches)
    order = order_from_noise(noise, ratio)
    num_visible = int(num_patches * (1 - ratio))
    assert order.num_visible == num_visible == num_visible_patches(num_patches, ratio)
    assert (order.mask.sum(dim=1) == num_patches - num_visible).all()
    lowest_hidden = noise.masked_fill(~order.mask, 2.0).min(dim=1).values
    highest_visible = noise.masked_fill(order.mask, -1.0).max(dim=1).values
    assert (highest_visible < lowest_hidden).all()


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 75])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"`mask_ratio` .* got {ratio}"):
        num_visible_patches(16, ratio)


def test_fixed_noise_differs_between_patches_and_not_between_calls() -> None:
    noise = fixed_noise(196)
    assert torch.equal(noise, fixed_noise(196))
    assert noise.unique().numel() == 196
    assert noise.min() >= 0 and noise.max() < 1
    assert abs(noise.mean().item() - 0.5) < 0.05


def test_ratio_zero_gives_the_ordered_features_of_the_plain_encoder(
    model: VitMaeForPreTraining,
) -> None:
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    hidden = model.vit(pixel_values, noise=noise, mask_ratio=0.0)
    assert not hidden.mask.any()
    plain = model.vit(pixel_values)
    assert plain.mask is None and plain.ids_restore is None
    assert torch.equal(hidden.last_hidden_state, plain.last_hidden_state)
    output = model.train()(pixel_values, mask_ratio=0)
    assert output.loss.item() == 0.0
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_noise_and_the_mask_that_it_gives_are_the_same_request(model: VitMaeForPreTraining) -> None:
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    by_noise = model(pixel_values, noise=noise)
    by_mask = model(pixel_values, mask=by_noise.mask)
    assert torch.equal(by_mask.mask, by_noise.mask)
    torch.testing.assert_close(by_mask.logits, by_noise.logits, rtol=1e-5, atol=1e-6)


def test_ids_restore_is_the_place_of_each_patch(model: VitMaeForPreTraining) -> None:
    noise = random_noise(model.config)
    output = model(random_images(model.config), noise=noise)
    ranks = torch.stack([(row[None] < row[:, None]).sum(dim=1) for row in noise])
    assert torch.equal(output.ids_restore, ranks)


def test_any_hidden_pixel_hides_its_patch() -> None:
    pixels = torch.zeros(2, 16, 24, dtype=torch.bool)
    pixels[0, 4, 7] = True  # patch row 1, column 0
    pixels[1, 15, 16:] = True  # patch row 3, column 2
    mask = patch_mask(pixels, (4, 3), (4, 8))
    assert mask.nonzero().tolist() == [[0, 3], [1, 11]]


def test_a_pixel_mask_acts_as_its_patch_mask(model: VitMaeForPreTraining) -> None:
    pixel_values, mask = random_images(model.config), unequal_mask()
    pixels = mask.reshape(3, 4, 3).repeat_interleave(4, dim=1).repeat_interleave(8, dim=2)
    assert torch.equal(
        model(pixel_values, mask=pixels).logits, model(pixel_values, mask=mask).logits
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("with_attentions", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_unequal_masks_treat_each_image_as_if_it_were_alone(
    attention: str, with_attentions: bool, pooling: str
) -> None:
    model = VitMaeForPreTraining(tiny_config(**RECTANGULAR, pooling=pooling)).eval()
    model.set_attn_implementation(attention)
    pixel_values, mask = random_images(model.config), unequal_mask()
    asked = {"mask": mask, "output_attentions": with_attentions}
    batch, encoded = model(pixel_values, **asked), model.vit(pixel_values, **asked)
    for i in range(3):
        one = slice(i, i + 1)
        alone = model(pixel_values[one], mask=mask[one])
        torch.testing.assert_close(batch.logits[one], alone.logits, rtol=1e-5, atol=1e-6)
        alone = model.vit(pixel_values[one], mask=mask[one])
        length = alone.last_hidden_state.shape[1]
        torch.testing.assert_close(
            encoded.last_hidden_state[one, :length], alone.last_hidden_state, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            encoded.pooler_output[one], alone.pooler_output, rtol=1e-5, atol=1e-6
        )


def test_attentions_of_unequal_masks_need_no_mask_of_the_implementation(
    model: VitMaeForPreTraining,
) -> None:
    asked = {"mask": unequal_mask(), "output_attentions": True}
    pixel_values = random_images(model.config)
    model.set_attn_implementation("eager")
    expected = model.vit(pixel_values, **asked)
    model.set_attn_implementation("flex_attention")  # its masks are objects that eager cannot read
    got = model.vit(pixel_values, **asked)
    torch.testing.assert_close(got.attentions, expected.attentions)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_pixels_never_reach_encoder_or_prediction(attention: str) -> None:
    model = VitMaeForPreTraining(tiny_config(**RECTANGULAR)).eval()
    model.set_attn_implementation(attention)
    pixel_values, mask = random_images(model.config), unequal_mask()
    pixels = mask.reshape(3, 1, 4, 3).repeat_interleave(4, dim=2).repeat_interleave(8, dim=3)
    spoilt = pixel_values.masked_fill(pixels, torch.nan)
    assert torch.equal(
        model(spoilt, mask=mask, return_loss=False).logits, model(pixel_values, mask=mask).logits
    )
    assert torch.equal(
        model.vit(spoilt, mask=mask).last_hidden_state,
        model.vit(pixel_values, mask=mask).last_hidden_state,
    )


def test_evaluation_is_repeatable_and_independent_of_the_batch(model: VitMaeForPreTraining) -> None:
    pixel_values = random_images(model.config)
    first, second = model(pixel_values), model(pixel_values)
    assert torch.equal(first.logits, second.logits) and torch.equal(first.loss, second.loss)
    alone = model(pixel_values[1:2])
    assert torch.equal(alone.mask, first.mask[1:2])
    torch.testing.assert_close(alone.logits, first.logits[1:2], rtol=1e-5, atol=1e-6)


def test_training_draws_masks_unless_the_noise_is_given(model: VitMaeForPreTraining) -> None:
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    model.train()
    first = model(pixel_values)
    assert not torch.equal(first.mask, model(pixel_values).mask)
    assert not torch.equal(first.mask[0], first.mask[1])  # each image has its own
    fixed = [model(pixel_values, noise=noise) for _ in range(2)]
    assert torch.equal(fixed[0].logits, fixed[1].logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"mask": torch.zeros(2, 12)},
            r"must be boolean .* got torch.float32; use `mask.bool\(\)`",
        ),
        ({"mask": torch.zeros(2, 11, dtype=torch.bool)}, r"\(batch, 12\) .* got \(2, 11\)"),
        ({"mask": torch.zeros(2, 24, 16, dtype=torch.bool)}, r"got \(2, 24, 16\)"),
        ({"mask": torch.zeros(1, 12, dtype=torch.bool)}, "one row for each of the 2 images"),
        ({"noise": torch.rand(2, 11)}, r"`noise` must be \(2, 12\).* got \(2, 11\)"),
        ({"noise": torch.rand(1, 12)}, r"`noise` must be \(2, 12\).* got \(1, 12\)"),
        ({"mask_ratio": 1.0}, "`mask_ratio` must be .* below 1, got 1.0"),
        (
            {"mask": torch.zeros(2, 12, dtype=torch.bool), "noise": torch.rand(2, 12)},
            "either `mask`, or `noise`",
        ),
        (
            {"mask": torch.zeros(2, 12, dtype=torch.bool), "mask_ratio": 0.5},
            "either `mask`, or `noise`",
        ),
    ],
)
@pytest.mark.parametrize("with_decoder", [True, False])
def test_masks_that_do_not_fit_are_refused(
    model: VitMaeForPreTraining, arguments: dict, message: str, with_decoder: bool
) -> None:
    called: VitMaeForPreTraining | VitMaeModel = model if with_decoder else model.vit
    with pytest.raises(ValueError, match=message):
        called(torch.zeros(2, 3, 16, 24), **arguments)
