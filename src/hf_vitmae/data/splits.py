"""What a source's name stands for: its splits, each opened when it is used.

A split is a `Dataset`, whose images can be read in any order, or a set of shards, which are read
from front to back.
"""

import glob
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import datasets
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
)
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from hf_vitmae.data.streams.object_shards import DatasetRows, IterableShards
from hf_vitmae.data.streams.parquet_shards import ParquetFiles
from hf_vitmae.data.streams.shards import ShardSet
from hf_vitmae.data.streams.tar_shards import TarFiles

from .bands import bands_dataset
from .columns import LABEL_NAMES
from .defects import defects_dataset
from .drawn import SPLITS
from .files import (
    ARRAY_SUFFIX,
    EVAL_NAMES,
    IMAGE_SUFFIXES,
    TRAIN_NAMES,
    ImageFile,
    class_folders,
    find_shards,
    image_splits,
    is_array,
    is_parquet,
    is_pattern,
    is_tar,
    list_files,
    shard_splits,
)
from .label_maps import match_label_maps, tell_images
from .metadata import Row, metadata_columns, read_metadata
from .remote import is_remote, patiently, remote_stamp
from .shapes import SHAPE_CLASS_NAMES, SHAPE_SPLITS, shapes_dataset

DRAWN = {"defects": defects_dataset, "bands": bands_dataset}
EMOJI_FOLDER = Path(__file__).parent / "emoji"
SAVED_DATASET, SAVED_DICT = "state.json", "dataset_dict.json"  # what `save_to_disk` writes
ROWS_AT_ONCE = 100  # of a parquet file that is copied into the cache
_SAME_SPLIT = (TRAIN_NAMES, ("validation", "val", "valid", "dev"), ("test", "testing"))
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, DatasetsError)
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>.+))?")

Source = str | Path | Dataset | DatasetDict | IterableDataset | IterableDatasetDict
Split = Dataset | ShardSet
Splits = Mapping[str, Callable[[], Split]]
T = TypeVar("T")


class Opened(NamedTuple):
    """What to call a source, its splits, and the classes of its label maps where they are known."""

    name: str
    splits: Splits
    map_class_names: tuple[str, ...] | None = None


class Reading(NamedTuple):
    """How the files of a source are read."""

    use_label_maps: bool = False
    streaming: bool = False


def find_splits(source: Source, reading: Reading) -> Opened:
    """The splits of a source; each is opened when called.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: if what is there cannot be used.
    """
    kind = type(source).__name__
    if isinstance(source, DatasetDict):
        return Opened(f"The {kind}", {str(k): partial(_same, v) for k, v in source.items()})
    if isinstance(source, IterableDatasetDict):
        splits = {str(name): partial(IterableShards, part) for name, part in source.items()}
        return Opened(f"The {kind}", splits)
    if isinstance(source, Dataset):
        return Opened(f"The {kind}", {TRAIN_NAMES[0]: partial(_same, source)})
    if isinstance(source, IterableDataset):
        return Opened(f"The {kind}", {TRAIN_NAMES[0]: partial(IterableShards, source)})
    if not isinstance(source, str | Path):
        raise ValueError(
            "A source is a name, a path, a datasets.Dataset, an IterableDataset or a dict of these "
            f"(DatasetDict, IterableDatasetDict), not {kind}."
        )
    if source == "shapes":
        splits = {split: partial(shapes_dataset, split) for split in SHAPE_SPLITS}
        return Opened("shapes", splits, SHAPE_CLASS_NAMES)
    if isinstance(source, str) and source in DRAWN:
        return Opened(source, {split: partial(DRAWN[source], split) for split in SPLITS})
    return Opened(str(source), _find_named(str(source), reading))


def same_split(splits: Splits, asked: str) -> str | None:
    """The split of that name, else one whose name differs in case or is another word for it."""
    same = next((names for names in _SAME_SPLIT if asked.lower() in names), ())
    fitting = (split for split in splits if split.lower() in (asked.lower(), *same))
    return asked if asked in splits else next(fitting, None)


