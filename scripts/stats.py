"""Look through your images before a run: sizes, bad files, duplicates, classes, mean and deviation.

    python scripts/stats.py photos -o stats.json
    python scripts/stats.py photos --sheet sheet.png --augment.color-jitter 0.4 0.4 0.4 0.1
    python scripts/pretrain.py mae-base --data.source photos --data.stats stats.json
    python scripts/stats.py --help

It does what `hf-vitmae stats` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
