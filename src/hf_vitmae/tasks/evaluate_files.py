"""What `hf-vitmae evaluate` leaves: figures, predictions and pictures, each file whole."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from hf_vitmae.data.augmentation.transforms import EvalTransform
from hf_vitmae.data.decoding.decode import BadImage, decode, decode_label_map
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForSemanticSegmentation
from hf_vitmae.models.modes import evaluating
from hf_vitmae.tasks.evaluate_report import (
    Classified,
    Results,
    Segmented,
    cells_of_classes,
    cells_of_matrix,
    is_nan,
)
from hf_vitmae.visualize import class_legend, picture_panel, segmentation_rows
from hf_vitmae.visualize.confusion import Confusion, confusion_picture, mistake_sheet
from hf_vitmae.visualize.pictures import to_pictures
from hf_vitmae.whole_or_absent import whole_or_absent, write_whole

WRONG_PICTURES, WORST_PICTURES = 24, 8


def write_classification(
    folder: Path,
    results: Results,
    answers: Classified,
    images: ImageSource,
    processor: VitMaeImageProcessor,
) -> None:
    """evaluation.json, predictions.parquet, confusion.png and wrong.png, each whole."""
    names = np.array(answers.classes)
    columns = {
        "name": images.names(answers.rows.tolist()),
        "label": names[answers.labels].tolist(),
        "predicted": names[answers.predicted].tolist(),
        "probability": answers.probabilities,
    }
    _write_results(folder, results, columns)
    cells = cells_of_classes(answers.labels, answers.predicted)
    _write_confusion(folder / "confusion.png", cells, answers.classes, "images")
    _write_picture(folder / "wrong.png", _draw_wrong(answers, images, processor))


def write_segmentation(
    folder: Path,
    results: Results,
    answers: Segmented,
    images: ImageSource,
    processor: VitMaeImageProcessor,
    model: VitMaeForSemanticSegmentation,
) -> None:
    """evaluation.json, predictions.parquet, confusion.png and worst.png, each whole."""
    columns = {
        "name": images.names(answers.rows.tolist()),
        "pixel_accuracy": answers.accuracies,
        "mean_iou": answers.ious,
    }
    _write_results(folder, results, columns)
    _write_confusion(
        folder / "confusion.png", cells_of_matrix(answers.matrix), answers.classes, "pixels"
    )
    _write_picture(folder / "worst.png", _draw_worst(answers, images, processor, model))


def _write_results(folder: Path, results: Results, columns: Mapping[str, Any]) -> None:
    text = json.dumps(_without_nan(results), indent=2, ensure_ascii=False)
    write_whole(folder / "evaluation.json", f"{text}\n")
    with whole_or_absent(folder / "predictions.parquet") as unfinished:
        pq.write_table(pa.table(dict(columns)), unfinished)


def _write_confusion(
    path: Path, cells: Sequence[Confusion], classes: Sequence[str], unit: str
) -> None:
    """The picture; without matplotlib a line that says how to have it."""
    try:
        picture = confusion_picture(cells, classes, unit=unit) if cells else None
    except ImportError as error:
        print(f"{path} is not drawn. {error}")
        picture = None
    _write_picture(path, picture)


def _write_picture(path: Path, picture: Image.Image | None) -> None:
    """Write it; where there is none, remove that of an evaluation before."""
    if picture is None:
        path.unlink(missing_ok=True)
        return
    with whole_or_absent(path) as unfinished:
        picture.save(unfinished, format="PNG")


def _draw_wrong(
    answers: Classified, images: ImageSource, processor: VitMaeImageProcessor
) -> Image.Image | None:
    """The images whose wrong class is most probable, the worst first; None if all are right."""
    wrong = np.flatnonzero(answers.predicted != answers.labels)  # (m,)
    order = np.argsort(-answers.probabilities[wrong], kind="stable")
    transform, pictures, captions = EvalTransform(processor), [], []
    for place in wrong[order][:WRONG_PICTURES].tolist():
        record = images.record(int(answers.rows[place]))
        with suppress(BadImage):  # its file may have gone meanwhile
            generator = np.random.default_rng(0)  # an evaluation's transform draws nothing
            image = transform.read(record.encoded, generator, record.name)  # (C, H, W)
            pictures += to_pictures(processor, processor.normalize(image[None]))
            captions.append(_caption(answers, place, record.name))
    return mistake_sheet(pictures, captions) if pictures else None


def _caption(answers: Classified, place: int, name: str) -> list[str]:
    """What an image is, what it was taken for, and where it lies."""
    label = answers.classes[answers.labels[place]]
    predicted = answers.classes[answers.predicted[place]]
    probability = f"with {answers.probabilities[place]:.1%}"
    return [f"is {label}", f"taken for {predicted}", probability, Path(name).name]


def _draw_worst(
    answers: Segmented,
    images: ImageSource,
    processor: VitMaeImageProcessor,
    model: VitMaeForSemanticSegmentation,
) -> Image.Image | None:
    """The images with the smallest share of right pixels, with labels and prediction."""
    labelled = np.flatnonzero(~np.isnan(answers.accuracies))
    order = labelled[np.argsort(answers.accuracies[labelled], kind="stable")][:WORST_PICTURES]
    transform, pairs = EvalTransform(processor), []
    for row in answers.rows[order].tolist():
        record = images.record(row)
        with suppress(BadImage):
            image = decode(
                record.encoded, processor.num_channels, record.name, processor.value_range
            )
            label_map = decode_label_map(record.label_map or b"", record.name)
            label_map = answers.renumber(processor.reduce_labels(label_map))  # (H, W)
            pairs.append(transform.with_label_map(image, label_map))
    if not pairs:
        return None
    inputs, labels = zip(*pairs, strict=True)
    pixel_values = processor.normalize(torch.stack(inputs))  # (b, C, H, W)
    with evaluating(model):
        predicted = model(pixel_values.to(model.device)).logits.argmax(dim=1).cpu()  # (b, H, W)
    pictures = to_pictures(processor, pixel_values)
    rows = segmentation_rows(
        pictures, predicted, labels, answers.classes, ignore_index=answers.ignored
    )
    return picture_panel(rows, [class_legend(answers.classes)])


def _without_nan(value: Any) -> Any:
    """The same with None in place of NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if is_nan(value) else value
