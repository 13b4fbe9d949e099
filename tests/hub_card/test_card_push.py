"""`model.push_to_hub` leaves a repository that has a card and opens again."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from hf_vitmae.hub.card_kinds import KINDS
from hf_vitmae.hub.card_push import push_model
from hf_vitmae.models import modeling_vitmae
from hf_vitmae.models.modeling_vitmae import VitMaeModel

from ..hub.client import SENDING, TOKEN, Hub
from ..models.tiny import random_images, tiny_config

pytestmark = pytest.mark.filterwarnings(SENDING)
CODE = {"configuration_vitmae.py", "modeling_vitmae.py"}


def ours(hub: Hub, name: str) -> list[dict]:
    """The commits of a repository that hold more than what the Hub itself put there."""
    return [row for row in hub.pushes(name) if set(row["visible"]) != {".gitattributes"}]


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_is_pushed_with_a_card(hub: Hub, kind: str) -> None:
    model = getattr(modeling_vitmae, kind)(tiny_config()).eval()
    name = hub.new_name()
    assert model.push_to_hub(name, tags=["emoji", "vit"]).endswith(name)
    (row,) = ours(hub, name)
    assert set(row["visible"]) >= {"README.md", "config.json", "model.safetensors"} | CODE
    card: Any = ModelCard.load(name)
    card.validate()
    assert "emoji" in card.data.tags and card.data.tags.count("vit") == 1
    assert f'{kind}.from_pretrained("{name}")' in card.content
    assert "what lies beside the weights" in card.content
    again = type(model).from_pretrained(name)
    weights = again.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_card_that_is_there_stays(hub: Hub) -> None:
    name = hub.new_name()
    hub.api.create_repo(name)
    text = "---\nlicense: mit\n---\nWritten by hand.\n"
    hub.api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=name)
    model = VitMaeModel(tiny_config()).eval()
    push_model(model, name, commit_message="Better weights")
    assert ModelCard.load(name).content == text
    assert hub.api.list_repo_commits(name)[0].title == "Better weights"
    images = random_images(model.config)
    again = VitMaeModel.from_pretrained(name).eval()
    assert torch.equal(again(images).last_hidden_state, model(images).last_hidden_state)


def test_where_it_goes(hub: Hub) -> None:
    model, name = VitMaeModel(tiny_config()), hub.new_name()
    push = partial(push_model, model, token=TOKEN)
    push(name, private=True)
    assert hub.api.model_info(name).private
    push(name, revision="other")
    assert "README.md" in hub.api.list_repo_files(name, revision="other")
    owner, bare = hub.new_name().split("/")
    push(bare)
    assert hub.api.file_exists(f"{owner}/{bare}", "README.md")


def test_large_weights_go_in_parts(hub: Hub) -> None:
    model, name = VitMaeModel(tiny_config()), hub.new_name()
    push_model(model, name, max_shard_size="8KB")
    assert "model.safetensors.index.json" in hub.api.list_repo_files(name)
    VitMaeModel.from_pretrained(name)


def test_a_path_in_the_configuration_is_refused(hub: Hub, tmp_path: Path) -> None:
    model, name = VitMaeModel(tiny_config()), hub.new_name()
    model.config.id2label = {0: "/home/bob.secret/cats"}
    model.config.label2id = {"/home/bob.secret/cats": 0}
    with pytest.raises(ValueError, match="it holds a path"):
        push_model(model, name)
    assert not hub.api.repo_exists(name)
