"""The random crop keeps to its ranges, the transforms to uint8 and the size, maps to images."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_vitmae.data.augmentation.transforms import EvalTransform, TrainTransform
from hf_vitmae.data.decoding.decode import decode, decode_label_map
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_image(channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("image_shape", [(40, 60), (7, 5), (1, 1), (3, 500)])
def test_any_image_becomes_uint8_of_the_asked_size(channels, image_shape):
    transform = TrainTransform((32, 48), num_channels=channels)
    image = transform(random_image(channels, *image_shape), rng())
    assert image.shape == (channels, 32, 48) and image.dtype == torch.uint8


def test_the_same_generator_gives_the_same_crop_and_another_one_another():
    transform, image = TrainTransform((16, 16)), random_image(3, 50, 40)
    assert torch.equal(transform(image, rng(1)), transform(image, rng(1)))
    assert not torch.equal(transform(image, rng(1)), transform(image, rng(2)))


@pytest.mark.parametrize("image_size", [(32, 32), (64, 16)])
def test_crops_lie_inside_the_image_and_keep_to_scale_and_ratio(image_size):
    transform, generator = TrainTransform(image_size), rng()
    full_height, full_width = 10 * image_size[0], 10 * image_size[1]
    areas, ratios = [], []
    for _ in range(2000):
        top, left, height, width = transform.crop_box(full_height, full_width, generator)
        assert 0 <= top <= full_height - height and 0 <= left <= full_width - width
        areas.append(height * width / (full_height * full_width))
        ratios.append(width / height * image_size[0] / image_size[1])
    assert 0.19 < min(areas) < 0.22 and 0.95 < max(areas) <= 1
    assert 0.73 < min(ratios) < 0.77 and 1.3 < max(ratios) < 1.36
    assert np.median(np.log(ratios)) == pytest.approx(0, abs=0.03)  # as often wide as tall


def test_a_crop_that_cannot_fit_is_the_largest_in_the_centre():
    transform = TrainTransform((32, 32), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert transform.crop_box(100, 300, rng()) == (0, 100, 100, 100)
    assert transform.crop_box(300, 100, rng()) == (100, 0, 100, 100)


def test_without_crop_and_flip_it_is_the_antialiased_resize():
    image = random_image(3, 64, 64)
    transform = TrainTransform(
        (16, 16), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), horizontal_flip=0.0
    )
    expected = F.interpolate(image[None].float(), (16, 16), mode="bicubic", antialias=True)[0]
    assert (transform(image, rng()).float() - expected).abs().max() <= 1
    flipped = TrainTransform((16, 16), 3, (1.0, 1.0), (1.0, 1.0), horizontal_flip=1.0)
    assert torch.equal(flipped(image, rng()).flip(-1), transform(image, rng()))


def test_half_of_the_images_are_flipped():
    image = torch.arange(8, dtype=torch.uint8).expand(1, 8, 8)
    transform, generator = TrainTransform((8, 8), 1, (1.0, 1.0), (1.0, 1.0)), rng()
    flips = sum(bool(transform(image, generator)[0, 0, 0] > 3) for _ in range(1000))
    assert 450 < flips < 550


def test_the_box_is_drawn_first_and_then_the_flip():
    """The order of the draws: another one would change every run that is resumed."""
    transform, image = TrainTransform((16, 24)), random_image(3, 50, 40)
    for seed in range(8):
        generator = rng(seed)
        top, left, height, width = transform.crop_box(50, 40, generator)
        crop = image[:, top : top + height, left : left + width]
        crop = F.interpolate(crop[None], (16, 24), mode="bicubic", antialias=True)[0]
        expected = crop.flip(-1) if generator.random() < 0.5 else crop
        assert torch.equal(transform(image, rng(seed)), expected)


def coordinates(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose two channels are row and column, and a map of ids that say both."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    return torch.stack([rows, columns]).to(torch.uint8), rows * 1000 + columns


@pytest.mark.parametrize("image_size", [(32, 32), (24, 48), (200, 160)])
@pytest.mark.parametrize("seed", range(6))
def test_a_label_map_is_cut_flipped_and_resized_as_its_image(image_size, seed):
    image, label_map = coordinates(150, 120)
    transform = TrainTransform(image_size, num_channels=2)
    cut, ids = transform.with_label_map(image, label_map, rng(seed))
    assert torch.equal(cut, transform(image, rng(seed)))  # the image as it is without a map
    assert ids.shape == image_size and ids.dtype == torch.int64
    assert set(ids.flatten().tolist()) <= set(label_map.flatten().tolist())  # nothing in between
    inside = (slice(3, -3), slice(3, -3))  # at the edge a resize has fewer pixels to weigh
    for channel, there in zip(cut, (ids // 1000, ids % 1000), strict=True):
        assert (channel[inside].long() - there[inside]).abs().max() <= 1


def test_ids_beyond_a_byte_stay_exact():
    transform, generator = TrainTransform((8, 8)), rng()
    label_map = torch.full((20, 20), 65_535)
    _, ids = transform.with_label_map(random_image(3, 20, 20), label_map, generator)
    assert (ids == 65_535).all()


def test_memory_layout_does_not_change_a_pixel():
    image, transform = random_image(3, 50, 40), TrainTransform((16, 16))
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(transform(channels_last, rng()), transform(image, rng()))


class Corner:
    """Stands for an image processor."""

    num_channels = 4

    def resize_and_crop(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :2, :2]

    def resize_and_crop_map(self, label_map: torch.Tensor) -> torch.Tensor:
        return label_map[:2, :2]


def test_evaluation_is_the_processors_own_resize():
    transform, image = EvalTransform(Corner()), random_image(4, 5, 5)
    assert transform.num_channels == 4
    assert torch.equal(transform(image, rng()), image[:, :2, :2])
    assert torch.equal(transform(image), image[:, :2, :2])
    cut, ids = transform.with_label_map(image, image[0].long(), rng())
    assert torch.equal(cut, image[:, :2, :2]) and torch.equal(ids, image[0, :2, :2].long())


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale .* not \(0.5, 0.2\)"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.2, 1.5)}, "crop_scale .*<= 1,"),
        ({"crop_ratio": (-1.0, 1.0)}, "crop_ratio"),
        ({"horizontal_flip": 1.5}, "horizontal_flip .* not 1.5"),
    ],
)
def test_impossible_options_are_refused(option, line):
    with pytest.raises(ValueError, match=line):
        TrainTransform((16, 16), **option)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_evaluation_sees_the_pixels_that_inference_sees(mode, num_channels):
    """Bytes decoded here and an image handed to the processor end in the same values."""
    processor = VitMaeImageProcessor(size=(32, 48), patch_size=8, num_channels=num_channels)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels[..., : 4 if mode in ("RGBA", "LA") else 3])
    if picture.mode != mode:
        picture = picture.convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    ours = EvalTransform(processor)(decode(buffer.getvalue(), num_channels))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(processor.normalize(ours), theirs)


@pytest.mark.parametrize("do_center_crop", [True, False])
def test_evaluation_sees_the_label_maps_that_inference_sees(do_center_crop):
    processor = VitMaeImageProcessor(size=(32, 48), patch_size=8, do_center_crop=do_center_crop)
    image = random_image(3, 40, 70)
    label_map = Image.fromarray(image[0].numpy())
    buffer = io.BytesIO()
    label_map.save(buffer, "PNG")
    ids = decode_label_map(buffer.getvalue())
    ours, our_ids = EvalTransform(processor).with_label_map(image, ids)
    theirs = processor(image, segmentation_maps=label_map, return_tensors="pt")
    assert torch.equal(processor.normalize(ours), theirs["pixel_values"][0])
    assert torch.equal(our_ids, theirs["labels"][0])
