"""Tables of names: read in both directions, and strict in both."""

import pytest
import torch

from hf_vitmae.convert.rules import fused, rename, rename_pair, reshaped, to_ours, to_theirs

RULES = [
    rename("cls", "embeddings.cls_token"),
    *rename_pair("blocks.{}.fc", "layers.{}.mlp"),
    *rename_pair("stages.{}.{}.conv", "stem.{}.{}.convolution"),
    fused("blocks.{}.qkv", [f"layers.{{}}.{part}" for part in ("q", "k", "v")]),
    reshaped("kernel", "projection", lambda value: value.mT, lambda value: value.mT),
]
THEIRS = {
    "cls": torch.rand(1, 1, 4),
    **{
        f"blocks.{layer}.fc.{kind}": torch.rand(4)
        for layer in (2, 11)
        for kind in ("weight", "bias")
    },
    "stages.1.0.conv.weight": torch.rand(3),
    "blocks.11.qkv": torch.rand(12, 4),
    "kernel": torch.rand(2, 3),
}


def test_every_rule_is_read_inward() -> None:
    ours = to_ours(THEIRS, RULES, "it")
    assert set(ours) == {
        "embeddings.cls_token",
        "layers.2.mlp.weight",
        "layers.2.mlp.bias",
        "layers.11.mlp.weight",
        "layers.11.mlp.bias",
        "stem.1.0.convolution.weight",
        "layers.11.q",
        "layers.11.k",
        "layers.11.v",
        "projection",
    }
    assert ours["layers.11.mlp.bias"] is THEIRS["blocks.11.fc.bias"]
    assert torch.equal(ours["layers.11.k"], THEIRS["blocks.11.qkv"][4:8])
    assert ours["layers.11.k"].is_contiguous()
    assert torch.equal(ours["projection"], THEIRS["kernel"].T)


def test_there_and_back_is_the_same() -> None:
    back = to_theirs(to_ours(THEIRS, RULES, "it"), RULES, "it")
    assert back.keys() == THEIRS.keys()
    for name, value in THEIRS.items():
        assert torch.equal(back[name], value), name


def test_what_is_given_stays_as_it_is() -> None:
    given = dict(THEIRS)
    to_ours(given, RULES, "it")
    assert given.keys() == THEIRS.keys()


@pytest.mark.parametrize("name", ["blocks.2.fc", "xblocks.2.fc.bias", "blocks.a.fc.bias", "clss"])
def test_a_name_that_no_rule_knows_is_an_error(name: str) -> None:
    weights = THEIRS | {name: torch.rand(2, 5)}
    message = rf"a.pth is not read: 1 of its 9 tensors .* `{name}` \(2, 5\) the first"
    with pytest.raises(ValueError, match=message):
        to_ours(weights, RULES, "a.pth")


def test_a_dot_in_a_rule_is_a_dot() -> None:
    with pytest.raises(ValueError, match="`blocks_2.fc.bias`"):
        to_ours({"blocks_2.fc.bias": torch.rand(2)}, RULES, "it")


def test_a_part_without_its_others_is_an_error() -> None:
    weights = to_ours(THEIRS, RULES, "it")
    del weights["layers.11.v"]
    message = "timm cannot express this model: `layers.11.q` is there and `layers.11.v` is missing"
    with pytest.raises(ValueError, match=message):
        to_theirs(weights, RULES, "timm")
