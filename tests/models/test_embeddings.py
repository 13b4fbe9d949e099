"""Position tables: the formula, the order of the axes, and other grids than the model's own."""

import math

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.embeddings import resize_positions, sincos_positions
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining, VitMaeModel

from .tiny import RECTANGULAR, random_images, random_noise, tiny_config


def sincos_by_loop(rows: int, columns: int, width: int) -> Tensor:
    """The table entry by entry: column's sine, column's cosine, row's sine, row's cosine."""
    quarter = width // 4
    table = [[0.0] * width]
    for y in range(rows):
        for x in range(columns):
            rates = [1 / 10000 ** (i / quarter) for i in range(quarter)]
            table.append(
                [math.sin(x * rate) for rate in rates]
                + [math.cos(x * rate) for rate in rates]
                + [math.sin(y * rate) for rate in rates]
                + [math.cos(y * rate) for rate in rates]
            )
    return torch.tensor([table])


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (7, 1)])
def test_sincos_table_is_the_formula(grid: tuple[int, int]) -> None:
    table = sincos_positions(grid, 16)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, sincos_by_loop(*grid, 16), rtol=0, atol=1e-6)


def test_sincos_table_is_made_on_the_device_asked_for() -> None:
    assert sincos_positions((2, 3), 8, torch.device("meta")).device.type == "meta"
    with torch.device("meta"):
        assert torch.equal(
            sincos_positions((2, 3), 8, torch.device("cpu")), sincos_positions((2, 3), 8)
        )


def test_sincos_is_fixed_and_learned_is_trained_from_the_same_start() -> None:
    fixed = VitMaeForPreTraining(tiny_config(**RECTANGULAR, position_embedding="sincos"))
    learned = VitMaeForPreTraining(tiny_config(**RECTANGULAR, position_embedding="learned"))
    for of in (lambda model: model.vit.embeddings, lambda model: model.decoder):
        assert not of(fixed).position_embeddings.requires_grad
        assert of(learned).position_embeddings.requires_grad
        assert torch.equal(of(fixed).position_embeddings, of(learned).position_embeddings)


def test_sincos_positions_of_another_size_are_those_of_a_fresh_model() -> None:
    small, large = tiny_config(**RECTANGULAR), tiny_config(image_size=(24, 16), patch_size=(4, 8))
    model, fresh = VitMaeForPreTraining(small).eval(), VitMaeForPreTraining(large).eval()
    weights = {k: v for k, v in model.state_dict().items() if "position_embeddings" not in k}
    fresh.load_state_dict(weights, strict=False)
    pixel_values, noise = random_images(large), random_noise(large)
    got = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    expected = fresh(pixel_values, noise=noise)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.loss, expected.loss)


def test_learned_positions_are_resized_along_height_and_width() -> None:
    model = VitMaeModel(tiny_config(**RECTANGULAR, position_embedding="learned"))
    table = model.embeddings.position_embeddings.data  # a grid of 4 x 3
    rows = torch.arange(4.0).repeat_interleave(3)
    columns = torch.arange(3.0).repeat(4)
    table[0, 0], table[0, 1:, 0], table[0, 1:, 1] = 7.0, rows, columns
    resized = model.embeddings.positions((8, 3))
    assert resized.shape == (1, 25, 32)
    assert (resized[0, 0] == 7.0).all()
    by_row = resized[0, 1:].reshape(8, 3, -1)
    assert (by_row[..., 0].diff(dim=0) > 0).all()  # row values still grow downwards
    torch.testing.assert_close(by_row[..., 0].diff(dim=1), torch.zeros(8, 2))
    torch.testing.assert_close(by_row[..., 1], torch.arange(3.0).expand(8, 3))


def test_resizing_to_the_same_grid_is_the_table_itself() -> None:
    table = torch.randn(1, 7, 8)
    assert resize_positions(table, (2, 3), (2, 3)) is table


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
def test_images_of_another_size_run_and_keep_their_gradients(position_embedding: str) -> None:
    model = VitMaeForPreTraining(tiny_config(position_embedding=position_embedding))
    output = model(torch.randn(2, 3, 8, 24), interpolate_pos_encoding=True)
    assert output.logits.shape == (2, 12, 48)
    output.loss.backward()
    grad = model.vit.embeddings.position_embeddings.grad
    assert (grad is not None and bool(grad.any())) == (position_embedding == "learned")


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 24, 16), torch.float32, "Images of 24x16 .* do not fit a model for 16x24"),
        (
            (2, 1, 16, 24),
            torch.float32,
            r"must be \(batch, 3, height, width\), got \(2, 1, 16, 24\)",
        ),
        ((3, 16, 24), torch.float32, r"got \(3, 16, 24\)"),
        (
            (2, 3, 16, 24),
            torch.uint8,
            "got torch.uint8; pass the images through the image processor",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(shape: tuple, dtype: torch.dtype, message: str) -> None:
    model = VitMaeModel(tiny_config(**RECTANGULAR))
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape, dtype=dtype))


def test_a_size_that_is_no_whole_number_of_patches_is_refused() -> None:
    model = VitMaeModel(tiny_config(**RECTANGULAR))
    with pytest.raises(ValueError, match="16x20 .* whole number of 4x8 patches"):
        model(torch.zeros(1, 3, 16, 20), interpolate_pos_encoding=True)
