"""Fine-tuning for semantic segmentation: a class for every pixel."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from hf_vitmae.data.augmentation.transforms import EvalTransform
from hf_vitmae.data.decoding.decode import BadImage, decode, decode_label_map
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.sources import Sources
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForSemanticSegmentation
from hf_vitmae.models.modes import evaluating
from hf_vitmae.tasks.checkpoints import load_config, load_processor
from hf_vitmae.tasks.fit import fit
from hf_vitmae.tasks.images import (
    Batch,
    held_out_batches,
    normalized,
    open_sources,
    spread,
    watch_images,
)
from hf_vitmae.tasks.normalization import pixel_statistics, processor_options, with_statistics
from hf_vitmae.tasks.start import (
    CheckpointRecipe,
    refuse_other_classes,
    start_config,
    start_model,
)
from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.loop_config import Best
from hf_vitmae.training.scores import confusion_matrix, iou_from_confusion
from hf_vitmae.visualize import class_legend, picture_panel, segmentation_rows
from hf_vitmae.visualize.pictures import to_pictures

NUM_PICTURES = 8  # rows of the panel that a run ends with


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(CheckpointRecipe):
    """A complete fine-tuning run for semantic segmentation."""

    class_names: tuple[str, ...] = ()
    """Names of classes 0, 1, ... of the label maps, where 255 does not count; `shapes` has them."""
    reduce_labels: bool = False
    """In the label maps 0 does not count, and the classes are 1, 2, ..., as in ADE20k."""
    head: Literal["linear", "multi_layer"] = "multi_layer"
    """A linear map of the last tokens, or a light head on four layers."""
    head_width: int = 256
    """Channels inside the light head."""
    output_dir: Path = Path("runs/segment")
    """Folder of the run; the same command again resumes what is in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_mixing("the class of every pixel cannot be mixed")


def run(recipe: SegmentRecipe, source: Sources | None = None) -> dict[str, Any]:
    """Fine-tune, and leave model, log, checkpoints and a picture in `recipe.output_dir`.

    Args:
        source: a `datasets` object or a list of them, opened in place of `recipe.data.source`.

    Returns:
        The newest value of everything logged, with `eval_mean_iou` when there were held-out images.

    Raises:
        ValueError, FileNotFoundError: for a recipe, model or data that cannot be used, in one line.
    """
    accelerator = recipe.make_accelerator()
    stored = load_config(recipe.model)
    train_source, eval_source = open_sources(recipe, accelerator, source, use_label_maps=True)
    classes = _class_names(recipe, train_source)
    refuse_other_classes(recipe, VitMaeForSemanticSegmentation, stored, classes)
    head = {"segmentation_head": recipe.head, "segmentation_hidden_size": recipe.head_width}
    config = start_config(recipe, stored, classes, **head)
    statistics = pixel_statistics(recipe, accelerator, train_source, config.num_channels)
    config = with_statistics(config, statistics)
    torch.manual_seed(recipe.seed)
    model = start_model(recipe, VitMaeForSemanticSegmentation, config, accelerator)
    # Without a crop a map covers the whole picture, as people expect of it.
    whole = {"do_center_crop": False, "crop_pct": 1.0, "do_reduce_labels": recipe.reduce_labels}
    processor = load_processor(recipe.model, config, **whole, **processor_options(statistics))
    eval_source = eval_source and spread(eval_source, recipe.eval_images)
    bad_images = watch_images(recipe, train_source, eval_source)
    evaluators = []
    if eval_source is not None:
        evaluators.append(HeldOutIoU(recipe, accelerator, processor, eval_source, bad_images))

    def prepare(batch: Batch) -> Batch:
        labels = processor.reduce_labels(batch["labels"])
        labels = check_labels(labels, len(classes), config.semantic_loss_ignore_index)
        labels = labels.to(accelerator.device, non_blocking=True)
        return {"pixel_values": normalized(batch, processor, accelerator.device), "labels": labels}

    pairs = _examples(processor, eval_source or train_source)

    def draw(model: Any) -> dict[str, Image.Image]:
        return {"segmentation": _draw(model, processor, pairs, classes)} if pairs else {}

    trained = fit(
        recipe,
        accelerator,
        model,
        processor,
        train_source,
        prepare,
        evaluators,
        bad_images,
        Best("eval_mean_iou", "highest"),
        pictures=draw,
    )
    if accelerator.is_main_process:
        saved = trained.run.save_samples(draw(trained.model))
        what = f", a picture of what it sees in {saved[0]}" if saved else ""
        print(f"The model is in {trained.run.model}{what}.")
    return trained.metrics


