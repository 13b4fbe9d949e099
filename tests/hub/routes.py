"""The routes of the test Hub: each takes a request and returns JSON, or a status, bytes, headers.

What a failed request says is a `Refused`. Nothing is done before all of it was looked at.
"""

import base64
import dataclasses
import json
import re
from http import HTTPStatus
from typing import Any

import yaml

from .store import DEFAULT, File, Refused, Repo, list_tree, upload_mode

ORGANIZATIONS = ("team",)
PUT_HEADERS = {"ETag": '"part"'}


def whoami(request: Any) -> Any:
    user = _writer(request)
    token = {"accessToken": {"displayName": "test", "role": "write"}, "type": "access_token"}
    organizations = [{"name": name, "type": "org"} for name in ORGANIZATIONS]
    return {"type": "user", "name": user, "fullname": user, "orgs": organizations, "auth": token}


def no_harnesses(request: Any) -> Any:
    """What a client would know once, to name itself by; it makes do without."""
    raise Refused(404, "", "this Hub lists none")


def create_repo(request: Any) -> Any:
    user, asked = _writer(request), request.json
    kind = f"{asked.get('type', 'model')}s"
    owner, _, name = asked["name"].rpartition("/")
    owner = asked.get("organization") or owner or user
    if owner != user and owner not in ORGANIZATIONS:
        raise Refused(403, "", f"You don't have the rights to create a model under {owner}")
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    is_there = (kind, f"{owner}/{name}") in request.hub.store.repos
    repo = (request.hub.store.find if is_there else request.hub.store.create)(
        kind, f"{owner}/{name}"
    )
    repo.private = repo.private or (private and not is_there)
    answer = {"url": _url(request, repo), "name": repo.id, "id": "1"}
    if is_there:
        answer["error"] = "You already created this model repo"
    return 409 if is_there else 200, json.dumps(answer).encode(), {}


def delete_repo(request: Any) -> Any:
    user, asked = _writer(request), request.json
    name = f"{asked.get('organization') or user}/{asked['name'].split('/')[-1]}"
    request.hub.store.find(f"{asked.get('type', 'model')}s", name)
    del request.hub.store.repos[f"{asked.get('type', 'model')}s", name]
    return {}


def validate_yaml(request: Any) -> Any:
    """Whether what stands between the dashes of a card is a YAML mapping."""
    content, errors = request.json["content"], []
    found = re.match(r"---\n(.*?)\n---", content.replace("\r\n", "\n"), re.DOTALL)
    try:
        metadata = yaml.safe_load(found[1]) if found else {}
        if not isinstance(metadata, dict):
            errors.append({"message": "the metadata is no mapping"})
    except yaml.YAMLError as error:
        errors.append({"message": str(error)})
    return 400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode(), {}


def preupload(request: Any) -> Any:
    repo, commit = repo_to_write(request), None
    commit = repo.find(request.parts["revision"])
    answers = []
    for asked in request.json["files"]:
        mode = upload_mode(asked["path"], asked["size"])
        answer = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
        present = commit.files.get(asked["path"])
        answers.append(answer | ({"oid": present.etag} if present else {}))
    return {"files": answers}


