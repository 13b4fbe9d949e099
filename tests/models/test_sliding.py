"""Sliding windows: every place of the map is its windows' own scores, or their average."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_vitmae.models.modeling_vitmae import VitMaeForSemanticSegmentation
from hf_vitmae.models.sliding import slide, window_starts, window_stride

from .tiny import stir, tiny_config

Predict = Callable[[Tensor, Tensor | None], Tensor]
HEADS = ("linear", "multi_layer")
# A window of 3 x 4 patches of 5 x 6 pixels.
WINDOW, PATCH = (15, 24), (5, 6)


def segmenter(**overrides: Any) -> VitMaeForSemanticSegmentation:
    """A stirred model whose window is `WINDOW`, in evaluation mode."""
    values = {"image_size": WINDOW, "patch_size": PATCH, "num_labels": 5}
    values |= {"segmentation_hidden_size": 8, "position_embedding": "learned"}
    model = VitMaeForSemanticSegmentation(tiny_config(**(values | overrides))).eval()
    stir(model)
    return model


@torch.no_grad()
def keep_tokens_apart(model: VitMaeForSemanticSegmentation) -> None:
    """Let each patch's scores depend on its own pixels alone, wherever it lies."""
    blocks: Any = model.vit.layers
    for block in blocks:
        nn.init.zeros_(block.attention.o_proj.weight)
        nn.init.zeros_(block.attention.o_proj.bias)
    model.vit.embeddings.position_embeddings.zero_()


def segment_large(
    model: VitMaeForSemanticSegmentation, pixel_values: Tensor, **options: Any
) -> Tensor:
    """Scores of every pixel: (B, C, H, W) -> (B, classes, H, W)."""
    logits = model.segment_large(pixel_values, **options).logits
    assert logits is not None
    return logits


def unlike_its_window(cell: tuple[float, float]) -> Predict:
    """Maxima of cells of so many pixels, less that of the whole window: hardly two windows agree,
    and how many windows come at once does not change a bit.
    """

    def predict(crops: Tensor, outside: Tensor | None) -> Tensor:
        height, width = crops.shape[2:]
        places = (round(height / cell[0]), round(width / cell[1]))
        return functional.adaptive_max_pool2d(crops, places) - crops.amax(dim=(2, 3), keepdim=True)

    return predict


def starts_by_hand(length: int, window: int, stride: int) -> list[int]:
    starts, start = [], 0
    while start + window < length:
        starts.append(start)
        start += stride
    return [*starts, length - window]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("length", range(3, 15))
def test_windows_cover_everything_and_none_reaches_beyond(length: int, stride: int) -> None:
    starts = window_starts(length, 3, stride)
    assert starts == starts_by_hand(length, 3, stride)
    assert starts == sorted(set(starts))  # none twice
    covered = {place for start in starts for place in range(start, start + 3)}
    assert covered == set(range(length))


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (10, 10, 5, [0]),
        (20, 10, 10, [0, 10]),
        (25, 10, 10, [0, 10, 15]),
        (20, 10, 5, [0, 5, 10]),
    ],
)
def test_the_last_window_is_flush_with_the_end(
    length: int, window: int, stride: int, starts: list[int]
) -> None:
    assert window_starts(length, window, stride) == starts


# Places of the map as large as a patch; as half a patch, which is no whole number of pixels; and
# as one pixel.
@pytest.mark.parametrize("cell", [(5, 6), (2.5, 3), (1, 1)], ids=["patch", "half", "pixel"])
@pytest.mark.parametrize("stride", [(15, 24), (5, 6), (10, 18), (15, 6)], ids=str)
def test_scores_are_the_windows_own_or_their_average(
    cell: tuple[float, float], stride: tuple[int, int]
) -> None:
    pixel_values = torch.randn(2, 3, 45, 48)
    predict = unlike_its_window(cell)
    got = slide(predict, pixel_values, WINDOW, stride, PATCH, batch_size=4)
    rows, columns = round(45 / cell[0]), round(48 / cell[1])
    assert got.shape == (2, 3, rows, columns)
    found: dict[tuple[int, int], list[Tensor]] = {}
    for top in starts_by_hand(45, 15, stride[0]):
        for left in starts_by_hand(48, 24, stride[1]):
            own = predict(pixel_values[:, :, top : top + 15, left : left + 24], None)
            for row in range(own.shape[2]):
                for column in range(own.shape[3]):
                    place = (round(top / cell[0]) + row, round(left / cell[1]) + column)
                    found.setdefault(place, []).append(own[:, :, row, column])
    assert len(found) == rows * columns
    for (row, column), scores in found.items():
        expected = torch.stack(scores).mean(dim=0)
        if len(scores) == 1:
            assert torch.equal(got[:, :, row, column], scores[0])
        torch.testing.assert_close(got[:, :, row, column], expected)


@pytest.mark.parametrize("head", HEADS)
def test_windows_that_do_not_overlap_are_the_model_on_each_crop(head: str) -> None:
    model, pixel_values = segmenter(segmentation_head=head), torch.randn(2, 3, 45, 48)
    logits = segment_large(model, pixel_values, stride=WINDOW)
    assert logits.shape == (2, 5, 45, 48) and not logits.requires_grad
    # Nearer than half a patch to the border of a window, enlarging mixes it with the next one.
    inside = (..., slice(3, 12), slice(3, 21))
    for top in (0, 15, 30):
        for left in (0, 24):
            window = (..., slice(top, top + 15), slice(left, left + 24))
            expected = model(pixel_values[window]).logits[inside]
            torch.testing.assert_close(logits[window][inside], expected)


