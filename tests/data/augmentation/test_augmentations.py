"""The whole of what is done to an image: what is off, the order, label maps, one-line refusals."""

import pickle

import numpy as np
import pytest
import torch

from hf_vitmae.data.augmentation.augmentations import Augmentations, build_augmentations
from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.augmentation.erasing import RandomErasing
from hf_vitmae.data.augmentation.geometry import RandomOrientation
from hf_vitmae.data.augmentation.photometric import ColorJitter, RandomBlur, ThreeAugment
from hf_vitmae.data.augmentation.rand_augment import RandAugment

EVERYTHING = AugmentConfig(
    vertical_flip=0.5,
    rotate_quarters=True,
    rand_augment=9,
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    gaussian_blur=0.5,
    erasing=0.5,
    erasing_count=2,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_image(channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


def test_the_defaults_change_nothing_and_draw_nothing():
    augmentations, generator, image = build_augmentations(AugmentConfig(), 3), rng(), random_image()
    assert augmentations == Augmentations()
    assert augmentations(image, generator) is image
    assert augmentations.with_label_map(image, image[0], generator)[0] is image
    assert generator.random() == rng().random()


def test_every_field_builds_its_own_part():
    built = build_augmentations(EVERYTHING, 3, (0.4, 0.5, 0.6), 0.2)
    fill = (102, 128, 153)  # 255 * 0.5 is rounded to the even of its neighbours
    assert built == Augmentations(
        RandomOrientation(0.5, True),
        (RandAugment(9, fill), ColorJitter(0.4, 0.4, 0.4, 0.1), RandomBlur(0.5)),
        RandomErasing(0.5, (102.0, 127.5, 153.0), (51.0, 51.0, 51.0), 2),
    )
    three = AugmentConfig(three_augment=True, color_jitter=(0.3, 0.3, 0.3, 0.0))
    steps = build_augmentations(three, 1).on_pictures
    assert steps == (ThreeAugment(), ColorJitter(0.3, 0.3, 0.3))


def test_the_options_of_rand_augment_arrive():
    config = AugmentConfig(
        rand_augment=5, rand_augment_ops=3, rand_augment_std=0.25, rand_augment_probability=0.75
    )
    (step,) = build_augmentations(config, 1).on_pictures
    assert step == RandAugment(5, (128,), num_ops=3, magnitude_std=0.25, probability=0.75)


def test_a_mean_beyond_black_and_white_fills_with_them():
    config = AugmentConfig(rand_augment=9)
    (step,) = build_augmentations(config, 2, (-0.1, 1.2)).on_pictures
    assert isinstance(step, RandAugment) and step.fill == (0, 255)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_any_image_stays_uint8_of_its_size(channels, shape):
    augmentations, image = build_augmentations(EVERYTHING, channels), random_image(channels, *shape)
    kept = image.clone()
    for seed in range(30):
        result = augmentations(image, rng(seed))
        assert result.shape == image.shape and result.dtype == torch.uint8
    assert torch.equal(image, kept)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_same_generator_gives_the_same_image_also_after_pickling(channels):
    augmentations, image = build_augmentations(EVERYTHING, channels), random_image(channels)
    copied = pickle.loads(pickle.dumps(augmentations))
    results = {augmentations(image, rng(seed)).numpy().tobytes() for seed in range(20)}
    assert len(results) == 20
    for seed in range(20):
        assert torch.equal(augmentations(image, rng(seed)), copied(image, rng(seed)))


def test_erasing_comes_last():
    """Noise that a jitter, a blur or a turn had changed would be another."""
    config = AugmentConfig(
        rotate_quarters=True, color_jitter=(0.8, 0, 0, 0), gaussian_blur=1.0, erasing=1.0
    )
    augmentations, image = build_augmentations(config, 3, 0.5, 1e-6), random_image()
    without = Augmentations(augmentations.orientation, augmentations.on_pictures)
    for seed in range(10):
        changed = augmentations(image, rng(seed)) != without(image, rng(seed))
        assert (augmentations(image, rng(seed))[changed].float() - 127.5).abs().max() <= 0.5
        assert changed.any()


def test_steps_are_done_in_their_order():
    image = random_image()
    steps = (ThreeAugment(), ColorJitter(0.4, 0.4, 0.4), RandomBlur(1.0))
    both, generator = Augmentations(on_pictures=steps), rng(4)
    expected = image
    for step in steps:
        expected = Augmentations(on_pictures=(step,))(expected, generator)
    assert torch.equal(both(image, rng(4)), expected)


@pytest.mark.parametrize(
    ("options", "is_rounded"),
    [
        ({"vertical_flip": 1.0, "rotate_quarters": True}, False),
        ({"rand_augment": 0.0, "rand_augment_std": 0.0, "rand_augment_probability": 0.0}, True),
        ({"three_augment": True}, True),
        ({"color_jitter": (0.4, 0.0, 0.0, 0.0)}, True),
        ({"gaussian_blur": 1.0}, True),
    ],
)
def test_deep_images_are_rounded_to_8_bits_where_colours_change_and_only_there(options, is_rounded):
    deep = random_image().float() * 0.999 + 0.03  # no whole numbers
    changed = build_augmentations(AugmentConfig(**options), 3)(deep, rng())
    assert changed.dtype == torch.float32
    assert torch.equal(changed, changed.round()) == is_rounded


def position_map(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width).reshape(height, width)


def test_a_label_map_turns_with_its_image_and_pixels_stay_at_their_place():
    """The image holds the positions that its map says, up to one factor on all."""
    config = AugmentConfig(
        vertical_flip=0.5, rotate_quarters=True, color_jitter=(0.5, 0.0, 0.0, 0.0), erasing=1.0
    )
    augmentations = build_augmentations(config, 1)
    image = position_map(8, 8).to(torch.uint8)[None]
    turned = set()
    for seed in range(40):
        changed, ids = augmentations.with_label_map(image, position_map(8, 8), rng(seed))
        pixels, positions = changed.flatten(), ids.flatten()
        order = positions.argsort()
        assert pixels[order].diff().min() >= 0  # brightness keeps the order of values
        assert pixels[positions == 63] > pixels[positions == 10]
        turned.add(tuple(positions.tolist()))
    assert len(turned) == 8


def test_with_a_label_map_rand_augment_does_not_move_pixels():
    config = AugmentConfig(rand_augment=9, rand_augment_probability=1.0)
    augmentations = build_augmentations(config, 3, 0.2)
    image = torch.full((3, 16, 16), 90, dtype=torch.uint8)  # flat: only what moves in is uneven
    moved = 0
    for seed in range(100):
        changed, ids = augmentations.with_label_map(image, position_map(16, 16), rng(seed))
        assert len(changed.flatten(1).unique(dim=1).T) == 1
        assert torch.equal(ids, position_map(16, 16))
        moved += len(augmentations(image, rng(seed)).flatten(1).unique(dim=1).T) > 1
    assert moved > 20  # without a map they do move


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"vertical_flip": 1.5}, r"augment.vertical_flip must lie in 0..1, not 1.5"),
        ({"horizontal_flip": -0.1}, "augment.horizontal_flip"),
        ({"erasing": 2.0}, "augment.erasing must"),
        ({"erasing_count": 0}, "augment.erasing_count must be at least 1, not 0"),
        ({"gaussian_blur": float("nan")}, "augment.gaussian_blur .* nan"),
        ({"rand_augment": 11.0}, r"augment.rand_augment must lie in 0..10, not 11"),
        ({"rand_augment": 9.0, "three_augment": True}, "augment.rand_augment=9.0 and .*three"),
        ({"rand_augment_ops": 0}, "augment.rand_augment_ops"),
        ({"rand_augment_std": -1.0}, "augment.rand_augment_std must be finite and at least 0"),
        ({"rand_augment_probability": 1.1}, "augment.rand_augment_probability"),
        ({"color_jitter": (0.1, 0.1)}, "augment.color_jitter takes"),
        ({"color_jitter": (0.1, -0.1, 0.0, 0.0)}, "augment.color_jitter .* not -0.1"),
        ({"color_jitter": (0.1, 0.1, 0.1, 0.6)}, r"color_jitter's hue must lie in 0..0.5, not 0.6"),
        ({"mixup": -0.8}, "augment.mixup"),
        ({"cutmix": float("inf")}, "augment.cutmix must be finite"),
        ({"mixing_probability": 2.0}, "augment.mixing_probability"),
        ({"cutmix_share": -1.0}, "augment.cutmix_share"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(option, line):
    with pytest.raises(ValueError, match=line) as error:
        AugmentConfig(**option)
    assert "\n" not in str(error.value)


def test_statistics_must_be_one_a_channel():
    with pytest.raises(ValueError, match="image_std has 3 values and the images have 1 channels"):
        build_augmentations(AugmentConfig(), 1, 0.5, (0.1, 0.2, 0.3))


def test_mixing_is_on_where_something_is_mixed():
    assert not AugmentConfig().mixes
    assert AugmentConfig(mixup=0.8).mixes and AugmentConfig(cutmix=1.0).mixes
    assert not AugmentConfig(mixup=0.8, mixing_probability=0.0).mixes
