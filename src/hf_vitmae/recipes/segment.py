"""Fine-tuning for semantic segmentation, from any pretrained checkpoint.

Neither paper has such a recipe; the numbers follow their fine-tuning for classification. The large
one has not been run by this project: no result is claimed.
"""

from pathlib import Path

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.tasks.segment import SegmentRecipe
from hf_vitmae.training.optim import OptimConfig


def segment_base() -> SegmentRecipe:
    """ViT-B and smaller on pictures of 512 pixels: 100 epochs, layer decay 0.65, drop path 0.1.

    Run: accelerate launch scripts/finetune.py segment-base --model MODEL --data.source FOLDER
    --class-names background leaf stem
    """
    return SegmentRecipe(
        data=DataConfig(num_workers=8),
        augment=AugmentConfig(crop_scale=(0.25, 1.0)),
        optim=OptimConfig(
            base_lr=1e-3,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            layer_decay=0.65,
            warmup_share=0.05,
            min_lr=1e-6,
        ),
        image_size=512,
        drop_path_rate=0.1,
        epochs=100,
        batch_size=16,
        output_dir=Path("runs/segment-base"),
    )


def segment_cpu() -> SegmentRecipe:
    """For a model of `mae-cpu`: drawn shapes with pixel labels, in minutes on two CPU cores.

    Its patches of 4 pixels become 8, since the shapes are twice as large as its pictures.
    Measured from `mae-cpu`'s 1,000 steps: mean IoU 0.846 on the 200 test pictures; 250 s on two
    cores.
    Run: hf-vitmae finetune segment-cpu --model runs/mae-cpu/model
    """
    return SegmentRecipe(
        model="runs/mae-cpu/model",
        data=DataConfig(source="shapes", num_workers=1),
        augment=AugmentConfig(crop_scale=(0.5, 1.0)),
        optim=OptimConfig(base_lr=1.6e-2, betas=(0.9, 0.999), warmup_share=0.1, clip_grad_norm=1.0),
        image_size=64,
        patch_size=8,
        head_width=64,
        steps=800,
        batch_size=32,
        log_every=100,
        output_dir=Path("runs/segment-cpu"),
    )


def smoke() -> SegmentRecipe:
    """Every part of segmentation once, in seconds on a CPU, from what `pretrain smoke` made.

    Run: hf-vitmae finetune smoke-segment
    """
    return SegmentRecipe(
        model="runs/smoke-pretrain/model",
        data=DataConfig(source="shapes", num_workers=0),
        optim=OptimConfig(base_lr=1e-2, layer_decay=0.75, warmup_share=0.2),
        steps=10,
        batch_size=8,
        log_every=2,
        checkpoint_every=5,
        eval_images=32,
        output_dir=Path("runs/smoke-segment"),
    )