def usual_eval_split(splits: Splits, train_split: str) -> str | None:
    """The split to evaluate on where none was named."""
    found = (same_split(splits, name) for name in EVAL_NAMES)
    taken = same_split(splits, train_split)
    return next((split for split in found if split is not None and split != taken), None)


def _find_named(source: str, reading: Reading) -> Splits:
    if source == "emoji":
        return _find_in_folder(EMOJI_FOLDER, reading)
    if is_remote(source):
        return _find_in_shards(*find_shards(source), reading)
    path = Path(source).expanduser()
    if path.is_dir():
        return _find_in_folder(path, reading)
    if path.is_file() and not (is_parquet(source) or is_tar(source)):
        raise ValueError(
            f"{source} is neither a folder nor a .parquet or .tar file; name the folder of "
            "the images."
        )
    if path.is_file() or is_pattern(source):
        return _find_in_shards(*find_shards(str(path)), reading)
    if match := _HUB_ID.fullmatch(source):
        return find_in_hub(match["id"], match["config"], reading)
    raise FileNotFoundError(f"There is no folder or file {source!r}; check the path.")


def _find_in_folder(folder: Path, reading: Reading) -> Splits:
    if (folder / SAVED_DATASET).is_file() or (folder / SAVED_DICT).is_file():
        return _find_saved(folder, reading)
    paths = list_files(folder, IMAGE_SUFFIXES | {ARRAY_SUFFIX})
    if not all(map(is_array, paths)):
        return _find_images(folder, paths, reading)
    if tables := list_files(folder, frozenset({".parquet"})):
        return _find_in_shards(str(folder), tables, reading)
    archives = list_files(folder, frozenset({".tar", ".gz", ".tgz"}))
    if tars := [file for file in archives if is_tar(file)]:
        return _find_in_shards(str(folder), tars, reading)
    if paths:
        return _find_images(folder, paths, reading)
    raise FileNotFoundError(
        f"{folder} holds no images; files are looked for that end in "
        f"{' '.join(sorted(IMAGE_SUFFIXES))}, {ARRAY_SUFFIX}, .tar or .parquet."
    )


def _find_images(folder: Path, paths: list[str], reading: Reading) -> Splits:
    files = tell_images(paths)
    metadata = read_metadata(folder, [file.path for file in files])
    files = [file for file in files if reading.use_label_maps or not file.is_label_map]
    splits = image_splits(folder, files)
    return {
        name: partial(_image_files, folder, inside, metadata) for name, inside in splits.items()
    }


def _image_files(folder: Path, files: list[ImageFile], metadata: dict[str, Row]) -> Dataset:
    """Paths of images and of their label maps, with a label per class folder if all lie in one, or
    with the columns of their metadata.
    """
    images = [file for file in files if not file.is_label_map]
    columns: dict[str, list] = {"image": [str(folder / file.path) for file in images]}
    features: dict[str, Image | ClassLabel | datasets.Value] = {"image": Image(decode=False)}
    if maps := [file for file in files if file.is_label_map]:
        matched = match_label_maps(folder, images, maps)
        columns["label_map"] = [str(folder / path) for path in matched]
        features["label_map"] = Image(decode=False)
    known = metadata_columns([metadata.get(file.path, {}) for file in images])
    for name, (values, feature) in known.items():
        if name not in columns:
            columns[name], features[name] = values, feature
    classes = class_folders([file.place for file in images])
    if classes and known.keys().isdisjoint(LABEL_NAMES):
        names = sorted(set(classes))
        ids = {name: i for i, name in enumerate(names)}
        columns["label"] = [ids[name] for name in classes]
        features["label"] = ClassLabel(names=names)
    return Dataset.from_dict(columns, features=Features(features))


