"""Go on with a run from what it pushed to the Hub, on whichever machine."""

import json
import shutil
from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_vitmae.hub.payload import LAST_CHECKPOINT, clean
from hf_vitmae.tasks.checkpoints import first_line
from hf_vitmae.tasks.recipe import TaskRecipe
from hf_vitmae.training.checkpoint import FILES, MANIFEST, STATE, find_damage
from hf_vitmae.training.run_folder import RunFolder, as_plain, refuse_changes
from hf_vitmae.whole_or_absent import whole_or_absent


def bring_back(recipe: TaskRecipe, free_fields: frozenset[str]) -> bool:
    """Fetch checkpoint and log of the run that the recipe resumes from, into its output folder.

    A folder that is a run's already goes on with what it has: -> False.

    Raises:
        ValueError: if there is no whole checkpoint, it is that of another recipe, or the Hub does
        not give it.
    """
    folder = recipe.output_dir
    if recipe.resume_from is None or (folder / "recipe.yaml").exists():
        return False
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and not the folder of a run; to go on with "
            f"{recipe.resume_from}, choose another --output-dir."
        )
    repo_id, _, revision = recipe.resume_from.partition("@")
    with whole_or_absent(folder, replace=True) as unfinished:
        _fetch(repo_id, revision or None, unfinished)
        _check(recipe, unfinished, free_fields)
    return True


def _fetch(repo_id: str, revision: str | None, folder: Path) -> None:
    """The files of a checkpoint, by names that are known here, and what describes the run."""
    folder.mkdir()
    fetched = folder / "checkpoints" / LAST_CHECKPOINT
    fetched.mkdir(parents=True)
    wanted = {f"{LAST_CHECKPOINT}/{name}": fetched / name for name in FILES}
    wanted |= {name: folder / name for name in ("metrics.jsonl", "recipe.yaml")}
    for name, path in wanted.items():
        try:
            shutil.copy(hf_hub_download(repo_id, name, revision=revision), path)
        except LocalEntryNotFoundError as error:  # one of those below, and no missing file
            raise ValueError(f"{repo_id} cannot be reached: {first_line(error)}") from error
        except EntryNotFoundError as error:
            if name.endswith(MANIFEST):
                raise ValueError(
                    f"{repo_id} holds no checkpoint to resume from; a run that is started with "
                    "--push-checkpoints pushes one."
                ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ValueError(
                f"There is no {repo_id}{f' at {revision}' * bool(revision)} that you may read; "
                "check the name, and log in with `hf auth login` if it is private."
            ) from error
        except HfHubHTTPError as error:
            raise ValueError(f"{repo_id} cannot be fetched: {first_line(error)}") from error


def _check(recipe: TaskRecipe, folder: Path, free_fields: frozenset[str]) -> None:
    """Refuse a damaged checkpoint or another recipe; give the checkpoint its name."""
    fetched = folder / "checkpoints" / LAST_CHECKPOINT
    if damage := find_damage(fetched):
        raise ValueError(
            f"The checkpoint of {recipe.resume_from} cannot be used ({damage}); take another "
            "revision, user/name@revision."
        )
    stored = RunFolder(folder).read_recipe()
    own = yaml.safe_dump({"task": type(recipe).__name__, **as_plain(recipe)}, allow_unicode=True)
    fresh = yaml.safe_load(clean(own))  # without what names places on a machine, as it was pushed
    refuse_changes(Path(recipe.resume_from or ""), stored, fresh, free_fields)
    step = json.loads((fetched / STATE).read_text(encoding="utf-8"))["run"]["step"]
    fetched.rename(fetched.with_name(f"step-{step:08d}"))
    RunFolder(folder).recipe.write_text(own, encoding="utf-8")  # places are this machine's
