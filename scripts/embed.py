"""Write features of your images to parquet, which `datasets` opens.

    python scripts/embed.py runs/a/model photos -o features
    python scripts/embed.py runs/a/model user/dataset --split test --features patches -o tokens
    python scripts/embed.py --help

The same command again goes on where it stopped; it does what `hf-vitmae embed` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
