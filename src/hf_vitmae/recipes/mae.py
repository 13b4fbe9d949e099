"""MAE pretraining (arXiv:2111.06377, appendix A): ViT-Ti to ViT-H, and small ones for a CPU.

The paper's batch of 4096 is images of all processes and accumulation steps together, as
`--effective-batch` says it, whatever the hardware; the learning rate follows whatever batch there
is. None of the large recipes has been run to its end by this project: no result is claimed.
"""

from pathlib import Path

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.models.configuration_vitmae import SIZES
from hf_vitmae.tasks.pretrain import ModelConfig, PretrainRecipe
from hf_vitmae.training.optim import OptimConfig

EPOCHS, WARMUP_EPOCHS = 800, 40


def mae_model(size: str) -> ModelConfig:
    """The encoder of that size with the paper's decoder, for images of 224 pixels."""
    width, layers, heads, mlp, patch = SIZES[size]
    return ModelConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        decoder_hidden_size=512,
        decoder_num_hidden_layers=8,
        decoder_num_attention_heads=16,
        decoder_intermediate_size=2048,
        patch_size=patch,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )


def _mae(size: str) -> PretrainRecipe:
    warmup_share = WARMUP_EPOCHS / EPOCHS
    return PretrainRecipe(
        model=mae_model(size),
        data=DataConfig(num_workers=8),
        augment=AugmentConfig(crop_scale=(0.2, 1.0), horizontal_flip=0.5),
        optim=OptimConfig(
            base_lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_share=warmup_share
        ),
        epochs=EPOCHS,
        batch_size=64,
        output_dir=Path(f"runs/mae-{size}"),
    )


def mae_tiny() -> PretrainRecipe:
    """MAE ViT-Ti/16, 800 epochs; the paper has no such size, the recipe is that of its ViT-B.

    Run: accelerate launch scripts/pretrain.py mae-tiny --data.source F --effective-batch 4096
    """
    return _mae("tiny")


def mae_small() -> PretrainRecipe:
    """MAE ViT-S/16, 800 epochs; the paper has no such size, the recipe is that of its ViT-B.

    Run: accelerate launch scripts/pretrain.py mae-small --data.source F --effective-batch 4096
    """
    return _mae("small")


def mae_base() -> PretrainRecipe:
    """MAE ViT-B/16, 800 epochs, 40 of them warm-up (the paper after 1600, fine-tuned: 83.6 % on
    ImageNet-1k).

    Run: accelerate launch scripts/pretrain.py mae-base --data.source F --effective-batch 4096
    """
    return _mae("base")


def mae_large() -> PretrainRecipe:
    """MAE ViT-L/16, 800 epochs, 40 of them warm-up (the paper, fine-tuned: 85.4 % after 800, 85.9 %
    after 1600).

    Run: accelerate launch scripts/pretrain.py mae-large --data.source F --effective-batch 4096
    """
    return _mae("large")


def mae_huge() -> PretrainRecipe:
    """MAE ViT-H/14, 800 epochs, 40 of them warm-up (the paper after 1600, fine-tuned: 86.9 %).

    Run: accelerate launch scripts/pretrain.py mae-huge --data.source F --effective-batch 4096
    """
    return _mae("huge")


def small_model(image_size: int = 32, patch_size: int = 4) -> ModelConfig:
    """An encoder of 0.8 M parameters and a decoder of 0.1 M, for small images on a CPU."""
    return ModelConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        decoder_hidden_size=96,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=384,
        image_size=image_size,
        patch_size=patch_size,
    )


def mae_cpu() -> PretrainRecipe:
    """A small MAE on 32x32 pictures that learns shapes and colours in minutes on two CPU cores.

    Measured on the embedded emoji: held-out masked error 0.141; painting hidden
    patches in the mean visible colour gives 0.289. 100 s on two cores.
    Run: hf-vitmae pretrain mae-cpu --data.source emoji
    """
    return PretrainRecipe(
        model=small_model(),
        data=DataConfig(source="emoji", num_workers=1),
        augment=AugmentConfig(crop_scale=(0.8, 1.0)),
        optim=OptimConfig(base_lr=1.6e-2, warmup_share=0.1, clip_grad_norm=1.0),
        steps=1000,
        batch_size=32,
        log_every=100,
        checkpoint_every=500,
        output_dir=Path("runs/mae-cpu"),
    )


def smoke() -> PretrainRecipe:
    """Every part of pretraining once, in seconds on a CPU; it learns nothing worth having.

    Run: hf-vitmae pretrain smoke
    """
    return PretrainRecipe(
        model=ModelConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
            image_size=32,
            patch_size=8,
        ),
        data=DataConfig(source="emoji", num_workers=0),
        optim=OptimConfig(base_lr=1e-2, warmup_share=0.2),
        steps=10,
        batch_size=8,
        log_every=2,
        checkpoint_every=5,
        eval_images=64,
        output_dir=Path("runs/smoke-pretrain"),
    )
