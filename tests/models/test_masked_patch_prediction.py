"""Masked patch prediction (arXiv:2010.11929, B.1.2): targets by hand, the loss written out, and
what the encoder is given.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.corruption import make_corruption
from hf_vitmae.models.losses import patch_targets
from hf_vitmae.models.modeling_vitmae import VitMaeForMaskedPatchPrediction

from .reference import State, blocks, cut, layer_norm, linear, target
from .tiny import RECTANGULAR, random_images, random_noise, stir, tiny_config

TARGETS = ["mean_color", "colors_4x4", "pixels"]
STATISTICS: list[dict[str, Any]] = [
    {},
    {"image_mean": 0.3, "image_std": 0.2},
    {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)},
]
MASKS, SWAPS, KEEPS = 0.4, 0.85, 0.95  # corruption noise that does so


def stirred(**overrides: Any) -> VitMaeForMaskedPatchPrediction:
    model = VitMaeForMaskedPatchPrediction(tiny_config(**overrides)).eval()
    stir(model)
    return model


def pictures(config: VitMaeConfig, batch: int = 3, seed: int = 4) -> Tensor:
    """Pixels in 0..1: (B, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, config.num_channels, *config.image_pair, generator=generator)


def normalized(pixels: Tensor, config: VitMaeConfig) -> Tensor:
    """As the model gets them, channel by channel: (B, C, H, W) -> (B, C, H, W)."""
    result = pixels.clone()
    for channel in range(config.num_channels):
        mean, std = (
            statistic[channel] if isinstance(statistic, Sequence) else statistic
            for statistic in (config.image_mean, config.image_std)
        )
        result[:, channel] = (pixels[:, channel] - mean) / std
    return result


def unequal_mask(num_patches: int) -> Tensor:
    """Three images of which 3, 6 and no patches are corrupted: bool (3, N)."""
    mask = torch.zeros(3, num_patches, dtype=torch.bool)
    mask[0, [0, 5, num_patches - 1]] = True
    mask[1, 2:8] = True
    return mask


