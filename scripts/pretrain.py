"""Pretrain on your own images: a masked autoencoder, masked patch or next patch prediction.

    python scripts/pretrain.py mae-cpu --data.source emoji --output-dir runs/a
    python scripts/pretrain.py next-patch-cpu --data.source emoji --output-dir runs/b
    accelerate launch scripts/pretrain.py mae-base --data.source FOLDER --output-dir runs/c
    python scripts/pretrain.py --help

The same command again resumes; it does what `hf-vitmae pretrain` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
