"""What the page shows is what the package's own functions give, of whatever file comes in."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeImageProcessor,
    VitMaeModel,
)
from hf_vitmae.app.viewer import SIDE, GalleryImage, Viewer
from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.visualize import reconstruct

from ..models.tiny import RECTANGULAR, tiny_config


def viewer(kind: Any = VitMaeForPreTraining, gallery: Any = (), **overrides: Any) -> Viewer:
    torch.manual_seed(0)
    config = tiny_config(**RECTANGULAR, **overrides)
    return Viewer(kind(config), VitMaeImageProcessor.for_model(config), gallery)


def noise(height: int = 40, width: int = 50, mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures_are_those_of_reconstruct() -> None:
    shown, picture = viewer(), noise()
    image = shown.open(encoded(picture), "noise.png")
    assert image.shape == (3, 16, 24)
    seen = shown.look(image, mask_ratio=0.5, pattern="grid", seed=3)
    (found,) = reconstruct(
        shown.model,  # pyright: ignore[reportArgumentType]
        picture,
        shown.processor,
        mask_ratio=0.5,
        pattern="grid",
        seed=3,
    )
    for name, expected in (("What the model sees", found.masked), ("What it paints", found.pasted)):
        given = seen.pictures[name]
        assert given.size == shown.picture_size == (24 * 16, 16 * 16) and max(given.size) == SIDE
        np.testing.assert_array_equal(np.asarray(given)[::16, ::16], np.asarray(expected))
    assert seen.said.startswith(f"50% hidden, mean squared error there {found.error:.3f}, ")
    assert list(seen.pictures)[2:] == ["Where it looks", "What it did not expect"]
    assert not seen.classes and not seen.nearest


def test_what_is_drawn_is_hidden_whatever_the_ratio() -> None:
    shown = viewer()
    drawn = np.zeros((256, 384), bool)
    drawn[100, 200:220] = True  # a thin stroke, in the patch of row 1 and column 1
    image = shown.open(encoded(Image.new("RGB", (24, 16), "red")), "red.png")
    seen = shown.look(image, mask_ratio=0.9, drawn=drawn)
    gray = (np.asarray(seen.pictures["What the model sees"]) == 128).all(axis=2)
    assert gray.reshape(4, 64, 3, 128).all(axis=(1, 3)).tolist() == [
        [False, False, False],
        [False, True, False],
        [False, False, False],
        [False, False, False],
    ]
    assert gray.mean() == pytest.approx(1 / 12)


def test_a_classifier_tells_its_classes() -> None:
    labels = {
        "id2label": {0: "cat", 1: "dog", 2: "owl"},
        "label2id": {"cat": 0, "dog": 1, "owl": 2},
    }
    shown = viewer(VitMaeForImageClassification, **labels)
    image = shown.open(encoded(noise()), "noise.png")
    seen = shown.look(image)
    with torch.no_grad():
        pixels = shown.processor(noise(), return_tensors="pt")
        shares = shown.model.eval()(**pixels).logits.softmax(dim=1)[0].tolist()
    assert seen.classes == pytest.approx(dict(zip(("cat", "dog", "owl"), shares, strict=True)))
    assert list(seen.classes.values()) == sorted(shares, reverse=True)
    assert list(seen.pictures) == ["Where it looks"]
    numbers = viewer(VitMaeForImageClassification, problem_type="regression")
    assert numbers.look(image).classes == {}


def test_a_segmentation_model_tells_where_its_classes_are() -> None:
    names = ["sky", "tree", "road", "roof"]
    ids = {name: index for index, name in enumerate(names)}
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": ids}
    shown = viewer(VitMaeForSemanticSegmentation, **labels)
    seen = shown.look(shown.open(encoded(noise()), "noise.png"))
    with torch.no_grad():
        logits = shown.model.eval()(**shown.processor(noise(), return_tensors="pt")).logits
    expected = logits[0].argmax(dim=0).numpy()  # (H, W)
    assert np.unique(expected).size > 1
    found = np.full(expected.shape, -1)
    for where, name in seen.regions:
        assert where.shape == (seen.picture.height, seen.picture.width)
        assert (found[where[::16, ::16]] == -1).all()
        found[where[::16, ::16]] = ids[name]
    np.testing.assert_array_equal(found, expected)
    areas = [where.sum() for where, _ in seen.regions]
    assert areas == sorted(areas, reverse=True)


def test_the_most_alike_come_first_and_bad_ones_are_left_out() -> None:
    gallery = [GalleryImage(encoded(noise(seed=seed)), f"class {seed}") for seed in range(9)]
    shown = viewer(VitMaeModel, [*gallery, GalleryImage(b"no picture")])
    seen = shown.look(shown.open(gallery[4].encoded, "again.png"))
    assert len(seen.nearest) == 6
    picture, said = seen.nearest[0]
    assert said == "1.00 class 4"
    assert picture.tobytes() == shown.picture(shown.open(gallery[4].encoded, "")).tobytes()
    some = shown.some_of_gallery(4)
    known = [shown.open(one.encoded, "") for one in gallery]
    places = [next(i for i, image in enumerate(known) if image.equal(one)) for one in some]
    assert places == [0, 2, 4, 6] and len(shown.some_of_gallery(20)) == 9
    assert viewer(VitMaeModel).some_of_gallery(3) == []
    with pytest.raises(ValueError, match="No image of the gallery can be decoded"):
        viewer(VitMaeModel, [GalleryImage(b"no picture")])


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(mode="RGBA")),
        encoded(noise(mode="CMYK"), "JPEG"),
        encoded(noise(mode="L")),
        encoded(noise(mode="1")),
        encoded(noise(mode="P"), "GIF"),
        encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]),
        encoded(noise(), "WEBP"),
        encoded(noise(), "JPEG", exif=TURNED),
        encoded(Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50))),
        encoded(noise(1, 300)),
    ],
    ids=["rgba", "cmyk", "gray", "1 bit", "gif", "animated", "webp", "turned", "16 bit", "thin"],
)
def test_any_image_is_looked_at(data: bytes) -> None:
    shown = viewer()
    seen = shown.look(shown.open(data, "upload"))
    assert len(seen.pictures) == 4
    assert len({picture.size for picture in seen.pictures.values()}) == 1


def bomb() -> bytes:
    """A PNG of 144 million pixels in some kilobytes."""
    return encoded(Image.new("1", (12000, 12000)), compress_level=9)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"just words", "cannot be decoded"),
        (b"", "cannot be decoded"),
        (encoded(noise(), "JPEG")[:700], "cannot be decoded"),
        (bomb(), "144000000 pixels"),
    ],
    ids=["text", "empty", "truncated", "bomb"],
)
def test_a_bad_file_is_named(data: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said) as error:
        viewer().open(data, "mine.png")
    assert "mine.png" in str(error.value) and "\n" not in str(error.value)


def test_images_with_a_range_keep_their_depth() -> None:
    config = tiny_config(**RECTANGULAR, num_channels=1)
    plain = VitMaeImageProcessor.for_model(config).to_dict()
    processor = VitMaeImageProcessor.from_dict(plain, value_range=(1000.0, 1255.0))
    assert isinstance(processor, VitMaeImageProcessor)
    torch.manual_seed(0)
    shown = Viewer(VitMaeForPreTraining(config), processor)
    stored = np.random.default_rng(0).integers(1000, 1255, (16, 24), dtype=np.uint16)
    image = shown.open(encoded(Image.fromarray(stored)), "deep.png")
    torch.testing.assert_close(image[0], (torch.from_numpy(stored.astype(np.float32)) - 1000) / 255)
    expected = processor(Image.fromarray(stored), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(shown._pixels([image]), expected)
    assert len(shown.look(image).pictures) == 4


def test_visitors_at_the_same_time_see_what_one_alone_sees() -> None:
    """A look changes the model for a while: how it attends, and its mode."""
    shown = viewer()
    shown.model.train()
    images = [shown.open(encoded(noise(seed=seed)), "noise.png") for seed in range(4)] * 8
    alone = [shown.look(image).pictures for image in images[:4]]
    with ThreadPoolExecutor(8) as pool:
        together = [seen.pictures for seen in pool.map(shown.look, images)]
    for number, pictures in enumerate(together):
        assert pictures == alone[number % 4]
    assert shown.model.training
    assert shown.model.config._attn_implementation == viewer().model.config._attn_implementation
