"""Maps of classes: they follow their images pixel by pixel, exactly, and logits become maps."""

from fractions import Fraction
from math import floor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import pipeline

# transformers 5.17 has it at the top level only where torchvision is installed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForSemanticSegmentation

from .tiny import stir, tiny_config

RAW: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "num_channels": 1}
GEOMETRIES: list[dict[str, Any]] = [
    {"size": 32},
    {"size": 32, "do_center_crop": False},
    {"size": (64, 32), "crop_pct": 0.8},
    {"size": (96, 144)},
    {"do_resize": False},
]


def random_map(*shape: int, classes: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(classes, shape, generator=generator)


def blocks(height: int = 90, width: int = 124, classes: int = 6) -> Tensor:
    """Blocks of 15 x 31 pixels, neighbours of other classes: int64 (height, width)."""
    rows, columns = torch.arange(height)[:, None] // 15, torch.arange(width)[None] // 31
    return (rows * 2 + columns * 3) % classes


def process(image: Any, class_map: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Pixel values (C, H, W) and labels (H, W) of one image."""
    features = VitMaeImageProcessor(**{**RAW, **options})(image, class_map, return_tensors="pt")
    return features["pixel_values"][0], features["labels"][0]


def segment(logits: Tensor, target_sizes: Any = None) -> list[Tensor]:
    outputs = SimpleNamespace(logits=logits)
    return VitMaeImageProcessor().post_process_semantic_segmentation(outputs, target_sizes)


# Pixels correspond


@pytest.mark.parametrize("options", GEOMETRIES)
@pytest.mark.parametrize(("height", "width"), [(61, 83), (224, 48), (32, 200), (17, 16)])
def test_nearest_pixels_are_their_labels(options: dict[str, Any], height: int, width: int) -> None:
    class_map = random_map(height, width)
    values, labels = process(class_map.byte(), class_map, resample=0, **options)
    assert labels.dtype == torch.int64
    assert torch.equal(values[0].long(), labels)


@pytest.mark.parametrize("options", GEOMETRIES)
@pytest.mark.parametrize("resample", [2, 3])
def test_smooth_pixels_are_their_labels_off_edges(options: dict[str, Any], resample: int) -> None:
    class_map = blocks()
    image = (40 * class_map + 10).byte()
    values, labels = process(image, class_map, resample=resample, **options)
    assert values[0].shape == labels.shape
    difference = (values[0] - (40 * labels + 10)).abs()  # (H, W)
    around = F.unfold(labels[None, None].float(), 5, padding=2).reshape(25, *labels.shape)
    inside = (around == labels).all(dim=0)  # all of the 5 x 5 pixels are of one class
    assert inside.float().mean() > 0.05 and labels.unique().numel() >= 4
    assert difference[inside].max() <= 8  # a class is 40 away; bicubic rings a little


@pytest.mark.parametrize(("height", "width"), [(61, 83), (224, 10), (7, 5), (48, 32), (100, 31)])
def test_nearest_takes_the_pixel_under_the_centre(height: int, width: int) -> None:
    processor = VitMaeImageProcessor(size=(48, 32), do_center_crop=False)
    class_map = random_map(height, width, classes=65536)
    rows = [floor((i + Fraction(1, 2)) * height / 48) for i in range(48)]
    columns = [floor((i + Fraction(1, 2)) * width / 32) for i in range(32)]
    assert torch.equal(processor.resize_and_crop_map(class_map), class_map[rows][:, columns])


def test_every_id_comes_out_exactly() -> None:
    processor = VitMaeImageProcessor(size=256, do_center_crop=False)
    every = torch.arange(65536).reshape(256, 256)
    for class_map in (every, every[None], every.to(torch.uint16), every.int()):
        labels = processor.resize_and_crop_map(class_map)
        assert labels.dtype == torch.int64 and torch.equal(labels, every)
    large = torch.tensor([[-100, 2**53 + 1], [2**40 + 1, 255]])
    assert processor.resize_and_crop_map(large).unique().tolist() == sorted(
        large.flatten().tolist()
    )


def test_the_processor_leaves_the_given_map_alone() -> None:
    class_map = random_map(32, 32, classes=5)
    before = class_map.clone()
    VitMaeImageProcessor(size=32)(random_map(32, 32).byte(), class_map, do_reduce_labels=True)
    assert torch.equal(class_map, before)


# Kinds of maps


@pytest.mark.parametrize("mode", ["1", "L", "P", "I", "I;16", "I;16B"])
def test_pil_modes_give_their_ids(mode: str, tmp_path: Path) -> None:
    limit = {"1": 2, "L": 256, "P": 16}.get(mode, 65536)
    class_map = random_map(16, 16, classes=limit)
    if mode == "I;16B":
        picture = Image.frombytes(mode, (16, 16), class_map.numpy().astype(">u2").tobytes())
    else:
        dtype = {"1": np.bool_, "I": np.int32, "I;16": np.uint16}.get(mode, np.uint8)
        picture = Image.fromarray(class_map.numpy().astype(dtype))
    if mode == "P":
        picture.putpalette([value % 256 for value in range(77, 77 + 48)])
    assert picture.mode == mode
    image = Image.new("RGB", (16, 16))
    assert torch.equal(process(image, picture, size=16)[1], class_map)
    if mode not in ("I", "I;16B"):  # no PNG comes back in these modes
        picture.save(tmp_path / "map.png")
        with Image.open(tmp_path / "map.png") as opened:
            assert torch.equal(process(image, opened, size=16)[1], class_map)


def test_arrays_tensors_and_batches_agree() -> None:
    maps = random_map(2, 16, 20, classes=100)
    images = torch.zeros(2, 16, 20, 3, dtype=torch.uint8)
    processor = VitMaeImageProcessor(size=16)
    expected = processor(images, maps, return_tensors="pt")["labels"]
    assert expected.shape == (2, 16, 16) and expected.dtype == torch.int64
    array = maps.numpy()
    others: list[Any] = [array, array.astype(">u2"), array.astype(np.int8), list(maps), maps.byte()]
    others += [[[array[0]], [maps[1][None]]], maps.to(torch.uint16), array[:, ::-1][:, ::-1]]
    others += [[Image.fromarray(one.astype(np.uint8)) for one in array]]
    for other in others:
        labels = processor(images, segmentation_maps=other, return_tensors="pt")["labels"]
        assert torch.equal(labels, expected) and labels.dtype == torch.int64
    single = processor(images[0], maps[0], return_tensors="pt")["labels"]
    assert torch.equal(single, expected[:1])
    truths = processor(images, array > 50, return_tensors="pt")["labels"]
    assert torch.equal(truths, (expected > 50).long())


def turned(picture: Image.Image, path: Path) -> Image.Image:
    """The same pixels with an EXIF orientation that turns them clockwise by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    return Image.open(path)


def test_image_and_map_are_turned_each_by_its_own_exif(tmp_path: Path) -> None:
    class_map = random_map(32, 48)
    stored = Image.fromarray(class_map.byte().numpy())
    image, same = turned(stored, tmp_path / "image.png"), turned(stored, tmp_path / "map.png")
    upright = torch.rot90(class_map, k=-1)
    for one in (same, upright):
        values, labels = process(image, one, size=(48, 32))
        assert torch.equal(labels, upright) and torch.equal(values[0].long(), upright)
    with pytest.raises(ValueError, match=r"map 0 .*\(32, 48\).* image \(48, 32\).*EXIF"):
        process(image, stored, size=(48, 32))


# As Hugging Face users call it


def test_kinds_of_output() -> None:
    processor = VitMaeImageProcessor(size=16)
    maps = [random_map(48, 40), random_map(20, 33)]
    images = [one.byte() for one in maps]
    as_torch = processor(images, maps, return_tensors="pt", return_patches=True)
    as_numpy = processor(images, segmentation_maps=maps, return_tensors="np")
    as_list = processor.preprocess(images, maps)
    assert as_numpy["labels"].dtype == np.int64
    assert np.array_equal(as_numpy["labels"], as_torch["labels"].numpy())
    assert isinstance(as_list["labels"], list)
    assert torch.equal(torch.stack(as_list["labels"]), as_torch["labels"])
    assert as_torch.to(torch.bfloat16)["labels"].dtype == torch.int64
    whole = processor(images, maps, do_resize=False)
    assert [one.shape for one in whole["labels"]] == [(48, 32), (16, 32)]
    assert list(processor(images)) == ["pixel_values"]


def test_reduced_labels() -> None:
    class_map = torch.tensor([0, 1, 2, 150, 254, 255]).repeat(16, 1).repeat_interleave(16, dim=1)
    image = torch.zeros(3, 16, 96, dtype=torch.uint8)
    expected = [255, 0, 1, 149, 253, 255]
    processor = VitMaeImageProcessor(size=(16, 96), do_reduce_labels=True)
    for one in (class_map, class_map.byte(), Image.fromarray(class_map.byte().numpy())):
        labels = processor(image, one, return_tensors="pt")["labels"]
        assert labels[0, 0, ::16].tolist() == expected and labels.dtype == torch.int64
    kept = processor(image, class_map, do_reduce_labels=False)["labels"][0]
    assert torch.equal(kept, class_map)
    reduced = VitMaeImageProcessor(size=(16, 96))(image, class_map, do_reduce_labels=True)
    assert reduced["labels"][0][0, ::16].tolist() == expected
    assert torch.equal(processor.reduce_labels(class_map.byte()), reduced["labels"][0])
    assert torch.equal(VitMaeImageProcessor().reduce_labels(class_map), class_map)


def test_reduced_labels_are_saved_and_loaded(tmp_path: Path) -> None:
    VitMaeImageProcessor(do_reduce_labels=True).save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).do_reduce_labels is True
    changed = VitMaeImageProcessor.from_pretrained(tmp_path, do_reduce_labels=False)
    assert changed.do_reduce_labels is False
    assert VitMaeImageProcessor().do_reduce_labels is False


# From logits to maps


def bilinear(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear between pixel centres, the border repeated: (h, w) -> (height, width)."""
    for axis, new in enumerate((height, width)):
        old = plane.shape[axis]
        place = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = place.astype(int)
        share = (place - low).reshape((-1, 1) if axis == 0 else (1, -1))
        high = np.take(plane, (low + 1).clip(max=old - 1), axis)
        plane = np.take(plane, low, axis) * (1 - share) + high * share
    return plane


@pytest.mark.parametrize("sizes", [[(13, 9), (40, 21)], [(6, 8), (3, 2)], [(5, 16), (12, 4)]])
def test_maps_are_the_argmax_of_resized_logits(sizes: list[tuple[int, int]]) -> None:
    logits = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    maps = segment(logits, sizes)
    for one, class_map, size in zip(logits.double().numpy(), maps, sizes, strict=True):
        expected = np.stack([bilinear(plane, *size) for plane in one]).argmax(axis=0)
        assert class_map.dtype == torch.int64
        assert np.array_equal(class_map.numpy(), expected)
    for same in (torch.tensor(sizes), np.array(sizes), [torch.Size(size) for size in sizes]):
        assert all(map(torch.equal, segment(logits, same), maps))


def test_a_map_by_hand() -> None:
    ramp = torch.tensor([[[0.0, 4.0]], [[0.5, 0.5]]])[None]  # between them 0, 1, 3, 4
    assert segment(ramp, [(2, 4)])[0].tolist() == [[1, 0, 0, 0]] * 2
    assert segment(ramp)[0].tolist() == [[1, 0]]


def test_maps_keep_their_size_unless_told() -> None:
    logits = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    maps = segment(logits)
    assert [class_map.shape for class_map in maps] == [(6, 8)] * 3
    assert torch.equal(torch.stack(maps), logits.argmax(dim=1))


def test_logits_of_half_precision_are_resized_in_full() -> None:
    logits = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(segment(logits, [(90, 90)])[0], segment(logits.float(), [(90, 90)])[0])


def test_a_map_of_the_stretched_picture_lies_where_the_picture_does() -> None:
    class_map = blocks()
    processor = VitMaeImageProcessor(size=96, do_center_crop=False)
    labels = processor(class_map.byte(), class_map, return_tensors="pt")["labels"]
    logits = F.one_hot(labels).movedim(-1, 1).float()  # a model without fault
    outputs = SimpleNamespace(logits=logits)
    (back,) = processor.post_process_semantic_segmentation(outputs, [(90, 124)])
    assert back.shape == class_map.shape and (back == class_map).float().mean() > 0.95


@pytest.mark.parametrize("from_folder", [False, True])
def test_the_pipeline_segments(tmp_path: Path, from_folder: bool) -> None:
    torch.manual_seed(0)
    model = VitMaeForSemanticSegmentation(tiny_config(num_labels=5, image_mean=0.4)).eval()
    stir(model)
    processor = VitMaeImageProcessor(size=16, patch_size=4, image_mean=0.4, do_center_crop=False)
    if from_folder:
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        find_segments: Any = pipeline("image-segmentation", model=str(tmp_path))
    else:
        find_segments = pipeline("image-segmentation", model=model, image_processor=processor)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    pictures = [Image.fromarray(pixels), Image.fromarray(pixels).resize((50, 20))]
    for picture, segments in zip(pictures, find_segments(pictures), strict=True):
        with torch.no_grad():
            outputs = model(**processor(picture, return_tensors="pt"))
        size = (picture.height, picture.width)
        (class_map,) = processor.post_process_semantic_segmentation(outputs, [size])
        ids = class_map.unique().tolist()
        assert len(ids) > 1 and [one["label"] for one in segments] == [f"LABEL_{i}" for i in ids]
        for class_id, one in zip(ids, segments, strict=True):
            assert np.array_equal(np.asarray(one["mask"]) == 255, class_map.numpy() == class_id)


# Bad input


IMAGE = np.zeros((24, 30, 3), np.uint8)
MAP = np.zeros((24, 30), np.uint8)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (MAP[:20], {}, r"map 0 has .*\(20, 30\).* image \(24, 30\)"),
        (MAP.T, {}, r"\(30, 24\).* image \(24, 30\)"),
        ([MAP, MAP], {}, "2 segmentation maps .* 1 images"),
        ([], {}, "0 segmentation maps"),
        (IMAGE, {}, r"24 segmentation maps \(H, W\) do not fit 1"),
        (MAP[None, None], {}, r"\(1, 1, 24, 30\) must be \(H, W\)"),
        (MAP[0], {}, r"\(30,\) must be \(H, W\)"),
        (MAP / 2, {}, "float64 must hold class ids as integers"),
        (torch.zeros(24, 30), {}, "float32 must hold class ids as integers"),
        (Image.new("RGB", (30, 24)), {}, "mode RGB holds colours"),
        (Image.new("LA", (30, 24)), {}, "mode LA holds colours"),
        (Image.new("F", (30, 24)), {}, "integers"),
        ("map.png", {}, "'map.png' is not a PIL image"),
        (MAP.astype(int) + 256, {"do_reduce_labels": True}, r"do_reduce_labels.*0..255.*256..256"),
        (MAP.astype(int) - 100, {"do_reduce_labels": True}, r"-100..-100"),
    ],
)
def test_bad_maps_are_named(maps: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        VitMaeImageProcessor(size=16)(IMAGE, maps, **options)
    assert "\n" not in str(caught.value)


def test_the_map_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"map 1 has .*\(20, 30\)"):
        VitMaeImageProcessor(size=16)([IMAGE, IMAGE], [MAP, MAP[:20]])


@pytest.mark.parametrize("class_map", [torch.zeros(2, 8, 8, dtype=torch.int64), torch.zeros(8, 8)])
def test_bad_single_maps_are_named(class_map: Tensor) -> None:
    with pytest.raises(ValueError, match="segmentation map"):
        VitMaeImageProcessor(size=16).resize_and_crop_map(class_map)


@pytest.mark.parametrize(
    "sizes", [[(8, 8)], [(8, 8)] * 3, (480, 640), [(8, 0), (8, 8)], [(8, 8, 3)] * 2, []]
)
def test_bad_target_sizes_are_named(sizes: Any) -> None:
    with pytest.raises(ValueError, match=r"target_sizes=.*\(height, width\).*2 images"):
        segment(torch.zeros(2, 3, 4, 4), sizes)


def test_logits_of_another_task_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 10\) must be \(B, num_labels, h, w\)"):
        segment(torch.zeros(2, 10))
