"""What the test Hub holds: repositories with commits and refs, and the content of files by hash."""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from .xet_format import Term

LFS_SUFFIXES = {".safetensors", ".bin", ".parquet", ".pt", ".onnx", ".npz", ".tar"}
LARGEST_REGULAR = 10 * 2**20
DEFAULT = "main"
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refused(Exception):
    """A request that is answered with an error: a status, and the code that clients tell it by."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    """One file of a commit: `oid` as git names it, `sha256` if it is stored by LFS."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def describe(self, path: str) -> dict[str, Any]:
        facts: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256:
            facts["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return facts


@dataclass(frozen=True)
class Commit:
    id: str
    message: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Repo:
    """A repository; its refs are `main`, other branches, tags and `refs/pr/1`."""

    kind: str
    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    """After every commit: what it did, and what a reader of the default branch sees."""

    def find(self, revision: str) -> Commit:
        for refs in (self.branches, self.tags, self.pulls):
            revision = refs.get(revision, revision)
        if revision not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[revision]

    def history(self, revision: str) -> list[Commit]:
        commits = [self.find(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def add_commit(self, ref: str, message: str, files: dict[str, File]) -> Commit:
        """Put a commit on a branch, or on a pull request."""
        refs = self.pulls if ref.startswith("refs/pr/") else self.branches
        parent = refs.get(ref)
        text = f"{self.id}{ref}{message}{len(self.log)}{sorted(files)}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), message, parent, files)
        self.commits[commit.id] = commit
        refs[ref] = commit.id
        visible = self.find(DEFAULT).files if DEFAULT in self.branches else {}
        self.log.append(
            {
                "ref": ref,
                "message": message,
                "id": commit.id,
                "visible": {path: file.etag for path, file in visible.items()},
            }
        )
        return commit


class Store:
    """Every repository, and the content that their files name."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.xorbs: dict[str, bytes] = {}
        self.grants: dict[str, bytes | None] = {}
        """What was put to an address that was given out for it, by the number in that."""
        self.chunked: dict[str, list[Term]] = {}
        self.xet_hashes: dict[str, str] = {}
        """The name in `chunked` of content that came by xet, by its SHA-256."""

    def create(self, kind: str, name: str) -> Repo:
        """With one commit, as the Hub makes it."""
        repo = self.repos[kind, name] = Repo(kind, name)
        repo.add_commit(DEFAULT, "initial commit", {".gitattributes": self.keep(ATTRIBUTES)})
        return repo

    def find(self, kind: str, name: str) -> Repo:
        if (kind, name) not in self.repos:
            raise Refused(404, "RepoNotFound", "Repository not found")
        return self.repos[kind, name]

    def keep(self, content: bytes) -> File:
        """A regular file, known by the hash that git gives it."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.blobs[oid] = content
        return File(oid, len(content))

    def keep_large(self, content: bytes, expected: str) -> None:
        """Content that LFS uploaded, if it is what it is called."""
        if hashlib.sha256(content).hexdigest() != expected:
            raise Refused(400, "", "the content does not have the announced hash")
        self.blobs[expected] = content

    def large_file(self, sha256: str, size: int) -> File:
        if len(self.blobs.get(sha256, b"")) != size:
            raise Refused(400, "", f"LFS object {sha256} was never uploaded")
        return File(hashlib.sha1(sha256.encode()).hexdigest(), size, sha256)


def upload_mode(path: str, size: int) -> str:
    is_large = PurePosixPath(path).suffix in LFS_SUFFIXES or size > LARGEST_REGULAR
    return "lfs" if is_large else "regular"


def list_tree(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder of a commit, as the Hub lists them."""
    prefix = f"{folder}/" if folder else ""
    below = {path: file for path, file in sorted(commit.files.items()) if path.startswith(prefix)}
    if folder and not below:
        raise Refused(404, "EntryNotFound", f"{folder} does not exist on {commit.id}")
    folders = {
        prefix + "/".join(parts[:count])
        for parts in (path.removeprefix(prefix).split("/") for path in below)
        for count in (range(1, len(parts)) if recursive else range(1, min(2, len(parts))))
    }
    listed = [file.describe(path) for path, file in below.items()]
    if not recursive:
        listed = [row for row in listed if "/" not in row["path"].removeprefix(prefix)]
    rows = ({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders)
    return list(itertools.chain(rows, listed))
