"""Fine-tune a pretrained model for classification.

    python scripts/finetune.py finetune-cpu --model runs/a/model --data.source emoji --output-dir
    runs/b accelerate launch scripts/finetune.py finetune-base --model runs/c/model --data.source
    FOLDER --output-dir runs/d python scripts/finetune.py --help

The same command again resumes; it does what `hf-vitmae finetune` does.
"""

import sys

from hf_vitmae.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
