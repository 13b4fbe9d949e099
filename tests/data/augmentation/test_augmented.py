"""The transform of a recipe: crop and flip as ever, then what else the recipe asks for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae.data.augmentation.augmentations import build_augmentations
from hf_vitmae.data.augmentation.augmented import train_transform
from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.augmentation.transforms import TrainTransform

SIZE = (12, 16)
EVERYTHING = AugmentConfig(crop_scale=(0.3, 0.9), vertical_flip=0.5, rand_augment=9, erasing=0.5)


def picture() -> tuple[bytes, torch.Tensor]:
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue(), torch.from_numpy(values).permute(2, 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_default_is_crop_and_flip_alone(seed: int):
    encoded, image = picture()
    transform, plain = train_transform(AugmentConfig(), SIZE, 3, 0.5, 0.5), TrainTransform(SIZE)
    expected = plain(image, np.random.default_rng(seed))
    assert torch.equal(transform(image, np.random.default_rng(seed)), expected)
    assert torch.equal(transform.read(encoded, np.random.default_rng(seed), "it"), expected)


def test_augmentations_go_on_with_the_draws_of_the_crop():
    encoded, image = picture()
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    transform = train_transform(EVERYTHING, SIZE, 3, mean, std)
    changed = 0
    for seed in range(12):
        generator = np.random.default_rng(seed)
        crop = TrainTransform(SIZE, crop_scale=(0.3, 0.9))(image, generator)
        expected = build_augmentations(EVERYTHING, 3, mean, std)(crop, generator)
        changed += not torch.equal(crop, expected)
        assert torch.equal(transform(image, np.random.default_rng(seed)), expected)
        assert torch.equal(transform.read(encoded, np.random.default_rng(seed), "it"), expected)
    assert changed > 6


@pytest.mark.parametrize("seed", range(8))
def test_a_label_map_goes_where_its_image_goes(seed: int):
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8))
    config = AugmentConfig(
        crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), vertical_flip=0.5, rotate_quarters=True
    )
    transform = train_transform(config, SIZE, 1, 0.5, 0.5)
    pixels, label_map = transform.with_label_map(
        image[None], image.long(), np.random.default_rng(seed)
    )
    assert torch.equal(pixels[0].long(), label_map)
    assert torch.equal(pixels, transform(image[None], np.random.default_rng(seed)))
