"""Checkpoints that are whole or absent: safetensors and JSON, never a pickle.

`step-<8 digits>/` holds model.safetensors, optimizer.safetensors with optimizer.json, state.json,
and MANIFEST.json with the size and sha256 of each. A checkpoint is written under a temporary name,
flushed to the disk and renamed; only then are older ones removed. A damaged one is passed over for
the one before it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

MODEL, OPTIMIZER, SCALARS, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "state.json",
    "MANIFEST.json",
)

_FOLDER = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".unfinished-"

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer, state: dict, keep: int = 2
) -> Path:
    """Write `folder/step-<step>/` whole or not at all; keep the newest `keep`.

    Those of later steps are removed too: a run that resumed below them found them damaged.

    Args:
        state: what else resuming needs; anything that JSON holds.
    """
    remove_leftovers(folder)
    target = folder / f"step-{step:08d}"
    temporary = folder / f"{_TEMPORARY}{target.name}"
    temporary.mkdir(parents=True)
    tensors, scalars = _optimizer_state(model, optimizer)
    save_file(_storable(model.state_dict()), temporary / MODEL)
    save_file(_storable(tensors), temporary / OPTIMIZER)
    _write_json(temporary / SCALARS, scalars)
    _write_json(temporary / STATE, state)
    _write_json(temporary / MANIFEST, {path.name: _digest(path) for path in _files(temporary)})
    for path in [*_files(temporary), temporary]:
        _flush(path)
    if target.exists():  # a damaged one, or the same step written again
        _remove(target)
    temporary.rename(target)
    _flush(folder)
    _prune(folder, step, keep)
    return target


def latest_good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that matches its manifest, or None if there is no checkpoint at all.

    Raises:
        ValueError: if there are checkpoints and all are damaged; never a silent fresh start.
    """
    checkpoints = sorted(_checkpoints(folder).items(), reverse=True)
    for _, path in checkpoints:
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("Checkpoint %s is damaged (%s); trying the one before it.", path, damage)
    if checkpoints:
        raise ValueError(
            f"Every checkpoint in {folder} is damaged; restore one of them, "
            "or start again in another --output-dir."
        )
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> dict:
    """Load weights and optimiser state in place, strictly, and return the `state` that was saved.

    Raises:
        ValueError: naming the first tensors that are missing, left over or of another shape;
            nothing is then loaded.
    """
    weights = load_file(path / MODEL)
    tensors = load_file(path / OPTIMIZER)
    scalars = json.loads((path / SCALARS).read_text())
    _check_names(path, weights, model.state_dict())
    per_parameter = _by_parameter(path, {**tensors, **scalars}, model, optimizer)
    model.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})
    return json.loads((path / STATE).read_text())


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left behind."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None if it matches its manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest.items():
            if _digest(path / name) != expected:
                return f"{name} is not what {MANIFEST} says"
        missing = {MODEL, OPTIMIZER, SCALARS, STATE} - manifest.keys()
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"unreadable: {error}"
    return f"{MANIFEST} does not list {min(missing)}" if missing else None


def _optimizer_state(
    model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """The state of each parameter as "<what>/<parameter name>": tensors, and what is no tensor."""
    tensors, scalars = {}, {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            kind = tensors if isinstance(value, Tensor) else scalars
            kind[f"{key}/{name}"] = value
    return tensors, scalars


def _by_parameter(path: Path, saved: dict, model: nn.Module, optimizer: Optimizer) -> dict:
    """Saved state by the parameter's place in the optimiser, for `Optimizer.load_state_dict`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    places = {names[id(parameter)]: place for place, parameter in enumerate(parameters)}
    state: dict[int, dict] = {}
    for full_name, value in saved.items():
        key, name = full_name.split("/", maxsplit=1)
        if name not in places:
            raise ValueError(
                f"{path} has optimiser state for {name}, which this run does not train; "
                "start it again in another --output-dir."
            )
        state.setdefault(places[name], {})[key] = value
    return state


def _check_names(path: Path, saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for problem, names in (
        ("lacks", wanted.keys() - saved.keys()),
        ("has, but the model does not,", saved.keys() - wanted.keys()),
        (
            "has another shape of",
            {n for n in wanted.keys() & saved.keys() if wanted[n].shape != saved[n].shape},
        ),
    ):
        if names:
            raise ValueError(
                f"{path} {problem} {', '.join(sorted(names)[:3])} ({len(names)} in all); "
                "it belongs to another model: use another --output-dir."
            )


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, and none sharing memory with another, which safetensors refuses."""
    storable, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage().data_ptr()
        storable[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return storable


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint, damaged or not."""
    matches = [(_FOLDER.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return {int(match[1]): path for match, path in matches if match and path.is_dir()}


def _prune(folder: Path, newest: int, keep: int) -> None:
    checkpoints = _checkpoints(folder)
    kept = sorted(step for step in checkpoints if step <= newest)[-keep:]
    for step in checkpoints.keys() - set(kept):
        _remove(checkpoints[step])


def _remove(checkpoint: Path) -> None:
    """Take the name away first: a removal that is interrupted leaves no half checkpoint."""
    doomed = checkpoint.rename(checkpoint.with_name(f"{_TEMPORARY}removed-{checkpoint.name}"))
    shutil.rmtree(doomed)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _digest(path: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
