"""RandAugment: each operation as Pillow does it, strengths and draws as the recipes say."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from hf_vitmae.data.augmentation.photometric import Pictures, from_pictures, to_pictures
from hf_vitmae.data.augmentation.rand_augment import COLOR, GEOMETRIC, PHOTOMETRIC, RandAugment

FILL = (7, 8, 9)
AFFINE, BICUBIC = Image.Transform.AFFINE, Image.Resampling.BICUBIC


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_picture(height: int = 24, width: int = 20, channels: int = 3) -> Image.Image:
    values = rng().integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def apply(name: str, picture: Image.Image, strength: float) -> Image.Image:
    return RandAugment(9, FILL).apply(name, [picture], strength)[0]


def move(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, AFFINE, matrix, BICUBIC, fillcolor=FILL)


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("auto_contrast", 0.9, ImageOps.autocontrast),
        ("equalize", 0.9, ImageOps.equalize),
        ("invert", 0.9, ImageOps.invert),
        ("posterize", 0.0, lambda picture: ImageOps.posterize(picture, 4)),
        ("posterize", -0.5, lambda picture: ImageOps.posterize(picture, 2)),
        ("posterize", 0.9, lambda picture: ImageOps.posterize(picture, 1)),
        ("posterize", 1.0, lambda picture: ImageOps.posterize(picture, 1)),
        ("solarize", 0.9, lambda picture: ImageOps.solarize(picture, 26)),
        ("solarize", -0.25, lambda picture: ImageOps.solarize(picture, 192)),
        ("saturation", 0.9, lambda picture: ImageEnhance.Color(picture).enhance(1.81)),
        ("contrast", -0.9, lambda picture: ImageEnhance.Contrast(picture).enhance(0.19)),
        ("brightness", 1.0, lambda picture: ImageEnhance.Brightness(picture).enhance(1.9)),
        ("sharpness", -1.0, lambda picture: ImageEnhance.Sharpness(picture).enhance(0.1)),
        ("rotate", 0.5, lambda picture: picture.rotate(15, BICUBIC, fillcolor=FILL)),
        ("rotate", -1.0, lambda picture: picture.rotate(-30, BICUBIC, fillcolor=FILL)),
        ("shear_x", 1.0, lambda picture: move(picture, 1, 0.3, 0, 0, 1, 0)),
        ("shear_y", -0.5, lambda picture: move(picture, 1, 0, 0, -0.15, 1, 0)),
        ("translate_x", 1.0, lambda picture: move(picture, 1, 0, 9, 0, 1, 0)),
        ("translate_y", 0.5, lambda picture: move(picture, 1, 0, 0, 0, 1, 5.4)),
    ],
)
def test_operations_are_pillows(name, strength, expected):
    picture = random_picture()
    result = np.asarray(apply(name, picture, strength)).astype(int)
    assert abs(result - np.asarray(expected(picture))).max() <= 1  # 1 + 0.9 * 0.9 is no 1.81
    assert (result != np.asarray(picture)).any()


def test_known_values():
    steps = Image.fromarray(np.array([[0, 60, 127, 128, 200]], np.uint8))
    values = {
        "invert": [255, 195, 128, 127, 55],
        "solarize_add": [99, 159, 226, 128, 200],  # 99 = 110 * 0.9
        "posterize": [0, 0, 0, 128, 128],
        "solarize": [0, 195, 128, 127, 55],
    }
    for name, expected in values.items():
        for strength in (0.9, -0.9):
            assert np.asarray(apply(name, steps, strength)).tolist() == [expected]
    assert np.asarray(apply("solarize_add", steps, 1.0)).max() == 237
    near = Image.fromarray(np.array([[100, 127]], np.uint8))
    assert np.asarray(RandAugment(9, (0,)).apply("solarize_add", [near], 1.0)[0])[0, 1] == 237


def test_translation_moves_to_the_left_and_fills_with_the_mean():
    picture = random_picture(height=20, width=20)
    moved = np.asarray(apply("translate_x", picture, 1.0))
    assert (moved[:, :11] == np.asarray(picture)[:, 9:]).all()
    assert (moved[:, 11:] == FILL).all()


@pytest.mark.parametrize("name", [*PHOTOMETRIC, *COLOR, *GEOMETRIC])
def test_strength_zero_changes_nothing_where_there_is_a_strength(name):
    picture = random_picture()
    result = apply(name, picture, 0.0)
    if name in ("auto_contrast", "equalize", "invert", "posterize"):
        assert result.size == picture.size and result.mode == picture.mode
    else:
        assert result.tobytes() == picture.tobytes()


@pytest.mark.parametrize("name", [*PHOTOMETRIC, *GEOMETRIC])
@pytest.mark.parametrize("channels", [1, 4])
def test_every_channel_is_changed_as_a_gray_picture(name, channels):
    fill = (10, 20, 30, 40)[:channels]
    bands = [random_picture(channels=1)] * channels
    results = RandAugment(9, fill).apply(name, bands, 0.7)
    for band, value, result in zip(bands, fill, results, strict=True):
        alone = RandAugment(9, (value,)).apply(name, [band], 0.7)[0]
        assert result.mode == "L" and result.tobytes() == alone.tobytes()
    if name in GEOMETRIC and channels == 4:
        assert len({result.tobytes() for result in results}) == 4  # each has its own fill


def test_a_gray_image_gets_the_same_values_as_rgb_and_as_one_channel():
    gray = random_picture(channels=1)
    rgb = Image.merge("RGB", [gray] * 3)
    for name in (*PHOTOMETRIC, *GEOMETRIC):
        expected = RandAugment(9, (7,)).apply(name, [gray], 0.6)[0]
        result = RandAugment(9, (7, 7, 7)).apply(name, [rgb], 0.6)[0]
        difference = np.asarray(result).astype(int) - np.asarray(expected)[..., None]
        assert abs(difference).max() <= 1, name  # luma rounds


@pytest.fixture
def record(monkeypatch):
    """What would be done to a picture, as (name, strength), in so many draws."""

    def run(augment: RandAugment, picture: Image.Image, draws: int) -> list[tuple[str, float]]:
        done: list[tuple[str, float]] = []

        def note(_: RandAugment, name: str, pictures: Pictures, strength: float) -> Pictures:
            done.append((name, strength))
            return pictures

        monkeypatch.setattr(RandAugment, "apply", note)
        generator = rng()
        for _ in range(draws):
            augment([picture], generator)
        return done

    return run


def test_operations_are_drawn_equally_often_and_half_of_them_applied(record):
    done = record(RandAugment(9, FILL, num_ops=3), random_picture(), 3000)
    assert abs(len(done) - 4500) < 200  # 47 is one standard deviation
    counts = {name: sum(name == other for other, _ in done) for name, _ in done}
    assert counts.keys() == PHOTOMETRIC.keys() | COLOR.keys() | GEOMETRIC.keys()
    assert len(counts) == 15 and all(abs(count - 300) < 80 for count in counts.values())


def test_strengths_are_normal_about_the_magnitude_with_either_sign(record):
    done = record(RandAugment(5, FILL, probability=1.0), random_picture(), 2000)
    strengths = np.array([strength for _, strength in done])
    assert len(strengths) == 4000
    assert abs((strengths > 0).mean() - 0.5) < 0.03
    assert abs(strengths).mean() == pytest.approx(0.5, abs=0.004)
    assert abs(strengths).std() == pytest.approx(0.05, abs=0.003)


def test_strengths_stay_in_range():
    augment = RandAugment(9.9, FILL, magnitude_std=3.0)
    strengths = [abs(augment.draw_strength(rng(seed))) for seed in range(300)]
    assert max(strengths) == 1.0 and min(strengths) >= 0
    low = RandAugment(0, FILL, magnitude_std=1.0)
    assert min(abs(low.draw_strength(rng(seed))) for seed in range(100)) == 0


def test_what_makes_no_sense_is_left_out_of_the_draw(record):
    gray = random_picture(channels=1)
    names = {name for name, _ in record(RandAugment(9, (5,), probability=1.0), gray, 400)}
    assert names == PHOTOMETRIC.keys() | GEOMETRIC.keys()
    still = RandAugment(9, FILL, probability=1.0, use_geometry=False)
    names = {name for name, _ in record(still, random_picture(), 400)}
    assert names == PHOTOMETRIC.keys() | COLOR.keys()


def test_the_same_generator_gives_the_same_pixels_and_another_one_others():
    augment = RandAugment(9, FILL, probability=1.0)
    image = from_pictures([random_picture()])
    results = [from_pictures(augment(to_pictures(image), rng(seed))) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
