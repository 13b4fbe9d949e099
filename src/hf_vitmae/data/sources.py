"""Open images anywhere, one source or a mixture of several, to train and to evaluate on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, cast, overload

from datasets import Dataset

from hf_vitmae.data.streams.shards import Columns, ShardMemory
from hf_vitmae.data.streams.stream import (
    DEFAULT_OPTIONS,
    StreamOptions,
    StreamSource,
    no_label_maps_in_streams,
    open_stream,
)

from .config import DataConfig
from .image_source import ImageSource
from .mixture import AnySource, mix
from .splits import (
    Opened,
    Reading,
    Source,
    find_splits,
    no_progress_bars,
    same_split,
    usual_eval_split,
)
from .subsets import few_labels, hold_out

Sources = Source | Sequence[Source]


class _Choice(NamedTuple):
    """Which columns are read and how, of every split alike."""

    columns: Columns
    label_map_column: str | None = None
    use_label_maps: bool = False
    options: StreamOptions = DEFAULT_OPTIONS
    memory: ShardMemory | None = None
    only_by_index: bool = False


def open_source(
    source: Sources,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map_column: str | None = None,
    use_labels: bool = True,
    use_label_maps: bool = False,
) -> ImageSource:
    """Open one split of a source, or of a list of them, whose images can be read in any order.

    Args: as of `open_images`.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: as of `open_images`, or if the source can only be read from front to back.
    """
    columns = Columns(image_column, label_column, use_labels and not use_label_maps)
    choice = _Choice(columns, label_map_column, use_label_maps, only_by_index=True)
    return cast(ImageSource, _open_all(source, split, choice, Reading(use_label_maps)))


def open_images(
    source: Sources,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map_column: str | None = None,
    use_labels: bool = True,
    use_label_maps: bool = False,
    streaming: bool = False,
    weights: Sequence[float] = (),
) -> AnySource:
    """Open one split of a source, or of a list of sources that are mixed.

    Args:
        source: `emoji`; `shapes`, which are drawn and have label maps; a folder of images (flat, a
            folder per class, with metadata.csv or metadata.jsonl, or folders `images` and
            `annotations` side by side, whose files have the same names); parquet files or
            WebDataset tars, by file, folder, glob or URL; a folder of `save_to_disk`; a Hub id,
            `user/name` or `user/name:config`; a `Dataset`, an `IterableDataset` or a dict of them.
        split: its name; `val` finds `validation` and the like. What has no splits is all `train`.
        use_labels: False leaves labels unread, whatever state they are in.
        use_label_maps: open each image's label map, the class of every pixel, not its label.
        streaming: read parquet, Hub data and `save_to_disk` from front to back; tars and an
            `IterableDataset` always are.
        weights: how often an epoch shows each image of each source of a list.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: if the split or a column is missing, or some labels or label maps are missing.
    """
    columns = Columns(image_column, label_column, use_labels and not use_label_maps)
    choice = _Choice(columns, label_map_column, use_label_maps)
    return _open_all(source, split, choice, Reading(use_label_maps, streaming), weights)


@overload
def open_train_and_eval(
    config: DataConfig,
    seed: int,
    *,
    source: Sources | None = None,
    use_labels: bool = True,
    use_label_maps: Literal[True],
    memory: ShardMemory | None = None,
) -> tuple[ImageSource, ImageSource | None]: ...


@overload
def open_train_and_eval(
    config: DataConfig,
    seed: int,
    *,
    source: Sources | None = None,
    use_labels: bool = True,
    use_label_maps: bool = False,
    memory: ShardMemory | None = None,
) -> tuple[AnySource, AnySource | None]: ...


def open_train_and_eval(
    config: DataConfig,
    seed: int,
    *,
    source: Sources | None = None,
    use_labels: bool = True,
    use_label_maps: bool = False,
    memory: ShardMemory | None = None,
) -> tuple[AnySource, AnySource | None]:
    """Open the images to train on and those to evaluate on, with the same class ids.

    Evaluation takes `eval_split` if named, else a seeded hold-out of `eval_share` if above 0, else
    a split called validation, test or the like, else there is none. `samples_per_class` thins the
    training side only.

    Args:
        source: opened in place of `config.source`: `datasets` objects, for use from Python.
        use_labels: False leaves labels unread, whatever state they are in.
        use_label_maps: open each image's label map, the class of every pixel, not its label.
        memory: what is known already of the shards of a stream.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: if a split, column, label or label map is missing, or evaluation has classes of
            its own.
    """
    use_labels = (use_labels and not use_label_maps) or config.samples_per_class is not None
    columns = Columns(config.image_column, config.label_column, use_labels)
    options = StreamOptions(config.stream_readers, config.shuffle_block)
    memory = memory or ShardMemory()
    choice = _Choice(columns, config.label_map_column, use_label_maps, options, memory)
    reading = Reading(use_label_maps, config.streaming)
    found = [find_splits(s, reading) for s in _listed(config.sources if source is None else source)]
    pairs = [_open_pair(config, seed, opened, choice) for opened in found]
    train = mix([pair[0] for pair in pairs], config.weights, options=options, memory=memory)
    evaluation = _mix_evaluation(train, [pair[1] for pair in pairs if pair[1] is not None], choice)
    if config.samples_per_class is not None:
        train = _thin_out(train, config.samples_per_class, seed)
    return train, evaluation


def _open_all(
    source: Sources,
    split: str,
    choice: _Choice,
    reading: Reading,
    weights: Sequence[float] = (),
) -> AnySource:
    """One split of a source, or of all in a list of them."""
    parts = [_open_split(find_splits(s, reading), split, choice) for s in _listed(source)]
    return mix(parts, weights)


def _listed(source: Sources) -> list[Source]:
    is_one = isinstance(source, str | Path | Dataset) or not isinstance(source, Sequence)
    sources = [cast(Source, source)] if is_one else list(cast(Sequence[Source], source))
    if not sources:
        raise ValueError("The list of sources is empty; name at least one.")
    return sources


def _open_pair(
    config: DataConfig, seed: int, opened: Opened, choice: _Choice
) -> tuple[AnySource, AnySource | None]:
    """The images of one source to train on, and those to evaluate on if it has any."""
    train = _open_split(opened, config.split, choice)
    if config.eval_share:
        if isinstance(train, StreamSource):
            raise ValueError(_needs_index(train, f"data.eval_share={config.eval_share}"))
        return hold_out(train, config.eval_share, seed)
    if eval_split := config.eval_split or usual_eval_split(opened.splits, config.split):
        return train, _open_split(opened, eval_split, choice)
    return train, None


def _mix_evaluation(train: AnySource, parts: list[AnySource], choice: _Choice) -> AnySource | None:
    """The images to evaluate on, in order, each once, with the classes of the training images."""
    names = train.class_names
    parts = [part.without_labels() if names is None else part.with_classes(names) for part in parts]
    if not parts:
        return None
    return mix(parts, options=choice.options, memory=choice.memory, shuffle=False)


def _thin_out(train: AnySource, samples_per_class: int, seed: int) -> ImageSource:
    if isinstance(train, StreamSource):
        raise ValueError(_needs_index(train, f"data.samples_per_class={samples_per_class}"))
    if train.quotas:
        raise ValueError(
            f"data.samples_per_class={samples_per_class} and data.weights both choose how many "
            "images an epoch shows; give only one of them."
        )
    return few_labels(train, samples_per_class, seed)


def _needs_index(source: StreamSource, what: str) -> str:
    """What an error says about an option that needs random access."""
    return (
        f"{what} draws single images, and {source.name} is read as a stream; leave it out, or open "
        "the images with random access (a folder, or parquet without --data.streaming)."
    )


def _open_split(opened: Opened, split: str, choice: _Choice) -> AnySource:
    found = same_split(opened.splits, split)
    if found is None:
        raise ValueError(
            f"{opened.name} has no split {split!r}; its splits are: {', '.join(opened.splits)}."
        )
    name = f"{opened.name}/{found}"
    with no_progress_bars():
        images = opened.splits[found]()
        if isinstance(images, Dataset):
            return _open_dataset(images, name, choice, opened.map_class_names)
        if choice.only_by_index:
            raise ValueError(
                f"{name} can only be read from front to back, and this needs images by their "
                "number; take a folder of images, parquet or a Dataset."
            )
        if choice.use_label_maps:
            raise ValueError(no_label_maps_in_streams(name))
        return open_stream(name, images, choice.columns, choice.options, choice.memory)


def _open_dataset(
    images: Dataset, name: str, choice: _Choice, map_class_names: tuple[str, ...] | None
) -> ImageSource:
    image_column, label_column, use_labels = choice.columns
    source = ImageSource.from_dataset(
        images,
        name,
        image_column=image_column,
        label_column=label_column,
        label_map_column=choice.label_map_column,
        use_labels=use_labels,
        use_label_maps=choice.use_label_maps,
    )
    has_maps = source.label_map_column is not None
    return replace(source, map_class_names=map_class_names) if has_maps else source
