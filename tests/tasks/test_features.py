"""Cached features: the right rows, found again, finished after a stop, of no other model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from hf_vitmae import VitMaeConfig, VitMaeImageProcessor, VitMaeModel
from hf_vitmae.data import ImageSource, open_source
from hf_vitmae.tasks.encoders import NetworkEncoder, pixel_encoder, random_encoder, trained_encoder
from hf_vitmae.tasks.features import View, cached_features, cached_views

from ..small import write_images
from .runs import Stopped
from .small_models import SMALL, save_small_model

PARTS: dict[str, Any] = {"batch_size": 4, "images_per_part": 8}
VIEWS = [View(number, 0, (0.2, 0.6)) for number in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def encoder(model: Path) -> NetworkEncoder:
    return trained_encoder(str(model))


@pytest.fixture
def source(class_folder: Path) -> ImageSource:
    return open_source(class_folder)


def count_images(monkeypatch: pytest.MonkeyPatch, most: float = float("inf")) -> list[int]:
    """Note the size of each batch that is embedded, and stop where there would be more."""
    seen: list[int] = []
    embed = NetworkEncoder.embed

    def counted(self: NetworkEncoder, pixel_values: torch.Tensor) -> torch.Tensor:
        if sum(seen) + len(pixel_values) > most:
            raise Stopped
        seen.append(len(pixel_values))
        return embed(self, pixel_values)

    monkeypatch.setattr(NetworkEncoder, "embed", counted)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_rows_are_pooled_outputs_of_the_images_in_order(pooling, model, class_folder, tmp_path):
    encoder = trained_encoder(str(model), pooling)
    features = cached_features(tmp_path, encoder, open_source(class_folder), **PARTS)
    processor = VitMaeImageProcessor.from_pretrained(model)
    network = VitMaeModel.from_pretrained(model).eval()
    network.config.pooling = pooling
    for row, path in enumerate(sorted(class_folder.rglob("*.PNG"))):
        with Image.open(path) as picture, torch.no_grad():
            inputs = processor(picture, return_tensors="pt")
            expected = network(**inputs).pooler_output[0].numpy()
        np.testing.assert_allclose(features.values[row], expected, rtol=0, atol=1e-5)
    assert features.values.dtype == np.float32 and features.values.shape == (36, 16)
    assert features.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert features.class_names == ("cats", "dogs", "owls")


def test_the_second_call_reads(encoder, source, tmp_path, monkeypatch):
    seen = count_images(monkeypatch)
    first = cached_features(tmp_path, encoder, source, **PARTS)
    assert sum(seen) == 36
    again = cached_features(tmp_path, encoder, source, num_workers=2, **PARTS)
    assert sum(seen) == 36
    assert np.array_equal(again.values, first.values)
    assert np.array_equal(again.labels, first.labels)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("change", ["weights", "processor", "images", "labels", "bytes", "batch"])
def test_what_differs_is_computed_anew(
    change: str, encoder, source, class_folder, tmp_path, monkeypatch
):
    cached_features(tmp_path, encoder, source, **PARTS)
    options = dict(PARTS)
    if change == "weights":
        encoder = trained_encoder(str(save_small_model(tmp_path / "other", seed=1)))
    elif change == "processor":
        darker = VitMaeImageProcessor.for_model(encoder.config.with_fields(image_mean=[0.2] * 3))
        encoder = random_encoder(encoder.config, 0, processor=darker)
        cached_features(tmp_path, random_encoder(encoder.config, 0), source, **PARTS)
    elif change == "images":
        source = source.select(np.arange(35))
    elif change == "labels":
        source = replace(source, labels=source.labels[::-1].copy())
    elif change == "bytes":
        for name in ("cats", "dogs", "owls"):
            write_images(tmp_path / "again" / name, 12, ".PNG", seed=9)
        monkeypatch.setattr(ImageSource, "names", lambda self, rows: [str(row) for row in rows])
        source = replace(source, name="same")
        cached_features(tmp_path, encoder, source, **PARTS)
        source = replace(open_source(tmp_path / "again"), name="same")
    else:
        options["batch_size"] = 5
    seen = count_images(monkeypatch)
    cached_features(tmp_path, encoder, source, **options)
    assert sum(seen) == len(source)


@pytest.mark.parametrize("stop", [3, 11, 35, 36 + 17, 36 + 36 + 35])
def test_a_stopped_call_goes_on_after_the_last_part(stop, encoder, source, tmp_path, monkeypatch):
    expected, views = cached_views(tmp_path / "whole", encoder, source, VIEWS, **PARTS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        count_images(patch, most=stop)
        cached_views(tmp_path / "broken", encoder, source, VIEWS, **PARTS)
    seen = count_images(monkeypatch)
    got, others = cached_views(tmp_path / "broken", encoder, source, VIEWS, **PARTS)
    done, of_this = divmod(stop, 36)
    assert sum(seen) == 3 * 36 - done * 36 - of_this // 8 * 8
    for ours, theirs in zip([got, *others], [expected, *views], strict=True):
        assert np.array_equal(ours.values, theirs.values)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_views_differ_from_each_other_and_belong_to_the_same_images(encoder, source, tmp_path):
    plain, views = cached_views(tmp_path, encoder, source, VIEWS, **PARTS)
    for view in views:
        assert np.array_equal(view.labels, plain.labels)
    first, second = (view.values for view in views)
    assert (np.abs(first - second).max(axis=1) > 1e-3).all()
    # The same picture twice, in different parts: chance does not repeat itself.
    twice = source.select(np.array([0] * 20))
    _, (view, _) = cached_views(tmp_path, encoder, twice, VIEWS, **PARTS)
    assert len(np.unique(view.values.round(4), axis=0)) > 15
    whole = [View(0, 0, (1.0, 1.0))]
    _, (view,) = cached_views(tmp_path, pixel_encoder(encoder.config), twice, whole, **PARTS)
    assert len(np.unique(view.values, axis=0)) > 1


def test_another_seed_draws_other_views(encoder, source, tmp_path):
    _, (first, _) = cached_views(tmp_path, encoder, source, VIEWS, **PARTS)
    _, (other,) = cached_views(tmp_path, encoder, source, [replace(VIEWS[0], seed=1)], **PARTS)
    assert not np.array_equal(first.values, other.values)


def test_bad_images_are_left_out_and_listed(encoder, tmp_path, capsys):
    for name in ("cats", "dogs"):
        write_images(tmp_path / "photos" / name, 10)
    for bad in ("cats/003.jpg", "dogs/009.jpg"):
        path = tmp_path / "photos" / bad
        path.write_bytes(path.read_bytes()[:100])
    source, kept = open_source(tmp_path / "photos"), tmp_path / "features"
    plain, views = cached_views(kept, encoder, source, VIEWS, max_bad=0.1, **PARTS)
    good = np.delete(np.arange(20), [3, 19])
    expected = cached_features(tmp_path / "good", encoder, source.select(good), batch_size=4)
    np.testing.assert_allclose(plain.values, expected.values, rtol=0, atol=1e-6)
    assert plain.labels.tolist() == [0] * 9 + [1] * 9
    assert [len(view) for view in views] == [18, 18]
    (listed,) = kept.glob("*.bad_images.jsonl")
    assert [Path(line.split('"')[3]).name for line in listed.read_text().splitlines()] == [
        "003.jpg",
        "009.jpg",
    ]
    for _ in range(2):  # when they are found, and when the features are read again
        assert "2 bad images of" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"2 of the 20 images .*--data.max-bad"):
            cached_features(kept, encoder, source, max_bad=0.05, **PARTS)
        with pytest.raises(ValueError, match=r"of the 20 images .*--data.max-bad"):
            cached_features(tmp_path / "fresh", encoder, source, max_bad=0.0, **PARTS)
        cached_features(kept, encoder, source, max_bad=0.1, **PARTS)


def test_features_that_are_not_finite_are_an_error(encoder, source, tmp_path, monkeypatch):
    monkeypatch.setattr(NetworkEncoder, "embed", lambda self, x: torch.full((len(x), 2), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        cached_features(tmp_path, encoder, source, **PARTS)


def test_labels_are_needed(encoder, flat_folder, tmp_path):
    with pytest.raises(ValueError, match="has no labels"):
        cached_features(tmp_path, encoder, open_source(flat_folder))


def test_a_random_encoder_is_drawn_by_its_seed_alone():
    config = VitMaeConfig(**SMALL)
    first = random_encoder(config, 0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert random_encoder(config, 0).digest == first.digest
    assert torch.equal(torch.get_rng_state(), state)
    assert random_encoder(config, 1).digest != first.digest
    assert random_encoder(config, 0, "mean").digest != first.digest
    assert first.name == "random" and not first.model.training


def test_pixels_are_means_of_areas():
    config = VitMaeConfig(**SMALL).with_fields(image_size=(16, 96))
    pixels = torch.rand(2, 3, 16, 96)
    encoder = pixel_encoder(config)
    features = encoder.embed(pixels)
    expected = pixels.unflatten(3, (32, 3)).mean(dim=4)  # (2, 3, 16, 32)
    torch.testing.assert_close(features, expected.flatten(1))
    assert encoder.digest != pixel_encoder(config.with_fields(image_mean=[0.1] * 3)).digest


def test_a_model_of_another_library_can_be_embedded_with(source, tmp_path):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "image_size": 16, "patch_size": 8}
    config = ViTConfig(**sizes)
    theirs = ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "vit")
    encoder = trained_encoder(str(tmp_path / "vit"))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.embed(pixels), expected, rtol=1e-4, atol=1e-4)
    assert cached_features(tmp_path / "features", encoder, source).values.shape == (36, 16)


def test_a_blind_cls_token_is_refused(tmp_path):
    config = VitMaeConfig(**SMALL, is_causal=True, mask_ratio=0.0, pooling="mean")
    VitMaeModel(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="causal attention.*--pooling mean"):
        trained_encoder(str(tmp_path / "model"), "cls")
    assert trained_encoder(str(tmp_path / "model"), "mean").name == str(tmp_path / "model")
