"""Pictures of masked patch prediction: what the model was given, its targets and its answer."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hf_vitmae import VitMaeForMaskedPatchPrediction, VitMaeForPreTraining, VitMaeImageProcessor
from hf_vitmae.models.losses import patch_targets
from hf_vitmae.models.patches import patchify
from hf_vitmae.visualize import color_prediction, color_predictions

from ..models.tiny import RECTANGULAR, stir, tiny_config

TARGETS = ("mean_color", "colors_4x4", "pixels")
CENTRES = [round((level + 0.5) / 8 * 255) for level in range(8)]  # gray values of the levels
HYBRID: dict[str, Any] = {
    "stem_depths": (1,),
    "stem_width": 8,
    "stem_num_groups": 4,
    "patch_size": 4,
    "image_size": 32,
}


def stirred(**overrides: Any) -> VitMaeForMaskedPatchPrediction:
    torch.manual_seed(0)
    model = VitMaeForMaskedPatchPrediction(tiny_config(**overrides)).eval()
    stir(model)
    return model


def stubborn(answer: Tensor, **overrides: Any) -> VitMaeForMaskedPatchPrediction:
    """A model whose outputs for every patch are these: (outputs,)."""
    model = stirred(**overrides)
    nn.init.zeros_(model.patch_head.weight)
    model.patch_head.bias.data.copy_(answer)
    return model


def one_hot(*classes: int, count: int) -> Tensor:
    """Scores that favour these classes, one after another: (S * count,)."""
    return nn.functional.one_hot(torch.tensor(classes), count).float().flatten()


def images(model: VitMaeForMaskedPatchPrediction, batch: int = 2, seed: int = 0) -> Tensor:
    """uint8 (B, C, H, W) of the model's size, noise around a level for each patch and channel."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    levels = torch.rand((batch, config.num_channels, *config.grid), generator=generator)
    levels = nn.functional.interpolate(levels, config.image_pair)  # nearest
    noise = torch.rand(levels.shape, generator=generator)
    return (levels * 191 + noise * 64).to(torch.uint8)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def channels_first(picture: Image.Image) -> Tensor:
    """uint8 (1, C, H, W)."""
    return torch.from_numpy(np.atleast_3d(pixels(picture)).copy()).permute(2, 0, 1)[None]


def watch(model: VitMaeForMaskedPatchPrediction) -> dict[str, Tensor]:
    """What the last call drew, gave to the encoder (B, N, D) and returned, filled at each call."""
    seen: dict[str, Tensor] = {}

    def before(_: Any, arguments: tuple, options: dict) -> None:
        seen.update({name: options[name] for name in ("noise", "corruption_noise")})

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(
        lambda _, __, output: seen.update(mask=output.mask, logits=output.logits)
    )
    model.vit.embeddings.register_forward_pre_hook(lambda _, given: seen.update(given=given[0]))
    return seen