@pytest.mark.parametrize("stride", [(100, 100), None], ids=["no-overlap", "default"])
@pytest.mark.parametrize("window", [(100, 100), (60, 140)], ids=str)
def test_tokens_that_do_not_mix_give_the_result_of_the_whole_image(
    window: tuple[int, int], stride: tuple[int, int] | None
) -> None:
    model = segmenter(image_size=window, patch_size=20, num_hidden_layers=1)
    keep_tokens_apart(model)
    pixel_values = torch.randn(1, 3, 1000, 700)
    with torch.no_grad():
        whole = model(pixel_values, interpolate_pos_encoding=True).logits
    stride = window if stride else None
    large = segment_large(model, pixel_values, stride=stride)
    assert whole.std() > 0.1
    torch.testing.assert_close(large, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_how_many_windows_go_at_once_does_not_matter(head: str) -> None:
    model, pixel_values = segmenter(segmentation_head=head), torch.randn(2, 3, 30, 40)
    results = [
        segment_large(model, pixel_values, stride=(10, 12), batch_size=batch_size)
        for batch_size in (8, 1, 3, 100)
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_an_image_of_the_size_of_the_window_is_the_model_itself(head: str) -> None:
    model, pixel_values = segmenter(segmentation_head=head), torch.randn(2, 3, *WINDOW)
    large = segment_large(model, pixel_values)
    torch.testing.assert_close(large, model(pixel_values).logits)


@pytest.mark.parametrize("size", [(9, 17), (5, 24), (15, 6), (1, 1), (15, 18)], ids=str)
@pytest.mark.parametrize("junk", [torch.nan, 1e30])
@pytest.mark.parametrize("head", HEADS)
def test_nothing_beyond_a_small_image_has_influence(
    head: str, junk: float, size: tuple[int, int]
) -> None:
    model, pixel_values = segmenter(segmentation_head=head), torch.randn(2, 3, *size)
    # Patches that lie wholly outside hold junk, and those at the border zeros.
    height, width = (-(-side // patch) * patch for side, patch in zip(size, PATCH, strict=True))
    filled = torch.full((2, 3, *WINDOW), junk)
    filled[:, :, :height, :width] = 0.0
    filled[:, :, : size[0], : size[1]] = pixel_values
    outside = torch.ones(2, 3, 4, dtype=torch.bool)
    outside[:, : height // PATCH[0], : width // PATCH[1]] = False
    expected = model(filled, padding_mask=outside.flatten(1)).logits[..., : size[0], : size[1]]
    large = segment_large(model, pixel_values)
    assert large.isfinite().all()
    torch.testing.assert_close(large, expected)


@pytest.mark.parametrize("size", [(40, 17), (9, 50)], ids=str)
def test_an_image_may_be_smaller_than_a_window_along_one_side_only(size: tuple[int, int]) -> None:
    model, pixel_values = segmenter(), torch.randn(2, 3, *size)
    keep_tokens_apart(model)
    filled = functional.pad(pixel_values, (0, -size[1] % PATCH[1], 0, -size[0] % PATCH[0]))
    whole = model(filled, interpolate_pos_encoding=True).logits[..., : size[0], : size[1]]
    large = segment_large(model, pixel_values)
    # The outermost pixels also see scores of patches that are not in the image.
    inside = (..., slice(size[0] - 3), slice(size[1] - 3))
    torch.testing.assert_close(large[inside], whole[inside], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(31, 48), (30, 47), (44, 59)], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_an_image_of_no_whole_patches_is_filled_up_with_zeros(
    head: str, size: tuple[int, int]
) -> None:
    model, pixel_values = segmenter(segmentation_head=head), torch.randn(2, 3, *size)
    filled = functional.pad(pixel_values, (0, -size[1] % PATCH[1], 0, -size[0] % PATCH[0]))
    large = segment_large(model, pixel_values)
    assert large.shape == (2, 5, *size)
    expected = segment_large(model, filled)[..., : size[0], : size[1]]
    torch.testing.assert_close(large, expected)


def test_padding_is_said_only_of_images_smaller_than_a_window() -> None:
    masks: list[Tensor | None] = []

    def predict(crops: Tensor, outside: Tensor | None) -> Tensor:
        masks.append(outside)
        return crops[:, :, ::5, ::6]

    slide(predict, torch.randn(2, 3, 31, 47), WINDOW, WINDOW, PATCH, batch_size=3)
    assert masks and all(mask is None for mask in masks)
    masks.clear()
    slide(predict, torch.randn(2, 3, 31, 13), WINDOW, WINDOW, PATCH, batch_size=4)
    rows = torch.tensor([False, False, False, True]).repeat(3)  # 13 pixels reach a third patch
    assert [mask.tolist() for mask in masks if mask is not None] == [
        rows.expand(count, 12).tolist() for count in (4, 2)
    ]


def test_the_stride_is_about_two_thirds_of_the_window_by_default() -> None:
    assert window_stride(None, (224, 224), (16, 16)) == (144, 144)
    assert window_stride(None, (60, 140), (20, 20)) == (40, 80)
    assert window_stride(None, (16, 16), (16, 16)) == (16, 16)
    assert window_stride(20, (60, 140), (20, 10)) == (20, 20)
    assert window_stride((20, 140), (60, 140), (20, 10)) == (20, 140)


@pytest.mark.parametrize(
    ("stride", "got"),
    [
        (0, "0x0"),
        (-30, "-30x-30"),
        ((7, 6), "7x6"),
        ((5, 5), "5x5"),
        ((20, 24), "20x24"),
        ((15, 30), "15x30"),
    ],
)
def test_a_stride_that_does_not_fit_is_refused(stride: int | tuple[int, int], got: str) -> None:
    message = f"`stride` must be .* patches of 5x6 .* window of 15x24, got {got}"
    with pytest.raises(ValueError, match=message):
        segmenter().segment_large(torch.randn(1, 3, 40, 40), stride=stride)
