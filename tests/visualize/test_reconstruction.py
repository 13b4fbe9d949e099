"""Reconstructions show what they claim to: exact pasting, honest statistics, repeatable masks."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hf_vitmae import (
    VitMaeConfig,
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeImageProcessor,
)
from hf_vitmae.models.losses import pixel_targets
from hf_vitmae.models.masking import PatchOrder, gather_tokens
from hf_vitmae.visualize import mean_visible_baseline, prediction, reconstruct


def tiny(**overrides: Any) -> VitMaeForPreTraining:
    """A fresh model with a grid of 4x3 patches of 4x6 pixels."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    settings: dict[str, Any] = {"image_size": (16, 18), "patch_size": (4, 6), **sizes, **decoder}
    return VitMaeForPreTraining(VitMaeConfig(**settings | overrides))


def images(batch: int = 2, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 (B, C, 16, 18), of the size that `tiny` takes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, channels, 16, 18), generator=generator, dtype=torch.uint8)


def uniform(*shape: int) -> Tensor:
    """The same numbers in 0..1 on each call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


class Oracle(nn.Module):
    """Stands for a decoder that knows the answer."""

    def __init__(self, model: VitMaeForPreTraining, pictures: Tensor) -> None:
        super().__init__()
        pixel_values = pictures / 127.5 - 1
        config = model.config
        self.targets = pixel_targets(pixel_values, config.patch_pair, config.norm_pix_loss)

    def forward(self, latent: Tensor, order: PatchOrder, *_: Any) -> Tensor:
        return gather_tokens(self.targets, order.shuffle)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def pixel_mask(mask: np.ndarray) -> np.ndarray:
    """bool (h, w) -> bool (H, W)."""
    return np.kron(mask, np.ones((4, 6), dtype=bool))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_an_oracle_paints_the_input(channels: int, norm_pix_loss: bool) -> None:
    model, given = tiny(num_channels=channels, norm_pix_loss=norm_pix_loss), images(2, channels)
    model.decoder = Oracle(model, given)  # pyright: ignore[reportAttributeAccessIssue]
    for item, image in zip(reconstruct(model, given), given, strict=True):
        shown = image[:3] if channels >= 3 else image[:1]
        expected = shown.permute(1, 2, 0).numpy().squeeze()
        assert item.input.mode == ("RGB" if channels >= 3 else "L")
        np.testing.assert_array_equal(pixels(item.input), expected)
        np.testing.assert_array_equal(pixels(item.prediction), expected)
        np.testing.assert_array_equal(pixels(item.pasted), expected)
        assert item.error == pytest.approx(0, abs=1e-10)


def test_masked_and_pasted_follow_the_mask() -> None:
    for item in reconstruct(tiny(), images()):
        hidden = pixel_mask(item.mask)
        assert item.mask.shape == (4, 3) and item.mask.sum() == 9
        assert (pixels(item.masked)[hidden] == 128).all()
        assert (pixels(item.masked)[~hidden] == pixels(item.input)[~hidden]).all()
        assert (pixels(item.pasted)[hidden] == pixels(item.prediction)[hidden]).all()
        assert (pixels(item.pasted)[~hidden] == pixels(item.input)[~hidden]).all()


def test_predictions_are_the_models_own() -> None:
    model, given = tiny().eval(), images(1)
    pixel_values, noise = given / 127.5 - 1, uniform(1, 12)
    with torch.no_grad():
        output = model(pixel_values, noise=noise)
    (item,) = reconstruct(model, given, noise=noise)
    expected = (model.unpatchify(output.logits)[0] * 127.5 + 127.5).clamp(0, 255)
    painted = torch.from_numpy(pixels(item.prediction).copy()).permute(2, 0, 1)
    assert (painted - expected).abs().max() <= 0.5 + 1e-2
    assert item.error == pytest.approx(output.loss.item(), rel=1e-5)
    assert item.statistics == "model's own pixels"


def test_visible_statistics_leak_nothing_and_hidden_ones_do() -> None:
    model, given = tiny(norm_pix_loss=True), images(1)
    (before,) = reconstruct(model, given, statistics="visible")
    changed = torch.where(torch.from_numpy(pixel_mask(before.mask)), images(1, seed=1) // 4, given)
    (after,) = reconstruct(model, changed, statistics="visible")
    assert pixels(before.input).tolist() != pixels(after.input).tolist()
    for name in ("masked", "prediction", "pasted"):
        assert getattr(before, name).tobytes() == getattr(after, name).tobytes()
    (shown, leaked) = (reconstruct(model, pictures)[0] for pictures in (given, changed))
    assert shown.prediction.tobytes() != leaked.prediction.tobytes()
    assert "visible patches" in before.statistics and "from the input" in shown.statistics


def test_interpolated_statistics_are_weighted_by_distance() -> None:
    values = torch.tensor([1.0, 7.0, 7.0, 4.0])[None, :, None]  # a row of patches, the ends visible
    hidden = torch.tensor([[False, True, True, False]])
    near = (1.0 + 4.0 / 8) / (1 + 1 / 8)
    far = (1.0 / 8 + 4.0) / (1 + 1 / 8)
    filled = prediction.interpolate_hidden(values, hidden, (1, 4))
    torch.testing.assert_close(filled[0, :, 0], torch.tensor([1.0, near, far, 4.0]))


def test_nothing_visible_and_nothing_hidden_are_legal() -> None:
    model, given = tiny(norm_pix_loss=True), images(1)
    for hide in (True, False):
        mask = torch.full((1, 12), hide)
        (item,) = reconstruct(model, given, mask=mask, statistics="visible")
        assert item.mask.all() == hide and np.isfinite(item.error)
        if hide:  # nothing is known: mean and deviation 0, which is mid-gray
            assert (pixels(item.prediction) == 128).all()
    assert item.error == 0
    assert not reconstruct(model, given, mask_ratio=0)[0].mask.any()


def test_masks_repeat_by_seed_and_differ_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = tiny(), images(5)
    first = reconstruct(model, given)
    assert len({item.mask.tobytes() for item in first}) == 5
    assert (reconstruct(model, given, seed=1)[0].mask != first[0].mask).any()
    monkeypatch.setattr(prediction, "BATCH_SIZE", 2)
    for again, item in zip(reconstruct(model, given), first, strict=True):
        assert (again.mask == item.mask).all()
        assert again.error == pytest.approx(item.error, rel=1e-5)
    (alone,) = reconstruct(model, given[0])
    assert (alone.mask == first[0].mask).all()


def test_masks_over_patches_and_pixels_agree() -> None:
    model, given = tiny(), images(2)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 5], mask[1, 6:] = True, True
    over_pixels = torch.stack(
        [torch.from_numpy(pixel_mask(row.reshape(4, 3).numpy())) for row in mask]
    )
    for one, other in zip(
        reconstruct(model, given, mask=mask),
        reconstruct(model, given, mask=over_pixels),
        strict=True,
    ):
        assert one.prediction.tobytes() == other.prediction.tobytes()
    assert one.mask.sum() == 6


def test_training_modes_come_back() -> None:
    model = tiny(hidden_dropout_prob=0.5).train()
    model.vit.eval()
    modes = [module.training for module in model.modules()]
    first, second = (reconstruct(model, images(1))[0] for _ in range(2))
    assert [module.training for module in model.modules()] == modes
    assert first.prediction.tobytes() == second.prediction.tobytes()
    with pytest.raises(ValueError, match="32x36"):
        reconstruct(model, images(1), VitMaeImageProcessor(size=(32, 36), patch_size=(4, 6)))
    assert [module.training for module in model.modules()] == modes


def test_pil_images_of_any_size_and_other_resolutions() -> None:
    pictures = [Image.new("RGBA", (50, 40), "red"), Image.new("L", (20, 90), 200)]
    processor = VitMaeImageProcessor(size=(32, 36), patch_size=(4, 6))
    assert [item.input.size for item in reconstruct(tiny(), pictures)] == [(18, 16)] * 2
    large = reconstruct(tiny(), pictures, processor, interpolate_pos_encoding=True)
    assert [item.mask.shape for item in large] == [(8, 6)] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"statistics": "secret"}, "secret"),
        ({"mask_ratio": 1.5}, "1.5"),
        ({"noise": torch.zeros(3, 12)}, "3 images of 12 patches, but there are 2 of 12"),
        ({"noise": torch.zeros(12)}, "1 images"),
        ({"mask": torch.ones(1, 12, dtype=torch.bool)}, "1 images"),
        ({"mask": torch.ones(2, 12)}, "boolean"),
        ({"mask": torch.ones(2, 12, dtype=torch.bool), "mask_ratio": 0.5}, "not both"),
    ],
)
def test_bad_arguments_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        reconstruct(tiny(), images(), **options)


def test_a_model_without_decoder_is_refused() -> None:
    classifier = VitMaeForImageClassification(tiny().config)
    with pytest.raises(ValueError, match="no decoder"):
        reconstruct(classifier, images())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("channels", [1, 3])
def test_baseline_against_loops(channels: int) -> None:
    values, mask = images(3, channels) / 255.0, uniform(3, 12) > 0.3
    squares = []
    for image, row in zip(values, mask, strict=True):
        hidden = torch.from_numpy(pixel_mask(row.reshape(4, 3).numpy()))
        for channel in image:
            squares.append((channel[hidden] - channel[~hidden].mean()).square())
    expected = torch.cat(squares).mean().item()
    assert mean_visible_baseline(values, mask, (4, 6), False) == pytest.approx(expected, rel=1e-5)


def test_baseline_of_normalised_and_of_unseen_patches() -> None:
    values, mask = images(2) / 255.0, uniform(2, 12) > 0.3
    num_values = 4 * 6 * 3
    expected = (num_values - 1) / num_values
    assert mean_visible_baseline(values, mask, (4, 6), True) == pytest.approx(expected, rel=1e-3)
    everything = torch.ones(2, 12, dtype=torch.bool)
    expected = values.square().mean().item()
    assert mean_visible_baseline(values, everything, (4, 6), False) == pytest.approx(expected)
