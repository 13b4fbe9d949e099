"""Every measure of health against values that are known by construction."""

import math

import pytest
import torch
from torch import Tensor

from hf_vitmae import (
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
)
from hf_vitmae.models.losses import pixel_targets
from hf_vitmae.models.modes import evaluating
from hf_vitmae.models.patches import patchify
from hf_vitmae.training.health import (
    MOST_TOKENS,
    attention_distance,
    effective_rank,
    encoder_tokens,
    exchange_visible,
    interpolation_baseline,
    patch_distances,
    position_use,
    prediction_spread,
    token_spread,
    watched_attention,
)

from ..models.tiny import RECTANGULAR, random_images, random_noise, stir, tiny_config

NOISE = torch.Generator().manual_seed(0)


def with_spectrum(values: list[float], rows: int = 50, width: int = 8) -> Tensor:
    """Centred features (rows, width) with these singular values, and a large common part added."""
    columns = torch.randn(rows, len(values), generator=NOISE, dtype=torch.float64)
    left = torch.linalg.qr(columns - columns.mean(dim=0)).Q
    right = torch.linalg.qr(torch.randn(width, width, generator=NOISE, dtype=torch.float64)).Q
    features = left * torch.tensor(values, dtype=torch.float64) @ right[: len(values)]
    return (features + 3.0).float()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0] * 8, 8.0),
        ([5.0], 1.0),
        ([2.0, 2.0, 2.0], 3.0),
        ([2.0, 1.0, 1.0], 2 ** (0.5 * 1 + 0.25 * 2 + 0.25 * 2)),
    ],
)
def test_the_effective_rank_is_that_of_the_spectrum(values: list[float], expected: float) -> None:
    assert effective_rank(with_spectrum(values)) == pytest.approx(expected, rel=1e-3)


def test_features_that_are_all_the_same_have_no_rank() -> None:
    row = torch.randn(1, 16, generator=NOISE) * 100
    assert effective_rank(row.repeat(300, 1)) == 0.0
    rounded = row.repeat(300, 1) * (1 + 1e-8 * torch.randn(300, 1, generator=NOISE))
    assert effective_rank(rounded) == 0.0


def test_of_many_features_the_rank_is_that_of_some() -> None:
    features = with_spectrum([1.0, 1.0], rows=MOST_TOKENS + 1)
    features[1::2] = 1e6 * torch.randn(len(features) // 2, 8, generator=NOISE)
    assert effective_rank(features) == pytest.approx(2.0, rel=0.01)


def test_the_spread_of_features_by_hand() -> None:
    tokens = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]])
    between, within = token_spread(tokens)
    # Means 2 and 6 of the images around 4, and 1 to each side of them; the mean square is 21.
    assert between == pytest.approx(4 / 21) and within == pytest.approx(1 / 21)


def test_what_features_do_not_depend_on_has_no_spread() -> None:
    by_image = torch.randn(4, 1, 8, generator=NOISE).expand(4, 6, 8)
    by_place = torch.randn(1, 6, 8, generator=NOISE).expand(4, 6, 8)
    assert token_spread(by_image).patches < 1e-12 < 0.1 < token_spread(by_image).images
    assert token_spread(by_place).images < 1e-12 < 0.1 < token_spread(by_place).patches
    assert max(token_spread(torch.ones(4, 6, 8))) < 1e-12
    assert token_spread(torch.zeros(4, 6, 8)) == (0.0, 0.0)


