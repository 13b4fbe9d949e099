"""Open images anywhere: the embedded sets, folders, parquet, the Hub, `datasets` objects.

Each becomes a `datasets.Dataset` of encoded images per split; a split is opened when it is used.
"""

import glob
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from datasets.exceptions import DatasetsError

from .config import DataConfig
from .files import (
    EVAL_NAMES,
    IMAGE_SUFFIXES,
    TRAIN_NAMES,
    ImageFile,
    class_folders,
    find_parquet,
    image_splits,
    list_files,
    parquet_splits,
)
from .image_source import ImageSource
from .label_maps import match_label_maps, tell_label_maps
from .shapes import SHAPE_CLASS_NAMES, SHAPE_SPLITS, shapes_dataset
from .subsets import few_labels, hold_out

EMOJI_FOLDER = Path(__file__).parent / "emoji"
_SAME_SPLIT = (TRAIN_NAMES, ("validation", "val", "valid", "dev"), ("test", "testing"))
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, DatasetsError)
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>.+))?")

Source = str | Path | Dataset | DatasetDict
Splits = Mapping[str, Callable[[], Dataset]]


class _Opened(NamedTuple):
    """What to call a source, its splits, and the classes of its label maps where they are known."""

    name: str
    splits: Splits
    map_class_names: tuple[str, ...] | None = None


def open_source(
    source: Source,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map_column: str | None = None,
    use_labels: bool = True,
    use_label_maps: bool = False,
) -> ImageSource:
    """Open one split of a source.

    Args:
        source: `emoji`; `shapes`, which are drawn and have label maps; a folder of images (flat, a
            folder per class, or folders `images` and `annotations` side by side, whose files have
            the same names); a parquet file, folder or glob; a Hub id, `user/name` or
            `user/name:config`; a `Dataset` or `DatasetDict`.
        split: its name; `val` finds `validation` and the like. What has no splits is all `train`.
        use_labels: False leaves labels unread, whatever state they are in.
        use_label_maps: open each image's label map, the class of every pixel, not its label.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: if the split or a column is missing, or some labels or label maps are missing.
    """
    read = partial(
        ImageSource.from_dataset,
        image_column=image_column,
        label_column=label_column,
        label_map_column=label_map_column,
        use_labels=use_labels and not use_label_maps,
        use_label_maps=use_label_maps,
    )
    return _open_split(_open_splits(source, use_label_maps), split, read)


def open_train_and_eval(
    config: DataConfig,
    seed: int,
    *,
    source: Source | None = None,
    use_labels: bool = True,
    use_label_maps: bool = False,
) -> tuple[ImageSource, ImageSource | None]:
    """Open the images to train on and those to evaluate on, with the same class ids.

    Evaluation takes `eval_split` if named, else a seeded hold-out of `eval_share` if above 0, else
    a split called validation, test or the like, else there is none. `samples_per_class` thins the
    training side only.

    Args:
        source: opened in place of `config.source`: a `datasets` object, for use from Python.
        use_labels: False leaves labels unread, whatever state they are in.
        use_label_maps: open each image's label map, the class of every pixel, not its label.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: if a split, column, label or label map is missing, or evaluation has classes of
            its own.
    """
    opened = _open_splits(config.source if source is None else source, use_label_maps)
    read = partial(
        ImageSource.from_dataset,
        image_column=config.image_column,
        label_column=config.label_column,
        label_map_column=config.label_map_column,
        use_labels=(use_labels and not use_label_maps) or config.samples_per_class is not None,
        use_label_maps=use_label_maps,
    )
    train = _open_split(opened, config.split, read)
    evaluation = None
    if config.eval_share:
        train, evaluation = hold_out(train, config.eval_share, seed)
    elif eval_split := config.eval_split or _usual_eval_split(opened.splits, config.split):
        evaluation = _open_split(opened, eval_split, read)
        if train.class_names is None:
            evaluation = evaluation.without_labels()
        else:
            evaluation = evaluation.with_classes(train.class_names)
    if config.samples_per_class is not None:
        train = few_labels(train, config.samples_per_class, seed)
    return train, evaluation


def _open_split(
    opened: _Opened, split: str, read: Callable[[Dataset, str], ImageSource]
) -> ImageSource:
    name, splits, map_class_names = opened
    found = _find_split(splits, split)
    if found is None:
        raise ValueError(f"{name} has no split {split!r}; its splits are: {', '.join(splits)}.")
    with _no_progress_bars():
        source = read(splits[found](), f"{name}/{found}")
    has_maps = source.label_map_column is not None
    return replace(source, map_class_names=map_class_names) if has_maps else source


