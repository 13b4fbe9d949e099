"""Measure a classifier or a segmentation model on labelled images.

    python scripts/evaluate.py --model runs/b/model --data.source photos --data.split test
    python scripts/evaluate.py --model runs/b/model --data.source emoji --output-dir evaluation
    python scripts/evaluate.py --help

It does what `hf-vitmae evaluate` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