def test_the_spread_of_predictions_by_hand() -> None:
    logits = torch.tensor([[[1.0], [3.0]], [[5.0], [100.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    between, within = prediction_spread(logits, mask)
    # At the first place 1 and 5 around 3; in the first image 1 and 3 around 2; squares make 35.
    assert between == pytest.approx(8 / 35) and within == pytest.approx(2 / 35)


def test_what_predictions_do_not_depend_on_has_no_spread() -> None:
    mask = torch.rand(5, 9, generator=NOISE) < 0.7
    by_image = torch.randn(5, 1, 4, generator=NOISE).repeat(1, 9, 1)
    by_place = torch.randn(1, 9, 4, generator=NOISE).repeat(5, 1, 1)
    for logits in (by_image, by_place):
        logits[~mask] = 1e3 * torch.randn(int((~mask).sum()), 4, generator=NOISE)
    assert prediction_spread(by_image, mask).patches < 1e-12
    assert prediction_spread(by_image, mask).images > 0.1
    assert prediction_spread(by_place, mask).images < 1e-12
    assert prediction_spread(by_place, mask).patches > 0.1


def test_the_use_of_positions_by_hand() -> None:
    tokens = torch.tensor([[[3.0], [0.0], [4.0]]])
    exchanged = torch.tensor([[[4.0], [0.0], [1.0]]])  # the last patch is the first now
    assert position_use(tokens, exchanged) == pytest.approx(4 / 25)


@pytest.mark.parametrize("blind", [False, True])
def test_only_an_encoder_with_positions_uses_them(blind: bool) -> None:
    config = tiny_config(**RECTANGULAR)
    torch.manual_seed(0)
    model = VitMaeForPreTraining(config).eval()
    if blind:
        model.vit.embeddings.position_embeddings.data.zero_()
    images = random_images(config)
    mask = random_noise(config).argsort(dim=1) < 7
    with torch.no_grad():
        _, tokens = encoder_tokens(model, {"pixel_values": images, "mask": mask})
        moved = exchange_visible(images, mask, config.patch_pair)
        _, exchanged = encoder_tokens(model, {"pixel_values": moved, "mask": mask})
    use = position_use(tokens, exchanged)
    assert (use < 1e-10) if blind else (use > 0.01)


def test_only_visible_patches_change_places() -> None:
    images = torch.randn(2, 3, 8, 24, generator=NOISE)
    mask = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1]]).bool()
    before = patchify(images, (4, 8))
    after = patchify(exchange_visible(images, mask, (4, 8)), (4, 8))
    assert torch.equal(after[0], before[0, [5, 1, 3, 2, 4, 0]])
    assert torch.equal(after[1], before[1, [0, 1, 2, 4, 3, 5]])


def test_a_linear_ramp_is_interpolated() -> None:
    """Four patches of one pixel in a row, with the values 0 1 2 3."""
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4)

    def error(*hidden: bool) -> float:
        return interpolation_baseline(ramp, torch.tensor([hidden]), 1, norm_pix_loss=False)

    weights = {1: 1.0, 2: 1 / 8, 3: 1 / 27}
    last = (2 * weights[1] + 1 * weights[2]) / sum(weights.values())
    second = (0 * weights[1] + 2 * weights[1] + 3 * weights[2]) / (2 * weights[1] + weights[2])
    assert error(False, False, False, True) == pytest.approx((last - 3) ** 2)
    assert error(False, True, False, False) == pytest.approx((second - 1) ** 2)
    assert error(True, True, True, True) == pytest.approx((0 + 1 + 4 + 9) / 4)
    assert error(False, False, False, False) == 0.0
    middle = torch.arange(3.0).reshape(1, 1, 1, 3)
    between = torch.tensor([[False, True, False]])
    assert interpolation_baseline(middle, between, 1, norm_pix_loss=False) == pytest.approx(0)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_interpolation_is_that_of_its_definition(normalize: bool) -> None:
    images = torch.randn(3, 2, 8, 24, generator=NOISE)
    mask = torch.rand(3, 6, generator=NOISE).argsort(dim=1) < 4
    targets = pixel_targets(images, (4, 8), normalize).reshape(3, 6, 32, 2)
    centres = [(4 * row, 8 * column) for row in range(2) for column in range(3)]
    errors = []
    for image in range(3):
        visible = [j for j in range(6) if not mask[image, j]]
        for i in set(range(6)) - set(visible):
            weights = {j: math.dist(centres[i], centres[j]) ** -3 for j in visible}
            colors = [weights[j] * targets[image, j].mean(dim=0) for j in visible]
            color = torch.stack(colors).sum(dim=0) / sum(weights.values())
            errors.append((targets[image, i] - color).square().mean().item())
    expected = sum(errors) / len(errors)
    found = interpolation_baseline(images, mask, (4, 8), normalize)
    assert found == pytest.approx(expected, rel=1e-5)


def test_distances_are_in_pixels_height_first() -> None:
    distances = patch_distances((2, 3), (4, 8))
    assert distances[0].tolist() == pytest.approx(
        [0, 8, 16, 4, math.hypot(4, 8), math.hypot(4, 16)]
    )
    assert torch.equal(distances, distances.T)


