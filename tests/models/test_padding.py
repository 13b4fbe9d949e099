"""Patches without data reach nothing, whatever they hold; nor do those hidden before a stem."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitmae.models.masking import num_visible_patches, over_pixels
from hf_vitmae.models.modeling_vitmae import (
    VitMaeBackbone,
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from .tiny import RECTANGULAR, random_images, random_noise, stir, tiny_config

# A grid of 4 x 3 patches of 4 x 8 pixels, and behind a stem one of 4 x 2 of 8 x 8.
HYBRID: dict[str, Any] = {"stem_depths": (1, 1), "stem_width": 8, "stem_num_groups": 4}
HYBRID |= {"image_size": (32, 16), "patch_size": 8}
STEMS = {"linear": RECTANGULAR, "hybrid": HYBRID}
CAUSAL = {"is_causal": True, "pooling": "mean", "mask_ratio": 0.0}
PYRAMID = {"feature_pyramid": True, "pyramid_hidden_size": 8}
CASES: dict[str, tuple[type[VitMaePreTrainedModel], dict[str, Any]]] = {
    "encoder": (VitMaeModel, {"pooling": "mean"}),
    "causal-encoder": (VitMaeModel, CAUSAL),
    "autoencoder": (VitMaeForPreTraining, {}),
    "autoencoder-normalised": (VitMaeForPreTraining, {"norm_pix_loss": True}),
    "masked-colors": (VitMaeForMaskedPatchPrediction, {}),
    "masked-4x4": (VitMaeForMaskedPatchPrediction, {"patch_target": "colors_4x4"}),
    "masked-pixels": (VitMaeForMaskedPatchPrediction, {"patch_target": "pixels"}),
    "next-patch": (VitMaeForNextPatchPrediction, {"norm_pix_loss": True}),
    "classifier": (VitMaeForImageClassification, {"pooling": "mean"}),
    "segmenter": (VitMaeForSemanticSegmentation, {}),
    "segmenter-multi-layer": (VitMaeForSemanticSegmentation, {"segmentation_head": "multi_layer"}),
    "backbone": (VitMaeBackbone, {"out_indices": [0, 2]}),
    "pyramid": (VitMaeBackbone, PYRAMID),
}
VARIANTS = [("linear", "eager"), ("linear", "sdpa"), ("hybrid", "sdpa")]
HIDES = ("autoencoder", "masked-colors", "masked-pixels")


def make(case: str, stem: str = "linear", **overrides: Any) -> Any:
    """A stirred model in evaluation mode."""
    kind, fields = CASES[case]
    geometry = STEMS[stem]
    if case == "pyramid":  # which needs square patches
        geometry = geometry | {"image_size": (32, 16), "patch_size": 8}
    values = geometry | {"num_labels": 3, "segmentation_hidden_size": 8} | fields | overrides
    model = kind(tiny_config(**values)).eval()
    stir(model)
    return model


def unequal_padding(model: VitMaePreTrainedModel) -> Tensor:
    """Three images: one padded on the right, one below and in the middle, one not: bool (3, N)."""
    rows, columns = model.config.grid
    padding = torch.zeros(3, rows, columns, dtype=torch.bool)
    padding[0, :, -1] = True
    padding[1, -1] = True
    padding[1, 1, 0] = True
    return padding.flatten(1)


def pixels_of(mask: Tensor, model: VitMaePreTrainedModel) -> Tensor:
    """A mask over patches as one over the pixels of images: (B, N) -> (B, 1, H, W)."""
    return over_pixels(mask, model.config.grid, model.config.patch_pair)[:, None]


def arguments(model: VitMaePreTrainedModel) -> dict[str, Any]:
    """What a model of `make` takes besides images, so that it computes everything it can."""
    config = model.config
    size = (3, *config.image_pair)
    if isinstance(model, VitMaeForPreTraining):
        return {"noise": random_noise(config)}
    if isinstance(model, VitMaeForMaskedPatchPrediction):
        # Of the patches to predict one third becomes the mask token, another patch, or stays.
        return {
            "noise": random_noise(config),
            "corruption_noise": 0.7 + 0.3 * random_noise(config, seed=4),
        }
    if isinstance(model, VitMaeForImageClassification):
        return {"labels": torch.tensor([2, 0, 1])}
    if isinstance(model, VitMaeForSemanticSegmentation):
        return {"labels": torch.arange(size[0] * size[1] * size[2]).reshape(size) % 3}
    return {}


def tensors(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """Everything in an output by name, also what is in its tuples."""
    found = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            found[name] = value
        else:
            found |= {f"{name}.{place}": each for place, each in enumerate(value)}
    return found


def results_and_gradients(
    model: nn.Module, pixel_values: Tensor, **arguments: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every tensor of the output, and the gradient of every parameter."""
    model.zero_grad()
    results = tensors(model(pixel_values, **arguments))
    floats = [value for value in results.values() if value.is_floating_point()]
    sum(value.square().sum() for value in floats).backward()  # type: ignore[union-attr]
    gradients = {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    return results, gradients


@pytest.mark.parametrize(("stem", "attention"), VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_what_padding_holds_changes_no_result_and_no_gradient(
    case: str, stem: str, attention: str
) -> None:
    model = make(case, stem)
    model.set_attn_implementation(attention)
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    given = arguments(model) | {"padding_mask": padding, "output_hidden_states": True}
    results, gradients = results_and_gradients(model, pixel_values, **given)
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, value in (results | gradients).items():
        assert value.isfinite().all(), name
    for junk in (torch.nan, 1e30):
        spoilt = pixel_values.masked_fill(pixels_of(padding, model), junk)
        again = results_and_gradients(model, spoilt, **given)
        torch.testing.assert_close(again, (results, gradients), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("case", CASES)
def test_without_a_padding_mask_the_same_patches_do_count(case: str, stem: str) -> None:
    model = make(case, stem)
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    changed = pixel_values + pixels_of(padding, model)
    given = arguments(model)
    before, after = (tensors(model(images, **given)) for images in (pixel_values, changed))
    name = next(iter(before))
    assert not torch.allclose(before[name], after[name])


@pytest.mark.parametrize("case", CASES)
def test_one_pixel_without_data_makes_its_patch_padding(case: str) -> None:
    model = make(case)
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    width = model.config.image_pair[1]
    corners = pixels_of(padding, model)[:, 0]
    patch_height, patch_width = model.config.patch_pair
    corners[:, torch.arange(len(corners[0])) % patch_height != patch_height - 1] = False
    corners[:, :, torch.arange(width) % patch_width != 0] = False
    assert corners.sum() == padding.sum()
    by_pixel = tensors(model(pixel_values, padding_mask=corners, **arguments(model)))
    by_patch = tensors(model(pixel_values, padding_mask=padding, **arguments(model)))
    torch.testing.assert_close(by_pixel, by_patch, rtol=0, atol=0)


@pytest.mark.parametrize(("stem", "attention"), VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_no_padding_is_the_same_as_no_mask(case: str, stem: str, attention: str) -> None:
    model = make(case, stem)
    model.set_attn_implementation(attention)
    pixel_values, given = random_images(model.config), arguments(model)
    nothing = torch.zeros(3, model.config.num_patches, dtype=torch.bool)
    plain = tensors(model(pixel_values, **given))
    padded = tensors(model(pixel_values, padding_mask=nothing, **given))
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("case", CASES)
def test_an_image_that_is_all_padding_is_harmless(case: str, stem: str) -> None:
    model = make(case, stem)
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    padding[1] = True
    spoilt = pixel_values.masked_fill(pixels_of(padding, model), torch.nan)
    outcome = results_and_gradients(model, spoilt, padding_mask=padding, **arguments(model))
    for part in outcome:
        for name, value in part.items():
            assert value.isfinite().all(), name


@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_image_padded_to_twice_its_width_has_the_tokens_of_the_image(
    pooling: str, attention: str, position_embedding: str
) -> None:
    fields = {"pooling": pooling, "position_embedding": position_embedding}
    model = make("encoder", **fields)
    wide = make("encoder", **fields, image_size=(16, 48))
    own = torch.zeros(4, 6, dtype=torch.bool)
    own[:, :3] = True
    own = own.flatten()  # places of the image in the padded one
    weights = model.state_dict()
    table = wide.embeddings.position_embeddings.detach().clone()
    with_cls = torch.cat([torch.ones(1, dtype=torch.bool), own])
    if position_embedding == "sincos":  # which do not depend on the size of the grid
        assert torch.equal(table[:, with_cls], weights["embeddings.position_embeddings"])
    table[:, with_cls] = weights["embeddings.position_embeddings"]
    wide.load_state_dict(weights | {"embeddings.position_embeddings": table})
    for each in (model, wide):
        each.set_attn_implementation(attention)
    pixel_values = random_images(model.config)
    padded = torch.cat([pixel_values, torch.full_like(pixel_values, torch.nan)], dim=3)
    got = wide(padded, padding_mask=~own.expand(3, -1), output_hidden_states=True)
    expected = model(pixel_values, output_hidden_states=True)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output)
    states = (got.last_hidden_state, *got.hidden_states)
    for state, alone in zip(
        states, (expected.last_hidden_state, *expected.hidden_states), strict=True
    ):
        torch.testing.assert_close(state[:, with_cls], alone)


# Images of one batch in patches: the whole grid, narrower, and lower as well as narrower.
SIZES = ((4, 3), (4, 2), (2, 2))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "case", ["encoder", "autoencoder", "masked-colors", "masked-pixels", "next-patch", "classifier"]
)
def test_images_padded_to_one_size_are_each_as_if_alone(case: str, attention: str) -> None:
    model = make(case)
    model.set_attn_implementation(attention)
    pixel_values, given = random_images(model.config), arguments(model)
    own = torch.zeros(3, 4, 3, dtype=torch.bool)
    for image, (rows, columns) in enumerate(SIZES):
        own[image, :rows, :columns] = True
    own = own.flatten(1)
    batch = model(pixel_values, padding_mask=~own, **given)
    total, count = 0.0, 0
    for image, (rows, columns) in enumerate(SIZES):
        inputs = pixel_values[image : image + 1, :, : 4 * rows, : 8 * columns]
        alone = _alone(given, image, own[image])
        alone = model(inputs, interpolate_pos_encoding=True, **alone)
        places = own[image]
        for name in ("mask", "logits", "last_hidden_state", "pooler_output"):
            if alone.get(name) is None:
                continue
            got = batch[name][image]
            if name == "last_hidden_state":
                got = got[torch.cat([torch.ones(1, dtype=torch.bool), places])]
            elif len(got) == 12:
                got = got[places]
            torch.testing.assert_close(got, alone[name][0], rtol=1e-5, atol=1e-5)
        if alone.get("mask") is not None:
            total = total + alone.loss.item() * int(alone.mask.sum())
            count += int(alone.mask.sum())
    if count:
        assert count == int(batch.mask.sum())
        assert batch.loss.item() == pytest.approx(total / count, rel=1e-5)


def _alone(given: dict[str, Any], image: int, own: Tensor) -> dict[str, Any]:
    """The arguments of one image without its padding."""
    return {
        name: value[image : image + 1][:, own] if value.ndim == 2 else value[image : image + 1]
        for name, value in given.items()
    }


def test_scores_of_pixels_away_from_padding_are_those_of_the_image_alone() -> None:
    model = make("segmenter")
    pixel_values = random_images(model.config)
    padding = torch.zeros(3, 16, 24, dtype=torch.bool)
    padding[:, :, 16:] = True
    got = model(pixel_values, padding_mask=padding).logits
    alone = model(pixel_values[..., :16], interpolate_pos_encoding=True).logits
    # The last half patch is enlarged together with its neighbour.
    torch.testing.assert_close(got[..., :12], alone[..., :12], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("case", ["encoder", *HIDES])
def test_the_ratio_is_that_of_an_images_own_patches(
    case: str, ratio: float, training: bool
) -> None:
    model = make(case).train(training)
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    mask = model(pixel_values, padding_mask=padding, mask_ratio=ratio).mask
    assert not (mask & padding).any()
    own = (~padding).sum(dim=1).tolist()
    assert own == [8, 8, 12]
    assert mask.sum(dim=1).tolist() == [n - num_visible_patches(n, ratio) for n in own]


@pytest.mark.parametrize("case", ["encoder", *HIDES])
def test_padding_is_never_hidden_even_where_the_mask_says_so(case: str) -> None:
    model = make(case)
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    mask = random_noise(model.config, seed=7) < 0.5
    assert (mask & padding).any() and (mask & ~padding).any()
    asked, cleaned = (
        tensors(model(pixel_values, padding_mask=padding, mask=each))
        for each in (mask, mask & ~padding)
    )
    assert torch.equal(asked["mask"], mask & ~padding)
    torch.testing.assert_close(asked, cleaned, rtol=0, atol=0)


@pytest.mark.parametrize("stem", STEMS)
def test_no_patch_becomes_a_padded_one(stem: str) -> None:
    model = make("masked-colors", stem)
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    spoilt = pixel_values.masked_fill(pixels_of(padding, model), torch.nan)
    for share in torch.linspace(0.8, 0.8999, 23).tolist():  # the whole range that swaps
        output = model(
            spoilt,
            mask=~padding,
            corruption_noise=torch.full(padding.shape, share),
            padding_mask=padding,
            return_loss=False,
        )
        assert output.logits.isfinite().all()


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_pooled_means_leave_padding_out(ratio: float | None) -> None:
    model = make("encoder")
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    output = model(pixel_values, padding_mask=padding, mask_ratio=ratio, output_hidden_states=True)
    for image in range(3):
        tokens = output.hidden_states[-1][image, 1:]
        if ratio is None:
            tokens = tokens[~padding[image]]
        else:  # an image's visible patches come first
            tokens = tokens[: int((~padding[image]).sum()) // 2]
        expected = model.layernorm(tokens.mean(dim=0))
        torch.testing.assert_close(output.pooler_output[image], expected)


def test_labels_of_padding_do_not_count() -> None:
    model = make("segmenter")
    pixel_values, padding = random_images(model.config), unequal_padding(model)
    pixels, labels = pixels_of(padding, model)[:, 0], arguments(model)["labels"]
    expected = model(pixel_values, padding_mask=padding, labels=labels.masked_fill(pixels, 255))
    for label in (0, 1, 2):
        changed = labels.masked_fill(pixels, label)
        loss = model(pixel_values, padding_mask=padding, labels=changed).loss
        assert torch.equal(loss, expected.loss)
    assert not torch.equal(labels, labels.masked_fill(pixels, 255))  # the caller's are left alone


def test_padding_is_neither_predicted_nor_a_target_of_the_next_patch() -> None:
    model = make("next-patch")
    padding = unequal_padding(model)
    output = model(random_images(model.config), padding_mask=padding)
    assert torch.equal(output.mask, ~padding)


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (torch.zeros(3, 12), r"`padding_mask` must be boolean .* `padding_mask.bool\(\)`"),
        (torch.zeros(3, 11, dtype=torch.bool), r"`padding_mask` .*\(batch, 12\) .* got \(3, 11\)"),
        (torch.zeros(3, 24, 16, dtype=torch.bool), r"`padding_mask` .* got \(3, 24, 16\)"),
        (torch.zeros(2, 12, dtype=torch.bool), "`padding_mask` must have one row .* 3 images"),
    ],
)
@pytest.mark.parametrize("case", ["encoder", *HIDES, "next-patch", "classifier", "segmenter"])
def test_padding_masks_that_do_not_fit_are_refused(
    case: str, padding: Tensor, message: str
) -> None:
    model = make(case)
    with pytest.raises(ValueError, match=message):
        model(random_images(model.config), padding_mask=padding)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_pixels_hidden_from_a_stem_change_only_the_loss(attention: str) -> None:
    model = make("autoencoder", "hybrid")
    model.set_attn_implementation(attention)
    pixel_values = random_images(model.config)
    for mask in (random_noise(model.config) < 0.5, torch.ones(3, 8, dtype=torch.bool)):
        pixels, plain = pixels_of(mask, model), model(pixel_values, mask=mask)
        changed = model(pixel_values + pixels, mask=mask)
        assert torch.equal(changed.logits, plain.logits)
        assert not torch.equal(changed.loss, plain.loss)
        spoilt = pixel_values.masked_fill(pixels, torch.nan)
        again = model(spoilt, mask=mask, return_loss=False)
        assert torch.equal(again.logits, plain.logits)
        encoded = model.vit(spoilt, mask=mask).last_hidden_state
        assert torch.equal(encoded, model.vit(pixel_values, mask=mask).last_hidden_state)


def test_pixels_that_a_stem_sees_do_change_the_prediction() -> None:
    model = make("autoencoder", "hybrid")
    pixel_values = random_images(model.config)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 5] = False
    plain = model(pixel_values, mask=mask).logits
    assert not torch.allclose(
        model(pixel_values + pixels_of(~mask, model), mask=mask).logits, plain
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_pixels_of_replaced_patches_never_reach_a_stem(attention: str) -> None:
    model = make("masked-colors", "hybrid")
    model.set_attn_implementation(attention)
    pixel_values, mask = random_images(model.config), torch.ones(3, 8, dtype=torch.bool)
    mask[:, ::3] = False
    corruption_noise = torch.tensor([0.0, 0.3, 0.83, 0.0, 0.88, 0.95, 0.0, 0.7]).expand(3, -1)
    given = {"mask": mask, "corruption_noise": corruption_noise}
    plain = model(pixel_values, **given)
    replaced = mask & (corruption_noise < 0.9)
    assert 0 < replaced.sum() < mask.sum()
    pixels = pixels_of(replaced, model)
    changed = model(pixel_values + pixels, **given)
    assert torch.equal(changed.logits, plain.logits)
    assert not torch.equal(changed.loss, plain.loss)  # they remain targets
    spoilt = pixel_values.masked_fill(pixels, torch.nan)
    assert torch.equal(model(spoilt, **given, return_loss=False).logits, plain.logits)
    kept = pixels_of(mask & ~replaced, model)
    assert not torch.allclose(model(pixel_values + kept, **given).logits, plain.logits)
