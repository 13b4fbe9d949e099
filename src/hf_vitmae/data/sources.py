"""Open images anywhere: the embedded set, folders, parquet, the Hub, `datasets` objects.

Each becomes a `datasets.Dataset` of encoded images per split; a split is opened when it is used.
"""

import glob
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from datasets.exceptions import DatasetsError

from .config import DataConfig
from .files import (
    EVAL_NAMES,
    IMAGE_SUFFIXES,
    TRAIN_NAMES,
    class_folders,
    find_parquet,
    image_splits,
    list_files,
    parquet_splits,
)
from .image_source import ImageSource
from .subsets import few_labels, hold_out

EMOJI_FOLDER = Path(__file__).parent / "emoji"
_SAME_SPLIT = (TRAIN_NAMES, ("validation", "val", "valid", "dev"), ("test", "testing"))
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, DatasetsError)
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>.+))?")

Source = str | Path | Dataset | DatasetDict
Splits = Mapping[str, Callable[[], Dataset]]


def open_source(
    source: Source,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    use_labels: bool = True,
) -> ImageSource:
    """Open one split of a source.

    Args:
        source: `emoji`; a folder of images (flat or a folder per class); a parquet file, folder or
            glob; a Hub id, `user/name` or `user/name:config`; a `Dataset` or `DatasetDict`.
        split: its name; `val` finds `validation` and the like. What has no splits is all `train`.
        use_labels: False leaves labels unread, whatever state they are in.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: if the split or a column is missing, or some labels are missing.
    """
    name, splits = _open_splits(source)
    return _open_split(name, splits, split, image_column, label_column, use_labels)


def open_train_and_eval(
    config: DataConfig, seed: int, *, source: Source | None = None, use_labels: bool = True
) -> tuple[ImageSource, ImageSource | None]:
    """Open the images to train on and those to evaluate on, with the same class ids.

    Evaluation takes `eval_split` if named, else a seeded hold-out of `eval_share` if above 0, else
    a split called validation, test or the like, else there is none. `samples_per_class` thins the
    training side only.

    Args:
        source: opened in place of `config.source`: a `datasets` object, for use from Python.
        use_labels: False leaves labels unread, whatever state they are in.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no image in it.
        ValueError: if a split, column or label is missing, or evaluation has classes of its own.
    """
    name, splits = _open_splits(config.source if source is None else source)
    use_labels = use_labels or config.samples_per_class is not None
    columns = (config.image_column, config.label_column, use_labels)
    train = _open_split(name, splits, config.split, *columns)
    evaluation = None
    if config.eval_share:
        train, evaluation = hold_out(train, config.eval_share, seed)
    elif eval_split := config.eval_split or _usual_eval_split(splits, config.split):
        evaluation = _open_split(name, splits, eval_split, *columns)
        if train.class_names is None:
            evaluation = evaluation.without_labels()
        else:
            evaluation = evaluation.with_classes(train.class_names)
    if config.samples_per_class is not None:
        train = few_labels(train, config.samples_per_class, seed)
    return train, evaluation


def _open_split(
    name: str,
    splits: Splits,
    split: str,
    image_column: str | None,
    label_column: str | None,
    use_labels: bool,
) -> ImageSource:
    found = _find_split(splits, split)
    if found is None:
        raise ValueError(f"{name} has no split {split!r}; its splits are: {', '.join(splits)}.")
    with _no_progress_bars():
        return ImageSource.from_dataset(
            splits[found](),
            f"{name}/{found}",
            image_column=image_column,
            label_column=label_column,
            use_labels=use_labels,
        )


def _find_split(splits: Splits, asked: str) -> str | None:
    """The split of that name, else one whose name differs in case or is another word for it."""
    same = next((names for names in _SAME_SPLIT if asked.lower() in names), ())
    fitting = (split for split in splits if split.lower() in (asked.lower(), *same))
    return asked if asked in splits else next(fitting, None)


def _usual_eval_split(splits: Splits, train_split: str) -> str | None:
    found = (_find_split(splits, name) for name in EVAL_NAMES)
    taken = _find_split(splits, train_split)
    return next((split for split in found if split is not None and split != taken), None)


def _open_splits(source: Source) -> tuple[str, Splits]:
    """What to call a source, and its splits by name, each opened when called."""
    if isinstance(source, DatasetDict):
        return "The DatasetDict", {str(name): partial(_same, d) for name, d in source.items()}
    if isinstance(source, Dataset):
        return "The Dataset", {TRAIN_NAMES[0]: partial(_same, source)}
    if not isinstance(source, str | Path):
        raise ValueError(
            "A source is a name, a path, a datasets.Dataset or a DatasetDict, not "
            f"{type(source).__name__}; load a data set without streaming=True."
        )
    return str(source), _open_named(str(source))


def _open_named(source: str) -> Splits:
    if source == "emoji":
        return _open_folder(EMOJI_FOLDER)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ValueError(
            f"{source} is neither a folder nor a .parquet file; name the folder of the images."
        )
    if path.is_file() or glob.has_magic(source):
        return _open_parquet(*find_parquet(str(path)))
    if match := _HUB_ID.fullmatch(source):
        return _open_hub(match["id"], match["config"])
    raise FileNotFoundError(f"There is no folder or file {source!r}; check the path.")


def _open_folder(folder: Path) -> Splits:
    if files := list_files(folder, IMAGE_SUFFIXES):
        splits = image_splits(folder, files)
        return {name: partial(_image_files, root, files) for name, (root, files) in splits.items()}
    if tables := list_files(folder, frozenset({".parquet"})):
        return _open_parquet(folder, tables)
    raise FileNotFoundError(
        f"{folder} holds no images; files are looked for that end in "
        f"{' '.join(sorted(IMAGE_SUFFIXES))} or .parquet."
    )


def _image_files(root: Path, files: list[str]) -> Dataset:
    """Paths of image files, and a label per class folder if every file lies in one."""
    columns: dict[str, list] = {"image": [str(root / file) for file in files]}
    features: dict[str, Image | ClassLabel] = {"image": Image(decode=False)}
    if classes := class_folders(files):
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
