"""What a run notes of where it began, for the card of its model."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hf_vitmae.benchmarks.clock import device_name
from hf_vitmae.whole_or_absent import write_whole

FILE = "environment.json"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy", "hf-vitmae")


def note_environment(run: Path, device: torch.device) -> None:
    """Write the device's name and the packages' versions into a run's folder, unless a run that is
    resumed here has done so.
    """
    path = run / FILE
    if path.exists():
        return
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue  # on a path, not installed
    noted = {"device_name": device_name(device), "versions": versions}
    write_whole(path, json.dumps(noted, indent=2) + "\n")
