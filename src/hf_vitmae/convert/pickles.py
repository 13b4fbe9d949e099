"""Checkpoint files of torch, opened without running what is in them.

A pickle may name any function for its reader to call. Only torch's own list of harmless ones is
read, and `argparse.Namespace`, in which training scripts keep their options.
"""

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def load_pickle(path: str | Path) -> dict[str, Any]:
    """The content of a .pth, .pt or .bin file, or the tensors of a .safetensors file, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that names something to execute, is damaged, or holds no dict; one
        line.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise FileNotFoundError(f"{path} is {kind}; name the file of a checkpoint.")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__} and not a dict of tensors; save the model's "
            "`state_dict()`."
        )
    return content


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(_damaged(path, error)) from error


def _load_torch(path: Path) -> Any:
    try:
        # Files of old releases make torch warn of its own storage classes.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise of every kind on damaged files
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} is refused: it names `{named[1]}`, which a file of weights does not need; "
                "nothing in it was executed."
            ) from error
        raise ValueError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    # torch's own advice, to load without `weights_only`, comes before what it found.
    reason = (str(error).strip() or type(error).__name__).split("WeightsUnpickler error: ")[-1]
    reason = reason.strip().splitlines()[0].split(". ")[0].rstrip(".")
    return f"{path} is truncated, damaged or no file of weights ({reason:.100}); fetch it anew."
