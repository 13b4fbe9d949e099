"""The facts of a model's folder for its card: what lies there, without the run that made it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_vitmae.hub.card import CardFacts, Value
from hf_vitmae.hub.card_model import architecture, read_class
from hf_vitmae.hub.card_names import hub_id, model_name
from hf_vitmae.hub.card_run import statistics_table
from hf_vitmae.hub.payload import CONVERSION

ADAPTER = "adapter_config.json"  # beside the weights of an adapter, as `peft` calls it
ADAPTER_ROWS = {
    "r": "rank",
    "lora_alpha": "alpha (the adapters are scaled by alpha / rank)",
    "lora_dropout": "dropout",
    "target_modules": "linear maps with an adapter",
    "modules_to_save": "saved whole",
}


def shared_facts(model: Path, repo_id: str, license: str | None) -> dict[str, Any]:
    """What a card says of any model's folder, as arguments of `CardFacts`.

    Raises:
        FileNotFoundError, ValueError: if it holds no model, or one of another package.
    """
    config = read_json(model / "config.json")
    if not config:
        raise FileNotFoundError(f"{model} holds no model (no readable config.json); name another.")
    return {
        "repo_id": repo_id,
        "class_name": read_class(config),
        "num_channels": config.get("num_channels"),
        "architecture": architecture(model, config),
        "conversion": tuple(_conversion(read_json(model / CONVERSION))),
        "license": license,
    }


def saved_facts(model: Path, repo_id: str, license: str | None = None) -> CardFacts:
    """All facts of a folder whose run is not known; it may hold an adapter.

    Raises:
        FileNotFoundError, ValueError: as `shared_facts`.
    """
    shared = shared_facts(model, repo_id, license)
    unknown = ["How it was trained is not recorded beside its weights."]
    if license is None:
        unknown.append("No licence of the weights is recorded.")
    settings = read_json(model / ADAPTER)
    return CardFacts(
        **shared,
        adapter=_adapter(settings),
        base_model=_adapted_model(settings, model),
        data=statistics_table(read_json(model / "preprocessor_config.json")),
        limits=tuple(unknown),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A file of JSON; nothing where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _adapter(settings: dict[str, Any]) -> dict[str, Value]:
    """A table of an adapter's settings; an empty one where there is none."""
    rows: dict[str, Value] = {}
    for name, label in ADAPTER_ROWS.items():
        value = settings.get(name)
        if value not in (None, []):
            rows[label] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return rows


def _adapted_model(settings: dict[str, Any], folder: Path) -> str | None:
    """The Hub id of the model that an adapter is for; None if it lay in a folder."""
    name = str(settings.get("base_model_name_or_path") or "")
    return hub_id(name, beside=str(folder))


def _conversion(found: dict[str, Any]) -> Iterator[str]:
    """What the conversion noted: `origin`, `source`, and `said`, a list of sentences."""
    if "source" in found:
        source = model_name(str(found["source"]), found.get("hub_id"))
        yield f"Converted from {source}, a checkpoint of {found.get('origin', 'another library')}."
    yield from map(str, found.get("said", ()))
