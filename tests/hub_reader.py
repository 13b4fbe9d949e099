"""A Hub on this computer that models can be read from, as much of one as its client asks for.

Below the root lie folders `user/name/revision`. A client is a process of its own, since where the
Hub is is read once, at import: start it with `HubReader.environment`.
"""

import hashlib
import json
import os
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class HubReader(ThreadingHTTPServer):
    """Serves while it is a context; `requests` are the paths that were asked for."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.requests = root, list[str]()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> "HubReader":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that reads from here and keeps what it fetches in `home`."""
        unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        endpoint = f"http://127.0.0.1:{self.server_port}"
        own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        return kept | own | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    server: HubReader
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer what the client wants to know, or a file."""
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        match path.strip("/").split("/"):
            case ["api", "models", user, name, *rest] if len(rest) < 3:
                self._describe(f"{user}/{name}", rest)
            case [user, name, "resolve", revision, *file]:
                self._send_file(f"{user}/{name}", revision, "/".join(file))
            case _:
                self._refuse("EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def _folder(self, name: str, revision: str) -> Path | None:
        """Of a branch, a tag or a commit; None, when it was refused."""
        if not (self.server.root / name).is_dir():
            return self._refuse("RepoNotFound")
        for folder in (self.server.root / name).iterdir():
            if revision in (folder.name, _commit(folder)):
                return folder
        return self._refuse("RevisionNotFound")

    def _describe(self, name: str, rest: list[str]) -> None:
        folder = self._folder(name, rest[1] if rest else "main")
        if folder is None:
            return
        files = [{"rfilename": path.name, "size": path.stat().st_size} for path in folder.iterdir()]
        facts: Any = {"id": name, "sha": _commit(folder), "siblings": files, "tags": []}
        if rest and rest[0] == "tree":
            kind = {"type": "file", "oid": _commit(folder)}
            facts = [kind | {"path": file["rfilename"], "size": file["size"]} for file in files]
        self._send(json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str, revision: str, file: str) -> None:
        folder = self._folder(name, revision)
        if folder is None:
            return
        headers = {"X-Repo-Commit": _commit(folder)}
        if not (folder / file).is_file():
            return self._refuse("EntryNotFound", headers)
        content = (folder / file).read_bytes()
        self._send(content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        refusal = {"X-Error-Code": code, "X-Error-Message": code}
        self._send(b"", refusal | (headers or {}), HTTPStatus.NOT_FOUND)

    def _send(self, content: bytes, headers: dict[str, str], status: int = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _commit(folder: Path) -> str:
    """The same forty digits for the same name."""
    return hashlib.sha1(str(folder).encode()).hexdigest()
