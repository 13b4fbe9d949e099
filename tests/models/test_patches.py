"""Images to patches and back."""

import pytest
import torch

from hf_vitmae.models.patches import (
    as_pair,
    denormalize_patches,
    grid_size,
    normalize_patches,
    patchify,
    unpatchify,
)

GEOMETRIES = [((8, 8), 4, 3), ((8, 12), (2, 4), 1), ((6, 20), (3, 5), 5)]


@pytest.mark.parametrize(("size", "patch", "channels"), GEOMETRIES)
def test_each_value_stands_where_its_pixel_was(
    size: tuple[int, int], patch: int | tuple[int, int], channels: int
) -> None:
    images = torch.arange(2 * channels * size[0] * size[1]).reshape(2, channels, *size)
    patches = patchify(images, patch)
    patch_height, patch_width = as_pair(patch)
    columns = size[1] // patch_width
    for channel in range(channels):
        for y in range(size[0]):
            for x in range(size[1]):
                n = y // patch_height * columns + x // patch_width
                inside = (y % patch_height * patch_width + x % patch_width) * channels + channel
                assert torch.equal(patches[:, n, inside], images[:, channel, y, x])


@pytest.mark.parametrize(("size", "patch", "channels"), GEOMETRIES)
def test_unpatchify_is_the_exact_inverse(
    size: tuple[int, int], patch: int | tuple[int, int], channels: int
) -> None:
    images = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    grid = grid_size(size, as_pair(patch))
    assert torch.equal(unpatchify(patchify(images, patch), patch, grid), images)


def test_a_square_grid_need_not_be_named() -> None:
    images = torch.randn(1, 3, 12, 6)
    assert torch.equal(unpatchify(patchify(images, (4, 2)), (4, 2)), images)


def test_normalisation_is_undone_by_its_statistics() -> None:
    patches = torch.randn(2, 5, 48) * 30 + 100
    patches[0, 0] = 7.0  # flat: nothing to divide by but the epsilon
    normalized, mean, std = normalize_patches(patches)
    assert normalized[0, 0].abs().max() == 0 and mean[0, 0] == 7.0
    torch.testing.assert_close(denormalize_patches(normalized, mean, std), patches)


@pytest.mark.parametrize("grid", [None, (2, 4), (3, 3)])
def test_a_grid_that_the_patches_do_not_fill_is_refused(grid: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="6 patches do not fill a grid of .* pass the `grid`"):
        unpatchify(torch.zeros(1, 6, 48), 4, grid)


def test_an_image_that_is_no_whole_number_of_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="8x10 pixels .* whole number of 4x4 patches"):
        patchify(torch.zeros(1, 3, 8, 10), 4)
