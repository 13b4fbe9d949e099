"""Pretraining: a masked autoencoder on images without labels (arXiv:2111.06377)."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_vitmae.data.decode import decode
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import Source, open_train_and_eval
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining
from hf_vitmae.tasks.fit import Batch, fit, held_out_batches, normalized, spread
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.visualize import mean_visible_baseline, reconstruct, reconstruction_panel

NUM_PICTURES = 8  # rows of the panel that a run ends with


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields of `VitMaeConfig` that a pretraining recipe chooses; the defaults are ViT-B/16."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    image_size: int | tuple[int, int] = 224
    """Pixels, an int or height and width."""
    patch_size: int | tuple[int, int] = 16
    """Pixels, an int or height and width; divides the image size."""
    num_channels: int = 3
    """1 for gray, 3 for colour, or the number of bands that the files have."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    norm_pix_loss: bool = False
    """Predict each patch normalised by its own mean and deviation."""
    position_embedding: str = "sincos"
    """sincos (fixed) or learned (starts from the same values)."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last encoder block."""

    def to_config(self) -> VitMaeConfig:
        """The model's configuration; raises `ValueError` for values that do not fit."""
        return VitMaeConfig(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(TaskRecipe):
    """A complete pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    output_dir: Path = Path("runs/pretrain")
    """Folder of the run; the same command again resumes what is in it."""


def run(recipe: PretrainRecipe, source: Source | None = None) -> dict[str, Any]:
    """Pretrain, and leave model, log, checkpoints and a picture in `recipe.output_dir`.

    Args:
        source: a `datasets` object, opened in place of `recipe.data.source`.

    Returns:
        The newest value of everything logged, with `eval_loss` and its baseline when there were
        held-out images.

    Raises:
        ValueError, FileNotFoundError: for a recipe or data that cannot be used, in one line.
    """
    config = recipe.model.to_config()
    accelerator = recipe.make_accelerator()
    train_source, eval_source = open_train_and_eval(
        recipe.data, recipe.seed, source=source, use_labels=False
    )
    processor = VitMaeImageProcessor.for_model(config)
    torch.manual_seed(recipe.seed)
    model = VitMaeForPreTraining(config)
    evaluators = []
    if eval_source is not None:
        eval_source = spread(eval_source, recipe.eval_images)
        evaluators.append(
            HeldOutReconstruction(recipe, config, accelerator, processor, eval_source)
        )

    def prepare(batch: Batch) -> Batch:
        noise = batch["noise"].to(accelerator.device, non_blocking=True)
        return {"pixel_values": normalized(batch, processor, accelerator.device), "noise": noise}

    run_folder, metrics = fit(
        recipe,
        accelerator,
        model,
        processor,
        train_source,
        prepare,
        evaluators,
        num_noise=config.num_patches,
    )
    if accelerator.is_main_process:
        run_folder.samples.mkdir(exist_ok=True)
        pictures = _pictures(eval_source or train_source, config.num_channels)
        panel = reconstruction_panel(reconstruct(model, pictures, processor, seed=recipe.seed))
        panel.save(picture := run_folder.samples / "reconstruction.png")
        print(f"The model is in {run_folder.model}, a picture of what it sees in {picture}.")
    return metrics


@dataclass(frozen=True)
class HeldOutReconstruction:
    """The loss on held-out images, each under its own fixed mask, beside a trivial baseline."""

    recipe: PretrainRecipe
    config: VitMaeConfig
    accelerator: Accelerator
    processor: VitMaeImageProcessor
    source: ImageSource

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate `model`, on every process alike: -> eval_loss and eval_loss_mean_visible."""
        device, config = self.accelerator.device, self.config
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, baseline, images
        for batch in held_out_batches(
            self.recipe, self.accelerator, self.processor, self.source, config.num_patches
        ):
            batch = {name: values[batch["valid"]] for name, values in batch.items()}
            if not (images := len(batch["noise"])):
                continue
            pixel_values = normalized(batch, self.processor, device)
            output = model(pixel_values=pixel_values, noise=batch["noise"].to(device))
            baseline = mean_visible_baseline(
                pixel_values, output.mask, config.patch_pair, config.norm_pix_loss
            )
            sums += images * sums.new_tensor([output.loss, baseline, 1.0])
        total = cast(Tensor, self.accelerator.reduce(sums, reduction="sum"))
        loss, baseline, images = total.tolist()
        return {
            "eval_loss": loss / images,
            "eval_loss_mean_visible": baseline / images,
            "eval_images": int(images),
        }


def _pictures(source: ImageSource, num_channels: int) -> list[Tensor]:
    """Some images, spread evenly over the source: uint8 (C, H, W) each."""
    indices = range(0, len(source), -(-len(source) // NUM_PICTURES))
    records = [source[index] for index in indices]
    return [decode(record.encoded, num_channels, record.name) for record in records]