def _find_in_shards(folder: str, files: list[str], reading: Reading) -> Splits:
    """The splits of parquet files or tars, whichever the files are."""
    splits = {
        name: tuple(f"{folder}/{file}" if folder else file for file in inside)
        for name, inside in shard_splits(folder, files).items()
    }
    if is_tar(files[0]):
        return {name: partial(TarFiles, paths) for name, paths in splits.items()}
    if reading.streaming:
        return {name: partial(ParquetFiles, paths) for name, paths in splits.items()}
    return {name: partial(_parquet, folder, paths) for name, paths in splits.items()}


def _parquet(folder: str, paths: tuple[str, ...]) -> Dataset:
    """One split of parquet files, through the cache of `datasets`, which notes a file's time."""
    escaped = [path if is_remote(path) else glob.escape(path) for path in paths]
    # Without a batch size it is that of the first row group, which an empty file has at 0.
    options = {"data_files": escaped, "batch_size": ROWS_AT_ONCE}
    load = partial(datasets.load_dataset, "parquet", split="train", **options)
    try:
        return cast(Dataset, _load_remote(folder, paths, load) if is_remote(folder) else load())
    except _LOAD_ERRORS as error:
        if is_remote(folder) and isinstance(error, OSError):  # it says already what is wrong
            raise
        raise ValueError(f"{folder} cannot be read as parquet: {_one_line(error)}") from error


def _load_remote(folder: str, paths: tuple[str, ...], load: Callable[[], T]) -> T:
    name = paths[0] if len(paths) == 1 else folder
    try:
        return patiently(name, load)
    except FileNotFoundError:  # as `datasets` says where it cannot look, too
        for path in paths:
            remote_stamp(path)  # which says what is wrong with one of them
        return patiently(name, load)


def _find_saved(folder: Path, reading: Reading) -> Splits:
    """The splits of what `save_to_disk` wrote."""
    try:
        saved = datasets.load_from_disk(str(folder))
    except _LOAD_ERRORS as error:
        raise ValueError(f"{folder} cannot be read as Arrow: {_one_line(error)}") from error
    parts = saved if isinstance(saved, DatasetDict) else {TRAIN_NAMES[0]: saved}
    kind = DatasetRows if reading.streaming else _same
    return {str(name): partial(kind, dataset) for name, dataset in parts.items()}


def find_in_hub(hub_id: str, config: str | None, reading: Reading) -> Splits:
    try:
        with no_progress_bars():
            if reading.streaming or _is_tars(hub_id, config):
                return _stream_hub(hub_id, config)
            opened = cast(DatasetDict, datasets.load_dataset(hub_id, config))
    except _LOAD_ERRORS as error:
        raise ValueError(
            f"{hub_id!r} is not a folder here, and does not open as a data set of the Hub: "
            f"{_one_line(error)}"
        ) from error
    return {str(name): partial(_same, dataset) for name, dataset in opened.items()}


def _is_tars(hub_id: str, config: str | None) -> bool:
    """Tars are always streamed; `datasets` would read them without their labels."""
    return isinstance(datasets.load_dataset_builder(hub_id, config), WebDataset)


def _stream_hub(hub_id: str, config: str | None) -> Splits:
    """The splits of a data set on the Hub: its own files where they are parquet or tars."""
    builder = datasets.load_dataset_builder(hub_id, config)
    files = builder.config.data_files
    for reader, kind in ((Parquet, ParquetFiles), (WebDataset, TarFiles)):
        if files and isinstance(builder, reader):
            return {str(name): partial(kind, tuple(paths)) for name, paths in dict(files).items()}
    opened = cast(IterableDatasetDict, datasets.load_dataset(hub_id, config, streaming=True))
    return {str(name): partial(IterableShards, part) for name, part in opened.items()}


def _same(dataset: Dataset) -> Dataset:
    return dataset


def _one_line(error: BaseException) -> str:
    """The text of the error at the root, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep `datasets` from drawing bars, without changing that for the caller's own use of it."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
