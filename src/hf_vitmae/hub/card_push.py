"""`model.push_to_hub` with a card: the model as it is in memory goes to the Hub in one commit.

transformers would push a card that says nothing but the library's name.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hf_vitmae.hub.card import render
from hf_vitmae.hub.card_saved import saved_facts
from hf_vitmae.hub.push import PATIENCE, Patience, persist, push_folder, reported
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel

CARD = "README.md"


def push_model(
    model: VitMaePreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] | None = None,
    patience: Patience = PATIENCE,
) -> str:
    """Push weights, configuration, code and card; a card that the repository has stays.

    Args:
        repo_id: `user/name`, or a name under the account that the token is of.
        tags: of the card, beside its own.
        token: `None` or `True` for the one that this machine logs in with.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ValueError: if the model or its card would give away a path, a token or a name. PushError:
        if it did not arrive; the same call again goes on with it.
    """
    secret = token if isinstance(token, str) else None
    api = HfApi(token=secret)
    if "/" not in repo_id:
        with reported(repo_id):
            repo_id = f"{persist(api.whoami, repo_id, patience=patience)['name']}/{repo_id}"
    with tempfile.TemporaryDirectory(prefix="hf-vitmae-push-") as place:
        folder = Path(place)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if not _has_card(api, repo_id, revision, patience):
            facts = replace(saved_facts(folder, repo_id), tags=tuple(tags or ()))
            (folder / CARD).write_text(render(facts), encoding="utf-8")
        return push_folder(
            folder,
            repo_id,
            revision=revision,
            private=bool(private),
            create_pr=create_pr,
            commit_message=commit_message or "Upload model",
            token=secret,
            patience=patience,
        ).url


def _has_card(api: HfApi, repo_id: str, revision: str | None, patience: Patience) -> bool:
    """Whether the repository has a card on that branch."""

    def ask() -> Any:
        return api.repo_exists(repo_id) and api.file_exists(repo_id, CARD, revision=revision)

    with reported(repo_id):
        return bool(persist(ask, repo_id, patience=patience))
