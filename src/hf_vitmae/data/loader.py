"""Batches of images from a source, by torch's DataLoader with workers that keep no state.

The main process decides which samples make a batch and at which place of the stream; a worker turns
them into tensors, with randomness drawn from the place alone. So a batch is the same for any number
of workers and from whichever step the stream is opened.
"""

from collections.abc import Callable, Generator

from hf_vitmae.data.augmentation.transforms import Transform
from hf_vitmae.data.decoding.decode import BadImage

from .image_source import ImageSource
from .order import Stream
from .read_ahead import ReadAhead
from .reader import Batch, Reader, Skipped
from .repeated import images_per_batch
from .request import Images, Request, Share
from .workers import serve

Skip = Callable[[Skipped], object]
BATCHES_AHEAD = 2  # of a stream, read beside those that the workers have


def train_batches(
    source: Images,
    transform: Transform,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    num_noise: int | None = None,
    repeats: int = 1,
    pin_memory: bool = False,
    skip: Skip | None = None,
) -> Generator[Batch, None, None]:
    """The endless batches of one rank from `start_step` on.

    A batch holds `pixel_values` uint8 (B, C, H, W), `labels` int64 (B,) if the source has labels or
    (B, H, W) if it has label maps, and `noise` float32 (B, num_noise) in 0..1 if asked for. Closing
    the iterator ends its workers.

    A batch is smaller by the images that are bad; one of which nothing is left holds a black image
    and besides `valid`, bool (1,), False: it is to count for nothing.

    Args:
        batch_size: samples per rank and step.
        start_step: steps of `batch_size * world_size` samples that lie before.
        repeats: samples of each image, one after another; they divide the batch.
        skip: called in this process with each bad image that a batch lacks, just before the batch
            is given out; without it, a bad image is an error.

    Raises:
        ValueError: if the source is empty, a number is out of range, or a worker dies again and
            again.
        BadImage: a `ValueError`, if an image cannot be decoded, its file is gone, or its label map
            is of another size.
    """
    _check(source, seed, batch_size, num_workers)
    share = Share(images_per_batch(batch_size, repeats), rank, world_size)
    requests = source.train_requests(seed, share, start_step)
    reader = Reader(_by_index(source), transform, Stream.TRAIN, seed, num_noise, repeats)
    return _load(reader, requests, num_workers, pin_memory, skip)


def eval_batches(
    source: Images,
    transform: Transform,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    num_noise: int | None = None,
    pin_memory: bool = False,
    skip: Skip | None = None,
) -> Generator[Batch, None, None]:
    """The batches of one rank in one pass over a source, every image once over all ranks, in order.

    As `train_batches`, with `noise` fixed for each image by (seed, index), and besides `valid`,
    bool (B,): all ranks take the same number of batches of the same size, and where the images do
    not suffice, the last one is repeated and not valid. Gather a step over the ranks and keep what
    is valid: the next images of the source (of a stream, those of each rank's own part of it). A
    bad image is not valid either: a black one stands in its place.
    """
    _check(source, seed, batch_size, num_workers)
    requests = source.eval_requests(Share(batch_size, rank, world_size))
    reader = Reader(_by_index(source), transform, Stream.EVAL, seed, num_noise)
    return _load(reader, requests, num_workers, pin_memory, skip)


def _load(
    reader: Reader,
    requests: Generator[Request, None, None],
    num_workers: int,
    pin_memory: bool,
    skip: Skip | None,
) -> Generator[Batch, None, None]:
    ahead = ReadAhead(requests, BATCHES_AHEAD) if reader.source is None else None
    asked = requests if ahead is None else ahead
    served = serve(reader, asked, num_workers, names=reader.names, pin_memory=pin_memory)
    try:
        for batch, skipped, error in served:
            if error is not None:
                raise error
            if not batch:  # the turn of what went wrong in the thread that reads ahead
                assert ahead is not None and ahead.error is not None
                raise ahead.error
            for image in skipped:
                if skip is None:
                    raise BadImage(image.name, image.reason)
                skip(image)
            yield batch
    finally:
        served.close()
        if ahead is not None:
            ahead.close()


def _by_index(source: Images) -> ImageSource | None:
    return source if isinstance(source, ImageSource) else None


def _check(source: Images, seed: int, batch_size: int, num_workers: int) -> None:
    if len(source) == 0:
        raise ValueError(f"{source.name} holds no images; choose another split or source.")
    if seed < 0:
        raise ValueError(f"The seed must be at least 0, not {seed}.")
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    if num_workers < 0:
        raise ValueError(f"The number of workers must be at least 0, not {num_workers}.")
