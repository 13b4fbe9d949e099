"""Continuations keep what is given and show what the model makes of the rest."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hf_vitmae import VitMaeForNextPatchPrediction, VitMaeForPreTraining, VitMaeImageProcessor
from hf_vitmae.models.patches import denormalize_patches, patch_statistics, patchify
from hf_vitmae.visualize import continuation, continuations

from ..models.tiny import RECTANGULAR, stir, tiny_config

NORM_PIX = pytest.mark.parametrize("norm_pix_loss", [False, True])


def stirred(**overrides: Any) -> VitMaeForNextPatchPrediction:
    """A model with a grid of 4 x 3 patches of 4 x 8 pixels."""
    torch.manual_seed(0)
    model = VitMaeForNextPatchPrediction(tiny_config(**(RECTANGULAR | overrides))).eval()
    stir(model)
    return model


def stubborn(answer: float, **overrides: Any) -> VitMaeForNextPatchPrediction:
    """A model that predicts this value for every pixel."""
    model = stirred(**overrides)
    head: Any = model.next_patch_head
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, answer)
    return model


def images(batch: int = 2, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 (B, C, 16, 24)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, channels, 16, 24), generator=generator, dtype=torch.uint8)


def in_patches(picture: Image.Image) -> Tensor:
    """float (N, P), gray values."""
    values = torch.from_numpy(np.atleast_3d(np.asarray(picture)).copy())
    return patchify(values.permute(2, 0, 1)[None].float(), (4, 8))[0]


def gray_values(patches: Tensor) -> Tensor:
    """Normalised pixels as a picture shows them, but for rounding."""
    return (patches * 127.5 + 127.5).clamp(0, 255)


def assert_painted(picture: Image.Image, expected: Tensor) -> None:
    """Every pixel to the nearest of 256 values: (N, P)."""
    assert (in_patches(picture) - expected).abs().max() <= 0.5 + 1e-2


@NORM_PIX
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("num_given", [1, 7, 11])
def test_given_pixels_are_kept(num_given: int, channels: int, norm_pix_loss: bool) -> None:
    model = stirred(num_channels=channels, norm_pix_loss=norm_pix_loss)
    given = images(2, channels)
    for row, image in zip(
        continuations(model, given, num_given_patches=num_given), given, strict=True
    ):
        assert list(row.pictures) == ["input", "given", "continued", "one step"]
        shown = image[:3] if channels >= 3 else image[:1]
        expected = patchify(shown[None].float(), (4, 8))[0]  # (N, P)
        painted = {name: in_patches(picture) for name, picture in row.pictures.items()}
        assert torch.equal(painted["input"], expected)
        for name in ("given", "continued"):
            assert torch.equal(painted[name][:num_given], expected[:num_given])
        assert (painted["given"][num_given:] == 128).all()
        assert (painted["continued"][num_given:] != expected[num_given:]).any(dim=1).all()


def test_a_model_that_always_says_the_same_paints_it() -> None:
    model, given = stubborn(-0.2), images(1)
    (row,) = continuations(model, given, num_given_patches=5)
    assert (in_patches(row.pictures["continued"])[5:] == 102).all()
    assert (in_patches(row.pictures["one step"]) == 102).all()
    errors = (patchify(given / 127.5 - 1, (4, 8))[0, 5:] + 0.2).square()
    words = f"5 of 12 patches given, mean squared error of the rest {errors.mean():.3f}"
    assert row.caption == f"{words} (normalised pixels)"


def test_normalised_predictions_get_statistics_and_the_caption_says_so() -> None:
    model, given = stubborn(0.0, norm_pix_loss=True), images(1)
    (row,) = continuations(model, given, num_given_patches=6)
    means = patchify(given.float(), (4, 8))[0].mean(dim=1, keepdim=True)  # (N, 1)
    above = torch.cat([means[:6], means[3:6], means[3:6]])  # of the last given row
    expected = patchify(given.float(), (4, 8))[0]
    expected[6:] = above[6:]
    assert_painted(row.pictures["continued"], expected)
    assert_painted(row.pictures["one step"], means.expand(-1, 96))
    error = (expected - patchify(given.float(), (4, 8))[0])[6:].square().mean() / 127.5**2
    assert row.caption == (
        f"6 of 12 patches given, mean squared error of the rest {error:.3f} (normalised pixels)\n"
        "one step: with mean and contrast of the true patches"
    )


@NORM_PIX
@pytest.mark.parametrize("both_ways", [False, True])
def test_continued_and_one_step_are_the_models_own(both_ways: bool, norm_pix_loss: bool) -> None:
    model, given = stirred(norm_pix_loss=norm_pix_loss), images(1)
    pixel_values = given / 127.5 - 1
    with torch.no_grad():
        continued = model.generate(pixel_values, 4, bidirectional_prefix=both_ways)
        steps = model(pixel_values, num_prefix_patches=4 if both_ways else 0).logits  # (1, N, P)
    if norm_pix_loss:
        statistics = patch_statistics(patchify(pixel_values, (4, 8)))
        steps = denormalize_patches(steps, *statistics)
    steps = gray_values(steps[0])
    if both_ways:
        steps[:4] = 128  # they see themselves: that is no prediction
    (row,) = continuations(model, given, num_given_patches=4, bidirectional_prefix=both_ways)
    assert_painted(row.pictures["continued"], gray_values(patchify(continued, (4, 8)))[0])
    assert_painted(row.pictures["one step"], steps)


def test_one_step_sees_true_patches_and_continued_does_not() -> None:
    model, given = stirred(), images(1)
    changed = given.clone()
    changed[:, :, 8:12, :8] = 255 - given[:, :, 8:12, :8]  # patch 6, the first that is not given
    (before, after) = (
        continuations(model, one, num_given_patches=6)[0].pictures for one in (given, changed)
    )
    assert before["continued"].tobytes() == after["continued"].tobytes()
    steps = [in_patches(pictures["one step"]) for pictures in (before, after)]
    assert torch.equal(steps[0][:7], steps[1][:7])
    assert (steps[0][7:] != steps[1][7:]).any()


@pytest.mark.parametrize(("height", "num_given"), [(16, 6), (20, 9)])
def test_the_upper_half_is_given_unless_told(height: int, num_given: int) -> None:
    model = stirred(image_size=(height, 24))
    given = torch.zeros(1, 3, height, 24, dtype=torch.uint8)
    with torch.no_grad():
        continued = patchify(model.generate(given / 127.5 - 1), (4, 8))[0]
    (row,) = continuations(model, given)
    assert ((in_patches(row.pictures["given"]) == 0).all(dim=1).sum() == num_given).item()
    assert_painted(row.pictures["continued"], gray_values(continued))
    assert row.caption.startswith(f"{num_given} of {height // 4 * 3} patches given")


def test_every_image_has_its_own_row_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = stirred(), images(5)
    alone = [continuations(model, image)[0] for image in given]
    monkeypatch.setattr(continuation, "BATCH_SIZE", 2)
    together = continuations(model, given)
    for one, other in zip(alone, together, strict=True):
        assert one.caption == other.caption
        for name in ("input", "given"):
            assert one.pictures[name].tobytes() == other.pictures[name].tobytes()
        difference = in_patches(one.pictures["continued"]) - in_patches(other.pictures["continued"])
        assert difference.abs().max() <= 1
    assert len({row.caption for row in together}) == 5


def test_a_processor_of_ones_own_and_training_modes() -> None:
    model = stirred(hidden_dropout_prob=0.5).train()
    processor = VitMaeImageProcessor.for_model(model.config)
    pictures = [Image.new("RGBA", (50, 40), "red"), Image.new("L", (20, 90), 200)]
    first, second = (continuations(model, pictures, processor) for _ in range(2))
    assert model.training and model.vit.training
    assert [row.pictures["input"].size for row in first] == [(24, 16)] * 2
    for one, other in zip(first, second, strict=True):
        assert one.pictures["continued"].tobytes() == other.pictures["continued"].tobytes()


def test_images_of_another_size_and_refusing_them() -> None:
    model, picture = stirred(), Image.new("RGB", (50, 50))
    processor = VitMaeImageProcessor(size=(24, 16), patch_size=(4, 8))
    with pytest.raises(ValueError, match="24x16"):
        continuations(model, picture, processor)
    (row,) = continuations(model, picture, processor, interpolate_pos_encoding=True)
    assert {picture.size for picture in row.pictures.values()} == {(16, 24)}
    assert row.caption.startswith("6 of 12 patches given")


@pytest.mark.parametrize("num_given", [-1, 12])
def test_too_few_or_too_many_given_patches_are_named(num_given: int) -> None:
    with pytest.raises(ValueError, match=f"`num_given_patches` must be .* got {num_given}"):
        continuations(stirred(), images(1), num_given_patches=num_given)


def test_another_model_is_refused() -> None:
    model: Any = VitMaeForPreTraining(tiny_config(**RECTANGULAR))
    with pytest.raises(ValueError, match="VitMaeForPreTraining has no `next_patch_head`") as raised:
        continuations(model, images(1))
    assert "\n" not in str(raised.value)