@dataclass(frozen=True)
class HeldOutIoU:
    """Mean intersection over union on held-out images, each pixel counted once."""

    recipe: SegmentRecipe
    accelerator: Accelerator
    processor: VitMaeImageProcessor
    source: AnySource
    bad_images: BadImages

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate `model`, on every process alike: -> eval_loss, eval_mean_iou and the like."""
        config: Any = self.accelerator.unwrap_model(model).config
        device, classes = self.accelerator.device, config.num_labels
        confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        losses = torch.zeros(2, dtype=torch.float64, device=device)  # sum, images
        for batch in held_out_batches(
            self.recipe, self.accelerator, self.processor, self.source, self.bad_images
        ):
            batch = {name: values[batch["valid"]] for name, values in batch.items()}
            if not (images := len(batch["labels"])):
                continue
            labels = self.processor.reduce_labels(batch["labels"]).to(device)
            output = model(pixel_values=normalized(batch, self.processor, device), labels=labels)
            predicted = output.logits.argmax(dim=1)  # (b, H, W)
            confusion += confusion_matrix(
                predicted, labels, classes, config.semantic_loss_ignore_index
            )
            losses += images * losses.new_tensor([output.loss, 1.0])
        confusion = cast(Tensor, self.accelerator.reduce(confusion, reduction="sum"))
        loss, images = cast(Tensor, self.accelerator.reduce(losses, reduction="sum")).tolist()
        scores = iou_from_confusion(confusion.cpu())
        return {
            "eval_loss": loss / images,
            "eval_mean_iou": scores["mean_iou"],
            "eval_mean_accuracy": scores["mean_accuracy"],
            "eval_pixel_accuracy": scores["pixel_accuracy"],
            "eval_images": int(images),
        }


def _class_names(recipe: SegmentRecipe, source: AnySource) -> tuple[str, ...]:
    """The recipe's, else the source's own.

    Raises:
        ValueError: if there are none.
    """
    names = recipe.class_names or source.map_class_names
    if not names:
        raise ValueError(
            f"{source.name} does not say what the classes of its label maps are; name those of 0, "
            "1, 2, ... in order: --class-names background leaf stem."
        )
    return tuple(names)


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """The labels (B, H, W) themselves, if each is a class or does not count.

    Raises:
        ValueError: naming one that is neither.
    """
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"A label map holds class {wrong[0].item()}, and there are names for {num_classes} "
            f"classes, 0 to {num_classes - 1}; name them all with --class-names, or mark what does "
            f"not count as {ignore_index}."
        )
    return labels


def _examples(processor: VitMaeImageProcessor, source: AnySource) -> list[tuple[Tensor, Tensor]]:
    """Some images with their label maps, spread evenly over the source: uint8 (C, H, W), (H, W)."""
    transform, pairs = EvalTransform(processor), []
    for record in source.examples(NUM_PICTURES):
        with suppress(BadImage):
            channels, value_range = processor.num_channels, processor.value_range
            image = decode(record.encoded, channels, record.name, value_range)
            label_map = processor.reduce_labels(decode_label_map(record.label_map or b""))
            if image.shape[1:] == label_map.shape:
                pairs.append(transform.with_label_map(image, label_map))
    return pairs


def _draw(
    model: VitMaeForSemanticSegmentation,
    processor: VitMaeImageProcessor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    classes: Sequence[str],
) -> Image.Image:
    """Images with their label maps and what the model says."""
    images, labels = zip(*pairs, strict=True)
    pixel_values = processor.normalize(torch.stack(images))  # (B, C, H, W)
    with evaluating(model):
        predicted = model(pixel_values.to(model.device)).logits.argmax(dim=1).cpu()  # (B, H, W)
    pictures = to_pictures(processor, pixel_values)
    rows = segmentation_rows(pictures, predicted, labels, classes)
    return picture_panel(rows, [class_legend(classes)])
