"""Draw what a pretrained model makes of images with hidden patches.

    python scripts/reconstruct.py runs/a/model photo.jpg other.png -o reconstruction.png
    python scripts/reconstruct.py runs/a/model photo.jpg --mask-ratio 0.5 --statistics visible
    python scripts/reconstruct.py --help

It does what `hf-vitmae reconstruct` does.
"""

import sys

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
