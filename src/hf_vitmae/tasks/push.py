"""Push what a run made, or a model, to the Hub: weights, code, card, metrics and pictures at once.

Texts that name places on this machine are pushed as copies without them, so that the run's folder
stays as it is.
"""

import os
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import HfApi

from hf_vitmae.hub.payload import LAST_CHECKPOINT, PICTURES, TEXTS, belongs, clean, list_files
from hf_vitmae.hub.privacy import find_private
from hf_vitmae.hub.push import (
    PATIENCE,
    Destination,
    Patience,
    PushResult,
    persist,
    push_files,
    reported,
)
from hf_vitmae.hub.space import push_space
from hf_vitmae.tasks.card import write_card
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.checkpoint import FILES, latest_good_checkpoint
from hf_vitmae.training.run_folder import RunFolder

CARD = "README.md"
PRIVATE_SPACE = "; give it a secret HF_TOKEN that may read the model."


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """Push what a run made, or a model, to the Hub in one commit. The same command again goes on
    where it failed, and does nothing where all is there.

    Raises:
        ValueError: for a name that is none, or two owners of one repository.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """Folder of a run, whose model goes with its metrics, recipe and pictures; or of a model."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """Where it goes: user/name, or a name under your own account."""
    organization: str | None = None
    """The organization that the repository belongs to, if REPO names no owner."""
    private: bool = False
    """Make the repository private; one that is there and public is refused."""
    revision: str | None = None
    """Branch, made if it is not there; the default one when left out."""
    create_pr: bool = False
    """Open a pull request rather than change the branch."""
    message: str = "Upload model"
    """Title of the commit."""
    checkpoint: bool = False
    """The run's newest checkpoint goes too, into last-checkpoint/, for --resume-from elsewhere."""
    license: str | None = None
    """Of the weights, as the Hub names it, such as apache-2.0; for the card."""
    with_space: bool = False
    """Make a Space of the same name too, a page on which visitors try the model."""

    def __post_init__(self) -> None:
        owners = [self.organization] if self.organization else []
        parts = [*owners, *self.repo.split("/")]
        if not all(parts) or len(parts) > 2:
            raise ValueError(
                f"The repository is to be name or user/name, not {'/'.join(parts)!r}; an "
                "organization goes before a name without an owner."
            )
        if self.with_space and (self.revision or self.create_pr):
            raise ValueError(
                "A Space shows the model of the default branch: leave out --with-space, or "
                "--revision and --create-pr."
            )
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(
                f"The licence is to be named as the Hub does, such as apache-2.0, cc-by-nc-4.0 or "
                f"other, not {self.license!r}."
            )


def run(request: PushRequest) -> PushResult:
    """Push, and say where it went.

    Raises:
        FileNotFoundError, ValueError: if the folder is no run or model, or what is in it must not
        be pushed. PushError: if it did not arrive.
    """
    api = HfApi()
    destination = Destination(
        repo_id=_repo_id(request, api),
        revision=request.revision,
        private=request.private,
        create_pr=request.create_pr,
        message=request.message,
    )
    result = push_run(
        request.folder, destination, api, license=request.license, checkpoint=request.checkpoint
    )
    done = "is there already" if result.already_there else "is pushed"
    print(f"{request.folder} {done}: {result.url} (commit {result.commit[:8]}).")
    if request.with_space:
        repo_id, private = destination.repo_id, request.private
        url = push_space(repo_id, api, private=private, license=request.license)
        print(f"Its page to try it is {url}{PRIVATE_SPACE if private else '.'}")
    return result


def push_result(recipe: TaskRecipe) -> None:
    """Push what a recipe's run has made to where the recipe says, on the first process.

    Raises:
        As `run`; the run itself is complete in its folder.
    """
    if recipe.push_to_hub and os.environ.get("RANK", "0") == "0":
        run(
            PushRequest(
                folder=recipe.output_dir,
                repo=recipe.push_to_hub,
                checkpoint=recipe.push_checkpoints,
            )
        )


def push_run(
    folder: Path,
    destination: Destination,
    api: HfApi,
    *,
    license: str | None = None,
    checkpoint: bool = False,
    patience: Patience = PATIENCE,
) -> PushResult:
    """Push a run's model with what describes it, or a model's folder; a README.md of its own stays.

    Raises:
        As `run`.
    """
    with reported(destination.repo_id):  # a full disk too
        is_run = not (folder / "config.json").is_file() and (folder / "model").is_dir()
        model = folder / "model" if is_run else folder
        files, left_out = list_files(model)
        if left_out:
            print(f"Not pushed, as it is no part of a model: {', '.join(left_out)}.")
        with tempfile.TemporaryDirectory(prefix="hf-vitmae-push-") as place:
            if CARD not in files:
                text = write_card(
                    folder if is_run else None, model, destination.repo_id, license=license
                )
                files[CARD] = Path(place) / CARD
                files[CARD].write_text(text, encoding="utf-8")
            if is_run:
                files |= _records(RunFolder(folder))
            if checkpoint:
                files |= _last_checkpoint(RunFolder(folder))
            allowed = (destination.repo_id,)
            files |= _cleaned(files, Path(place), allowed)
            return push_files(files, destination, api, patience=patience)


def _records(run: RunFolder) -> dict[str, Path]:
    """What a run's folder holds beside the model that describes it."""
    paths = [run.metrics, run.recipe, run.path / "results.json", *sorted(run.samples.glob("*.png"))]
    found = {path.relative_to(run.path).as_posix(): path for path in paths if path.is_file()}
    return {name: path for name, path in found.items() if belongs(name, (*TEXTS, *PICTURES))}


def _last_checkpoint(run: RunFolder) -> dict[str, Path]:
    """The files of the newest good checkpoint.

    Raises:
        ValueError: if there is none.
    """
    path = latest_good_checkpoint(run.checkpoints)
    if path is None:
        raise ValueError(f"{run.path} has no checkpoint; leave --checkpoint out.")
    return {f"{LAST_CHECKPOINT}/{name}": path / name for name in FILES if (path / name).exists()}


def _cleaned(files: Mapping[str, Path], place: Path, allowed: Collection[str]) -> dict[str, Path]:
    """Copies of the records that name what is private, without it; a card is left to its writer."""
    copies = {}
    for name, path in files.items():
        if name == CARD or not belongs(name, TEXTS):
            continue
        text = path.read_text(encoding="utf-8")
        if find_private(text, allowed):
            copies[name] = place / name
            copies[name].write_text(clean(text, allowed), encoding="utf-8")
    return copies


def _repo_id(request: PushRequest, api: HfApi) -> str:
    """With its owner, for which the Hub is asked where nobody names one."""
    if "/" in request.repo:
        return request.repo
    if request.organization:
        return f"{request.organization}/{request.repo}"
    with reported(request.repo):
        return f"{persist(api.whoami, request.repo)['name']}/{request.repo}"
