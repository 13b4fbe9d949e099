"""The image processor: every kind of image comes in right, one geometry, and the exact way back."""

import inspect
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil, pipeline

# transformers 5.17 has it at the top level only where torchvision is installed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vitmae import VitMaeForImageClassification, VitMaeImageProcessor
from hf_vitmae.models import pictures
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessorKwargs
from hf_vitmae.models.resizing import resize

from .tiny import tiny_config

# The pixel values are those of the image.
NO_CHANGE: dict[str, Any] = {"do_rescale": False, "do_normalize": False}


def random_pixels(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def picture(height: int = 48, width: int = 40) -> Image.Image:
    """A smooth colour picture with some noise, as photographs have."""
    rows, columns = np.mgrid[:height, :width]
    colour = np.stack([rows * 4, columns * 5, rows * columns / 10], axis=-1)
    noisy = colour + np.random.default_rng(0).normal(0, 10, colour.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def pixels(image: Any, **options: Any) -> Tensor:
    """What the processor makes of one 16x16 image whose geometry and values it leaves alone."""
    processor = VitMaeImageProcessor(size=16, **{**NO_CHANGE, **options})
    return processor(image, return_tensors="pt")["pixel_values"][0]


# Geometry


def test_output_is_float32_of_exactly_the_size() -> None:
    features = VitMaeImageProcessor(size=(32, 64))(picture(), return_tensors="pt")
    assert list(features) == ["pixel_values"]
    assert features["pixel_values"].shape == (1, 3, 32, 64)
    assert features["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize(
    ("height", "width", "size", "crop_pct", "covering"),
    [
        (48, 96, 32, 1.0, (32, 64)),
        (96, 48, 32, 1.0, (64, 32)),
        (500, 375, 224, 0.875, (341, 256)),  # the 256 -> 224 of ImageNet evaluation
        (100, 100, (16, 64), 1.0, (64, 64)),
        (50, 200, (64, 16), 0.5, (128, 512)),
        (7, 3, 32, 1.0, (74, 32)),
    ],
)
def test_resize_covers_the_size_keeping_the_aspect(
    height: int, width: int, size: Any, crop_pct: float, covering: tuple[int, int]
) -> None:
    processor = VitMaeImageProcessor(size=size, crop_pct=crop_pct)
    image = torch.from_numpy(random_pixels(3, height, width))
    cropped = processor.resize_and_crop(image)
    whole = torch.nn.functional.interpolate(image[None], covering, mode="bicubic", antialias=True)[
        0
    ]
    target_height, target_width = processor.size["height"], processor.size["width"]
    top, left = round((covering[0] - target_height) / 2), round((covering[1] - target_width) / 2)
    assert torch.equal(
        cropped, whole[:, top : top + target_height, left : left + target_width].contiguous()
    )


def test_without_crop_agrees_with_the_processor_of_transformers() -> None:
    options: dict[str, Any] = {"size": {"height": 32, "width": 16}, "resample": 2}
    ours = VitMaeImageProcessor(do_center_crop=False, **options)
    theirs = ViTImageProcessorPil(**options)
    expected = theirs(picture(), return_tensors="pt")["pixel_values"]
    actual = ours(picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1.01 / 127.5)  # one level


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("resample", [0, 2, 3])
def test_resize_and_crop_keeps_the_type(dtype: torch.dtype, resample: int) -> None:
    values = torch.from_numpy(random_pixels(5, 40, 30))
    image = (values / 255) if dtype == torch.float32 else values.long().to(dtype)
    processor = VitMaeImageProcessor(size=16, num_channels=5, resample=resample)
    resized = processor.resize_and_crop(image)
    assert resized.shape == (5, 16, 16) and resized.dtype == dtype
    assert torch.equal(processor.resize_and_crop(resized), resized)  # of that size already
    scale = 255 if dtype == torch.float32 else 1
    reference = processor.resize_and_crop(values.float())
    inside = (reference > 1) & (reference < 254)  # 8 bits clip the overshoot
    assert ((resized.float() * scale - reference)[inside]).abs().max() < 1.5
    if dtype == torch.uint16:
        assert resized.int().max() < 400  # overshoot below zero is clipped, not wrapped


def test_without_resize_the_centre_keeps_whole_patches() -> None:
    processor = VitMaeImageProcessor(do_resize=False, patch_size=(8, 16), **NO_CHANGE)
    image = random_pixels(27, 38, 3)
    values = processor(image, return_tensors="pt")["pixel_values"][0]
    assert np.array_equal(values.permute(1, 2, 0).numpy(), image[2:26, 3:35])


def test_images_of_several_sizes_make_one_batch() -> None:
    images = [picture(48, 40), random_pixels(30, 90, 3), torch.from_numpy(random_pixels(3, 16, 20))]
    processor = VitMaeImageProcessor(size=32)
    batch = processor(images, return_tensors="pt")["pixel_values"]
    assert batch.shape == (3, 3, 32, 32)
    for image, values in zip(images, batch, strict=True):
        assert torch.equal(processor(image)["pixel_values"][0], values)


# Kinds of images


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
@pytest.mark.parametrize(("num_channels", "target"), [(1, "L"), (3, "RGB")])
def test_opaque_pil_modes(mode: str, num_channels: int, target: str) -> None:
    image = picture(16, 16).convert(mode)
    plain = image if mode in ("1", "L") else image.convert("RGB")
    expected = np.atleast_3d(np.asarray(plain.convert(target)))
    actual = pixels(image, num_channels=num_channels).permute(1, 2, 0).numpy()
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGBa"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_transparency_becomes_white(mode: str, num_channels: int) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    image.paste((10, 20, 30, 0), (0, 0, 8, 16))
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        image.info["transparency"] = image.getpixel((0, 0))
    else:
        image = image.convert(mode)
    values = pixels(image, num_channels=num_channels)
    faint = pixels(Image.new("RGBA", (16, 16), (0, 100, 200, 51)))  # a fifth of the colour
    assert faint[:, 0, 0].tolist() == [204, 224, 244]
    assert (values[:, :, :8] == 255).all() and (values[:, :, 8:] == 0).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_deep_gray_is_scaled_not_clipped(mode: str) -> None:
    levels = random_pixels(16, 16, dtype=np.uint16)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (16, 16), levels.astype(dtype).tobytes())
    expected = torch.from_numpy(levels / 65535).float().expand(3, -1, -1)
    for deep in (levels, torch.from_numpy(levels)):
        torch.testing.assert_close(pixels(deep, do_rescale=True), expected)
    assert pixels(levels).max() == levels.max()  # as it is, without do_rescale
    nearest = (expected * 255).round()  # a picture becomes what training reads from its file
    assert torch.equal(pixels(image), nearest)


def test_exif_orientation_is_applied() -> None:
    image = picture(32, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    path = Path(os.environ["HF_HOME"]) / "turned.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    with Image.open(path) as turned:
        values = VitMaeImageProcessor(size=(16, 32), **NO_CHANGE)(turned)["pixel_values"][0]
    assert np.array_equal(values.permute(1, 2, 0).numpy(), np.rot90(np.asarray(image), k=-1))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_jpeg_that_is_not_decoded_yet_comes_out_the_same(
    mode: str, num_channels: int, orientation: int, tmp_path: Path
) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture(40, 64).convert(mode).save(buffer, "JPEG", exif=exif)
    decoded = Image.open(io.BytesIO(buffer.getvalue()))
    decoded.load()
    expected = pixels(decoded, num_channels=num_channels)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    for file in (io.BytesIO(buffer.getvalue()), tmp_path / "a.jpg"):
        with Image.open(file) as opened:
            assert torch.equal(pixels(opened, num_channels=num_channels), expected)
            assert torch.equal(pixels(opened, num_channels=num_channels), expected)  # once more
            assert np.array_equal(np.asarray(opened), np.asarray(decoded))


@pytest.mark.parametrize("without_simplejpeg", [False, True])
def test_a_draft_of_a_jpeg_is_taken_as_it_is(
    without_simplejpeg: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_simplejpeg:
        monkeypatch.setattr(pictures, "simplejpeg", None)
    buffer = io.BytesIO()
    picture(96, 64).save(buffer, "JPEG")
    draft = Image.open(buffer)
    draft.draft("L", (32, 48))
    expected = draft.copy().convert("RGB")
    draft = Image.open(buffer)
    draft.draft("L", (32, 48))
    assert expected.size == (32, 48) and torch.equal(pixels(draft), pixels(expected))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_an_image_is_left_as_it_was(mode: str, num_channels: int) -> None:
    image = picture(20, 24).convert("L" if mode == "I;16" else mode).convert(mode)
    before = image.copy()
    values = pixels(image, num_channels=num_channels, do_resize=False, patch_size=1)
    values.zero_()
    assert image.mode == mode and np.array_equal(np.asarray(image), np.asarray(before))
    array = torch.full((num_channels, 16, 16), 0.5)
    result = VitMaeImageProcessor(size=16, num_channels=num_channels)
    assert result.normalize(array).unique().tolist() == [0]
    assert array.unique().tolist() == [0.5]


def test_layouts_agree() -> None:
    image = random_pixels(2, 16, 16, 3)
    expected = torch.from_numpy(image).permute(0, 3, 1, 2).float()
    first = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    processor = VitMaeImageProcessor(size=16, **NO_CHANGE)
    layouts: list[Any] = [
        image,
        first,
        list(image),
        [Image.fromarray(one) for one in image],
        torch.from_numpy(image),
        torch.from_numpy(first),
        list(torch.from_numpy(first)),
        [[image[0]], [first[1]]],
        image[:, ::-1][:, ::-1],
        image.astype(np.float64),
    ]
    for images in layouts:
        assert torch.equal(processor(images, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("num_channels", [2, 4, 5, 13])
def test_any_channel_count(num_channels: int) -> None:
    image = random_pixels(16, 16, num_channels)
    expected = torch.from_numpy(image).permute(2, 0, 1).float()
    assert torch.equal(pixels(image, num_channels=num_channels), expected)
    assert torch.equal(pixels(image.transpose(2, 0, 1), num_channels=num_channels), expected)
    for mode in ("RGBA", "CMYK") if num_channels == 4 else ():  # neither alpha nor ink is dropped
        bands = Image.frombytes(mode, (16, 16), image.tobytes())
        assert torch.equal(pixels(bands, num_channels=4), expected)


def test_gray_and_colour_arrays_convert_as_pillow_does() -> None:
    image = random_pixels(16, 16, 3)
    luma = torch.from_numpy(np.array(Image.fromarray(image).convert("L"))).float()[None]
    assert torch.equal(pixels(image, num_channels=1), luma)
    close = pixels(image / 255, num_channels=1, do_rescale=True)
    assert (close * 255 - luma).abs().max() <= 0.51
    deep = pixels(image.astype(np.uint16) * 257, num_channels=1, do_rescale=True)
    assert (deep * 255 - luma).abs().max() <= 0.51
    white = pixels(np.ones((16, 16, 3), np.float16), num_channels=1, do_rescale=True)
    assert (white == 1).all()  # though sums in half precision would overflow
    for gray in (image[..., 0], image[..., :1], image[None, ..., 0]):
        assert torch.equal(pixels(gray), torch.from_numpy(image[..., 0]).float().expand(3, -1, -1))


def test_input_data_format_decides_an_ambiguous_shape() -> None:
    image = random_pixels(3, 16, 3)
    processor = VitMaeImageProcessor(size=16, **NO_CHANGE)
    with pytest.raises(ValueError, match=r"\(3, 16, 3\).*input_data_format"):
        processor(image)
    first = processor(image, input_data_format="channels_first")["pixel_values"][0]
    last = processor(image, input_data_format="channels_last")["pixel_values"][0]
    turned = processor(image.transpose(2, 0, 1), input_data_format="channels_first")
    assert torch.equal(last, turned["pixel_values"][0]) and not torch.equal(first, last)


# Values


def test_every_type_reaches_the_same_pixel_values() -> None:
    image = random_pixels(16, 16, 3)
    expected = (torch.from_numpy(image).permute(2, 0, 1).double() / 255 - 0.5) / 0.5
    for same in (image, image.astype(np.uint16) * 257, image / 255, (image / 255).astype("f4")):
        actual = VitMaeImageProcessor(size=16)(same)["pixel_values"][0]
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-6)


def test_statistics_per_channel() -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0]
    processor = VitMaeImageProcessor(size=16, num_channels=5, image_mean=mean, image_std=std)
    image = torch.from_numpy(random_pixels(2, 5, 16, 16))
    values = processor.normalize(image)
    for channel in range(5):
        expected = (image[:, channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(values[:, channel], expected)
    torch.testing.assert_close(processor.normalize(image[0]), values[0])
    torch.testing.assert_close(processor.denormalize(values), image / 255)
    assert processor.denormalize(values + 5).max() == 1  # what a model overshoots is clipped
    assert processor.denormalize(values - 5).min() == 0
    assert VitMaeImageProcessor(num_channels=4, image_mean=0.25).image_mean == [0.25] * 4
    assert VitMaeImageProcessor(num_channels=1, image_std=[0.5] * 3).image_std == [0.5]


def test_floats_are_taken_as_they_are_without_rescale() -> None:
    heights = np.linspace(-1000, 3000, 256, dtype=np.float32).reshape(16, 16)
    options = {"num_channels": 1, "do_rescale": False, "do_normalize": True}
    values = pixels(heights, image_mean=100, image_std=400, **options)
    torch.testing.assert_close(values[0], torch.from_numpy((heights - 100) / 400))


# The way back


@pytest.mark.parametrize("num_channels", [1, 3, 5])
@pytest.mark.parametrize(("size", "patch_size"), [(32, 8), ((24, 64), (8, 16))])
@pytest.mark.parametrize("normalized", [False, True])
def test_patches_and_back_are_exact(
    num_channels: int, size: Any, patch_size: Any, normalized: bool
) -> None:
    processor = VitMaeImageProcessor(size=size, patch_size=patch_size, num_channels=num_channels)
    height, width = processor.size["height"], processor.size["width"]
    image = random_pixels(2, height, width, num_channels)
    image[0, :16, :16] = 77  # patches without any variance
    features = processor(
        image, return_tensors="pt", return_patches=True, normalize_patches=normalized
    )
    patches, grid = features["patches"], features["grid"]
    patch_height, patch_width = (8, 8) if patch_size == 8 else patch_size
    assert grid == (height // patch_height, width // patch_width)
    assert patches.shape == (2, grid[0] * grid[1], patch_height * patch_width * num_channels)
    if normalized:
        torch.testing.assert_close(
            patches.mean(-1), torch.zeros(patches.shape[:2]), atol=1e-3, rtol=0
        )
    statistics = {name: features[name] for name in ("patch_mean", "patch_std") if normalized}
    back = processor.patches_to_images(patches, grid, **statistics)
    torch.testing.assert_close(back, features["pixel_values"], rtol=0, atol=1e-5)
    shown = tuple(range(3)) if num_channels == 5 else ()
    for original, restored in zip(image, processor.to_pil(back, channels=shown), strict=True):
        expected = original[..., :3] if num_channels == 5 else original.squeeze()
        assert np.array_equal(np.asarray(restored), expected)


@pytest.mark.parametrize(
    "options",
    [{"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, {"do_normalize": False}]
    + [{"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": 58.0}],
)
def test_way_back_holds_for_every_scale(options: dict[str, Any]) -> None:
    processor = VitMaeImageProcessor(size=16, **options)
    image = random_pixels(16, 16, 3)
    values = processor(image, return_tensors="pt")["pixel_values"]
    assert np.array_equal(np.asarray(processor.to_pil(values)[0]), image)


def test_to_pil_modes() -> None:
    gray = VitMaeImageProcessor(num_channels=1).to_pil(torch.zeros(2, 1, 4, 6))
    assert [(image.mode, image.size) for image in gray] == [("L", (6, 4))] * 2
    processor = VitMaeImageProcessor(num_channels=5)
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).reshape(5, 1, 1).expand(5, 4, 6)
    colour, gray = (processor.to_pil(values, channels=chosen)[0] for chosen in ((4, 0, 3), (4,)))
    assert colour.mode == "RGB" and colour.getpixel((0, 0)) == (255, 0, 191)
    assert gray.mode == "L" and gray.getpixel((0, 0)) == 255
    with pytest.raises(ValueError, match="5 channels make no picture; pass channels="):
        processor.to_pil(torch.zeros(5, 4, 6))


# As Hugging Face users call it


def test_kinds_of_output() -> None:
    processor = VitMaeImageProcessor(size=16)
    images = [picture(), picture(20, 30)]
    as_torch = processor(images, return_tensors="pt", return_patches=True)
    as_numpy = processor(images=images, return_tensors="np", return_patches=True)
    as_list = processor.preprocess(images)
    assert torch.equal(processor(images, return_patches=True)["patches"], as_torch["patches"])
    assert isinstance(as_numpy["pixel_values"], np.ndarray) and as_numpy["grid"] == (1, 1)
    assert np.array_equal(as_numpy["patches"], as_torch["patches"].numpy())
    assert torch.equal(torch.stack(as_list["pixel_values"]), as_torch["pixel_values"])
    sizes = [v.shape for v in processor(images, do_resize=False)["pixel_values"]]
    assert sizes == [(3, 48, 32), (3, 16, 16)]
    moved = as_torch.to(torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.bfloat16 and moved["grid"] == (1, 1)


def test_options_of_one_call_change_that_call_only() -> None:
    processor = VitMaeImageProcessor(size=32)
    before = processor.to_dict()
    raw = processor(picture(), size=(16, 48), do_normalize=False, return_tensors="pt")
    assert raw["pixel_values"].shape == (1, 3, 16, 48) and raw["pixel_values"].min() >= 0
    assert processor.to_dict() == before


def test_options_are_listed_once_and_the_same() -> None:
    parameters = list(inspect.signature(VitMaeImageProcessor.__init__).parameters)
    assert parameters[1:-1] == list(VitMaeImageProcessorKwargs.__annotations__)


def test_save_and_load(tmp_path: Path) -> None:
    options = {"resample": 2, "crop_pct": 0.9, "rescale_factor": 1 / 127.5, "num_channels": 2}
    options |= {"image_mean": [0.1, 0.2], "image_std": [0.3, 0.4], "do_convert": False}
    processor = VitMaeImageProcessor(size=(64, 32), patch_size=(16, 8), **options)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 64, "width": 32} and saved["patch_size"] == [16, 8]
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VitMaeImageProcessor and loaded.to_dict() == processor.to_dict()
    changed = VitMaeImageProcessor.from_pretrained(
        tmp_path, size=48, crop_pct=1.0, patch_size=(8, 16)
    )
    assert changed.size == {"height": 48, "width": 48}
    assert (changed.crop_pct, changed.patch_size, changed.num_channels) == (1.0, [8, 16], 2)


def test_auto_class_opens_it_without_the_package(tmp_path: Path) -> None:
    processor = VitMaeImageProcessor(size=(16, 32), patch_size=8)
    processor.save_pretrained(tmp_path)
    expected = processor(picture(), return_tensors="pt", return_patches=True)["patches"]
    program = (
        "import sys; sys.modules['hf_vitmae'] = None\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "from transformers.models.auto.image_processing_auto import AutoImageProcessor\n"
        "processor = AutoImageProcessor.from_pretrained('.', trust_remote_code=True)\n"
        "processor.save_pretrained('again')\n"
        "features = processor(Image.open('in.png'), return_tensors='np', return_patches=True)\n"
        "np.save('out.npy', features['patches'])\n"
    )
    picture().save(tmp_path / "in.png")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected.numpy())
    payload = {"image_processing_vitmae.py", "patches.py", "resizing.py", "segmentation_maps.py"}
    payload |= {"pictures.py", "preprocessor_config.json"}
    assert payload <= {path.name for path in (tmp_path / "again").iterdir()}


def test_pipelines_take_it() -> None:
    model = VitMaeForImageClassification(tiny_config(num_labels=3)).eval()
    processor = VitMaeImageProcessor(size=16, patch_size=4)
    classify = pipeline("image-classification", model=model, image_processor=processor)
    with torch.no_grad():
        logits = model(**processor(picture(), return_tensors="pt")).logits
    expected = logits.softmax(-1)[0].sort(descending=True).values
    scores = torch.tensor([answer["score"] for answer in classify(picture())])
    torch.testing.assert_close(scores, expected)
    extract = pipeline("image-feature-extraction", model=model.vit, image_processor=processor)
    features = extract(picture(), return_tensors=True)
    torch.testing.assert_close(
        features, model.vit(**processor(picture(), return_tensors="pt")).last_hidden_state
    )


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, "30x30 .* 16x16"),
        ({"size": (32, 40)}, "32x40"),
        ({"size": {"shortest_edge": 32}}, "shortest_edge"),
        ({"size": 0}, r"size=\(0, 0\)"),
        ({"patch_size": -16}, "patch_size"),
        ({"resample": 1}, "resample=1"),
        ({"crop_pct": 1.2}, "crop_pct=1.2"),
        ({"crop_pct": 0.9, "do_center_crop": False}, "crop_pct=0.9 needs"),
        ({"image_mean": [0.1, 0.2]}, r"image_mean=\[0.1, 0.2\].*num_channels=3"),
        ({"image_std": 0}, "image_std"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VitMaeImageProcessor(**options)
    with pytest.raises(ValueError, match=message):
        VitMaeImageProcessor()(picture(), **options)


def test_misspelt_options_are_named() -> None:
    with pytest.raises(TypeError, match="no option .'do_normalise'.; it has do_resize"):
        VitMaeImageProcessor(do_normalise=False)
    with pytest.raises(TypeError, match="do_normalise"):
        VitMaeImageProcessor()(picture(), do_normalise=False)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ("photo.jpg", {}, "'photo.jpg' is not a PIL image"),
        (np.zeros(7, np.uint8), {}, r"\(7,\)"),
        (np.zeros((0, 16, 3), np.uint8), {}, r"\(0, 16, 3\)"),
        ([], {}, "0 images of"),
        (
            [picture(), picture(16, 16)],
            {"do_resize": False},
            r"2 images of \[\(48, 32\), \(16, 16\)",
        ),
        (picture(8, 20), {"do_resize": False}, "8x20 .* 16x16"),
        (picture(20, 20), {"do_resize": False, "do_center_crop": False}, "20x20"),
        (np.zeros((16, 16, 4), np.uint8), {}, r"\(16, 16, 4\).*transparency"),
        (np.zeros((16, 16, 3), np.uint8), {"do_convert": False, "num_channels": 1}, "channel"),
        (picture(), {"num_channels": 5}, "3 bands .* takes 5 channels"),
        (picture().convert("L"), {"do_convert": False}, "1 bands .* takes 3 channels"),
        (np.zeros((16, 16, 3), np.int64), {}, "torch.int64"),
        (np.full((16, 16, 3), 200.0), {}, r"200..200.*do_rescale=False"),
        (np.full((16, 16, 3), -1.0), {}, "-1..-1"),
        (np.full((16, 16, 3), np.nan), {}, "nan..nan"),
        (picture(), {"normalize_patches": True}, "return_patches=True"),
        (picture(), {"input_data_format": None, "return_tensors": "tf"}, "tf"),
    ],
)
def test_bad_images_are_named(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VitMaeImageProcessor(size=16)(image, **{"return_tensors": "pt", **options})


def test_bad_pixel_values_are_named() -> None:
    processor = VitMaeImageProcessor(size=16)
    with pytest.raises(ValueError, match="1 channels, but num_channels=3"):
        processor.normalize(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="both patch_mean and patch_std"):
        processor.patches_to_images(torch.zeros(1, 1, 768), (1, 1), patch_mean=torch.zeros(1, 1, 1))


def test_a_processor_for_a_model_has_its_geometry() -> None:
    config = tiny_config(image_size=(24, 16), patch_size=(6, 4), num_channels=5)
    processor = VitMaeImageProcessor.for_model(config)
    assert processor.size == {"height": 24, "width": 16}
    assert processor.patch_size == [6, 4] and processor.image_mean == [0.5] * 5


def test_a_processor_for_a_model_has_its_statistics() -> None:
    config = tiny_config(image_mean=(0.4, 0.5, 0.6), image_std=0.25)
    processor = VitMaeImageProcessor.for_model(config)
    assert processor.image_mean == [0.4, 0.5, 0.6] and processor.image_std == [0.25] * 3


# Value ranges


RANGES: dict[str, Any] = {"value_range": (100, 1100), "do_resize": False, "do_normalize": False}


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.float32, torch.float64]
)
def test_a_value_range_becomes_black_to_white(dtype: torch.dtype) -> None:
    image = torch.tensor([0, 100, 150, 255]).to(dtype).expand(16, 16, 4).movedim(-1, 0)  # (4, H, W)
    features = VitMaeImageProcessor(**RANGES, num_channels=4)(image, return_tensors="pt")
    values = features["pixel_values"][0, :, 0, 0]
    assert values.tolist() == pytest.approx([0, 0, 0.05, 0.155], abs=1e-6)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("kind", ["I;16", "F", "I", "L", "RGB", "array"])
def test_a_value_range_fits_pictures_of_every_depth(num_channels: int, kind: str) -> None:
    values = random_pixels(40, 50).astype(np.float32)
    if kind in ("I;16", "F", "I"):
        values = values * 4 + 100
    image: Any = values
    if kind != "array":
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(kind, np.uint8)
        image = Image.fromarray(values.astype(dtype))
        image = image.convert("RGB") if kind == "RGB" else image
    processor = VitMaeImageProcessor(**RANGES, num_channels=num_channels)
    result = processor(image, return_tensors="pt")["pixel_values"][0]
    assert result.shape == (num_channels, 32, 48)
    top, left = round((40 - 32) / 2), round((50 - 48) / 2)
    expected = ((values - 100) / 1000).clip(0, 1)[top : top + 32, left : left + 48]
    assert np.abs(result.numpy() - expected).max() < 1e-3


def test_a_value_range_is_normalized_as_8_bits_are() -> None:
    image = np.array(picture())
    options: dict[str, Any] = {"size": 32, "image_mean": [0.4, 0.5, 0.6], "image_std": 0.2}
    deep = VitMaeImageProcessor(**options, value_range=(0, 65535))
    plain = VitMaeImageProcessor(**options)
    of_deep = deep(image.astype(np.int32) * 257, return_tensors="pt")["pixel_values"]
    of_plain = plain(image, return_tensors="pt")["pixel_values"]
    rounding = 1.5 / 255  # of 8 bits, by both passes of the resize
    assert (of_deep - of_plain).abs().max() < rounding / 0.2
    assert (deep.denormalize(of_deep) - plain.denormalize(of_plain)).abs().max() < rounding


def test_a_value_range_keeps_depth() -> None:
    image = (1000 + np.arange(16 * 16).reshape(16, 16)).astype(np.uint16)
    options: dict[str, Any] = {"num_channels": 1, "do_rescale": True}
    assert len(pixels(image, value_range=(1000, 1255), **options).unique()) == 256
    assert len((pixels(image, **options) * 255).round().unique()) == 2


def test_a_value_range_is_saved(tmp_path: Path) -> None:
    VitMaeImageProcessor(value_range=(-3.5, 20)).save_pretrained(tmp_path)
    assert VitMaeImageProcessor.from_pretrained(tmp_path).value_range == [-3.5, 20.0]
    VitMaeImageProcessor().save_pretrained(tmp_path)
    assert VitMaeImageProcessor.from_pretrained(tmp_path).value_range is None


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf")), (0, 1, 2), (0,)])
def test_an_impossible_value_range_is_named(value_range: Any) -> None:
    with pytest.raises(ValueError, match="value_range=.* must be two finite numbers"):
        VitMaeImageProcessor(value_range=value_range)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_named(value: float) -> None:
    for image in (np.full((20, 20), value, np.float32), Image.new("F", (20, 20), value)):
        with pytest.raises(ValueError, match="^An image holds values that are no finite numbers"):
            pixels(image, value_range=(0, 1))


def test_floats_without_a_range_say_how_to_give_one() -> None:
    with pytest.raises(
        ValueError, match=r"^An image holds float values .*value_range=\(low, high\)"
    ):
        pixels(Image.new("F", (20, 20)))


# Thin strips


@pytest.mark.parametrize("do_center_crop", [True, False])
@pytest.mark.parametrize("shape", [(2, 500_000), (500_000, 2)])
def test_a_thin_strip_costs_no_more_than_its_centre(
    shape: tuple[int, int], do_center_crop: bool
) -> None:
    image = np.zeros((*shape, 1), np.uint8)
    centre = tuple(
        slice(side // 2 - min(side, 200) // 2, side // 2 + min(side, 200) // 2) for side in shape
    )
    image[centre] = 200
    options: dict[str, Any] = {"num_channels": 1, "do_center_crop": do_center_crop}
    values = pixels(image, **options)
    assert values.shape == (1, 16, 16)
    if do_center_crop:
        assert values.unique().tolist() == [200]


def test_a_strip_that_is_not_too_thin_is_resized_as_ever() -> None:
    processor = VitMaeImageProcessor(size=32)
    image = torch.from_numpy(random_pixels(3, 10, 600))
    expected = resize(image, (32, 1920), "bicubic")
    assert torch.equal(processor.resize_and_crop(image), expected[:, :, 944:976])
