"""What masked patch prediction does to patch embeddings, decided by noise."""

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.corruption import draw_corruption_noise, make_corruption
from hf_vitmae.models.masking import fixed_noise

NOISE = [0.0, 0.5, 0.79, 0.8, 0.85, 0.899, 0.9, 0.95, 0.999]
LAST_BELOW = float(torch.nextafter(torch.tensor(0.9), torch.tensor(0.0)))


def all_corrupted(batch: int, num_patches: int) -> Tensor:
    return torch.ones(batch, num_patches, dtype=torch.bool)


def half_corrupted(batch: int, num_patches: int) -> Tensor:
    """Every second patch: bool (B, N)."""
    return (torch.arange(num_patches) % 2 == 0).expand(batch, -1)


def seeded_noise(batch: int, num_patches: int) -> Tensor:
    return torch.rand(batch, num_patches, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("training", [True, False])
def test_of_ten_thousand_patches_80_percent_are_masked_10_swapped_10_stay(training: bool) -> None:
    mask = all_corrupted(100, 100) if training else all_corrupted(1, 10_000)
    corruption = make_corruption(mask, draw_corruption_noise(mask, training))
    masked, swapped = corruption.masked, corruption.swapped
    assert not (masked & swapped).any()
    stays = ~masked & ~swapped
    shares = [kind.float().mean().item() for kind in (masked, swapped, stays)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.015)  # 4 or 5 standard deviations


def test_noise_says_what_happens_to_a_corrupted_patch() -> None:
    noise = torch.tensor([NOISE])
    corruption = make_corruption(torch.ones_like(noise, dtype=torch.bool), noise)
    assert corruption.masked[0].tolist() == [True] * 3 + [False] * 6
    assert corruption.swapped[0].tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_noise_does_nothing_to_an_intact_patch() -> None:
    noise = torch.tensor([NOISE])
    mask = torch.zeros_like(noise, dtype=torch.bool)
    corruption = make_corruption(mask, noise)
    assert not corruption.masked.any() and not corruption.swapped.any()
    patches = torch.randn(1, len(NOISE), 4)
    assert torch.equal(corruption.apply(patches, torch.ones(1, 1, 4)), patches)


@pytest.mark.parametrize("num_patches", [2, 3, 7, 196])
def test_the_other_patch_is_any_but_the_patch_itself(num_patches: int) -> None:
    noise = torch.linspace(0.8, LAST_BELOW, 20 * num_patches)[:, None].expand(-1, num_patches)
    corruption = make_corruption(all_corrupted(*noise.shape), noise)
    assert corruption.swapped.all()
    for patch, others in enumerate(corruption.others.T):
        assert sorted(others.unique().tolist()) == [n for n in range(num_patches) if n != patch]


def test_each_other_patch_is_as_likely() -> None:
    mask = all_corrupted(20_000, 7)
    corruption = make_corruption(mask, seeded_noise(*mask.shape))
    for patch in range(7):
        others = corruption.others[:, patch][corruption.swapped[:, patch]]  # about 2,000 of them
        shares = torch.bincount(others, minlength=7) / len(others)
        expected = torch.full((7,), 1 / 6).index_fill(0, torch.tensor(patch), 0.0)
        torch.testing.assert_close(shares, expected, rtol=0, atol=0.04)  # 5 standard deviations


def test_the_only_patch_of_an_image_stays() -> None:
    corruption = make_corruption(all_corrupted(1, 1), torch.tensor([[0.85]]))
    patches = torch.randn(1, 1, 4)
    assert torch.equal(corruption.apply(patches, torch.zeros(1, 1, 4)), patches)


def test_embeddings_become_the_mask_token_or_the_others_before_corruption() -> None:
    mask, noise = half_corrupted(50, 16), seeded_noise(50, 16)
    corruption = make_corruption(mask, noise)
    patches, mask_token = torch.randn(50, 16, 4), torch.randn(1, 1, 4)
    corrupted = corruption.apply(patches, mask_token)
    others_that_are_corrupted = 0
    for image in range(50):
        for patch in range(16):
            expected = patches[image, patch]
            if mask[image, patch] and noise[image, patch] < 0.8:
                expected = mask_token[0, 0]
            elif mask[image, patch] and noise[image, patch] < 0.9:
                other = int(corruption.others[image, patch])
                others_that_are_corrupted += bool(mask[image, other])
                expected = patches[image, other]
            assert torch.equal(corrupted[image, patch], expected)
    assert others_that_are_corrupted > 5


def test_embeddings_keep_their_precision() -> None:
    corruption = make_corruption(all_corrupted(1, 9), torch.tensor([NOISE]))
    corrupted = corruption.apply(torch.randn(1, 9, 4).bfloat16(), torch.randn(1, 1, 4))
    assert corrupted.dtype == torch.bfloat16


def test_training_draws_for_each_patch_and_evaluation_does_not() -> None:
    mask = half_corrupted(4, 16)
    drawn = draw_corruption_noise(mask, training=True)
    assert drawn.unique().numel() == 4 * 16
    assert not torch.equal(drawn, draw_corruption_noise(mask, training=True))
    fixed = draw_corruption_noise(mask, training=False)
    assert torch.equal(fixed, draw_corruption_noise(mask, training=False))
    assert torch.equal(fixed, fixed[:1].expand(4, -1))
    assert fixed.shape == mask.shape and fixed.min() >= 0 and fixed.max() < 1


@pytest.mark.parametrize("num_patches", [64, 144, 196, 576, 1024, 10_000])
def test_fixed_corruption_does_not_follow_the_fixed_mask(num_patches: int) -> None:
    chosen_by = fixed_noise(num_patches)[0]
    corrupted_by = draw_corruption_noise(all_corrupted(1, num_patches), training=False)[0]
    correlation = torch.corrcoef(torch.stack([chosen_by, corrupted_by]))[0, 1]
    assert abs(correlation) < 3 / num_patches**0.5
    of_chosen = corrupted_by[chosen_by >= chosen_by.median()]
    for low, high in ((0.0, 0.8), (0.8, 1.0)):
        share = ((of_chosen >= low) & (of_chosen < high)).float().mean()
        assert abs(share - (high - low)) < 4 * (0.16 / len(of_chosen)) ** 0.5
