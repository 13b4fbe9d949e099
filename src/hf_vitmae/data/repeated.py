"""Repeated sampling (arXiv:1901.09335, arXiv:2205.09113): several crops of one decoded image.

For storage or decoding that is slower than the model. With k repeats, a batch of B samples holds
B / k images, each k times in a row with its own crop, flip and mask. An epoch of the order is then
k times as many samples and every image is still decoded once in it; a run of as many steps costs
the model as much and decodes k times fewer images. `epochs` goes on to count how often an image is
*shown*. All of it is a pure function of the step, and with k = 1 exactly what there is without it.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hf_vitmae.data.augmentation.transforms import Transform
from hf_vitmae.data.decoding.decode import decode

from .order import Place


def images_per_batch(batch_size: int, repeats: int) -> int:
    """Images that a rank decodes for a batch of `batch_size` samples.

    Raises:
        ValueError: if the repeats do not divide the batch.
    """
    if repeats < 1 or batch_size % repeats:
        raise ValueError(
            f"The batch size of {batch_size} is no multiple of {repeats} repeats; "
            "set data.repeats to a divisor of it, or the batch size to a multiple."
        )
    return batch_size // repeats


def repeat_places(places: Sequence[Place], repeats: int) -> list[Place]:
    """The samples of a batch from the places of its images: each `repeats` times in a row.

    An epoch of n images has n * repeats slots, so that each repeat has randomness of its own.
    """
    return [
        Place(place.epoch, place.slot * repeats + repeat, place.index)
        for place in places
        for repeat in range(repeats)
    ]


def read_repeated(
    transform: Transform, encoded: bytes, generators: Sequence[np.random.Generator], name: str
) -> list[Tensor]:
    """Decode one image and transform it once a generator: bytes -> uint8 (C, H', W') each.

    A single generator takes the faster `transform.read`; several share one decode at full size.

    Raises:
        BadImage: if the image cannot be decoded.
    """
    if len(generators) == 1:
        return [transform.read(encoded, generators[0], name)]
    image = decode(encoded, transform.num_channels, name, transform.value_range)
    return [transform(image, generator) for generator in generators]
