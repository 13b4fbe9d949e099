"""Patterns of masks: exact counts, promised shapes, weights as theory says, sets that add up."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.mask_patterns import (
    MASK_PATTERNS,
    block_noise,
    complementary_masks,
    contrast_weights,
    foreground_weights,
    grid_noise,
    weighted_noise,
)
from hf_vitmae.models.masking import num_visible_patches, order_from_noise, patch_mask

SQUARE = (14, 14)
GRIDS = [(1, 1), (1, 7), (6, 1), (2, 2), (4, 3), (9, 7), SQUARE, (32, 20)]
RATIOS = [0.1, 0.25, 0.4, 0.6, 0.75, 0.9]


def uniform(batch: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, grid[0] * grid[1], generator=generator)


def hidden(noise: Tensor, ratio: float, grid: tuple[int, int] = SQUARE) -> Tensor:
    """The mask over the grid: bool (B, h, w)."""
    return order_from_noise(noise, ratio).mask.unflatten(1, grid)


def share_of_like_neighbours(mask: Tensor) -> float:
    """How often a patch above, below, left or right of a hidden one is hidden too."""
    pairs = [(mask[:, 1:], mask[:, :-1]), (mask[:, :, 1:], mask[:, :, :-1])]
    both = sum(2 * (a & b).sum().item() for a, b in pairs)
    return both / sum(a.sum().item() + b.sum().item() for a, b in pairs)


def weighted_by_place(noise: Tensor, grid: tuple[int, int]) -> Tensor:
    places = torch.arange(noise.shape[1], device=noise.device)
    return weighted_noise(noise, places.expand(len(noise), -1))


ALL_PATTERNS = {**MASK_PATTERNS, "weighted": weighted_by_place}


@pytest.mark.parametrize("pattern", ALL_PATTERNS.values(), ids=ALL_PATTERNS.keys())
@pytest.mark.parametrize("grid", GRIDS, ids=str)
class TestEveryPattern:
    Pattern = Callable[[Tensor, tuple[int, int]], Tensor]

    def test_counts_are_exact_and_higher_ratios_hide_more_of_the_same(
        self, pattern: Pattern, grid: tuple[int, int]
    ) -> None:
        noise = pattern(uniform(5, grid), grid)
        masks = [hidden(noise, ratio, grid).flatten(1) for ratio in RATIOS]
        for mask, ratio in zip(masks, RATIOS, strict=True):
            num_patches = noise.shape[1]
            num_hidden = num_patches - num_visible_patches(num_patches, ratio)
            assert mask.sum(dim=1).tolist() == [num_hidden] * 5
        assert all((less <= more).all() for less, more in itertools.pairwise(masks))

    def test_values_are_distinct_and_may_be_used_as_noise_again(
        self, pattern: Pattern, grid: tuple[int, int]
    ) -> None:
        values = pattern(uniform(5, grid), grid)
        assert all(row.unique().numel() == grid[0] * grid[1] for row in values)
        assert values.min() >= 0 and values.max() < 1

    def test_type_is_kept_and_the_noise_left_alone(
        self, pattern: Pattern, grid: tuple[int, int]
    ) -> None:
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            noise = uniform(2, grid).mul(0.99).to(dtype)
            before = noise.clone()
            values = pattern(noise, grid)
            assert values.dtype == dtype and values.shape == noise.shape
            assert torch.equal(noise, before)
            assert values.isfinite().all()

    def test_everything_is_made_on_the_device_of_the_noise(
        self, pattern: Pattern, grid: tuple[int, int]
    ) -> None:
        noise = uniform(2, grid)
        with torch.device("meta"):  # where a tensor lands that names no device
            values = pattern(noise, grid)
        assert torch.equal(values, pattern(noise, grid))

    def test_an_image_depends_on_its_own_noise_alone(
        self, pattern: Pattern, grid: tuple[int, int]
    ) -> None:
        noise = uniform(4, grid)
        together = pattern(noise, grid)
        assert torch.equal(together, pattern(noise, grid))
        for i in range(4):
            assert torch.equal(together[i : i + 1], pattern(noise[i : i + 1], grid))


@pytest.mark.parametrize(("ratio", "at_least"), [(0.25, 0.75), (0.5, 0.8), (0.75, 0.88)])
def test_hidden_patches_of_blocks_lie_together(ratio: float, at_least: float) -> None:
    noise = uniform(300, SQUARE)
    assert abs(share_of_like_neighbours(hidden(noise, ratio)) - ratio) < 0.01  # at random
    assert share_of_like_neighbours(hidden(block_noise(noise, SQUARE), ratio)) > at_least


def test_a_rectangle_that_is_hidden_in_part_stays_whole() -> None:
    masks = hidden(block_noise(uniform(300, SQUARE), SQUARE), 0.05)  # 10 patches of the first
    heights = masks.any(dim=2).sum(dim=1)
    widths = masks.any(dim=1).sum(dim=1)
    filled = 10 / (heights * widths)  # of the box around them; about a quarter if scattered in it
    assert filled.median() > 0.6


def test_blocks_hide_every_patch_equally_often() -> None:
    for ratio in (0.4, 0.75):
        share = hidden(block_noise(uniform(4000, SQUARE), SQUARE), ratio).float().mean(dim=0)
        assert (share - share.mean()).abs().max() < 0.06  # corners too


def test_blocks_vary_between_images() -> None:
    masks = hidden(block_noise(uniform(100, SQUARE), SQUARE), 0.5)
    assert len(masks.flatten(1).unique(dim=0)) == 100


@pytest.mark.parametrize("grid", [SQUARE, (2, 2), (4, 10), (32, 20)])
def test_grid_patterns_are_as_promised(grid: tuple[int, int]) -> None:
    noise = grid_noise(uniform(50, grid), grid)
    for ratio, num_hidden in [(0.25, 1), (0.5, 2), (0.75, 3)]:
        cells = hidden(noise, ratio, grid).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        assert (cells.sum(dim=(2, 4)) == num_hidden).all()
        same_everywhere = cells == cells[:, :1, :, :1]
        assert same_everywhere.all()
    board = hidden(noise, 0.5, grid)
    assert (board[:, 1:] != board[:, :-1]).all() and (board[:, :, 1:] != board[:, :, :-1]).all()


def test_between_the_regular_ratios_the_grid_is_filled_evenly() -> None:
    grid = (16, 16)
    noise = grid_noise(uniform(20, grid), grid)
    for ratio, num_hidden in [(0.9375, 15), (0.875, 14), (0.625, 10)]:
        cells = hidden(noise, ratio, grid).unflatten(2, (-1, 4)).unflatten(1, (-1, 4))
        assert (cells.sum(dim=(2, 4)) == num_hidden).all()  # of the 16 in every 4 x 4


@pytest.mark.parametrize(("ratio", "num_shifts"), [(0.75, 4), (0.5, 2), (0.9375, 16)])
def test_the_grid_is_shifted_at_random(ratio: float, num_shifts: int) -> None:
    grid = (16, 16)
    masks = hidden(grid_noise(uniform(4000, grid), grid), ratio, grid).flatten(1)
    kinds, counts = masks.unique(dim=0, return_counts=True)
    assert len(kinds) == num_shifts
    expected = 4000 / num_shifts
    assert (counts - expected).abs().max() < 4.5 * math.sqrt(expected)


def test_the_first_hidden_patch_is_drawn_by_weight() -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.0])
    num_draws = 40_000
    noise = weighted_noise(uniform(num_draws, (1, 5)), weights.expand(num_draws, -1))
    share = noise.argmax(dim=1).bincount(minlength=5) / num_draws
    expected = weights / weights.sum()
    error = (expected * (1 - expected) / num_draws).sqrt()
    assert ((share - expected).abs() <= 4 * error).all()


def test_the_second_is_drawn_by_the_weights_that_are_left() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    num_draws = 40_000
    noise = weighted_noise(uniform(num_draws, (1, 3)), weights.expand(num_draws, -1))
    order = noise.argsort(dim=1, descending=True)
    after_last = order[order[:, 0] == 2, 1]  # patch 2 first, then patch 0 or 1
    share = (after_last == 1).float().mean().item()
    assert abs(share - 2 / 3) < 4 * math.sqrt(2 / 9 / len(after_last))


def test_equal_weights_keep_the_order_of_the_noise() -> None:
    noise = uniform(20, SQUARE)
    for weight in (1e-30, 1.0, 0.0):
        weighted = weighted_noise(noise, torch.full_like(noise, weight))
        assert torch.equal(weighted.argsort(dim=1), noise.argsort(dim=1))


def test_weight_zero_is_hidden_last_and_extreme_weights_are_in_order() -> None:
    weights = torch.tensor([0.0, 1e-38, 1.0, 3e38, 0.0]).expand(2000, -1)
    noise = uniform(2000, (1, 5))
    noise[0] = 0.0  # torch.rand does draw it
    noise[1] = 1 - 2**-24  # its highest value
    order = weighted_noise(noise, weights).argsort(dim=1, descending=True)
    assert (order[:, :3] == torch.tensor([3, 2, 1])).all()
    assert order[:, 3].unique().tolist() == [0, 4]
    beyond = torch.tensor([1e-300, 0.0, 1.0, 1e300, 1e200], dtype=torch.float64)
    order = weighted_noise(noise, beyond.expand(2000, -1)).argsort(dim=1, descending=True)
    assert (order == torch.tensor([3, 4, 2, 0, 1])).all()


def test_foreground_is_the_share_of_its_pixels() -> None:
    pixels = torch.zeros(2, 8, 24, dtype=torch.bool)  # a grid of 2 x 3 patches of 4 x 8
    pixels[0, :4, 8:16] = True
    pixels[0, 4:6, 16:20] = True  # 8 of the 32 pixels of the last patch
    weights = foreground_weights(pixels, (2, 3), (4, 8), background=0.1)
    expected = torch.tensor([[0.1, 1, 0.1, 0.1, 0.1, 0.1 + 0.9 / 4], [0.1] * 6])
    torch.testing.assert_close(weights, expected)
    probability = torch.full((1, 8, 24), 0.25)
    assert foreground_weights(probability, (2, 3), (4, 8), background=0).unique().tolist() == [0.25]


def test_foreground_may_be_given_by_patches() -> None:
    patches = torch.tensor([[True, False, True, False, False, False]])
    weights = foreground_weights(patches, (2, 3), (4, 8))
    assert weights.tolist() == [[1, 0.5, 1, 0.5, 0.5, 0.5]]


def test_background_of_weight_zero_waits_for_all_the_foreground() -> None:
    pixels = torch.zeros(30, 8, 24, dtype=torch.bool)
    pixels[:, :4, :15] = True  # patches 0 and 1
    noise = weighted_noise(uniform(30, (2, 3)), foreground_weights(pixels, (2, 3), (4, 8), 0.0))
    mask = order_from_noise(noise, 0.5).mask  # 3 of 6
    assert mask[:, :2].all()
    assert mask[:, 2:].any(dim=0).all()  # and what follows is drawn from all of the background


def test_the_default_background_leaves_some_foreground_visible() -> None:
    foreground = torch.zeros(500, 196, dtype=torch.bool)
    foreground[:, :59] = True  # 30 %
    noise = weighted_noise(uniform(500, SQUARE), foreground_weights(foreground, SQUARE, 16))
    visible = ~order_from_noise(noise, 0.75).mask
    assert 0.07 < visible[:, :59].float().mean() < 0.13
    assert visible[:, 59:].float().mean() > 0.28


def test_contrast_counts_up_to_its_mean_and_ignores_colour_and_scale() -> None:
    pixel_values = torch.zeros(1, 3, 4, 16)  # four patches of 4 x 4
    pixel_values[:, 0] = 5.0  # red, and flat
    pixel_values[..., 4:8] += 0.5 * torch.tensor([1.0, -1, 1, -1])
    pixel_values[..., 8:16] += 2.0 * torch.tensor([1.0, -1] * 4)
    weights = contrast_weights(pixel_values, 4, background=0.2)
    mean = (0 + 0.5 + 2 + 2) / 4
    expected = torch.tensor([[0.2, 0.2 + 0.8 * 0.5 / mean, 1, 1]])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(contrast_weights(pixel_values * 0.01, 4, 0.2), expected)


def test_contrast_of_an_image_is_its_own_and_a_flat_image_has_none() -> None:
    pixel_values = torch.randn(2, 2, 12, 8)
    pixel_values[1] = 3.0
    weights = contrast_weights(pixel_values, (4, 2))
    assert weights[1].tolist() == [0.5] * 12
    torch.testing.assert_close(weights[:1], contrast_weights(pixel_values[:1], (4, 2)))
    assert contrast_weights(pixel_values[1:], (4, 2), background=0).tolist() == [[0.0] * 12]


@pytest.mark.parametrize(("grid", "num_sets"), [(SQUARE, 4), ((4, 3), 5), ((1, 7), 7), ((9, 7), 2)])
def test_complementary_sets_hide_each_patch_exactly_once(
    grid: tuple[int, int], num_sets: int
) -> None:
    num_patches = grid[0] * grid[1]
    noise = uniform(6, grid)
    with torch.device("meta"):  # where a tensor lands that names no device
        masks = complementary_masks(noise, num_sets)
    assert masks.shape == (num_sets, 6, num_patches) and masks.dtype == torch.bool
    assert (masks.sum(dim=0) == 1).all()
    sizes = masks.sum(dim=2)
    assert sizes.min() == num_patches // num_sets and sizes.max() == -(-num_patches // num_sets)
    assert len(masks[0].unique(dim=0)) > 1  # drawn for each image


def test_complementary_sets_keep_the_pattern() -> None:
    noise = uniform(20, SQUARE)
    blocks = complementary_masks(block_noise(noise, SQUARE), 4)
    assert torch.equal(blocks[0], order_from_noise(block_noise(noise, SQUARE), 0.25).mask)
    for mask in complementary_masks(grid_noise(noise, SQUARE), 4):
        cells = mask.unflatten(1, (7, 2, 7, 2))
        assert (cells.sum(dim=(2, 4)) == 1).all()


def test_a_mask_drawn_in_pixels_comes_back_as_foreground() -> None:
    pixels = torch.zeros(1, 16, 24, dtype=torch.bool)
    pixels[0, 3:9, 7:9] = True
    drawn = patch_mask(pixels, (4, 3), (4, 8))
    weights = foreground_weights(pixels, (4, 3), (4, 8), background=0.0)
    assert torch.equal(weights > 0, drawn)
    noise = weighted_noise(uniform(1, (4, 3)), weights)
    assert torch.equal(order_from_noise(noise, 0.5).mask, drawn)  # 6 of 12 patches


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block_noise(torch.rand(2, 11), (4, 3)), r"\(batch, 12\) .* 4x3 .* got \(2, 11\)"),
        (lambda: grid_noise(torch.rand(12), (4, 3)), r"\(batch, 12\) .* got \(12,\)"),
        (
            lambda: block_noise(torch.full((1, 4), 1.0), (2, 2)),
            r"in \[0, 1\), as torch.rand .* 1.0",
        ),
        (lambda: grid_noise(torch.full((1, 4), -0.5), (2, 2)), r"`noise` must be .* got -0.5"),
        (lambda: weighted_noise(torch.full((1, 4), torch.nan), torch.ones(1, 4)), "`noise` .* nan"),
        (lambda: weighted_noise(torch.rand(2, 4), torch.ones(4)), r"be \(2, 4\), .* got \(4,\)"),
        (lambda: weighted_noise(torch.rand(1, 2), torch.tensor([[1, -2.0]])), "`weights` .* -2.0"),
        (lambda: weighted_noise(torch.rand(1, 2), torch.tensor([[1, torch.nan]])), ">= 0, got nan"),
        (lambda: weighted_noise(torch.rand(1, 2), torch.tensor([[1, torch.inf]])), ">= 0, got inf"),
        (
            lambda: foreground_weights(torch.zeros(2, 24, 16), (4, 3), (4, 8)),
            r"\(batch, 12\) .* \(batch, 16, 24\) over pixels, got \(2, 24, 16\)",
        ),
        (lambda: foreground_weights(torch.zeros(2, 11), (4, 3), 4), r"got \(2, 11\)"),
        (
            lambda: foreground_weights(torch.full((1, 8, 8), 255, dtype=torch.uint8), (2, 2), 4),
            r"`foreground` must be in \[0, 1\], got 255",
        ),
        (lambda: foreground_weights(torch.zeros(1, 4), (2, 2), 4, 2), r"`background` .* got 2"),
        (lambda: contrast_weights(torch.zeros(1, 3, 8, 8), 4, -0.1), r"`background` .* got -0.1"),
        (lambda: contrast_weights(torch.zeros(1, 3, 8, 10), 4), "8x10 pixels .* 4x4 patches"),
        (lambda: complementary_masks(torch.rand(2, 12), 1), "from 2 to the 12 patches .* got 1"),
        (lambda: complementary_masks(torch.rand(2, 12), 13), "from 2 to the 12 patches .* got 13"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