def _find_split(splits: Splits, asked: str) -> str | None:
    """The split of that name, else one whose name differs in case or is another word for it."""
    same = next((names for names in _SAME_SPLIT if asked.lower() in names), ())
    fitting = (split for split in splits if split.lower() in (asked.lower(), *same))
    return asked if asked in splits else next(fitting, None)


def _usual_eval_split(splits: Splits, train_split: str) -> str | None:
    found = (_find_split(splits, name) for name in EVAL_NAMES)
    taken = _find_split(splits, train_split)
    return next((split for split in found if split is not None and split != taken), None)


def _open_splits(source: Source, use_label_maps: bool) -> _Opened:
    """Find the splits of a source; each is opened when called."""
    if isinstance(source, DatasetDict):
        splits = {str(name): partial(_same, dataset) for name, dataset in source.items()}
        return _Opened("The DatasetDict", splits)
    if isinstance(source, Dataset):
        return _Opened("The Dataset", {TRAIN_NAMES[0]: partial(_same, source)})
    if not isinstance(source, str | Path):
        raise ValueError(
            "A source is a name, a path, a datasets.Dataset or a DatasetDict, not "
            f"{type(source).__name__}; load a data set without streaming=True."
        )
    if source == "shapes":
        splits = {split: partial(shapes_dataset, split) for split in SHAPE_SPLITS}
        return _Opened("shapes", splits, SHAPE_CLASS_NAMES)
    return _Opened(str(source), _open_named(str(source), use_label_maps))


def _open_named(source: str, use_label_maps: bool) -> Splits:
    if source == "emoji":
        return _open_folder(EMOJI_FOLDER, use_label_maps)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, use_label_maps)
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ValueError(
            f"{source} is neither a folder nor a .parquet file; name the folder of the images."
        )
    if path.is_file() or glob.has_magic(source):
        return _open_parquet(*find_parquet(str(path)))
    if match := _HUB_ID.fullmatch(source):
        return _open_hub(match["id"], match["config"])
    raise FileNotFoundError(f"There is no folder or file {source!r}; check the path.")


def _open_folder(folder: Path, use_label_maps: bool) -> Splits:
    if paths := list_files(folder, IMAGE_SUFFIXES):
        files = [f for f in tell_label_maps(paths) if use_label_maps or not f.is_label_map]
        splits = image_splits(folder, files)
        return {name: partial(_image_files, folder, inside) for name, inside in splits.items()}
    if tables := list_files(folder, frozenset({".parquet"})):
        return _open_parquet(folder, tables)
    raise FileNotFoundError(
        f"{folder} holds no images; files are looked for that end in "
        f"{' '.join(sorted(IMAGE_SUFFIXES))} or .parquet."
    )


def _image_files(folder: Path, files: list[ImageFile]) -> Dataset:
    """Paths of images and of their label maps, and a label per class folder if all lie in one."""
    images = [file for file in files if not file.is_label_map]
    columns: dict[str, list] = {"image": [str(folder / file.path) for file in images]}
    features: dict[str, Image | ClassLabel] = {"image": Image(decode=False)}
    if maps := [file for file in files if file.is_label_map]:
        matched = match_label_maps(folder, images, maps)
        columns["label_map"] = [str(folder / path) for path in matched]
        features["label_map"] = Image(decode=False)
    if classes := class_folders([file.place for file in images]):
        names = sorted(set(classes))
        ids = {name: i for i, name in enumerate(names)}
        columns["label"] = [ids[name] for name in classes]
        features["label"] = ClassLabel(names=names)
    return Dataset.from_dict(columns, features=Features(features))


def _open_parquet(folder: Path, files: list[str]) -> Splits:
    splits = parquet_splits(folder, files)
    return {name: partial(_parquet, folder, files) for name, files in splits.items()}


def _parquet(folder: Path, files: list[str]) -> Dataset:
    """One split of parquet files, through the cache of `datasets`, which notes a file's time."""
    paths = [glob.escape(str(folder / file)) for file in files]
    try:
        return cast(Dataset, datasets.load_dataset("parquet", data_files=paths, split="train"))
    except _LOAD_ERRORS as error:
        raise ValueError(f"{folder} cannot be read as parquet: {_one_line(error)}") from error


def _open_hub(hub_id: str, config: str | None) -> Splits:
    try:
        with _no_progress_bars():
            opened = cast(DatasetDict, datasets.load_dataset(hub_id, config))
    except _LOAD_ERRORS as error:
        raise ValueError(
            f"{hub_id!r} is not a folder here, and does not open as a data set of the Hub: "
            f"{_one_line(error)}"
        ) from error
    return {str(name): partial(_same, dataset) for name, dataset in opened.items()}


def _same(dataset: Dataset) -> Dataset:
    return dataset


def _one_line(error: BaseException) -> str:
    """The text of the error at the root, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep `datasets` from drawing bars, without changing that for the caller's own use of it."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
