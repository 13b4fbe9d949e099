"""What is in a source of images, and the statistics of its pixels, which training can take.

One pass over all images, or over a sample of them: sizes, formats, depths, bad files, duplicates,
classes, and mean and deviation of every channel. The pixels of images are counted as they are
stored, without a resize.
"""

import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from hf_vitmae.data.augmentation.augmented import train_transform
from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.decoding.decode import BadImage, decode
from hf_vitmae.data.measure import Tally, measure_all, spread_sample
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.sources import Sources, open_images
from hf_vitmae.data.statistics import PixelStatistics, read_statistics, write_statistics
from hf_vitmae.tasks.stats_report import report
from hf_vitmae.visualize.samples import sample_sheet

LINE_EVERY = 1000  # images between lines of progress, where there is no terminal
SHEET_IMAGES = 6  # rows


@dataclass(frozen=True, kw_only=True)
class StatsRequest:
    """Look through images: sizes, formats, bad files, duplicates, classes, mean and deviation.

    Raises:
        ValueError: if a number is out of range, or the sheet is no .png file.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """What `--data.source` of a training run takes."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("stats.json")
    """JSON file that `--data.stats` of a training run takes."""
    split: str = "train"
    """Split to read."""
    image_column: str | None = None
    """Column that holds the images; found by type and name when left out."""
    label_column: str | None = None
    """Column that holds the labels; found by type and name when left out."""
    use_labels: bool = True
    """False leaves labels unread, whatever state they are in."""
    streaming: bool = False
    """Read from front to back, as `--data.streaming` does."""
    sample: int | None = None
    """Look at so many images only, spread over the source; all by default."""
    num_channels: int | None = None
    """Of the model that will see the images; by default 1 for gray, 3 for colour, else as many as
    the files have."""
    num_workers: int = 2
    """Worker processes that decode images; changes speed, never a number."""
    sheet: Path | None = None
    """Draw some images, each with several draws of its augmentation, to this .png file."""
    augment: AugmentConfig = AugmentConfig()
    image_size: int = 224
    """Of the sheet: pixels, height and width, that a training run would ask for."""
    seed: int = 0
    """Of the sheet: decides the draws."""

    def __post_init__(self) -> None:
        for name in ("sample", "num_channels", "image_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        for name in ("num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise ValueError(f"`sheet` must be a .png file, got {str(self.sheet)!r}.")


def run(request: StatsRequest, source: Sources | None = None) -> PixelStatistics:
    """Print what is in the source, and write the statistics and the sheet.

    Args:
        source: `datasets` objects, opened in place of `request.source`.

    Raises:
        ValueError, FileNotFoundError: for a source that cannot be used or holds no image that can
        be decoded, or an output file that holds something else.
    """
    _check_output(request.output)
    images = open_images(
        request.source if source is None else source,
        request.split,
        image_column=request.image_column,
        label_column=request.label_column,
        use_labels=request.use_labels,
        streaming=request.streaming,
    )
    if not len(images):
        raise ValueError(f"{images.name} holds no images; choose another split or source.")
    tally = count_images(images, request.sample, request.num_channels, request.num_workers)
    statistics = tally.statistics(images.name)
    print("\n".join(report(images, tally, statistics)))
    write_statistics(request.output, statistics, counts=tally.counts())
    print(f"The statistics are in {request.output}: train with --data.stats {request.output}.")
    if request.sheet is not None:
        _draw_sheet(request, images, statistics)
        print(f"The sheet of samples is {request.sheet}.")
    return statistics


def count_images(
    images: AnySource, sample: int | None, num_channels: int | None, num_workers: int
) -> Tally:
    """Measure all images or a sample, and say how far it is: by a bar in a terminal, by lines
    elsewhere.
    """
    images = images if sample is None else spread_sample(images, sample)
    tally, has_bar = Tally(), sys.stderr.isatty()
    with (
        closing(measure_all(images, num_channels, num_workers)) as found,
        tqdm(total=len(images), unit="image", disable=not has_bar) as bar,
    ):
        for done, measurement in enumerate(found, start=1):
            tally.add(measurement)
            bar.update()
            if not has_bar and done % LINE_EVERY == 0:
                print(f"{done} of {len(images)} images", file=sys.stderr, flush=True)
    return tally


def _check_output(path: Path) -> None:
    """Refuse to write over anything but statistics."""
    if not path.exists():
        return
    try:
        read_statistics(path)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} is there and is no file of statistics; name another one (-o FILE)."
        ) from error


def _draw_sheet(request: StatsRequest, images: AnySource, statistics: PixelStatistics) -> None:
    """Some images as training would show them to a model, the original first in each row."""
    transform = train_transform(
        request.augment,
        (request.image_size, request.image_size),
        statistics.num_channels,
        statistics.mean,
        statistics.std,
        statistics.value_range,
    )
    pictures = _pictures(images, statistics)
    captions = [f"{Path(name).name}, {i.shape[1]} x {i.shape[2]}" for name, i in pictures]
    footer = [f"{images.name}, seed {request.seed}; sizes are height x width"]
    sheet = sample_sheet(
        [image for _, image in pictures],
        transform,
        seed=request.seed,
        captions=captions,
        footer=footer,
    )
    assert request.sheet is not None
    request.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(request.sheet)


def _pictures(images: AnySource, statistics: PixelStatistics) -> list[tuple[str, Tensor]]:
    """Some images that can be decoded, spread over the source: name and uint8 (C, H, W) each."""
    pictures = []
    channels, value_range = statistics.num_channels, statistics.value_range
    for record in images.examples(2 * SHEET_IMAGES):  # a few may be bad
        with suppress(BadImage):
            image = decode(record.encoded, channels, record.name, value_range)
            levels = image.round() if image.is_floating_point() else image
            pictures.append((record.name, levels.to(torch.uint8)))
    step = max(1, len(pictures) // SHEET_IMAGES)
    return pictures[::step][:SHEET_IMAGES]
