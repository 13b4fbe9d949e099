"""End-to-end fine-tuning for classification (arXiv:2111.06377, appendix A, and its code for drop
path).

Layer-wise decay, drop path, mean pooling, label smoothing, RandAugment, erasing, mixup and cutmix
are the paper's. Its batch of 1024 is images of all processes and accumulation steps together, as
`--effective-batch` says it, whatever the hardware. None of the large recipes has been run to its
end by this project: no result is claimed.
"""

from pathlib import Path

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.tasks.finetune import FinetuneRecipe
from hf_vitmae.training.optim import OptimConfig

WARMUP_EPOCHS = 5


def _finetune(
    name: str, base_lr: float, layer_decay: float, drop_path: float, epochs: int
) -> FinetuneRecipe:
    return FinetuneRecipe(
        data=DataConfig(num_workers=8),
        augment=AugmentConfig(
            crop_scale=(0.08, 1.0), rand_augment=9, erasing=0.25, mixup=0.8, cutmix=1.0
        ),
        optim=OptimConfig(
            base_lr=base_lr,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            layer_decay=layer_decay,
            warmup_share=WARMUP_EPOCHS / epochs,
            min_lr=1e-6,
        ),
        drop_path_rate=drop_path,
        label_smoothing=0.1,
        epochs=epochs,
        batch_size=32,
        output_dir=Path(f"runs/{name}"),
    )


def finetune_base() -> FinetuneRecipe:
    """ViT-B and smaller: 100 epochs (5 of warm-up), layer decay 0.65, drop path 0.1.

    The base learning rate is the 5e-4 of the paper's code for ViT-B; the paper says 1e-3.
    Run: accelerate launch scripts/finetune.py finetune-base --model MODEL --data.source FOLDER
    --effective-batch 1024
    """
    return _finetune("finetune-base", 5e-4, 0.65, 0.1, 100)


def finetune_large() -> FinetuneRecipe:
    """ViT-L: 50 epochs (5 of warm-up), base learning rate 1e-3, layer decay 0.75, drop path 0.2.

    Run: accelerate launch scripts/finetune.py finetune-large --model MODEL --data.source FOLDER
    --effective-batch 1024
    """
    return _finetune("finetune-large", 1e-3, 0.75, 0.2, 50)


def finetune_huge() -> FinetuneRecipe:
    """ViT-H: 50 epochs (5 of warm-up), base learning rate 1e-3, layer decay 0.75, drop path 0.3.

    Run: accelerate launch scripts/finetune.py finetune-huge --model MODEL --data.source FOLDER
    --effective-batch 1024
    """
    return _finetune("finetune-huge", 1e-3, 0.75, 0.3, 50)


def finetune_cpu() -> FinetuneRecipe:
    """For a model of `mae-cpu`: a few hundred steps on two CPU cores, few labels.

    Run: hf-vitmae finetune finetune-cpu --model runs/mae-cpu/model --data.source emoji
    """
    return FinetuneRecipe(
        model="runs/mae-cpu/model",
        data=DataConfig(source="emoji", num_workers=1),
        augment=AugmentConfig(crop_scale=(0.6, 1.0)),
        optim=OptimConfig(base_lr=1.6e-2, betas=(0.9, 0.999), layer_decay=0.75, warmup_share=0.1),
        drop_path_rate=0.1,
        label_smoothing=0.1,
        steps=300,
        batch_size=32,
        output_dir=Path("runs/finetune-cpu"),
    )


def smoke() -> FinetuneRecipe:
    """Every part of fine-tuning once, in seconds on a CPU, from what `pretrain smoke` made.

    Run: hf-vitmae finetune smoke
    """
    return FinetuneRecipe(
        model="runs/smoke-pretrain/model",
        data=DataConfig(source="emoji", num_workers=0),
        optim=OptimConfig(base_lr=1e-2, layer_decay=0.75, warmup_share=0.2),
        steps=10,
        batch_size=8,
        log_every=2,
        checkpoint_every=5,
        eval_images=64,
        output_dir=Path("runs/smoke-finetune"),
    )