@pytest.mark.parametrize(
    ("channels", "classes", "expected"),
    [
        (1, (5,), (5,)),
        (2, (6 * 8 + 1,), (6,)),  # the first channel is shown, and has the higher bits
        (3, (7 * 64 + 0 * 8 + 3,), (7, 0, 3)),
        (5, (4, 0, 7, 1, 2), (4, 0, 7)),  # a class for each channel
    ],
)
def test_a_mean_colour_is_painted_as_the_middle_of_its_bin(
    channels: int, classes: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    count = 8 ** (channels if channels <= 3 else 1)
    model = stubborn(one_hot(*classes, count=count), num_channels=channels, **RECTANGULAR)
    for row in color_predictions(model, images(model)):
        painted = np.atleast_3d(pixels(row.pictures["prediction"]))
        assert painted.shape == (16, 24, len(expected))
        assert (painted == [CENTRES[level] for level in expected]).all()


@pytest.mark.parametrize(("width", "cells"), [(8, [0, 0, 1, 1, 2, 2, 3, 3]), (5, [0, 0, 1, 2, 3])])
def test_4x4_colours_lie_in_raster_order(width: int, cells: list[int]) -> None:
    levels = torch.arange(16).reshape(4, 4) % 8
    answer = one_hot(*levels.flatten().tolist(), count=8)
    geometry = {"image_size": (8, 2 * width), "patch_size": (4, width)}
    model = stubborn(answer, num_channels=1, patch_target="colors_4x4", **geometry)
    (row,) = color_predictions(model, images(model, 1))
    patch = np.array(CENTRES)[levels.numpy()][:, cells]  # (4, width)
    np.testing.assert_array_equal(pixels(row.pictures["prediction"]), np.tile(patch, (2, 2)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_painted_as_they_are_and_clipped(channels: int) -> None:
    values = torch.linspace(-0.5, 1.5, 4 * 8 * channels)
    model = stubborn(values, num_channels=channels, patch_target="pixels", **RECTANGULAR)
    (row,) = color_predictions(model, images(model, 1))
    patch = (values.clamp(0, 1) * 255).round().reshape(4, 8, channels).numpy()
    painted = np.atleast_3d(pixels(row.pictures["prediction"]))
    np.testing.assert_array_equal(painted, np.tile(patch, (4, 3, 1)))


@pytest.mark.parametrize("statistics", [{}, {"image_mean": (0.5, 0.4, 0.3), "image_std": 0.25}])
def test_targets_are_painted_from_the_images_own_colours(statistics: dict[str, Any]) -> None:
    # Two halves of each patch, so that mean colours and 4x4 colours differ.
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[:, 0::4] = picture[:, 1::4] = (255, 40, 0)
    picture[:, 2::4] = picture[:, 3::4] = (255, 40, 128)
    expected = {"pixels": picture, "mean_color": picture.copy(), "colors_4x4": picture.copy()}
    expected["mean_color"][:] = (CENTRES[7], CENTRES[1], CENTRES[2])  # blue 64 / 255 * 8 = 2.008
    expected["colors_4x4"][..., :2] = (CENTRES[7], CENTRES[1])
    expected["colors_4x4"][..., 2] = np.where(picture[..., 2] == 0, CENTRES[0], CENTRES[4])
    for name, painted in expected.items():
        model = stirred(patch_target=name, **statistics)
        (row,) = color_predictions(model, Image.fromarray(picture))
        np.testing.assert_array_equal(pixels(row.pictures["input"]), picture)
        np.testing.assert_array_equal(pixels(row.pictures["target"]), painted)


@pytest.mark.parametrize("target", ["mean_color", "colors_4x4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_painted_target_has_the_same_targets(channels: int, target: str) -> None:
    model = stirred(num_channels=channels, patch_target=target, **RECTANGULAR)
    processor = VitMaeImageProcessor.for_model(model.config)
    given = images(model, 3)
    for row, image in zip(color_predictions(model, given), given, strict=True):
        painted = channels_first(row.pictures["target"])
        before, after = (
            patch_targets(processor.normalize(one), model.config) for one in (image[None], painted)
        )
        assert torch.equal(before, after) and before.unique().numel() > 3


@pytest.mark.parametrize("target", TARGETS)
def test_the_prediction_is_the_models_likeliest(target: str) -> None:
    model = stirred(patch_target=target, **RECTANGULAR)
    seen = watch(model)
    (row,) = color_predictions(model, images(model, 1))
    logits = seen["logits"][0]  # (N, outputs)
    painted = patchify(channels_first(row.pictures["prediction"]), (4, 8))[0]  # (N, P)
    for patch, scores in zip(painted.reshape(12, 4, 8, 3).tolist(), logits, strict=True):
        if target == "pixels":
            expected = (scores.clamp(0, 1) * 255).round().reshape(4, 8, 3).tolist()
        else:
            classes = [int(part.argmax()) for part in scores.split(512)]
            colors = [[CENTRES[c // 64], CENTRES[c // 8 % 8], CENTRES[c % 8]] for c in classes]
            side = 1 if target == "mean_color" else 4
            expected = [
                [colors[y * side // 4 * side + x * side // 8] for x in range(8)] for y in range(4)
            ]
        assert patch == expected
    assert len({tuple(patch) for patch in painted.tolist()}) > 3


def test_the_corrupted_picture_is_what_the_encoder_is_given() -> None:
    model = stirred(image_size=32)
    seen, given = watch(model), images(model, 4)
    rows = color_predictions(model, given)
    kinds = {"masked": 0, "swapped": 0, "kept": 0}
    for index, row in enumerate(rows):
        shown = channels_first(row.pictures["corrupted"])
        with torch.no_grad():
            embedded = model.vit.embeddings.patch_embeddings(shown / 127.5 - 1)[0]  # (N, D)
        shown, own = (patchify(one, 4)[0] for one in (shown, given[index : index + 1]))
        for patch in range(64):
            token = seen["given"][index, patch]
            if torch.equal(token, model.mask_token[0, 0]):
                assert (shown[patch] == 128).all() and seen["mask"][index, patch]
                kinds["masked"] += 1
                continue
            torch.testing.assert_close(embedded[patch], token, rtol=1e-4, atol=1e-4)
            changed = not torch.equal(shown[patch], own[patch])
            assert not changed or seen["mask"][index, patch]
            kinds["swapped"] += changed
            kinds["kept"] += bool(seen["mask"][index, patch]) and not changed
    assert sum(kinds.values()) == 4 * 32
    assert kinds["masked"] > 80 and kinds["swapped"] > 3 and kinds["kept"] > 3


def test_a_hybrid_stem_is_given_nothing_of_replaced_patches() -> None:
    model = stirred(**HYBRID)
    seen, given = watch(model), images(model, 12)
    swapped, erased = 0, 0
    for index, row in enumerate(color_predictions(model, given)):
        shown, own = (
            patchify(one, 4)[0]
            for one in (channels_first(row.pictures["corrupted"]), given[index : index + 1])
        )
        noise, mask = seen["corruption_noise"][index], seen["mask"][index]
        replaced = mask & (noise < 0.9)
        intact = {tuple(patch) for patch in own[~replaced].tolist()}
        for patch in (replaced & (noise >= 0.8)).nonzero()[:, 0].tolist():
            is_erased = bool((shown[patch] == 128).all())
            assert is_erased or tuple(shown[patch].tolist()) in intact
            swapped, erased = swapped + 1, erased + is_erased
        assert (shown[mask & (noise < 0.8)] == 128).all()
        assert torch.equal(shown[~replaced], own[~replaced])
    assert 3 < erased < swapped - 3


def test_captions_say_how_well_corrupted_patches_are_predicted() -> None:
    model = stubborn(one_hot(7 * 64, count=512), corruption_ratio=0.25)
    seen, picture = watch(model), np.zeros((16, 16, 3), dtype=np.uint8)
    picture[:, :8] = (255, 0, 0)  # class 7 * 64 in the left half
    for seed in range(3):
        (row,) = color_predictions(model, Image.fromarray(picture), seed=seed)
        hits = seen["mask"].reshape(4, 4)[:, :2].sum().item()
        assert row.caption == f"25% corrupted, accuracy there {hits / 4:.0%}"


def test_captions_of_pixels_and_of_nothing_corrupted() -> None:
    model = stubborn(torch.full((48,), 0.5), patch_target="pixels")
    seen, given = watch(model), images(model, 1)
    (row,) = color_predictions(model, given)
    errors = (patchify(given / 255.0, 4)[0] - 0.5).square().mean(dim=1)  # (N,)
    error = errors[seen["mask"][0]].mean().item()
    assert abs(error - errors.mean().item()) > 1e-4  # the mask matters
    words = f"50% corrupted, mean squared error there {error:.4f} (pixels in 0..1)"
    assert row.caption == words
    (row,) = color_predictions(stirred(corruption_ratio=0.0), given)
    assert row.caption == "0% corrupted"
    assert pixels(row.pictures["corrupted"]).tolist() == pixels(row.pictures["input"]).tolist()


def test_corruption_repeats_by_seed_and_differs_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stirred()
    given = images(model, 1).expand(5, -1, -1, -1)
    first = [row.pictures["corrupted"].tobytes() for row in color_predictions(model, given)]
    assert len(set(first)) == 5
    other = color_predictions(model, given, seed=1)
    assert other[0].pictures["corrupted"].tobytes() != first[0]
    monkeypatch.setattr(color_prediction, "BATCH_SIZE", 2)
    again = color_predictions(model, given)
    assert [row.pictures["corrupted"].tobytes() for row in again] == first
    (alone,) = color_predictions(model, given[0])
    assert alone.pictures["corrupted"].tobytes() == first[0]


def test_columns_and_training_modes() -> None:
    model = stirred(hidden_dropout_prob=0.5).train()
    first, second = (color_predictions(model, images(model, 1))[0] for _ in range(2))
    assert model.training and model.vit.training
    assert list(first.pictures) == ["input", "corrupted", "target", "prediction"]
    assert first.pictures["prediction"].tobytes() == second.pictures["prediction"].tobytes()


def test_images_of_another_size_and_refusing_them() -> None:
    model = stirred()
    processor = VitMaeImageProcessor(size=(32, 24), patch_size=4)
    with pytest.raises(ValueError, match="32x24"):
        color_predictions(model, Image.new("RGB", (50, 50)), processor)
    (row,) = color_predictions(
        model, Image.new("RGB", (50, 50)), processor, interpolate_pos_encoding=True
    )
    assert {picture.size for picture in row.pictures.values()} == {(24, 32)}


def test_another_model_is_refused() -> None:
    model: Any = VitMaeForPreTraining(tiny_config())
    with pytest.raises(ValueError, match="VitMaeForPreTraining has no `patch_head`.*") as raised:
        color_predictions(model, torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert "\n" not in str(raised.value)
