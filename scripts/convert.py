"""Make a checkpoint of another library one of ours, or ours one of theirs.

    python scripts/convert.py mae_pretrain_vit_base_full.pth mae-base
    python scripts/convert.py runs/a/model vit --to transformers
    python scripts/convert.py --help

It does what `hf-vitmae convert` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
