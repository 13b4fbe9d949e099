"""What transformers' `Trainer` takes of ours: it trains these models as they are, and with the
objects below it does what our own recipes do.

Layer-wise learning rates are an optimiser of `build_optimizer`, mixup and cutmix a `MixingCollator`
for a `MixingTrainer`, accuracy is `compute_metrics`; crops, RandAugment and erasing belong to the
data set (`train_transform`). Fine-tuning a classifier:

    from transformers import TrainingArguments

    from hf_vitmae.data.augmentation.config import AugmentConfig
    from hf_vitmae.data.augmentation.mixing import Mixing, MixingCollator
    from hf_vitmae.training.metrics import compute_metrics
    from hf_vitmae.training.optim import OptimConfig, build_optimizer
    from hf_vitmae.training.trainer import MixingTrainer

    config = OptimConfig(base_lr=5e-4, betas=(0.9, 0.999), layer_decay=0.65)
    mixing = Mixing(AugmentConfig(mixup=0.8, cutmix=1.0), num_classes, label_smoothing=0.1)
    trainer = MixingTrainer(
        model,
        TrainingArguments(
            folder,
            per_device_train_batch_size=64,
            num_train_epochs=100,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            remove_unused_columns=False,
        ),
        data_collator=MixingCollator(mixing, seed=0),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
        optimizers=(build_optimizer(model, config, effective_batch=64), None),
    )

Pretraining, with pictures of what the model paints and attends to at every evaluation:

    from functools import partial

    from hf_vitmae.training.trainer import PictureCallback, ReconstructionCallback
    from hf_vitmae.visualize import attention_panel

    attention = partial(attention_panel, images=pictures, processor=processor)
    callbacks = [
        ReconstructionCallback(pictures, processor),
        PictureCallback(attention, "attention"),
    ]
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from hf_vitmae.models.image_processing_vitmae import ImageLike, VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.visualize import reconstruct, reconstruction_panel
from hf_vitmae.whole_or_absent import whole_or_absent

SAMPLES = "samples"  # in the output folder, as in that of our own runs


class MixingTrainer(Trainer):
    """A `Trainer` whose `data_collator` is for training alone.

    Evaluation and prediction take images as they are: batches come from `data_collator.collate`, if
    it is a `MixingCollator`, else from transformers' `default_data_collator`. Everything else is
    the `Trainer`'s.
    """

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches that are not mixed."""
        return self._unmixed(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches that are not mixed."""
        return self._unmixed(super().get_test_dataloader, test_dataset)

    def _unmixed(self, get_dataloader: Any, dataset: Any) -> DataLoader:
        mixing = self.data_collator
        self.data_collator = getattr(mixing, "collate", default_data_collator)
        try:
            return get_dataloader(dataset)
        finally:
            self.data_collator = mixing


class PictureCallback(TrainerCallback):
    """Draws something with the model at every evaluation.

    The picture goes to `samples/<name>-<8 digits>.png` in the output folder, and into TensorBoard
    if the `Trainer` reports to it, as the run `samples`. Where several processes hold one model in
    parts (FSDP, DeepSpeed) nothing is drawn.

    Args:
        draw: model -> picture, such as those of `hf_vitmae.visualize` with images given:
            `partial(attention_panel, images=images, processor=processor)`.
        name: of the file and in TensorBoard.
    """

    def __init__(self, draw: Callable[[Any], Image.Image], name: str = "picture") -> None:
        self.draw, self.name = draw, name

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Draw with the model as it is now; raises what `draw` raises."""
        if not state.is_world_process_zero or is_in_parts(args):
            return
        picture = self.draw(kwargs["model"])
        folder = Path(args.output_dir or ".")
        path = folder / SAMPLES / f"{self.name}-{state.global_step:08d}.png"
        with whole_or_absent(path) as unfinished:
            picture.save(unfinished, format="PNG")
        if "tensorboard" in (args.report_to or ()):
            write_to_tensorboard(folder, picture, state.global_step, self.name)


class ReconstructionCallback(PictureCallback):
    """Draws what a masked autoencoder makes of some images, at every evaluation.

    The patches that are hidden are the same at every evaluation, and no random number of the
    training is used: a run with the callback takes the same steps as one without.

    Args:
        images: what the image processor takes: PIL images, arrays, tensors.
        processor: None takes one of the model's geometry with default statistics.
        seed: decides which patches are hidden.

    Raises:
        ValueError: at an evaluation, if the model is no masked autoencoder.
    """

    def __init__(
        self,
        images: ImageLike | Sequence[ImageLike],
        processor: VitMaeImageProcessor | None = None,
        seed: int = 0,
    ) -> None:
        def draw(model: VitMaeForPreTraining) -> Image.Image:
            return reconstruction_panel(reconstruct(model, images, processor, seed=seed))

        super().__init__(draw, "reconstruction")


def is_in_parts(args: TrainingArguments) -> bool:
    """Whether no process has all weights of the model."""
    return bool(args.fsdp) or args.deepspeed is not None


def write_to_tensorboard(folder: Path, picture: Image.Image, step: int, name: str) -> None:
    """Add a picture to the logs that the `Trainer` of this output folder writes."""
    from torch.utils.tensorboard import SummaryWriter

    logs = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "runs").expanduser()
    with SummaryWriter(str(logs / SAMPLES)) as writer:
        writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
