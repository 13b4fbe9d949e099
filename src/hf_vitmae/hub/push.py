"""Push a model to the Hub whole: one commit, repeated until it has landed, and never twice.

The client repeats what uploads content by itself, but neither commits nor the creation of a
repository. So every try looks at the branch first: what is there already is not sent again, and a
commit whose answer was lost is seen to be there.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import ModelInfo
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from hf_vitmae.hub.payload import (
    LocalFile,
    check_complete,
    check_private,
    list_files,
    replaced_weights,
)
from hf_vitmae.hub.privacy import TOKENS

Result = TypeVar("Result")
TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]  # of whichever HTTP library the client is built on
PASSING = frozenset((408, 429, 500, 502, 503, 504))
OVERTAKEN = 412  # somebody else committed in between
XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")  # hf_xet tells it in words alone
QUERY = re.compile(r"(?<=[\w/])\?[^\s)\"']+")
MENDS: Mapping[int | None, str] = {
    401: "log in with `hf auth login`, with a token that may write",
    403: "take a repository that you may write to, and a token with write access",
    404: "check the name and the revision",
    413: "a file is too large for the Hub",
}


class PushError(OSError):
    """A push that did not arrive; nothing on the disk has changed."""


@dataclass(frozen=True)
class PushResult:
    """Where a push went: the address of the repository, or of its pull request, and the commit."""

    url: str
    commit: str
    already_there: bool


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a step is tried, and how many seconds lie between, doubling each time."""

    attempts: int = 7
    first_wait: float = 1.0
    longest_wait: float = 60.0