def painted(colors: list[tuple[float, ...]], config: VitMaeConfig) -> Tensor:
    """One picture of 16x16 pixels whose four patches of 8x8 have one colour each: (1, C, H, W)."""
    picture = torch.empty(1, config.num_channels, 16, 16)
    for patch, color in enumerate(colors):
        top, left = 8 * (patch // 2), 8 * (patch % 2)
        picture[0, :, top : top + 8, left : left + 8] = torch.tensor(color)[:, None, None]
    return picture


def colors_by_hand(patch: Tensor, side: int) -> list[int]:
    """The 3-bit colours of a patch, cell by cell: (C, p_h, p_w) -> classes."""
    channels, height, width = patch.shape
    rows, columns = height // side, width // side
    classes = []
    for row in range(side):
        for column in range(side):
            cell = patch[
                :, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns
            ]
            levels = [min(int(channel.double().mean() * 8), 7) for channel in cell]
            if channels > 3:
                classes += levels
            else:
                classes.append(int("".join(map(str, levels)), 8))
    return classes


def loss_by_hand(model: Any, pixels: Tensor, logits: Tensor, mask: Tensor) -> float:
    """Patch by patch and colour by colour in float64; `pixels` in 0..1."""
    config, errors = model.config, []
    for image, patch in mask.nonzero().tolist():
        predicted = logits[image, patch].detach().double()
        piece = cut(pixels[image], config.patch_pair)[patch]
        if config.patch_target == "pixels":
            errors.append(((predicted - target(piece, False).double()) ** 2).mean())
            continue
        classes = colors_by_hand(piece, 1 if config.patch_target == "mean_color" else 4)
        scores = predicted.reshape(len(classes), -1)
        chosen = scores[range(len(classes)), classes]
        errors.append((scores.exp().sum(dim=1).log() - chosen).mean())
    return float(sum(errors) / len(errors))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_mean_colors_of_a_known_picture(statistics: dict[str, Any]) -> None:
    config = tiny_config(patch_size=8, **statistics)
    colors = [(1.0, 0.0, 0.0), (0.0, 0.3, 0.9), (0.55, 0.55, 0.55), (0.2, 0.4, 0.6)]
    picture = painted(colors, config)
    picture[0, :, 8:, :4], picture[0, :, 8:, 4:8] = 0.1, 1.0  # 0.55 in the mean, at no pixel
    targets = patch_targets(normalized(picture, config), config)
    assert targets.dtype == torch.int64
    assert targets.tolist() == [
        [[0o700], [0o027], [0o444], [0o134]]  # red, green and blue are one octal digit each
    ]


@pytest.mark.parametrize(
    ("statistics", "colors", "expected"),
    [
        (
            {"num_channels": 1, "image_mean": 0.3, "image_std": 0.2},
            [(0.0,), (1.0,), (0.3,), (0.6,)],
            [[0], [7], [2], [4]],
        ),
        (
            {"num_channels": 5, "image_mean": (0.1, 0.2, 0.3, 0.4, 0.5), "image_std": 0.2},
            [(0.0, 0.3, 0.6, 0.9, 1.0), (1.0,) * 5, (0.0,) * 5, (0.8, 0.7, 0.45, 0.2, 0.05)],
            [[0, 2, 4, 7, 7], [7] * 5, [0] * 5, [6, 5, 3, 1, 0]],
        ),
    ],
    ids=["1 channel", "5 channels"],
)
def test_mean_colors_of_other_numbers_of_channels(
    statistics: dict[str, Any], colors: list[tuple[float, ...]], expected: list[list[int]]
) -> None:
    config = tiny_config(patch_size=8, **statistics)
    picture = normalized(painted(colors, config), config)
    assert patch_targets(picture, config).tolist() == [expected]


@pytest.mark.parametrize("statistics", STATISTICS)
def test_4x4_colors_of_a_known_picture(statistics: dict[str, Any]) -> None:
    config = tiny_config(patch_size=8, patch_target="colors_4x4", **statistics)
    picture = painted([(0.45, 0.45, 0.45)] * 4, config)
    for row in range(4):  # in the second patch: more red in each row, more green in each column
        for column in range(4):
            color = torch.tensor([(2 * row + 0.5) / 8, (2 * column + 0.5) / 8, 0.45])
            cell = picture[0, :, 2 * row : 2 * row + 2, 8 + 2 * column : 10 + 2 * column]
            cell[:] = color[:, None, None]
            cell[:2] += torch.tensor([[0.2, -0.2], [-0.2, 0.2]])  # 0 in the mean
    targets = patch_targets(normalized(picture, config), config)
    rising = [0o003, 0o023, 0o043, 0o063, 0o203, 0o223, 0o243, 0o263]
    rising += [0o403, 0o423, 0o443, 0o463, 0o603, 0o623, 0o643, 0o663]
    assert targets.tolist() == [[[0o333] * 16, rising, [0o333] * 16, [0o333] * 16]]


def test_4x4_colors_with_separate_channels_name_a_cell_after_the_other() -> None:
    config = tiny_config(patch_size=8, patch_target="colors_4x4", num_channels=5)
    picture = painted([(0.0, 0.3, 0.6, 0.9, 1.0)] * 4, config)
    picture[0, 0, :, 2:4] = 1.0  # the second cell of the first row of a patch
    targets = patch_targets(normalized(picture, config), config)
    assert targets[0, 0, :15].tolist() == [0, 2, 4, 7, 7, 7, 2, 4, 7, 7, 0, 2, 4, 7, 7]
    assert targets.shape == (1, 4, 16 * 5)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_pixel_targets_are_the_picture_before_normalisation(statistics: dict[str, Any]) -> None:
    config = tiny_config(**RECTANGULAR, patch_target="pixels", **statistics)
    pixels = pictures(config)
    expected = torch.stack(
        [torch.stack([target(patch, False) for patch in cut(image, (4, 8))]) for image in pixels]
    )
    got = patch_targets(normalized(pixels, config), config)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("patch_target", TARGETS)
def test_two_pictures_have_different_labels(patch_target: str) -> None:
    config = tiny_config(patch_target=patch_target)
    one, other = patch_targets(normalized(pictures(config, batch=2), config), config)
    assert (one != other).float().mean() > 0.5
    assert one.unique().numel() > 5


@pytest.mark.parametrize("num_channels", [1, 3, 5])
@pytest.mark.parametrize("patch_target", TARGETS)
def test_loss_equals_a_loop_over_the_corrupted_patches(
    patch_target: str, num_channels: int
) -> None:
    model = stirred(
        **RECTANGULAR,
        patch_target=patch_target,
        num_channels=num_channels,
        image_mean=[0.3 + 0.1 * channel for channel in range(num_channels)],
        image_std=0.2,
    )
    pixels, mask = pictures(model.config), unequal_mask(12)
    output = model(normalized(pixels, model.config), mask=mask)
    assert torch.equal(output.mask, mask)
    expected = loss_by_hand(model, pixels, output.logits, mask)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_mask_over_pixels_corrupts_every_patch_that_it_touches() -> None:
    model = stirred(**RECTANGULAR)
    pixel_values, mask = random_images(model.config), unequal_mask(12)
    over_pixels = torch.zeros(3, 16, 24, dtype=torch.bool)
    for image, patch in mask.nonzero().tolist():
        over_pixels[image, 4 * (patch // 3) + 1, 8 * (patch % 3) + 6] = True
    expected, output = model(pixel_values, mask=mask), model(pixel_values, mask=over_pixels)
    assert torch.equal(output.mask, mask)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)


def reference_logits(
    model: VitMaeForMaskedPatchPrediction, image: Tensor, mask: Tensor, noise: Tensor
) -> Tensor:
    """One image in float64, every token by hand: (C, H, W), (N,), (N,) -> (N, outputs)."""
    config = model.config
    state: State = {name: value.double() for name, value in model.state_dict().items()}
    weight = state["vit.embeddings.patch_embeddings.projection.weight"].flatten(1)
    bias = state["vit.embeddings.patch_embeddings.projection.bias"]
    embedded = [weight @ patch.double().flatten() + bias for patch in cut(image, (4, 8))]
    others = make_corruption(mask[None], noise[None]).others[0]
    positions = state["vit.embeddings.position_embeddings"][0]
    tokens = [state["vit.embeddings.cls_token"][0, 0] + positions[0]]
    for n, patch in enumerate(embedded):
        if mask[n] and noise[n] < 0.8:
            patch = state["mask_token"][0, 0]
        elif mask[n] and noise[n] < 0.9:
            patch = embedded[int(others[n])]
        tokens.append(patch + positions[1 + n])
    x = blocks(
        state, "vit.layers", torch.stack(tokens), config.num_attention_heads, config.layer_norm_eps
    )
    x = layer_norm(state, "vit.layernorm", x, config.layer_norm_eps)
    return linear(state, "patch_head", x[1:])


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
def test_predictions_equal_a_reference_that_corrupts_by_hand(position_embedding: str) -> None:
    model = stirred(**RECTANGULAR, patch_target="pixels", position_embedding=position_embedding)
    pixel_values, mask = random_images(model.config), unequal_mask(12)
    noise = torch.tensor([MASKS, SWAPS, KEEPS, 0.82, 0.1, SWAPS] * 6).reshape(3, 12)
    output = model(pixel_values, mask=mask, corruption_noise=noise)
    expected = [
        reference_logits(model, *inputs) for inputs in zip(pixel_values, mask, noise, strict=True)
    ]
    torch.testing.assert_close(output.logits.double(), torch.stack(expected), rtol=0, atol=1e-5)


def test_a_swapped_patch_keeps_its_own_place() -> None:
    model = stirred()
    alike = random_images(model.config)[:, :, :4, :4].repeat(1, 1, 4, 4)  # 16 times one patch
    mask = torch.ones(3, 16, dtype=torch.bool)
    swapped = model(alike, mask=mask, corruption_noise=torch.full((3, 16), SWAPS))
    torch.testing.assert_close(swapped.logits, model(alike, mask_ratio=0.0).logits)


def test_patches_that_stay_are_seen_and_predicted() -> None:
    model = stirred()
    pixels, mask = pictures(model.config), unequal_mask(16)
    pixel_values = normalized(pixels, model.config)
    stay = model(pixel_values, mask=mask, corruption_noise=torch.full((3, 16), KEEPS))
    intact = model(pixel_values, mask_ratio=0.0)
    assert torch.equal(stay.logits, intact.logits)
    assert intact.loss.item() == 0.0
    expected = loss_by_hand(model, pixels, stay.logits, mask)
    assert stay.loss.item() == pytest.approx(expected, rel=1e-6) and expected > 0.1


def test_a_masked_patch_is_not_seen() -> None:
    model = stirred()
    pixel_values, mask = random_images(model.config), unequal_mask(16)
    other = torch.where(
        mask.reshape(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3),
        torch.randn_like(pixel_values),
        pixel_values,
    )
    noise = torch.full((3, 16), MASKS)
    before, after = (model(x, mask=mask, corruption_noise=noise) for x in (pixel_values, other))
    assert torch.equal(before.logits, after.logits)
    assert before.loss != after.loss


def test_the_share_of_corrupted_patches_is_the_configs_or_the_calls() -> None:
    model = stirred(corruption_ratio=0.25)
    pixel_values = random_images(model.config)
    assert tiny_config().corruption_ratio == 0.5
    for given, count in (({}, 4), ({"mask_ratio": 0.75}, 12), ({"mask_ratio": 0}, 0)):
        assert model(pixel_values, **given).mask.sum(dim=1).tolist() == [count] * 3
    noise = random_noise(model.config)
    highest = noise.argsort(dim=1).argsort(dim=1) >= 12
    assert torch.equal(model(pixel_values, noise=noise).mask, highest)


def test_evaluation_is_the_same_each_time_and_beside_any_neighbours() -> None:
    model = stirred()
    pixel_values = random_images(model.config)
    output = model(pixel_values)
    assert torch.equal(output.logits, model(pixel_values).logits)
    for image in range(3):
        alone = model(pixel_values[image : image + 1])
        assert torch.equal(alone.mask[0], output.mask[image])
        torch.testing.assert_close(alone.logits[0], output.logits[image])


def test_training_draws_masks_and_corruption_and_noise_reproduces_them() -> None:
    model = stirred().train()
    pixel_values, noise = random_images(model.config), random_noise(model.config)
    assert not torch.equal(model(pixel_values).mask, model(pixel_values).mask)
    drawn = [model(pixel_values, noise=noise).logits for _ in range(2)]
    assert not torch.equal(*drawn)
    given = {"noise": noise, "corruption_noise": random_noise(model.config, seed=5)}
    assert torch.equal(model(pixel_values, **given).logits, model(pixel_values, **given).logits)


def test_every_parameter_learns() -> None:
    model = stirred(position_embedding="learned").train()
    model(random_images(model.config)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.mask_token.grad is not None and model.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("patch_target", TARGETS)
@pytest.mark.parametrize("noise", [MASKS, SWAPS, KEEPS])
def test_padding_takes_no_part_whatever_it_holds(noise: float, patch_target: str) -> None:
    # A patch must not be swapped for one without data either.
    model = stirred(patch_target=patch_target)
    pixel_values = random_images(model.config)
    padding = torch.zeros(3, 16, dtype=torch.bool)
    padding[0, 8:] = True  # the lower half
    other = pixel_values.clone()
    other[0, :, 8:] = torch.nan
    given = {"mask": torch.ones_like(padding), "padding_mask": padding}
    given["corruption_noise"] = noise + torch.arange(16).expand(3, -1) * 0.003
    expected, output = model(pixel_values, **given), model(other, **given)
    assert torch.equal(output.mask, ~padding)
    assert torch.equal(output.logits[~padding], expected.logits[~padding])
    assert torch.equal(output.loss, expected.loss) and output.loss.isfinite()


def test_the_loss_may_be_left_out() -> None:
    model = stirred()
    assert model(random_images(model.config), return_loss=False).loss is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": unequal_mask(16), "noise": torch.rand(3, 16)}, "either `mask`, or `noise`"),
        ({"noise": torch.rand(3, 15)}, r"`noise` must be \(3, 16\), .* got \(3, 15\)"),
        (
            {"corruption_noise": torch.rand(3, 15)},
            r"`corruption_noise` must be \(3, 16\), .* got \(3, 15\)",
        ),
        ({"mask_ratio": 1.0}, "`mask_ratio` must be at least 0 and below 1, got 1.0"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, Any], message: str) -> None:
    model = stirred()
    with pytest.raises(ValueError, match=message) as caught:
        model(random_images(model.config), **given)
    assert "\n" not in str(caught.value)


def test_a_causal_model_cannot_predict_masked_patches() -> None:
    with pytest.raises(ValueError, match="`is_causal`") as caught:
        model = stirred(is_causal=True, mask_ratio=0.0, pooling="mean")
        model(random_images(model.config))
    assert "\n" not in str(caught.value)
