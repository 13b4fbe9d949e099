"""A Space on the Hub: a page on which visitors try a model, served by `hf_vitmae.tasks.app`."""

from importlib.metadata import PackageNotFoundError, version

import yaml
from huggingface_hub import CommitOperationAdd, HfApi

from hf_vitmae.hub.push import PATIENCE, Patience, persist, reported

SPACE = "space"  # as the Hub's client calls this kind of repository
SDK, OLDEST_SDK = "gradio", "6.0.0"
EVERYWHERE = "0.0.0.0"  # a Space's container is reached from outside


def space_files(repo_id: str, license: str | None = None) -> dict[str, str]:
    """The texts of a Space for a model, by their names: its program, what it needs, its card."""
    card = {
        "title": repo_id.split("/")[-1],
        "sdk": SDK,
        "sdk_version": _sdk_version(),
        "app_file": "app.py",
        "models": [repo_id],
        **({} if license is None else {"license": license}),
    }
    program = f'''"""A page to try {repo_id} on."""

from hf_vitmae.tasks.app import AppRequest, run

run(AppRequest(model={repo_id!r}, host={EVERYWHERE!r}))
'''
    said = f"Drop an image, hide parts of it, and see what `{repo_id}` makes of it.\n"
    front = yaml.safe_dump(card, sort_keys=False)
    return {
        "app.py": program,
        "requirements.txt": "hf-vitmae[app]\n",
        "README.md": f"---\n{front}---\n\n{said}",
    }


def push_space(
    repo_id: str,
    api: HfApi,
    *,
    private: bool = False,
    license: str | None = None,
    patience: Patience = PATIENCE,
) -> str:
    """Make a Space of the model's name, or bring it up to date, in one commit: -> its address.

    Raises:
        PushError: if it did not arrive; the same call again goes on.
    """
    texts = space_files(repo_id, license)
    files = [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]

    def create() -> None:
        api.create_repo(
            repo_id, repo_type=SPACE, space_sdk=SDK, private=private or None, exist_ok=True
        )

    def commit() -> None:
        # Of files that are there already the client makes no commit.
        api.create_commit(repo_id, files, commit_message="Page to try it", repo_type=SPACE)

    with reported(f"spaces/{repo_id}"):
        for step in (create, commit):
            persist(step, f"spaces/{repo_id}", patience=patience)
    return f"{api.endpoint}/spaces/{repo_id}"


def _sdk_version() -> str:
    """Of Gradio here, with which the page was seen to work."""
    try:
        return version(SDK)
    except PackageNotFoundError:
        return OLDEST_SDK