PATIENCE = Patience()


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a push goes to, and how.

    Args:
        revision: a branch, made if it is not there; None for the default one.
        private: of a new repository; one that is there and public is refused.
        create_pr: open a pull request rather than change the branch.
    """

    repo_id: str
    revision: str | None = None
    private: bool = False
    create_pr: bool = False
    message: str = "Upload model"


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    endpoint: str | None = None,
    token: str | None = None,
    report: Callable[[str], Any] = print,
    patience: Patience = PATIENCE,
) -> PushResult:
    """Push what belongs to a model of a folder, in one commit; see `push_files`."""
    files, left_out = list_files(folder)
    if left_out:
        report(f"Not pushed, as it is no part of a model: {', '.join(left_out)}.")
    destination = Destination(
        repo_id=repo_id,
        revision=revision,
        private=private,
        create_pr=create_pr,
        message=commit_message,
    )
    api = HfApi(endpoint=endpoint, token=token)
    return push_files(files, destination, api, report=report, patience=patience)


def push_files(
    files: Mapping[str, Path],
    destination: Destination,
    api: HfApi,
    *,
    report: Callable[[str], Any] = print,
    patience: Patience = PATIENCE,
) -> PushResult:
    """Push files under their names, in one commit, and take away weights that they replace.

    Raises:
        ValueError: if weights are missing, a text holds a token, a path or a name, or the
        repository is public and was to be private. PushError: if it did not arrive; the same call
        again goes on with it.
    """
    check_complete(files)
    check_private(files, allowed=(destination.repo_id,))
    local = {name: LocalFile(path) for name, path in sorted(files.items())}
    push = _Push(local, destination, api)
    with reported(destination.repo_id):
        persist(push.prepare, destination.repo_id, report=report, patience=patience)
        return persist(push.commit, destination.repo_id, report=report, patience=patience)


def persist(
    step: Callable[[], Result],
    repo_id: str,
    *,
    report: Callable[[str], Any] = print,
    patience: Patience = PATIENCE,
) -> Result:
    """Do a step until it works, or fails for a reason that does not pass; what it raises goes on.

    Args:
        report: told after each failure but the last what it was, and how long the wait is.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        cause = (_cause(error) or error) if error else error
        wait = state.upcoming_sleep
        report(
            f"{repo_id}: {_reason(cause)}; trying again in {wait:.0f} s "
            f"({state.attempt_number} failed)."
        )

    retrying = Retrying(
        retry=retry_if_exception(_passes),
        stop=stop_after_attempt(patience.attempts),
        wait=_Wait(patience),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(step)


@contextmanager
def reported(repo_id: str) -> Iterator[None]:
    """Turn what Hub, network or a full disk refuse into one line that names the repository.

    Raises:
        PushError: in their place.
    """
    try:
        yield
    except PushError:
        raise
    except Exception as error:
        cause = error if _is_full(error) else _cause(error)
        if cause is None:
            raise
        raise PushError(_explain(cause, repo_id)) from error


@dataclass
class _Push:
    """One push: what is to arrive, and what was found out on the way."""

    files: dict[str, LocalFile]
    destination: Destination
    api: HfApi
    tried: bool = False
    pulls_before: set[str] = field(default_factory=set)

    def prepare(self) -> None:
        """See to it that repository and branch are there."""
        to, api = self.destination, self.api
        if not api.repo_exists(to.repo_id):  # a token may be allowed to write, and not to create
            api.create_repo(to.repo_id, private=to.private or None, exist_ok=True)
        if to.private and not api.model_info(to.repo_id).private:
            raise ValueError(
                f"{to.repo_id} is there and public, and nothing private goes into it; choose "
                "another name, or make it private on the Hub first."
            )
        if to.revision is not None and not to.revision.startswith("refs/"):
            api.create_branch(to.repo_id, branch=to.revision, exist_ok=True)
        if to.create_pr:
            self.pulls_before = set(self._pulls())

    def commit(self) -> PushResult:
        """Commit what the branch lacks, on what it holds now; nothing, if it holds all."""
        to = self.destination
        head = self._read(to.revision)
        if landed := self._landed(head):
            return landed
        operations = self._operations(head)
        self.tried = True
        made = self.api.create_commit(
            to.repo_id,
            operations,
            commit_message=to.message,
            revision=to.revision,
            create_pr=to.create_pr,
            parent_commit=head.sha,
        )
        return PushResult(self._url(made), made.oid, already_there=False)

    def _landed(self, head: ModelInfo) -> PushResult | None:
        """The result, if the branch holds all; or a pull request that an earlier try opened."""
        if not self._operations(head):
            return PushResult(self._repo_url(), str(head.sha), already_there=not self.tried)
        if self.tried and self.destination.create_pr:
            for ref in sorted(set(self._pulls()) - self.pulls_before):
                pull = self._read(ref)
                if not self._operations(pull):
                    url = f"{self._repo_url()}/discussions/{ref.split('/')[-1]}"
                    return PushResult(url, str(pull.sha), already_there=False)
        return None

    def _read(self, revision: str | None) -> ModelInfo:
        return self.api.model_info(self.destination.repo_id, revision=revision, files_metadata=True)

    def _pulls(self) -> list[str]:
        refs = self.api.list_repo_refs(self.destination.repo_id, include_pull_requests=True)
        return [pull.ref for pull in refs.pull_requests or ()]

    def _operations(self, head: ModelInfo) -> list[CommitOperationAdd | CommitOperationDelete]:
        """What makes the head hold our files: fresh objects, since the client uses them up."""
        there = {file.rfilename: file for file in head.siblings or ()}
        changed = [
            name
            for name, file in self.files.items()
            if name not in there or not _is_same(file, there[name])
        ]
        gone = replaced_weights(there, self.files)
        return [
            *(CommitOperationAdd(name, self.files[name].path) for name in changed),
            *(CommitOperationDelete(name) for name in gone),
        ]

    def _repo_url(self) -> str:
        return f"{self.api.endpoint}/{self.destination.repo_id}"

    def _url(self, made: CommitInfo) -> str:
        return made.pr_url or self._repo_url()


class _Wait:
    """Ever longer, with chance in it, and as long as the Hub asks for."""

    def __init__(self, patience: Patience) -> None:
        self.longest = patience.longest_wait
        growing = wait_exponential(multiplier=patience.first_wait, max=patience.longest_wait)
        self.exponential = growing + wait_random(0, patience.first_wait)

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        cause = _cause(error) if error else None
        asked = _asked_wait(cause) if isinstance(cause, HfHubHTTPError) else 0
        return max(self.exponential(state), min(asked, self.longest))


def _asked_wait(error: HfHubHTTPError) -> int:
    """Seconds that the Hub wants to be left alone: said plainly, or until its count begins anew."""
    headers = error.response.headers
    plain = re.fullmatch(r"\d+", headers.get("Retry-After", ""))
    until_reset = re.search(r"\br=0;\s*t=(\d+)", headers.get("RateLimit", ""))
    return max(int(plain[0]) if plain else 0, int(until_reset[1]) if until_reset else 0)


def _is_same(file: LocalFile, there: Any) -> bool:
    """Whether the Hub has the same content: `there` is a file as it lists it."""
    if there.size is not None and there.size != file.path.stat().st_size:
        return False
    return file.sha256 == there.lfs.sha256 if there.lfs else file.git_hash == there.blob_id


def _cause(error: BaseException) -> BaseException | None:
    """The failure of the network or the Hub below an error; the client wraps some."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (TRANSPORT_ERROR, ConnectionError, TimeoutError)):
            return seen
        seen = seen.__cause__
    return None


def _is_full(error: BaseException) -> bool:
    """Whether a copy or the client's cache found no room; hf_xet tells so in words alone."""
    in_words = os.strerror(errno.ENOSPC)
    return isinstance(error, OSError) and (error.errno == errno.ENOSPC or in_words in str(error))


def _passes(error: BaseException) -> bool:
    """Whether trying again may help."""
    cause = _cause(error)
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        return False
    status = _status(cause)
    return status is None or status in (*PASSING, OVERTAKEN)


def _status(cause: BaseException | None) -> int | None:
    """The status of the answer, if there was one."""
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code
    found = XET_STATUS.search(str(cause))
    return int(found[1]) if found else None


def _reason(error: BaseException | None) -> str:
    """What went wrong in a few words, without anything secret."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE keeps this machine off line"
    if error is not None and _is_full(error):
        return f"the disk of the temporary folder or of HF_HOME is full ({error})"
    status, lines = _status(error), str(error).strip().splitlines()
    if status == OVERTAKEN:
        return "somebody else pushed to it at the same time"
    if isinstance(error, HfHubHTTPError):
        said = error.response.headers.get("X-Error-Message", "")
    else:  # an address may be signed, and what follows its question mark opens it
        said = QUERY.sub("", lines[0] if lines else repr(error))
    what = "the Hub cannot be reached" if status is None else f"the Hub answers {status}"
    return TOKENS.sub("(a token)", f"{what} ({said})" if said else what)


def _explain(error: BaseException, repo_id: str) -> str:
    mend = "run the same command again later"
    if isinstance(error, OfflineModeIsEnabled):
        mend = "unset HF_HUB_OFFLINE and run the same command again"
    elif _is_full(error):
        mend = "make room, or set TMPDIR or HF_HOME elsewhere, and run the same command again"
    elif (status := _status(error)) in MENDS:
        mend = f"{MENDS[status]}, and run the same command again"
    return f"{repo_id} was not pushed: {_reason(error)}; nothing is lost on the disk; {mend}."
