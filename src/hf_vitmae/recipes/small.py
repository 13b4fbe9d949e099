"""For small data: hundreds to tens of thousands of small images, and one or two CPU cores.

Both recipes were tried on the embedded emoji (32x32, colour), `defects` (48x48, gray) and `bands`
(32x32, eight channels), and on nothing else.
"""

from pathlib import Path

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.tasks.finetune import FinetuneRecipe
from hf_vitmae.tasks.pretrain import ModelConfig, PretrainRecipe
from hf_vitmae.training.optim import OptimConfig


def small_data_model() -> ModelConfig:
    """An encoder of 0.45 M parameters and a decoder of 0.06 M: 64 patches, 16 of them visible."""
    return ModelConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=384,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=256,
        image_size=32,
        patch_size=4,
        norm_pix_loss=True,
    )


def mae_small_data() -> PretrainRecipe:
    """A small MAE for small images of any number of channels, normalised by their own statistics.

    Tried for 500 steps on `emoji`, `defects` and `bands`, by linear probes of the features on 600
    held-out training images (one seed; standard error 0.02), with 5 labels a class and with all.
    Targets normalised by patch against plain ones: 0.44 and 0.77 against 0.34 and 0.74 on `bands`,
    no difference beyond chance on `emoji` (0.31 and 0.60 against 0.32 and 0.61) and `defects` (0.13
    and 0.24 against 0.16 and 0.26). On `defects`, hiding half of the patches (0.14 and 0.22) or
    patches of 6 in place of 8 pixels (0.16 and 0.26) changed little. Learning rate, crops and
    sizes were not searched. What it is worth with few labels: docs/low_labels.md.
    Run: hf-vitmae pretrain mae-small-data --data.source FOLDER --model.num-channels 1
    """
    return PretrainRecipe(
        model=small_data_model(),
        data=DataConfig(source="emoji", stats="auto", num_workers=1),
        augment=AugmentConfig(crop_scale=(0.6, 1.0)),
        optim=OptimConfig(base_lr=1.6e-2, warmup_share=0.1, clip_grad_norm=1.0),
        steps=3000,
        batch_size=32,
        log_every=100,
        checkpoint_every=500,
        output_dir=Path("runs/mae-small-data"),
    )


def finetune_small_data() -> FinetuneRecipe:
    """For a model of `mae-small-data` and a few labels of each class: the numbers of `finetune-cpu`
    but for the length.

    Its learning rate should be searched: docs/low_labels.md says which ones were best, and what it
    reached.
    Run: hf-vitmae finetune finetune-small-data --model RUN/model --data.source FOLDER
    """
    return FinetuneRecipe(
        model="runs/mae-small-data/model",
        data=DataConfig(source="emoji", num_workers=1),
        augment=AugmentConfig(crop_scale=(0.6, 1.0)),
        optim=OptimConfig(base_lr=1.6e-2, betas=(0.9, 0.999), layer_decay=0.75, warmup_share=0.1),
        drop_path_rate=0.1,
        label_smoothing=0.1,
        steps=100,
        batch_size=32,
        output_dir=Path("runs/finetune-small-data"),
    )
