"""The finished cards in model_cards/ are as they would be pushed."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_vitmae.hub.card import LIBRARY
from hf_vitmae.hub.card_kinds import KINDS
from hf_vitmae.hub.privacy import find_private

CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/README.md"))


def test_there_is_one() -> None:
    assert CARDS


@pytest.mark.parametrize("path", CARDS, ids=[path.parent.name for path in CARDS])
def test_a_finished_card_can_be_pushed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    data: Any = ModelCard(text).data
    (name,) = re.findall(r"^\| class \| (\w+) \|$", text, flags=re.MULTILINE)
    assert (data.library_name, data.pipeline_tag) == (LIBRARY, KINDS[name].pipeline_tag)
    assert data.model_name == path.parent.name and data.eval_results
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", text, flags=re.MULTILINE)
    assert pictures and all((path.parent / picture).is_file() for picture in pictures)
    assert find_private(text) == [] and "None" not in text
