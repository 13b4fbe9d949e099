"""Colours change as Pillow changes them, by as much as is drawn, alike in all channels."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from hf_vitmae.data.augmentation.photometric import (
    ColorJitter,
    RandomBlur,
    ThreeAugment,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    from_pictures,
    shift_hue,
    to_gray,
    to_pictures,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_image(channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


def change(augmentation, image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return from_pictures(augmentation(to_pictures(image), rng(seed)))


def flat(*values: int, size: int = 4) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(-1, size, size)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_pictures_hold_the_very_pixels_of_any_layout(channels):
    image = random_image(channels)
    pictures = to_pictures(image)
    assert [picture.mode for picture in pictures] == (
        ["RGB"] if channels == 3 else ["L"] * channels
    )
    assert pictures[0].size == (10, 12)
    assert torch.equal(from_pictures(pictures), image)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(from_pictures(to_pictures(channels_last)), image)
    assert torch.equal(from_pictures(to_pictures(image[:, ::2, 1:])), image[:, ::2, 1:])


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation])
def test_a_factor_of_one_changes_nothing(adjust):
    picture = to_pictures(random_image())[0]
    assert adjust(picture, 1.0).tobytes() == picture.tobytes()


@pytest.mark.parametrize("turns", [0.0, 0.001, -0.001, 1.0])
def test_no_turn_of_hue_changes_nothing(turns):
    picture = to_pictures(flat(200, 30, 90))[0]
    difference = np.asarray(shift_hue(picture, turns)).astype(int) - np.asarray(picture)
    assert abs(difference).max() <= (0 if abs(turns) < 0.5 else 3)


def test_known_colours():
    (picture,) = to_pictures(flat(100, 50, 200))
    assert adjust_brightness(picture, 1.5).getpixel((0, 0)) == (150, 75, 255)
    gray = round(0.299 * 100 + 0.587 * 50 + 0.114 * 200)
    assert adjust_saturation(picture, 0.0).getpixel((0, 0)) == (gray,) * 3
    assert to_gray(picture).getpixel((0, 0)) == (gray,) * 3
    two = Image.fromarray(np.array([[50, 150]], np.uint8))
    assert np.asarray(adjust_contrast(two, 0.5)).tolist() == [[75, 125]]


@pytest.mark.parametrize(
    ("turns", "expected"), [(1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (1 / 2, (0, 255, 255))]
)
def test_hue_turns_red_to_other_colours(turns, expected):
    (red,) = to_pictures(flat(255, 0, 0))
    turned = shift_hue(red, turns).getpixel((0, 0))
    assert isinstance(turned, tuple)
    assert np.allclose(turned, expected, atol=3)  # HSV has 255 hues


@pytest.mark.parametrize("turns", [0.1, -0.25, 0.4])
def test_hue_turns_any_colour_as_arithmetic_says(turns):
    colors = rng().integers(0, 256, (100, 3))
    for color in colors.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in color))
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
        (picture,) = to_pictures(flat(*color, size=1))
        assert np.allclose(np.asarray(shift_hue(picture, turns)), expected, atol=8)


def test_brightness_spans_the_range_that_is_asked_for():
    image, jitter = flat(100, 100, 100, size=1), ColorJitter(brightness=0.4)
    values = np.array([change(jitter, image, seed)[0, 0, 0] for seed in range(500)])
    assert 60 <= values.min() < 63 and 137 < values.max() <= 140
    assert values.mean() == pytest.approx(100, abs=4)  # 1 is one standard deviation


def test_a_strength_above_one_stops_at_black():
    values = [change(ColorJitter(brightness=2.0), flat(50), seed).max() for seed in range(200)]
    assert min(values) < 3 and 140 < max(values) <= 150


@pytest.mark.parametrize(
    ("option", "adjust", "low", "high"),
    [
        ({"contrast": 0.5}, adjust_contrast, 0.5, 1.5),
        ({"saturation": 0.5}, adjust_saturation, 0.5, 1.5),
        ({"hue": 0.25}, shift_hue, -0.25, 0.25),
    ],
)
def test_each_strength_is_of_its_own_adjustment(option, adjust, low, high):
    """One strength alone: no order to draw but that of one, then its amount."""
    (picture,) = to_pictures(random_image())
    for seed in range(5):
        generator = rng(seed)
        generator.permutation(1)
        expected = adjust(picture, generator.uniform(low, high))
        assert ColorJitter(**option)([picture], rng(seed))[0].tobytes() == expected.tobytes()


def test_the_order_of_the_adjustments_is_drawn():
    """Dark to a third, then saturated, is another colour than the other way round."""
    image, jitter = flat(220, 120, 30, size=1), ColorJitter(brightness=0.6, saturation=0.9)
    (picture,) = to_pictures(image)
    orders = set()
    for seed in range(20):
        generator = rng(seed)
        order = generator.permutation(2)
        steps, amounts = [(adjust_brightness, 0.6), (adjust_saturation, 0.9)], picture
        for index in order:
            adjust, strength = steps[index]
            amounts = adjust(amounts, generator.uniform(1 - strength, 1 + strength))
        assert jitter([picture], rng(seed))[0].tobytes() == amounts.tobytes()
        orders.add(tuple(order.tolist()))
    assert orders == {(0, 1), (1, 0)}


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_without_colours_there_is_neither_saturation_nor_hue(channels):
    image = random_image(channels)
    assert torch.equal(change(ColorJitter(saturation=0.9, hue=0.5), image), image)
    both = [ColorJitter(0.4, 0.4), ColorJitter(0.4, 0.4, 0.9, 0.5)]
    results = [change(jitter, image, seed=3) for jitter in both]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], image)


@pytest.mark.parametrize("augmentation", [ColorJitter(0.4, 0.4), RandomBlur(1.0), ThreeAugment()])
def test_channels_change_alike(augmentation):
    """The same picture in every channel stays the same picture in every channel."""
    image = random_image(1).expand(4, -1, -1)
    for seed in range(8):
        changed = change(augmentation, image, seed)
        assert torch.equal(changed, changed[:1].expand(4, -1, -1))


def test_blur_is_pillows_of_a_drawn_radius():
    picture = to_pictures(random_image())[0]
    for seed in range(5):
        generator = rng(seed)
        generator.random()
        expected = picture.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0)))
        assert RandomBlur(1.0)([picture], rng(seed))[0].tobytes() == expected.tobytes()


def test_as_many_are_blurred_as_asked_for():
    image, generator = random_image(), rng()
    pictures = to_pictures(image)
    blurred = sum(RandomBlur(0.3)(pictures, generator) is not pictures for _ in range(1000))
    assert 240 < blurred < 360


def kind_of(changed: torch.Tensor, image: torch.Tensor, seed: int) -> str:
    """Which of the three operations gave `changed`, to the pixel; the radius is drawn again."""
    pictures, generator = to_pictures(image), rng(seed)
    generator.integers(0 if len(image) == 3 else 1, 3)
    generator.random()
    blur = ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0))
    kinds = {
        "solarized": [ImageOps.solarize(picture, 128) for picture in pictures],
        "blurred": [picture.filter(blur) for picture in pictures],
        "gray": [ImageEnhance.Color(picture).enhance(0.0) for picture in pictures],
    }
    return next(name for name in kinds if torch.equal(changed, from_pictures(kinds[name])))


def test_three_augment_takes_one_of_three_equally_often():
    image = random_image(3)
    kinds = [kind_of(change(ThreeAugment(), image, seed), image, seed) for seed in range(600)]
    assert all(150 < kinds.count(name) < 250 for name in ("gray", "solarized", "blurred"))


@pytest.mark.parametrize("channels", [1, 4])
def test_three_augment_without_colours_solarises_or_blurs(channels):
    image = random_image(channels)
    inverted = torch.where(image >= 128, 255 - image, image)
    results = [change(ThreeAugment(), image, seed) for seed in range(200)]
    kinds = [kind_of(result, image, seed) for seed, result in enumerate(results)]
    assert 65 < kinds.count("solarized") < 135
    assert kinds.count("solarized") + kinds.count("blurred") == 200
    assert sum(torch.equal(result, inverted) for result in results) == kinds.count("solarized")
