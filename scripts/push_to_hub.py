"""Share what a run made on the Hub: weights, configuration, code, card, metrics, pictures at once.

    python scripts/push_to_hub.py runs/a user/name
    python scripts/push_to_hub.py runs/a/model name --organization team --private
    python scripts/push_to_hub.py runs/a user/name --create-pr --license apache-2.0
    python scripts/push_to_hub.py --help

It does what `hf-vitmae push` does.
"""

import sys
from pathlib import Path

from hf_vitmae.cli import run_script

if __name__ == "__main__":
    # The verb is `push`, while the script is called as those of other libraries are.
    sys.exit(run_script(str(Path(__file__).with_name("push.py"))))
