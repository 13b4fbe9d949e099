"""Classify images by the nearest neighbours among a model's features.

    python scripts/knn.py --model runs/a/model --data.source emoji
    python scripts/knn.py --help

It does what `hf-vitmae knn` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
