"""What a card calls images and models that a recipe names: a Hub id whole, a path by its end."""

import re
from collections.abc import Collection
from pathlib import Path

from hf_vitmae.hub.privacy import find_private

HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)([:@](?P<rest>[\w./-]+))?")
FILE_SUFFIXES = frozenset(
    (".bin", ".csv", ".json", ".npz", ".parquet", ".pt", ".pth", ".safetensors", ".tar", ".zip")
)
LOCAL = "a local folder"
EMBEDDED = {
    "emoji": "emoji (embedded in hf_vitmae)",
    "shapes": "shapes (drawn by hf_vitmae)",
    "defects": "defects (drawn by hf_vitmae)",
    "bands": "bands (drawn by hf_vitmae)",
}
LICENSES = {  # of what the package itself brings
    "emoji": "Noto Emoji by Google LLC: Apache 2.0; Twemoji by Twitter, Inc and other "
    "contributors: CC-BY 4.0",
}


def hub_id(name: str, beside: str, from_hub: Collection[str] | None = None) -> str | None:
    """The id on the Hub that `name` is, without configuration or revision; None if it is a path.

    Two words with a slash between them can be both, and a wrong guess would publish a path. So it
    is an id if the run recorded that; where it recorded nothing, if no file lies there and it is
    neither called like a file or a run's model nor begins like the run's own folder.

    Args:
        beside: `output_dir` of the run.
        from_hub: what the run opened on the Hub, if it recorded that.
    """
    match = HUB_ID.fullmatch(name)
    if match is None:
        return None
    if from_hub is not None:
        return match["id"] if name in from_hub else None
    is_file = Path(name).suffix in FILE_SUFFIXES or name.endswith("/model")
    is_here = Path(name).exists() or Path(match["id"]).exists()
    is_beside = beside.startswith(name.split("/")[0] + "/")
    return None if is_file or is_here or is_beside else match["id"]


def public_name(name: str, hub: str | None = None) -> str:
    """What a card calls images or a model: as they are called on the Hub, else the path's end.

    Args:
        hub: what `hub_id` says of it.
    """
    if hub is not None:
        return hub
    if name in EMBEDDED:
        return EMBEDDED[name]
    path = name.split("?")[0].split("#")[0]
    parts = [part for part in re.split(r"[/\\]+", path) if part not in ("", ".", "..", "~")]
    if not parts or find_private(parts[-1]) or re.fullmatch(r"\w:|~.*", parts[-1]):
        return LOCAL
    return parts[-1]


def model_name(name: str, hub: str | None = None) -> str:
    """What a card calls a model; that of a run, RUN/model, by the name of the run."""
    path = re.sub(r"[/\\]+model[/\\]*$", "", name)
    return public_name(path if hub is None and path else name, hub)
