"""What must not leave a machine in a shared text: tokens, paths, and who and where someone is.

What is found is told without the secret in it, so that it can be printed.
"""

import getpass
import re
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from huggingface_hub import get_token

Name = Callable[[], str]

# After one of these a slash goes on with a URL, a Hub id, a relative path or a fraction.
_NOT_A_ROOT = r"(?<![\w./~%*)\]}>-])"
_FOLDER = r"[\w.@+-]"
_TOP_FOLDERS = (
    "Users|Volumes|cluster|content|data|etc|gpfs|home|kaggle|lustre|media|mnt|nfs|opt|private|root|"
    "scratch|srv|tmp|usr|var|work|workspace"
)
TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(?:gh[opsu]_|github_pat_)\w{20,}|\bAKIA[0-9A-Z]{16}\b|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b\w+://[^\s/@:]+:[^\s/@]+@[\w.-]*"
)
MASKED = "[token]"
_PICTURE_OR_TOKEN = re.compile(rf"(?P<picture>data:image/\w+;base64,[\w+/=]*)|(?:{TOKENS.pattern})")
PATTERNS = {
    "a path": re.compile(
        rf"{_NOT_A_ROOT}/{_FOLDER}+(?:/{_FOLDER}+)+|{_NOT_A_ROOT}/(?:{_TOP_FOLDERS})\b|"
        r"file:/+\S+|(?<![\w./~])~[\w.-]*/[\w.-]*|\b[A-Za-z]:(?:\\\\?|/)\w[^\s\"']*|"
        r"\\\\[\w.-]+\\\w[^\s\"']*"
    ),
    "an e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"),
}
# Names that many machines share tell nothing, and such words stand in any text.
COMMON_NAMES = frozenset(
    "admin anonymous build builder ci coder container data debian default docker guest home jovyan "
    "local localdomain localhost machine model nobody notebook python root runner sagemaker "
    "sagemaker-user server service test train ubuntu user vagrant vscode work worker workspace"
    "".split()
)
SHORTEST_NAME = 3  # shorter ones stand in any text by chance
SHOWN = 6  # characters of a token that say which it is


def find_private(text: str, allowed: Collection[str] = ()) -> list[str]:
    """What a text says that is nobody else's business, each once, in the order of the kinds.

    Tokens, absolute paths and those under a home, e-mail addresses, and the names of this machine
    and of its user as whole words. Names that are shorter than three letters or as common as
    `root` are not looked for.

    Args:
        allowed: what may stand in it, such as the id of the repository, which has a user's name.
    """
    for name in sorted(allowed, key=len, reverse=True):
        text = text.replace(name, " ")
    return list(dict.fromkeys(_find(text)))


def _find(text: str) -> Iterator[str]:
    own_token = get_token()
    for match in TOKENS.finditer(text):
        yield f"a token ({match[0][:SHOWN]}...)"
    text = TOKENS.sub(" ", text)  # what follows shows what it finds
    if own_token and own_token in text:
        yield "the token that this machine logs in with"
        text = text.replace(own_token, " ")
    for kind, pattern in PATTERNS.items():
        yield from (f"{kind} ({match[0]})" for match in pattern.finditer(text))
    for kind, name in own_names():
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
            yield f"{kind} ({name})"


def mask_tokens(text: str) -> str:
    """A text with every token in it replaced, that of this machine too, and pictures left alone."""
    if token := get_token():
        text = text.replace(token, MASKED)
    return _PICTURE_OR_TOKEN.sub(lambda found: found["picture"] or MASKED, text)


def own_names() -> list[tuple[str, str]]:
    """What user and machine are called, each with what it is."""
    host = _ask(socket.gethostname)
    users = {_ask(getpass.getuser), _ask(lambda: Path.home().name)}
    named = [("the user's name", name) for name in sorted(users)]
    named += [("the machine's name", name) for name in dict.fromkeys((host, host.split(".")[0]))]
    return [
        (kind, name)
        for kind, name in named
        if len(name) >= SHORTEST_NAME and name.lower() not in COMMON_NAMES
    ]


def _ask(name: Name) -> str:
    """A name, or nothing where the system has none, as in some containers."""
    try:
        return name()
    except (OSError, KeyError, RuntimeError, ImportError):
        return ""
