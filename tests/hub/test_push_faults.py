"""Everything breaks down twice on every route that a push uses, and the push arrives nevertheless.

Whole, in one commit, and with no byte of the weights sent again that the Hub has already.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hf_vitmae.hub.push import Patience, persist

from .client import SENDING, Hub
from .pushing import (
    EXPECTED,
    Push,
    assert_one_whole_push,
    assert_weights_were_sent,
)

pytestmark = pytest.mark.filterwarnings(SENDING)


@dataclass(frozen=True)
class Way:
    """A way to push: the routes it takes, and those it is tested on: what is its own in it."""

    routes: tuple[str, ...]
    tested: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    part_size: int = 0


PLAIN = ("create", "info", "validate", "preupload", "commit")
BY_LFS, BY_PARTS = ("batch", "put", "verify"), ("batch", "part", "complete", "verify")
BY_XET = ("write_token", "chunks", "grant", "xorb", "kept", "shard_events", "shard")
WAYS = {
    "lfs": Way((*PLAIN, *BY_LFS), (*PLAIN, *BY_LFS)),
    "parts": Way((*PLAIN, *BY_PARTS), ("part", "complete"), part_size=20_000),
    "branch": Way((*PLAIN, *BY_LFS, "branch"), ("info", "branch", "commit"), {"revision": "dev"}),
    "pull": Way((*PLAIN, *BY_LFS, "refs"), ("info", "refs", "commit"), {"create_pr": True}),
    "xet": Way((*PLAIN, *BY_XET), (*PLAIN, *BY_XET)),
    "xet-pull": Way((*PLAIN, *BY_XET, "refs"), ("write_token", "commit"), {"create_pr": True}),
}
ONCE = {"harnesses"}  # of a process, and nothing comes of any failure
AFTER_A_FAULT = {"refs", "direct"}  # looking for a pull request; what xet does without a grant
OPTIONAL = ("chunks",)  # xet asks what it need not send, and sends it all when nobody answers
# What broke down while it was sent goes again, and by xet also what was never said to be kept.
MOST_OFTEN_SENT = {"put": 3, "part": 3, "xorb": 5, "kept": 3}
BREAKDOWNS: dict[str, dict[str, Any]] = {
    "503": {"status": 503, "headers": {"Retry-After": "1"}},
    "dropped": {"dropped": True},
    "lost": {"lost": True},
    "torn": {"torn": True},
    **{str(status): {"status": status} for status in (429, 500, 502, 504)},
}
FEW = {"lfs": ("503", "torn"), "xet": ("503",)}


def cases() -> list[Any]:
    """Every breakdown on every route of every way; only a few of a kind are fast."""
    return [
        pytest.param(
            way, route, fault, id=f"{way}-{route}-{kind}", marks=() if is_fast else pytest.mark.slow
        )
        for way in WAYS
        for route in WAYS[way].tested
        for kind, fault in BREAKDOWNS.items()
        for is_fast in [kind in FEW.get(way, ("lost",))]
    ]


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """The name of one of `WAYS`."""
    return getattr(request, "param", "lfs")


@pytest.fixture
def transport(way: str) -> str:
    """By which the Hub is reached: named at the start of the way."""
    return "xet" if way.startswith("xet") else "lfs"


@pytest.fixture(autouse=True)
def without_help(hub: Hub, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hf_xet would try again by itself is left to the push."""
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "0")
    hub.set_part_size(WAYS[way].part_size)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_push_takes_the_routes_that_are_tested(hub: Hub, way: str, push: Push) -> None:
    push(**WAYS[way].options)
    used = hub.routes() - ONCE
    assert used == set(WAYS[way].routes)
    assert used <= {route for other in WAYS.values() for route in other.tested}


@pytest.mark.parametrize(("way", "route", "fault"), cases(), indirect=["way"])
def test_two_faults(
    hub: Hub, name: str, folder: Path, push: Push, way: str, route: str, fault: dict[str, Any]
) -> None:
    hub.fault(route, fault, fault)
    if route == "xorb":  # else xet would go around it
        hub.fault("direct", fault, fault)
    result = push(**WAYS[way].options)
    does_nothing = "status" in fault or "dropped" in fault
    if does_nothing and route not in OPTIONAL:  # so that the third is the first that is answered
        assert hub.requests(route) > 2
    if route in ("create", "commit") and not does_nothing:
        assert hub.requests(route) == 1
    assert_weights_were_sent(hub, times=MOST_OFTEN_SENT.get(route, 1))
    assert hub.routes() <= {*WAYS[way].routes, *ONCE, *AFTER_A_FAULT}
    repo = hub.repo(name)
    if way in ("branch", "pull", "xet-pull"):
        (row,) = hub.pushes(name)
        assert row["id"] == result.commit and set(row["visible"]) == {".gitattributes"}
        assert set(repo["commits"][result.commit]["files"]) == EXPECTED
        refs = repo["branches"] if way == "branch" else repo["pulls"]
        assert refs.get("dev" if way == "branch" else "refs/pr/1") == result.commit
        assert len(repo["pulls"]) == (way != "branch")
    else:
        assert_one_whole_push(hub, name, folder)


@pytest.mark.parametrize("way", ["lfs", "xet"], indirect=True)
def test_somebody_else_pushes_at_the_same_time(
    hub: Hub, name: str, folder: Path, push: Push
) -> None:
    hub.fault("commit", {"foreign": True}, {"foreign": True})
    push()
    assert_one_whole_push(hub, name, folder)
    assert "notes.txt" in hub.pushes(name)[-1]["visible"]
    assert hub.requests("commit") == 3  # two were for a branch that had moved on
    assert_weights_were_sent(hub)


@pytest.mark.parametrize("fault", BREAKDOWNS.values(), ids=BREAKDOWNS)
def test_who_pushes_is_asked_until_it_is_known(hub: Hub, push: Push, fault: dict[str, Any]) -> None:
    hub.fault("whoami", fault, fault)
    options = {option: push.keywords[option] for option in ("report", "patience")}
    assert persist(hub.api.whoami, "model", **options)["name"] == "user"
    assert hub.requests("whoami") == 3


def test_a_push_waits_as_long_as_the_hub_asks(hub: Hub, push: Push) -> None:
    said: list[str] = []
    asked = [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=55'}, {"Retry-After": "3600"}, {}]
    hub.fault("commit", *[{"status": 503, "headers": headers} for headers in asked])
    push(report=said.append, patience=Patience(attempts=5, first_wait=0.001, longest_wait=60))
    waits = [line.split("trying again in ")[1] for line in said]
    assert waits == ["7 s (1 failed).", "55 s (2 failed).", "60 s (3 failed).", "0 s (4 failed)."]
