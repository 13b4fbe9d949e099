"""Fine-tune a pretrained model for classification or semantic segmentation.

    python scripts/finetune.py finetune-cpu --model runs/a/model --data.source emoji
    python scripts/finetune.py segment-cpu --model runs/a/model --data.source shapes
    accelerate launch scripts/finetune.py finetune-base --model runs/c/model --data.source FOLDER
    python scripts/finetune.py --help

The same command again resumes; it does what `hf-vitmae finetune` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
