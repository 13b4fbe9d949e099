"""Checkpoints that are whole or absent: safetensors and JSON, never a pickle.

`step-<8 digits>/` holds model.safetensors, ema.safetensors if weights are averaged,
optimizer.safetensors with optimizer.json, state.json, and MANIFEST.json with the size and sha256 of
each. A checkpoint is written under a temporary name, flushed to the disk and renamed; only then are
older ones removed. A damaged one is passed over for the one before it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.training.checkpoint_tensors import (
    Files,
    check_tensors,
    fill,
    gather,
    optimizer_state,
    read_optimizer_state,
)

MODEL, EMA, OPTIMIZER, SCALARS, STATE, MANIFEST = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "state.json",
    "MANIFEST.json",
)
FILES = (MODEL, EMA, OPTIMIZER, SCALARS, STATE, MANIFEST)  # all that a checkpoint may hold

_FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")
_TEMPORARY = ".unfinished-"
_REPLACED = ".replaced"  # a checkpoint whose place another one of its step is taking
_ROOM_BESIDE_TENSORS = 2**20  # bytes: headers, names and JSON

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: dict,
    keep: int = 2,
    *,
    ema: Mapping[str, Tensor] | None = None,
    protect: Collection[int] = (),
    is_main: bool = True,
) -> Path:
    """Write `folder/step-<step>/` whole or not at all; keep the newest `keep`.

    Those of later steps are removed too: a run that resumed below them found them damaged. Every
    process of a sharded run has to call this; the files are those of a run in one process.

    Args:
        state: what else resuming needs; anything that JSON holds.
        ema: averaged weights.
        protect: steps whose checkpoints stay beside the newest.
        is_main: the process that writes; the others only give their parts of the tensors.

    Raises:
        FloatingPointError: if a tensor holds nan or inf; nothing is then written.
        OSError: if the checkpoint cannot be written; older ones are as they were.
    """
    target = folder / f"step-{step:08d}"
    # First of all, as this makes FSDP2 put the sharded parameters, which the optimiser knows, back
    # in the model.
    weights = model.state_dict()
    tensors, scalars = optimizer_state(model, optimizer)
    averaged = {} if ema is None else {EMA: ema}
    files = gather({MODEL: weights, **averaged, OPTIMIZER: tensors}, keep=is_main)
    if is_main:
        needed = _ROOM_BESIDE_TENSORS + sum(t.nbytes for f in files.values() for t in f.values())
        try:
            remove_leftovers(folder)  # which may take the room
            _check_room(folder, needed)
            _write(target, files, {SCALARS: scalars, STATE: state})
        except (OSError, SafetensorError) as error:
            raise _not_written(target, needed, error) from error
        _prune(folder, step, keep, protect)
    return target


def latest_good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that matches its manifest, or None if there is no checkpoint at all.

    Raises:
        ValueError: if there are checkpoints and all are damaged; never a silent fresh start.
    """
    found = checkpoints(folder)
    for path in reversed(found.values()):
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("Checkpoint %s is damaged (%s); trying the one before it.", path, damage)
    if found:
        raise ValueError(
            f"Every checkpoint in {folder} is damaged; restore one of them, "
            "or start again in another --output-dir."
        )
    return None


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    ema: Mapping[str, Tensor] | None = None,
) -> dict:
    """Load weights and optimiser state in place, strictly, and return the `state` that was saved.

    Model and optimiser may be sharded, whether or not those that were saved were.

    Args:
        ema: averaged weights, to be filled.

    Raises:
        ValueError: if the files are not there, or naming the first tensors that are missing, left
            over or of another shape; nothing is then loaded.
    """
    if not (path / MANIFEST).is_file():
        raise ValueError(
            f"{path} is not there for this process; processes must share the run's folder "
            "(network storage)."
        )
    weights = model.state_dict()  # first of all, as in `save_checkpoint`
    check_tensors(path / MODEL, weights)
    _check_ema(path, ema)
    per_parameter = read_optimizer_state(path / OPTIMIZER, path / SCALARS, model, optimizer)
    fill(path / MODEL, weights)
    if ema is not None:
        fill(path / EMA, ema)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})
    return json.loads((path / STATE).read_text())


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint, damaged or not, in order of steps."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*"), reverse=True):  # a replaced one before its successor
        match = _FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


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


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left behind; what cannot be removed waits for the next time.

    A checkpoint that was about to be replaced goes if its successor is there, and else gets its
    name back.
    """
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"step-*{_REPLACED}"):
        place = path.with_name(path.name.removesuffix(_REPLACED))
        if place.exists():
            _remove(path)
        else:
            path.rename(place)


def _write(target: Path, files: Files, texts: Mapping[str, object]) -> None:
    folder = target.parent
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _flush(folder.parent)
    temporary = folder / f"{_TEMPORARY}{target.name}"
    try:
        temporary.mkdir()
        for name, value in texts.items():
            _write_json(temporary / name, value)
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
            shutil.copymode(temporary / STATE, temporary / name)  # else the owner's alone
        _write_json(temporary / MANIFEST, {path.name: _digest(path) for path in _files(temporary)})
        for path in [*_files(temporary), temporary]:
            _flush(path)
        _put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(temporary: Path, target: Path) -> None:
    """Give a checkpoint its name; one that has it steps aside until then, never out of sight."""
    replaced = target.with_name(target.name + _REPLACED)
    if target.exists():  # a damaged one, or the same step written again
        target.rename(replaced)
    temporary.rename(target)
    _flush(target.parent)
    if replaced.exists():
        _remove(replaced)


def _check_room(folder: Path, needed: int) -> None:
    """Fail before anything is written, as far as the disk tells: quotas show up only later."""
    usage = shutil.disk_usage(_nearest_existing(folder))
    if usage.total and usage.free < needed:  # network storage may tell nothing: zeros
        raise OSError("not enough room")


def _not_written(target: Path, needed: int, error: Exception) -> OSError:
    """The one line that says what happened, and what happens next."""
    free = shutil.disk_usage(_nearest_existing(target.parent)).free
    reason = getattr(error, "strerror", None) or error
    good = [s for s, path in checkpoints(target.parent).items() if find_damage(path) is None]
    resumes = f"resumes at step {max(good)}" if good else "starts from the beginning"
    return OSError(
        f"{target} could not be written ({reason}); it needs {_megabytes(needed)} and "
        f"{_megabytes(free)} is free. Older checkpoints are as they were: mend this, and the same "
        f"command {resumes}."
    )


def _prune(folder: Path, newest: int, keep: int, protect: Collection[int]) -> None:
    found = checkpoints(folder)
    upto_newest = [step for step in found if step <= newest]
    kept = {*upto_newest[-keep:], *(set(protect) & set(upto_newest))}
    for step in found.keys() - kept:
        _remove(found[step])


def _remove(checkpoint: Path) -> None:
    """Take the name away first: a removal that is interrupted leaves no half checkpoint."""
    doomed = checkpoint.with_name(f"{_TEMPORARY}removed-{checkpoint.name}")
    try:
        shutil.rmtree(checkpoint.rename(doomed))
    except OSError as error:  # the new one is safe: no reason to end a run
        logger.warning("The old checkpoint %s could not be removed: %s.", checkpoint, error)


def _check_ema(path: Path, ema: Mapping[str, Tensor] | None) -> None:
    if ema is not None and not (path / EMA).exists():
        raise ValueError(
            f"{path} has no averaged weights ({EMA}) and this run keeps some; set ema_decay to 0, "
            "as it was."
        )
    if ema is None and (path / EMA).exists():
        raise ValueError(
            f"{path} has averaged weights ({EMA}) and this run keeps none; set ema_decay as it was."
        )
    if ema is not None:
        check_tensors(path / EMA, ema)


def _nearest_existing(path: Path) -> Path:
    return next(parent for parent in [path, *path.absolute().parents] if parent.exists())


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


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
