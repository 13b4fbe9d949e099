"""What must not be shared is found in any text, told without the secret, and nothing else is."""

import getpass
import socket
from pathlib import Path

import pytest

from hf_vitmae.hub import privacy
from hf_vitmae.hub.privacy import find_private

SECRET = "hf_" + "aB3" * 11

PRIVATE = {
    f"login {SECRET}!": "a token (hf_aB3...)",
    "https://anna:pass@data.org/x": "a token (https:...)",
    "-----BEGIN RSA PRIVATE KEY-----": "a token (-----B...)",
    "see /home/anna/photos/1.jpg.": "a path (/home/anna/photos/1.jpg.)",
    "output_dir: /scratch": "a path (/scratch)",
    '{"source":"/mnt/disk"}': "a path (/mnt/disk)",
    "error:/nas/share": "a path (/nas/share)",
    "~/runs": "a path (~/runs)",
    "~anna/runs": "a path (~anna/runs)",
    "C:\\Users\\anna": "a path (C:\\Users\\anna)",
    '"C:\\\\Users"': "a path (C:\\\\Users)",
    "D:/photos": "a path (D:/photos)",
    "\\\\nas\\share": "a path (\\\\nas\\share)",
    "file:///tmp/x": "a path (file:///tmp/x)",
    "write to anna.b+c@lab.uni-x.de": "an e-mail address (anna.b+c@lab.uni-x.de)",
}

HARMLESS = (
    "from https://huggingface.co/datasets/user/name/tree/main and s3://bucket/key",
    "hf_vitmae, hf-vitmae, HF_TOKEN and hf_test",
    "runs/a/model, ./labelled, ../b, samples/loss.png and */train/*.png",
    "and/or, 3/4, 1e-3/step, width / height, images/ beside annotations/",
    "user/name@main and a @ b",
    "</td> <br/> a:b",
    "seconds: 1.5\n",
)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests, and wherever."""
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.setattr(privacy, "get_token", lambda: None)


@pytest.mark.parametrize("text", PRIVATE)
def test_what_is_private_is_found(text: str) -> None:
    assert find_private(text) == [PRIVATE[text]]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_public_is_not(text: str) -> None:
    assert find_private(text) == []


def test_nothing_that_is_said_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "get_token", lambda: "own-secret")
    said = find_private(f"{SECRET} https://anna:pass@data.org own-secret https://b:pass@c.org")
    assert "the token that this machine logs in with" in said
    assert not any(word in " ".join(said) for word in (SECRET, "pass", "own-secret"))


def test_names_of_user_and_machine_are_found_as_whole_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "annab")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/annab"))
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu7.lab.org")
    assert find_private("by annab.") == ["the user's name (annab)"]
    assert find_private("on gpu7") == ["the machine's name (gpu7)"]
    assert "the machine's name (gpu7.lab.org)" in find_private("on gpu7.lab.org")
    assert find_private("annabel on gpu71") == []


@pytest.mark.parametrize("name", ["root", "vm", ""])
def test_names_that_tell_nothing_are_not_looked_for(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    monkeypatch.setattr(Path, "home", lambda: Path("/") / name)
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert find_private("the root of vm is root") == []


def test_a_system_that_knows_no_names_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr(getpass, "getuser", fail)
    monkeypatch.setattr(socket, "gethostname", lambda: "")
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    assert find_private("a text") == []


def test_what_is_allowed_may_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "annab")
    text = "annab/model was made from annab/model-base"
    assert find_private(text, allowed=["annab/model", "annab/model-base"]) == []
    assert find_private(text + " by annab", allowed=["annab/model", "annab/model-base"])


def test_the_files_that_travel_with_a_checkpoint_are_clean() -> None:
    source = Path(privacy.__file__).parents[1] / "models"
    allowed = ["/proc/cpuinfo"]  # the same on every Linux machine
    found = {path.name: find_private(path.read_text(), allowed) for path in source.glob("*.py")}
    assert found and not any(found.values()), found