def lfs_batch(request: Any) -> Any:
    repo_to_write(request)
    hub, asked = request.hub, request.json
    multipart = hub.part_size and "multipart" in asked["transfers"]
    objects = []
    for item in asked["objects"]:
        href, size = f"{hub.endpoint}/_lfs/{item['oid']}", item["size"]
        answer = {"oid": item["oid"], "size": size}
        if item["oid"] not in hub.store.blobs:
            upload: dict[str, Any] = {"href": href}
            if multipart:
                parts = range(1, -(-size // hub.part_size) + 1)
                header = {f"{part:05d}": f"{href}/{part}" for part in parts}
                header["chunk_size"] = str(hub.part_size)
                upload = {"href": f"{href}/complete", "header": header}
            answer["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
        objects.append(answer)
    return {"transfer": "multipart" if multipart else "basic", "objects": objects}


def lfs_put(request: Any) -> Any:
    request.hub.store.keep_large(request.body, request.parts["oid"])
    return 200, b"", PUT_HEADERS


def lfs_part(request: Any) -> Any:
    parts = request.hub.store.parts.setdefault(request.parts["oid"], {})
    parts[int(request.parts["part"])] = request.body
    return 200, b"", PUT_HEADERS


def lfs_complete(request: Any) -> Any:
    parts = request.hub.store.parts.get(request.parts["oid"], {})
    numbers = [part["partNumber"] for part in request.json["parts"]]
    if any(number not in parts for number in numbers):
        raise Refused(400, "", "a part is missing")
    content = b"".join(parts[number] for number in sorted(numbers))
    request.hub.store.keep_large(content, request.parts["oid"])
    return {}


def lfs_verify(request: Any) -> Any:
    request.hub.store.large_file(request.parts["oid"], request.json["size"])
    return {}


def commit(request: Any) -> Any:
    repo, store = repo_to_write(request), request.hub.store
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    ref = request.parts["revision"]
    parent = repo.find(ref)
    if header.get("parentCommit") not in (None, parent.id):
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for line in lines:
        _apply(files, line["key"], line["value"], store)
    pull = {}
    if request.query.get("create_pr"):
        number = len(repo.pulls) + 1
        ref = f"refs/pr/{number}"
        repo.pulls[ref] = parent.id
        pull = {"pullRequestUrl": f"{_url(request, repo)}/discussions/{number}"}
    elif ref not in repo.branches and ref not in repo.pulls:
        raise Refused(404, "RevisionNotFound", f"{ref} is no branch")
    made = repo.add_commit(ref, header["summary"], files)
    return {"commitUrl": f"{_url(request, repo)}/commit/{made.id}", "commitOid": made.id} | pull


def _apply(files: dict[str, File], key: str, value: dict[str, Any], store: Any) -> None:
    """Do to the files of a commit what one line of its body says."""
    if key == "file":
        content = value["content"]
        is_base64 = value.get("encoding") == "base64"
        files[value["path"]] = store.keep(
            base64.b64decode(content) if is_base64 else content.encode()
        )
    elif key == "lfsFile":
        files[value["path"]] = store.large_file(value["oid"], value["size"])
    elif key == "deletedFile":
        if files.pop(value["path"], None) is None:
            raise Refused(404, "EntryNotFound", f"there is no {value['path']} to delete")
    elif key == "deletedFolder":
        for path in [path for path in files if path.startswith(f"{value['path'].rstrip('/')}/")]:
            del files[path]


def commit_of_somebody_else(request: Any) -> None:
    """A file appears on the branch that a request is about to write to."""
    repo = request.hub.store.find(request.parts["kind"], request.parts["name"])
    ref = request.parts["revision"]
    note = request.hub.store.keep(f"note {len(repo.log)}".encode())
    repo.add_commit(ref, "of somebody else", repo.find(ref).files | {"notes.txt": note})


def create_branch(request: Any) -> Any:
    repo, name = repo_to_write(request), request.parts["revision"]
    if name in repo.branches:
        raise Refused(409, "", f"the branch {name} exists")
    repo.branches[name] = repo.find(request.json.get("startingPoint") or DEFAULT).id
    return {}


def create_tag(request: Any) -> Any:
    repo, name = repo_to_write(request), request.json["tag"]
    if name in repo.tags:
        raise Refused(409, "", f"the tag {name} exists")
    repo.tags[name] = repo.find(request.parts["revision"]).id
    return {}


def tree(request: Any) -> Any:
    found = repo_to_read(request).find(request.parts["revision"])
    recursive = request.query.get("recursive", "").lower() == "true"
    return list_tree(found, request.parts.get("path", "").strip("/"), recursive)


def paths_info(request: Any) -> Any:
    found, form = repo_to_read(request).find(request.parts["revision"]), request.form
    names = [name.strip("/") for name in form.get("paths", [])]
    rows = list_tree(found, "", recursive=True)
    return [row for row in rows if row["path"] in names]


def refs(request: Any) -> Any:
    repo = repo_to_read(request)

    def rows(found: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"{prefix}{name}", "targetCommit": target}
            for name, target in found.items()
        ]

    branches, tags = rows(repo.branches, "refs/heads/"), rows(repo.tags, "refs/tags/")
    return {
        "branches": branches,
        "converts": [],
        "tags": tags,
        "pullRequests": rows(repo.pulls, ""),
    }


def history(request: Any) -> Any:
    commits = repo_to_read(request).history(request.parts["revision"])
    shared = {"date": "2026-01-01T00:00:00.000Z", "authors": [{"user": "user"}]}
    return [{"id": one.id, "title": one.message, "message": "", **shared} for one in commits]


def info(request: Any) -> Any:
    repo = repo_to_read(request)
    found = repo.find(request.parts.get("revision", DEFAULT))
    times = {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
    counts = {"downloads": 0, "likes": 0, "tags": [], "gated": False, "disabled": False}
    siblings = [
        {"rfilename": path, "size": file.size, "blobId": file.oid}
        | ({"lfs": file.describe(path)["lfs"] | {"sha256": file.sha256}} if file.sha256 else {})
        for path, file in sorted(found.files.items())
    ]
    facts = {"_id": "1", "id": repo.id, "sha": found.id, "private": repo.private}
    return facts | times | counts | {"siblings": siblings}


def resolve(request: Any) -> Any:
    repo = repo_to_read(request, request.parts.get("kind", "models"))
    found = repo.find(request.parts["revision"])
    file = found.files.get(request.parts["path"])
    headers = {"X-Repo-Commit": found.id}
    if file is None:
        missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return 404, b"Entry not found", headers | missing
    headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if file.sha256 is None:
        return content_range(request, request.hub.store.blobs[file.oid], headers)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    if xet_hash := request.hub.store.xet_hashes.get(file.sha256):
        refresh = f"{request.hub.endpoint}/api/{repo.kind}/{repo.id}/xet-read-token/{found.id}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": refresh}
    return 302, b"", headers | {"Location": f"{request.hub.cdn}/_cdn/{file.sha256}"}


def cdn(request: Any) -> Any:
    """Content by its hash; a token that came along is a mistake of the client."""
    if request.headers.get("Authorization"):
        raise Refused(400, "", "the token was sent to another host")
    return content_range(request, request.hub.store.blobs[request.parts["oid"]], {})


def control(hub: Any, what: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
    """Let the tests set faults and look inside."""
    asked = json.loads(body or b"{}")
    answer: Any = {}
    with hub.lock:
        if what == "fault":
            hub.faults.set(asked["route"], asked["faults"], asked.get("every", 0))
        elif what == "clear":
            hub.faults.clear()
            hub.part_size = 0
        elif what == "part_size":
            hub.part_size = asked["size"]
        elif what == "counts":
            answer = {"requests": hub.faults.requests, "received": hub.faults.received}
        elif what == "repo":
            repo = hub.store.find(asked["kind"], asked["name"])
            answer = dataclasses.asdict(repo)
    return HTTPStatus.OK, json.dumps(answer).encode(), {"Content-Type": "application/json"}


def content_range(request: Any, content: bytes, headers: dict[str, str]) -> Any:
    """The content, or the range of it that was asked for."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
    if not asked:
        return 200, content, headers
    size = len(content)
    if not asked[1]:
        start, stop = max(0, size - int(asked[2])), size
    else:
        start, stop = int(asked[1]), min(size, int(asked[2]) + 1) if asked[2] else size
    if start >= size:
        return 416, b"", headers | {"Content-Range": f"bytes */{size}"}
    headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return 206, content[start:stop], headers


def _writer(request: Any) -> str:
    if request.user is None:
        raise Refused(401, "", "Invalid username or password.")
    return request.user


def repo_to_write(request: Any) -> Repo:
    user = _writer(request)
    repo = repo_to_read(request, request.parts.get("kind", "models"))
    if repo.id.split("/")[0] not in (user, *ORGANIZATIONS):
        raise Refused(403, "", "You don't have the rights to write to this repository")
    return repo


def repo_to_read(request: Any, kind: str | None = None) -> Repo:
    repo = request.hub.store.find(kind or request.parts["kind"], request.parts["name"])
    if repo.private and request.user is None:
        raise Refused(401, "RepoNotFound", "Invalid username or password.")
    return repo


def _url(request: Any, repo: Repo) -> str:
    prefix = "" if repo.kind == "models" else f"{repo.kind}/"
    return f"{request.hub.endpoint}/{prefix}{repo.id}"
