"""What this machine has for training, what is missing, and what a run would go on from.

Reads only: nothing is written, least of all into the run.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hf_vitmae import __version__
from hf_vitmae.tasks.doctor_machine import Finding, devices, speed, versions
from hf_vitmae.tasks.doctor_run import examine_run, open_run

NAME_WIDTH, STATE_WIDTH = 16, 8


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """Look at this machine: versions, devices, what is fast. At a run: what would be resumed."""

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a run, its `--output-dir`; every checkpoint in it is checked."""


def run(request: DoctorRequest) -> dict[str, list[Finding]]:
    """Print what was found, line by line, and return it by section.

    Raises:
        ValueError: if `request.run` is no run's folder, or has checkpoints and none that is whole.
    """
    folder = None if request.run is None else open_run(request.run)
    print(f"hf_vitmae {__version__}")
    disk = Path() if request.run is None else request.run
    sections = {"versions": versions(), "devices": devices(), "speed": speed(disk)}
    found = {title: _show(title, findings) for title, findings in sections.items()}
    if folder is not None:
        found["run"] = _show(f"run {folder.path}", examine_run(folder))
        if any(finding.is_fatal for finding in found["run"]):
            raise ValueError(
                f"no checkpoint of {folder.path} can be resumed; restore one of them, or start "
                "again in another --output-dir."
            )
    return found


def _show(title: str, findings: Iterable[Finding]) -> list[Finding]:
    """Print findings as they come: a long check shows how far it is."""
    print(f"\n{title}")
    shown = []
    for finding in findings:
        for line in _lines(finding):
            print(line, flush=True)
        shown.append(finding)
    return shown


def _lines(finding: Finding) -> Iterator[str]:
    yield f"  {finding.name:{NAME_WIDTH}}  {finding.state:{STATE_WIDTH}}  {finding.words}"
    if finding.mend:
        yield f"  {'':{NAME_WIDTH}}  {'':{STATE_WIDTH}}  -> {finding.mend}"
