"""What `hf-vitmae doctor RUN` says: the checkpoints, the log, and what would be resumed."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_vitmae.data.order import num_steps
from hf_vitmae.tasks.doctor_machine import Finding, amount
from hf_vitmae.training.checkpoint import STATE, checkpoints, find_damage
from hf_vitmae.training.run_folder import RunFolder, whole_lines
from hf_vitmae.training.run_lock import lock_holder

Log = Sequence[dict[str, Any]]


def open_run(path: Path) -> RunFolder:
    """The run in a folder.

    Raises:
        ValueError: if there is none.
    """
    run = RunFolder(path)
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}; give the --output-dir of a run.")
    try:
        run.read_recipe()
    except ValueError as error:
        raise ValueError(
            f"{path} is not the folder of a run (no readable recipe.yaml); give its --output-dir."
        ) from error
    return run


def examine_run(run: RunFolder) -> Iterator[Finding]:
    """Everything that is known of the run; the checks of checkpoints take the time."""
    recipe = run.read_recipe()
    yield Finding("recipe", "ok", f"{recipe['task']}, in {run.recipe}")
    holder = lock_holder(run.path)
    if holder is None:
        yield Finding("lock", "ok", "free")
    else:
        yield Finding("lock", "in use", f"by {holder}", "wait for it or stop it before a new start")
    damages: dict[int, str | None] = {}
    found = checkpoints(run.checkpoints)
    for step, path in sorted(found.items()):
        damage, size = find_damage(path), _size(path)
        if not path.exists():
            continue  # the run goes on, and removed it meanwhile
        damages[step] = damage
        yield _checkpoint(path, damage, size)
    good = [step for step, damage in damages.items() if damage is None]
    state = _state(found[max(good)]) if good else {}
    log, log_finding = _read_log(run)
    total = _total_steps(recipe, state)
    yield _steps(log, good, total)
    yield _resume(damages, good, total)
    yield log_finding
    yield _bad_images(run)
    yield from _leftovers(run, is_running=holder is not None)
    yield _room(run, [_size(found[step]) for step in good])
    has_model = (run.model / "config.json").exists()
    words = f"in {run.model}" if has_model else "comes at the end of the run"
    yield Finding("model", "ok" if has_model else "-", words)


def _checkpoint(path: Path, damage: str | None, size: int) -> Finding:
    if damage is None:
        return Finding(path.name, "ok", f"{amount(size)}, every file as it was written")
    return Finding(path.name, "damaged", f"{amount(size)}, {damage}")


def _state(checkpoint: Path) -> dict[str, Any]:
    """Where the run stood, as a checkpoint says; empty if it does not."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["run"])
    return {}


def _total_steps(recipe: dict[str, Any], state: dict[str, Any]) -> int | None:
    """Steps of the whole run; of one that counts epochs only a checkpoint knows them."""
    if recipe.get("steps") is not None:
        return recipe["steps"]
    num_samples, batch = state.get("num_samples"), state.get("effective_batch")
    if recipe.get("epochs") and num_samples and batch:
        return num_steps(recipe["epochs"], num_samples, batch)
    return None


def _steps(log: Log, good: Sequence[int], total: int | None) -> Finding:
    logged = max((record["step"] for record in log if "step" in record), default=0)
    done = max([logged, *good])
    of_all = "" if total is None else f" of {total}"
    return Finding("steps", "ok", f"{done}{of_all} done, as log and checkpoints say")


def _resume(damages: dict[int, str | None], good: Sequence[int], total: int | None) -> Finding:
    """Which checkpoint the next start takes, and why."""
    if not damages:
        return Finding("resumes", "-", "from the beginning: there is no checkpoint")
    if not good:
        words = f"not at all: all {len(damages)} checkpoints are damaged"
        mend = "restore one of them, or start again in another --output-dir"
        return Finding("resumes", "damaged", words, mend, is_fatal=True)
    step = max(good)
    later = [damaged for damaged in damages if damaged > step]
    why = "the newest checkpoint"
    if later:
        why = f"the newest that is whole; damaged later ones: {', '.join(map(str, later))}"
    if total is not None and step >= total:
        return Finding("resumes", "-", f"nothing: the checkpoint of step {step} is the end")
    return Finding("resumes", "ok", f"at step {step}, {why}")


def _read_log(run: RunFolder) -> tuple[Log, Finding]:
    """The lines of metrics.jsonl, and what they say of numbers that are not finite."""
    try:
        log = run.read_metrics()
    except (OSError, ValueError, AttributeError) as error:
        return [], Finding("log", "damaged", f"{run.metrics} cannot be read: {error}")
    losses = [record for record in log if record.get("loss") is not None]
    bad = [record["step"] for record in losses if not _is_finite(record["loss"])]
    skipped = max((record.get("skipped_steps", 0) for record in log), default=0)
    words = f"{len(losses)} logged losses, {len(bad)} of them not finite"
    if bad:
        words += f" (the first at step {bad[0]})"
    if skipped:
        words += f"; {skipped} steps were skipped as they were not finite"
    if not bad and not skipped:
        return log, Finding("log", "ok", words)
    mend = "look for broken images, lower --optim.base-lr, or set --optim.clip-grad-norm"
    return log, Finding("log", "warning", words, mend)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _bad_images(run: RunFolder) -> Finding:
    if not run.bad_images.exists():
        return Finding("bad images", "ok", "none")
    lines = whole_lines(run.bad_images.read_text(encoding="utf-8", errors="replace"))
    counts = Counter(line.get("split", "unknown") for line in lines)
    words = ", ".join(f"{count} of {split}" for split, count in counts.items())
    if not counts:
        return Finding("bad images", "ok", "none")
    return Finding("bad images", "warning", words, f"see {run.bad_images}")


def _leftovers(run: RunFolder, is_running: bool) -> Iterator[Finding]:
    """What interrupted writes left behind."""
    known = set(checkpoints(run.checkpoints).values())
    paths = [*run.path.glob(".*.unfinished")]
    if run.checkpoints.is_dir():
        paths += [path for path in run.checkpoints.iterdir() if path not in known]
    for path in sorted(paths):
        words = f"{path.relative_to(run.path)}, {amount(_size(path))}"
        if is_running:
            yield Finding("unfinished", "in use", f"{words}: it is being written")
        else:
            yield Finding("unfinished", "-", f"{words}: the next save removes it")


def _room(run: RunFolder, sizes: Sequence[int]) -> Finding:
    """Whether another checkpoint fits on the disk: it is whole before an older one goes."""
    free = shutil.disk_usage(run.path).free
    if not sizes:
        return Finding(
            "room", "-", f"{amount(free)} free; how much a checkpoint takes is not known"
        )
    words = f"{amount(free)} free, a checkpoint takes {amount(max(sizes))}"
    if free > max(sizes):
        return Finding("room", "ok", words)
    return Finding("room", "warning", words, "make room: the next save fails")


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    total = 0
    for file in [path, *path.rglob("*")]:
        with suppress(OSError):  # it went meanwhile
            total += file.lstat().st_size if not file.is_dir() else 0
    return total
