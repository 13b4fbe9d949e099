"""How good a fine-tuned model is on labelled images: accuracy, calibration and what it confuses, or
intersection over union of pixels.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hf_vitmae.data.augmentation.transforms import EvalTransform
from hf_vitmae.data.config import check_max_bad
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.loader import eval_batches
from hf_vitmae.data.sources import Source, open_source
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
    VitMaePreTrainedModel,
)
from hf_vitmae.models.modes import evaluating
from hf_vitmae.tasks.checkpoints import load_config, load_model, load_processor
from hf_vitmae.tasks.evaluate_classes import (
    Match,
    match_label_maps,
    match_labels,
    model_classes,
)
from hf_vitmae.tasks.evaluate_files import write_classification, write_segmentation
from hf_vitmae.tasks.evaluate_report import (
    Classified,
    Segmented,
    classification_lines,
    classification_results,
    segmentation_lines,
    segmentation_results,
)
from hf_vitmae.tasks.images import Batch, normalized
from hf_vitmae.training.bad_images import BadImages, Split
from hf_vitmae.training.scores import confusion_matrix, iou_from_confusion

HEADS: tuple[type[VitMaePreTrainedModel], ...] = (
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
)
BAD_IMAGES = "bad_images.jsonl"


@dataclass(frozen=True, kw_only=True)
class EvaluateData:
    """Which images, and how they are read."""

    source: str = "emoji"
    """`emoji`, `shapes`, a folder of images, parquet file or glob, Hub id (`user/name:config`)."""
    split: str = "test"
    """Split to evaluate on; what has no splits is all `train`."""
    image_column: str | None = None
    """Column that holds the images; found by type and name when left out."""
    label_column: str | None = None
    """Column that holds the labels; found by type and name when left out."""
    label_map_column: str | None = None
    """Column that holds the label maps of segmentation; found by name when left out."""
    max_bad: float = 0.01
    """Share of the images that may be bad, such as damaged files; more of them stop the run."""
    num_workers: int = 2
    """Worker processes that decode images; changes speed, never a figure."""

    def __post_init__(self) -> None:
        check_max_bad(self.max_bad)
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, not {self.num_workers}.")


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Measure a fine-tuned model on labelled images, each counted once.

    Raises:
        ValueError: if a number is out of range.
    """

    model: str
    """Folder or Hub id of a classifier or a segmentation model, ours or a ViT of transformers."""
    data: EvaluateData = EvaluateData()
    output_dir: Path | None = None
    """Folder for evaluation.json, predictions.parquet and pictures of what goes wrong."""
    batch_size: int = 64
    """Images of one forward pass."""
    match: Match = "name"
    """Which class of the model a label of the data is: that of the same name, or of the same
    number."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")


@dataclass(frozen=True)
class Trial:
    """A model, and the images that it is tried on."""

    request: EvaluateRequest
    images: ImageSource
    model: VitMaePreTrainedModel
    processor: VitMaeImageProcessor
    classes: tuple[str, ...]
    bad_images: BadImages

    def batches(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """The good images in order, each once: int64 (b,), their rows, and the batch of them."""
        batches = eval_batches(
            self.images,
            EvalTransform(self.processor),
            seed=0,  # evaluation draws nothing
            batch_size=self.request.batch_size,
            num_workers=self.request.data.num_workers,
            pin_memory=self.model.device.type == "cuda",
            skip=partial(self.bad_images.note, self.request.data.split),
        )
        start, has_bar = 0, sys.stderr.isatty()
        with closing(batches), tqdm(total=len(self.images), disable=not has_bar) as bar:
            for batch in batches:
                valid = batch["valid"]
                rows = start + valid.nonzero().flatten().numpy()  # (b,)
                start += len(valid)
                bar.update(min(start, len(self.images)) - bar.n)
                if rows.size:
                    yield rows, {name: values[valid] for name, values in batch.items()}
                self.bad_images.share()

    def logits(self, batch: Batch) -> Tensor:
        """Of the model: (b, classes), or (b, classes, H, W)."""
        pixel_values = normalized(batch, self.processor, self.model.device)
        return self.model(pixel_values=pixel_values).logits.float()


def run(request: EvaluateRequest, source: Source | None = None) -> dict[str, Any]:
    """Measure, print a table, and write what was found into the folder, if one is given.

    A classifier leaves evaluation.json, predictions.parquet (name, label, predicted, probability),
    confusion.png and wrong.png, the most confidently wrong images; a segmentation model the same of
    its pixels, with the shares of right pixels as predictions and worst.png. Bad images count for
    nothing and are listed.

    Args:
        source: a `datasets` object, opened in place of `request.data.source`.

    Returns:
        What is in evaluation.json.

    Raises:
        ValueError, FileNotFoundError: for a model, data or folder that cannot be used, in one line.
    """
    config = load_config(request.model)
    kind = _require_head(request.model, config)
    segments = kind is VitMaeForSemanticSegmentation
    images = _open_images(request, source, segments)
    classes = model_classes(config)
    if not segments:
        images = match_labels(images, request.model, classes, request.match)
    model = _open_model(request.model, kind, config)
    processor = load_processor(request.model, config)
    trial = Trial(request, images, model, processor, classes, _watch(request, images))
    return _report_segmentation(trial) if segments else _report_classification(trial)


def _report_classification(trial: Trial) -> dict[str, Any]:
    answers = classify(trial)
    results = _head_line(trial, "image-classification") | classification_results(answers)
    for line in classification_lines(results):
        print(line)
    if (folder := trial.request.output_dir) is not None:
        write_classification(folder, results, answers, trial.images, trial.processor)
    _print_places(trial)
    return results


def _report_segmentation(trial: Trial) -> dict[str, Any]:
    answers = segment(trial)
    results = _head_line(trial, "image-segmentation") | segmentation_results(answers)
    for line in segmentation_lines(results):
        print(line)
    if (folder := trial.request.output_dir) is not None:
        model = cast(VitMaeForSemanticSegmentation, trial.model)
        write_segmentation(folder, results, answers, trial.images, trial.processor, model)
    _print_places(trial)
    return results


def classify(trial: Trial) -> Classified:
    """The classifier's logits for every good image.

    Raises:
        ValueError: if some are not finite, or too many images are bad.
    """
    rows, logits, labels = [], [], []
    with evaluating(trial.model):
        for places, batch in trial.batches():
            rows.append(places)
            logits.append(trial.logits(batch).cpu().numpy())
            labels.append(batch["labels"].numpy())
    answers = Classified(
        np.concatenate(rows), np.concatenate(logits), np.concatenate(labels), trial.classes
    )
    broken = ~np.isfinite(answers.logits).all(axis=1)  # (n,)
    if broken.any():
        name = trial.images.names([int(answers.rows[broken.argmax()])])[0]
        raise ValueError(
            f"{trial.request.model} gives logits that are not finite for {broken.sum()} images, "
            f"{name} the first; its weights are damaged, or it was trained so."
        )
    return answers


def segment(trial: Trial) -> Segmented:
    """Which pixels of every good image are right, at the size that the model gets.

    Raises:
        ValueError: if a label map holds no class of the model, or too many images are bad.
    """
    config, num_classes = trial.model.config, len(trial.classes)
    ignored = config.semantic_loss_ignore_index
    renumber = match_label_maps(
        trial.images, trial.request.model, trial.classes, trial.request.match, ignored
    )
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    rows, accuracies, ious = [], [], []
    with evaluating(trial.model):
        for places, batch in trial.batches():
            labels = renumber(trial.processor.reduce_labels(batch["labels"]))  # (b, H, W)
            predicted = trial.logits(batch).argmax(dim=1).cpu()  # (b, H, W)
            for row, of_image, true in zip(places.tolist(), predicted, labels, strict=True):
                of_one = confusion_matrix(of_image, true, num_classes, ignored)
                scores = iou_from_confusion(of_one)
                matrix += of_one
                rows.append(row)
                accuracies.append(scores["pixel_accuracy"])
                ious.append(scores["mean_iou"])
    scores = np.array(accuracies), np.array(ious)
    return Segmented(np.array(rows), *scores, matrix, trial.classes, renumber, ignored)


def _require_head(name: str, config: VitMaeConfig) -> type[VitMaePreTrainedModel]:
    """The class of the family with a head that was trained for labels.

    Raises:
        ValueError: if the checkpoint is of none.
    """
    stored = (config.architectures or ["a model without a head"])[0]
    for kind in HEADS:
        if stored == kind.__name__:
            break
    else:
        raise ValueError(
            f"{name} has no head to evaluate ({stored}); fine-tune it first, or measure its "
            "features by hf-vitmae knn or linear-probe."
        )
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"{name} is for {config.problem_type}; only models with one class an image, or a "
            "pixel, can be evaluated."
        )
    return kind


def _open_images(request: EvaluateRequest, source: Source | None, segments: bool) -> ImageSource:
    images = open_source(
        request.data.source if source is None else source,
        request.data.split,
        image_column=request.data.image_column,
        label_column=request.data.label_column,
        label_map_column=request.data.label_map_column,
        use_label_maps=segments,
    )
    if not len(images):
        raise ValueError(f"{images.name} holds no images; choose another split or source.")
    return images


def _open_model(
    name: str, kind: type[VitMaePreTrainedModel], config: VitMaeConfig
) -> VitMaePreTrainedModel:
    """The model with its trained head, on the device that there is.

    Raises:
        ValueError: if the weights of the head are missing.
    """
    loaded: Any = load_model(kind, name, config)
    model, new, _ = loaded
    if new:
        raise ValueError(
            f"{name} lacks the weights of its head ({', '.join(sorted(new))}); it is damaged."
        )
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def _watch(request: EvaluateRequest, images: ImageSource) -> BadImages:
    """The list of bad images: in the folder, or without one in a temporary file."""
    if request.output_dir is None:
        path = Path(tempfile.gettempdir()) / f"hf-vitmae-{os.getpid()}-{BAD_IMAGES}"
    else:
        if request.output_dir.exists() and not request.output_dir.is_dir():
            raise ValueError(f"{request.output_dir} is a file; choose another --output-dir.")
        request.output_dir.mkdir(parents=True, exist_ok=True)
        path = request.output_dir / BAD_IMAGES
    split = request.data.split
    bad_images = BadImages(path, request.data.max_bad, {split: Split(images.name, len(images))})
    path.unlink(missing_ok=True)  # of an evaluation before
    return bad_images


def _head_line(trial: Trial, task: str) -> dict[str, Any]:
    """What was evaluated on what."""
    return {
        "model": trial.request.model,
        "source": trial.images.name,
        "split": trial.request.data.split,
        "task": task,
        "num_bad_images": len(trial.bad_images.found),
    }


def _print_places(trial: Trial) -> None:
    if num_bad := len(trial.bad_images.found):
        print(f"{num_bad} bad images are not counted; they are listed in {trial.bad_images.path}.")
    if (folder := trial.request.output_dir) is not None:
        print(f"All of it is in {folder}.")
