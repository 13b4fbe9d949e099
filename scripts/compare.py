"""Did pretraining help on your images? Models side by side, with few labels and several draws.

    python scripts/compare.py photos --models runs/a/model random pixels --data.eval-share 0.2
    python scripts/compare.py emoji --models runs/a/model runs/b/model random --seeds 5
    python scripts/compare.py --help

The same command again goes on where it stopped; it does what `hf-vitmae compare` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
