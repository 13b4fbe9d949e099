"""Write a model as an ONNX graph or a program of torch.export, for batches of any size.

    python scripts/export.py runs/a/model exported
    python scripts/export.py runs/a/model encoder --what features --format torch
    python scripts/export.py --help

It does what `hf-vitmae export` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
