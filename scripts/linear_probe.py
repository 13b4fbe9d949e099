"""Train a linear classifier on the features of a model that stays as it is.

    python scripts/linear_probe.py linear-probe --model runs/a/model --data.source FOLDER
    python scripts/linear_probe.py linear-probe-few --model runs/a/model --data.source emoji
    python scripts/linear_probe.py --help

The same command again resumes; it does what `hf-vitmae linear-probe` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