def test_attention_distance_of_uniform_and_of_local_attention() -> None:
    """Two rows of three patches, 4 pixels high and 8 wide, after a CLS token."""
    grid, patch = (2, 3), (4, 8)
    uniform, local, right = torch.full((7, 7), 1 / 7), torch.eye(7), torch.eye(7)
    for place in (1, 2, 4, 5):  # each looks at its neighbour to the right, the last at itself
        right[place, place], right[place, place + 1] = 0.25, 0.75
    weights = torch.stack([uniform, local, right]).expand(2, 3, 7, 7)
    edge = (0 + 8 + 16 + 4 + math.hypot(4, 8) + math.hypot(4, 16)) / 6
    middle = (0 + 8 + 8 + 4 + 2 * math.hypot(4, 8)) / 6
    expected = [(4 * edge + 2 * middle) / 6, 0.0, 4 * 0.75 * 8 / 6]
    distances = attention_distance(weights, grid, patch)
    assert distances.shape == (2, 3)
    for image in distances.tolist():
        assert image == pytest.approx(expected)


def test_attention_to_the_class_token_counts_not_at_all() -> None:
    weights = torch.full((1, 1, 7, 7), 0.1 / 6)
    weights[..., 0] = 0.9
    plain = torch.full((1, 1, 7, 7), 1 / 7)
    distances = [attention_distance(w, (2, 3), (4, 8)).item() for w in (weights, plain)]
    assert distances[0] == pytest.approx(distances[1])


def test_watched_attention_is_that_of_the_encoder() -> None:
    config = tiny_config(**RECTANGULAR, num_hidden_layers=3)
    model = VitMaeForPreTraining(config).eval()
    stir(model)
    images = random_images(config)
    nothing = torch.zeros(3, config.num_patches, dtype=torch.bool)
    with torch.no_grad(), watched_attention(model, lambda weights: weights) as seen:
        model(images, mask=nothing)
        assert len(seen) == 3
    expected = model(images, mask=nothing, output_attentions=True).attentions
    for found, weights in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, weights)
    assert len(seen) == 3  # nothing is watched any more


@pytest.mark.parametrize(
    "model_class",
    [VitMaeForPreTraining, VitMaeForMaskedPatchPrediction, VitMaeForNextPatchPrediction],
)
def test_the_encoders_tokens_are_those_of_the_encoder(model_class: type) -> None:
    is_causal = model_class is VitMaeForNextPatchPrediction
    ratio = 0.0 if is_causal else 0.75
    config = tiny_config(is_causal=is_causal, mask_ratio=ratio, pooling="mean")
    model = model_class(config).eval()
    stir(model)
    images, inputs = random_images(config), {}
    if not is_causal:
        inputs["mask"] = torch.zeros(3, config.num_patches, dtype=torch.bool)
    with evaluating(model):
        output, tokens = encoder_tokens(model, {"pixel_values": images, **inputs})
        expected = model.vit(images).last_hidden_state[:, 1:]
    assert output.logits.shape[:2] == tokens.shape[:2] == (3, config.num_patches)
    torch.testing.assert_close(tokens, expected)
    assert not model.vit.layernorm._forward_hooks


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    model = VitMaeForPreTraining(tiny_config())
    wrong = {"pixel_values": torch.zeros(1, 3, 15, 16)}
    with pytest.raises(ValueError), watched_attention(model, lambda weights: weights):
        encoder_tokens(model, wrong)
    assert not any(module._forward_hooks for module in model.modules())


def test_bf16_is_measured_in_float32() -> None:
    config = tiny_config()
    model = VitMaeForPreTraining(config).bfloat16().eval()
    images = random_images(config).bfloat16()
    measure = lambda weights: attention_distance(weights, config.grid, config.patch_pair)  # noqa: E731
    with torch.no_grad(), watched_attention(model, measure) as distances:
        output, tokens = encoder_tokens(model, {"pixel_values": images, "mask_ratio": 0.0})
    assert tokens.dtype == distances[0].dtype == torch.float32
    everywhere = torch.ones(3, config.num_patches, dtype=torch.bool)
    assert 1 < effective_rank(tokens.flatten(0, 1)) <= config.hidden_size
    assert 0 < min(prediction_spread(output.logits, everywhere)) < 1
    assert interpolation_baseline(images, output.mask, 4, False) == 0.0
