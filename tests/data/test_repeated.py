"""Repeated sampling: images of a batch several times in a row, each time with its own draws."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitmae.data import repeated
from hf_vitmae.data.augmentation.transforms import TrainTransform
from hf_vitmae.data.decoding.decode import decode
from hf_vitmae.data.order import Place, batch_positions, place_of
from hf_vitmae.data.repeated import images_per_batch, read_repeated, repeat_places


def run_of(steps: int, batch_size: int, repeats: int, ranks: int, images: int) -> list[Place]:
    """All samples of some steps of all ranks, as a loader asks for them."""
    decoded = images_per_batch(batch_size, repeats)
    return [
        place
        for step in range(steps)
        for rank in range(ranks)
        for place in repeat_places(
            [place_of(p, 0, images) for p in batch_positions(step, decoded, rank, ranks)], repeats
        )
    ]


def test_without_repeats_nothing_changes():
    places = [Place(0, 3, 7), Place(0, 4, 1)]
    assert images_per_batch(6, 1) == 6 and repeat_places(places, 1) == places


def test_an_image_comes_several_times_in_a_row_with_slots_of_its_own():
    places = repeat_places([Place(2, 4, 9), Place(3, 0, 5)], 3)
    assert [place.index for place in places] == [9, 9, 9, 5, 5, 5]
    assert [place.slot for place in places] == [12, 13, 14, 0, 1, 2]
    assert [place.epoch for place in places] == [2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_an_epoch_shows_every_image_as_often_as_asked_for(ranks, repeats):
    images, batch_size = 12, 8
    steps = 2 * images * repeats // (batch_size * ranks) + 1
    places = run_of(steps, batch_size, repeats, ranks, images)
    for epoch in (0, 1):
        of_epoch = [place for place in places if place.epoch == epoch]
        assert sorted(place.slot for place in of_epoch) == list(range(images * repeats))
        counts = np.bincount([place.index for place in of_epoch])
        assert counts.tolist() == [repeats] * images


@pytest.mark.parametrize(("batch_size", "repeats"), [(8, 3), (4, 8), (4, 0), (4, -2)])
def test_repeats_that_do_not_divide_the_batch_are_refused(batch_size, repeats):
    with pytest.raises(ValueError, match=f"{batch_size} is no multiple of {repeats} repeats; set"):
        images_per_batch(batch_size, repeats)


def encoded_picture() -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_crops_share_one_decode_and_are_those_of_their_generators(monkeypatch):
    decodes = []
    monkeypatch.setattr(repeated, "decode", lambda *parts: decodes.append(parts) or decode(*parts))
    transform, encoded = TrainTransform((16, 16)), encoded_picture()
    generators = [np.random.default_rng(seed) for seed in range(3)]
    crops = read_repeated(transform, encoded, generators, "a picture")
    assert decodes == [(encoded, 3, "a picture", None)]
    for seed, crop in enumerate(crops):
        assert torch.equal(crop, transform.read(encoded, np.random.default_rng(seed), "a picture"))
    assert not torch.equal(crops[0], crops[1])


def test_a_single_crop_is_read_the_usual_way(monkeypatch):
    monkeypatch.setattr(repeated, "decode", None)
    transform, encoded = TrainTransform((16, 16)), encoded_picture()
    (crop,) = read_repeated(transform, encoded, [np.random.default_rng(1)], "a picture")
    assert torch.equal(crop, transform.read(encoded, np.random.default_rng(1), "a picture"))
