"""Linear probing: the paper's (arXiv:2111.06377, appendix A), and one for few labels.

No result is claimed for `linear-probe`: it has not been run on ImageNet by this project.
"""

from pathlib import Path

from hf_vitmae.data.config import DataConfig
from hf_vitmae.tasks.linear_probe import LinearProbeRecipe


def linear_probe() -> LinearProbeRecipe:
    """The paper's: LARS, 90 epochs of batch 16384, base learning rate 0.1 and others beside it,
    warm-up of 10 epochs, no weight decay, CLS token, batch norm without affine map.

    The paper crops each image anew in every epoch; here 8 random crops of each are embedded, and
    the epochs take turns over them. Below some 100,000 images 90 epochs are few steps: take
    `linear-probe-few`, or more epochs.

    Run: hf-vitmae linear-probe linear-probe --model MODEL --data.source FOLDER
    """
    return LinearProbeRecipe(
        data=DataConfig(num_workers=8),
        solver="lars",
        base_lrs=(0.03, 0.1, 0.3, 1.0),
        batch_size=16384,
        epochs=90,
        warmup_epochs=10,
        momentum=0.9,
        weight_decay=0.0,
        pooling="cls",
        views=8,
        validation_share=0.02,
        output_dir=Path("runs/linear-probe"),
    )


def linear_probe_few() -> LinearProbeRecipe:
    """For up to a few thousand labels: the exact optimum, its L2 penalty chosen by five-fold
    cross-validation on the labels that there are; mean of the patch tokens.

    Run: hf-vitmae linear-probe linear-probe-few --model MODEL --data.source FOLDER
    """
    return LinearProbeRecipe(
        solver="exact",
        strengths=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        folds=5,
        pooling="mean",
        output_dir=Path("runs/linear-probe-few"),
    )


def smoke() -> LinearProbeRecipe:
    """Every part of linear probing once, in seconds on a CPU, on what `pretrain smoke` made.

    Run: hf-vitmae linear-probe smoke
    """
    return LinearProbeRecipe(
        model="runs/smoke-pretrain/model",
        data=DataConfig(source="emoji", num_workers=0, samples_per_class=10),
        base_lrs=(0.1, 3.0, 10.0),
        epochs=20,
        warmup_epochs=2,
        batch_size=64,
        views=2,
        images_per_part=64,
        log_every=5,
        checkpoint_every=5,
        output_dir=Path("runs/smoke-linear-probe"),
    )
