"""The panels of fine-tuned models say what the models say."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae import (
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
    VitMaeImageProcessor,
    VitMaeModel,
)
from hf_vitmae.visualize import class_palette, class_panel, panel, segmentation_panel
from hf_vitmae.visualize.answers import class_shares, likeliest, pixel_classes

from ..models.tiny import RECTANGULAR, tiny_config

NAMES = {0: "cat", 1: "dog", 2: "owl"}
LABELS = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}


def model(kind: Any, **overrides: Any) -> Any:
    torch.manual_seed(0)
    return kind(tiny_config(**RECTANGULAR, **LABELS, **overrides)).train()


def pixels(count: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[panel.PanelRow]:
    """The rows that a panel draws."""
    drawn: list[panel.PanelRow] = []

    def keep(found: Any, *args: Any, **options: Any) -> Image.Image:
        drawn.extend(found)
        return panel.picture_panel(found, *args, **options)

    monkeypatch.setattr("hf_vitmae.visualize.answers.picture_panel", keep)
    return drawn


def test_each_image_has_its_own_likeliest_classes(rows: list[panel.PanelRow]) -> None:
    classifier, images = model(VitMaeForImageClassification), pixels()  # more than a batch
    processor = VitMaeImageProcessor.for_model(classifier.config)
    assert class_panel(classifier, images, processor, most=2).size[0] > 48
    assert classifier.training  # left as it was
    with torch.no_grad():
        logits = classifier.eval()(processor(images, return_tensors="pt")["pixel_values"]).logits
    assert len(rows) == 40
    for row, shares in zip(rows, logits.softmax(dim=1).numpy(), strict=True):
        order = np.argsort(-shares)[:2]
        assert row.caption.splitlines() == [f"{shares[i]:.1%} {NAMES[i]}" for i in order]
        assert list(row.pictures) == ["input", "attention"]


def test_several_classes_an_image_have_their_own_probabilities() -> None:
    classifier = model(VitMaeForImageClassification, problem_type="multi_label_classification")
    with torch.no_grad():
        expected = classifier.eval()(pixels(2)).logits.sigmoid()
    torch.testing.assert_close(class_shares(classifier, pixels(2)), expected)


def test_of_equal_classes_the_first_is_named_first() -> None:
    shares = torch.tensor([0.2, 0.4, 0.4])
    assert list(likeliest(shares, list("abc"))) == ["b", "c", "a"]
    assert likeliest(shares, list("abc"), most=1) == {"b": pytest.approx(0.4)}


def test_pixels_have_the_colours_of_their_classes(rows: list[panel.PanelRow]) -> None:
    segmenter, images = model(VitMaeForSemanticSegmentation), pixels(33)
    processor = VitMaeImageProcessor.for_model(segmenter.config)
    segmentation_panel(segmenter, images, processor)
    with torch.no_grad():
        logits = segmenter.eval()(processor(images, return_tensors="pt")["pixel_values"]).logits
    expected = class_palette(3)[logits.argmax(dim=1).numpy()]  # (B, H, W, 3)
    drawn = np.stack([np.asarray(row.pictures["prediction"]) for row in rows])
    np.testing.assert_array_equal(drawn, expected)
    assert len({row.caption for row in rows}) > 1 and "%" in rows[0].caption


def test_what_has_no_such_head_is_refused() -> None:
    encoder, image = model(VitMaeModel), pixels(1)
    with pytest.raises(ValueError, match="no classifier; .* VitMaeForImageClassification"):
        class_panel(encoder, image)
    with pytest.raises(ValueError, match="no segmentation head; .* VitMaeForSemanticSeg"):
        pixel_classes(encoder, image)
    quantity = model(VitMaeForImageClassification, problem_type="regression")
    with pytest.raises(ValueError, match="quantities"):
        class_shares(quantity, image)
    with pytest.raises(ValueError, match="`most` must be at least 1, got 0"):
        class_panel(model(VitMaeForImageClassification), image, most=0)
