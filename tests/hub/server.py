"""A Hub on loopback for tests: the HTTP of huggingface.co, as its clients speak it.

`python -m tests.hub.server` prints its port and serves until its standard input ends. It is made
with `http.server`, since connections that are cut in the middle of an answer, and redirects to
another host name, need the socket rather than a framework. The endpoint is `127.0.0.1`; content of
LFS comes from `localhost`, as from a CDN. `POST /_control/...` is for the tests, see client.py.
"""

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import routes, xet
from .faults import Faults
from .store import Refused, Store

Answer = tuple[int, bytes, dict[str, str]]
NAME = r"(?P<name>[\w.-]+(?:/[\w.-]+)?)"
REPO = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
FILES = rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}"
# The names of routes are those that faults and counters go by.
ROUTES: tuple[tuple[str, str, str, Callable[..., Any]], ...] = (
    ("whoami", "GET", r"/api/whoami-v2", routes.whoami),
    ("harnesses", "GET", r"/api/agent-harnesses", routes.no_harnesses),
    ("create", "POST", r"/api/repos/create", routes.create_repo),
    ("delete", "DELETE", r"/api/repos/delete", routes.delete_repo),
    ("validate", "POST", r"/api/validate-yaml", routes.validate_yaml),
    ("preupload", "POST", rf"{REPO}/preupload/(?P<revision>.+)", routes.preupload),
    ("batch", "POST", rf"{FILES}\.git/info/lfs/objects/batch", routes.lfs_batch),
    ("put", "PUT", r"/_lfs/(?P<oid>\w+)", routes.lfs_put),
    ("part", "PUT", r"/_lfs/(?P<oid>\w+)/(?P<part>\d+)", routes.lfs_part),
    ("complete", "POST", r"/_lfs/(?P<oid>\w+)/complete", routes.lfs_complete),
    ("verify", "POST", r"/_lfs/(?P<oid>\w+)/verify", routes.lfs_verify),
    ("commit", "POST", rf"{REPO}/commit/(?P<revision>.+)", routes.commit),
    ("branch", "POST", rf"{REPO}/branch/(?P<revision>.+)", routes.create_branch),
    ("tag", "POST", rf"{REPO}/tag/(?P<revision>.+)", routes.create_tag),
    (
        "tree",
        "GET",
        rf"{REPO}/tree/(?P<revision>refs%2Fpr%2F\d+|[^/]+)(?:/(?P<path>.*))?",
        routes.tree,
    ),
    ("paths", "POST", rf"{REPO}/paths-info/(?P<revision>.+)", routes.paths_info),
    ("refs", "GET", rf"{REPO}/refs", routes.refs),
    ("commits", "GET", rf"{REPO}/commits/(?P<revision>.+)", routes.history),
    ("info", "GET", rf"{REPO}(?:/revision/(?P<revision>.+))?", routes.info),
    (
        "resolve",
        "GET",
        rf"{FILES}/resolve/(?P<revision>refs%2Fpr%2F\d+|[^/]+)/(?P<path>.+)",
        routes.resolve,
    ),
    ("cdn", "GET", r"/_cdn/(?P<oid>\w+)", routes.cdn),
    ("write_token", "GET", rf"{REPO}/xet-write-token/(?P<revision>.+)", xet.write_token),
    ("read_token", "GET", rf"{REPO}/xet-read-token/(?P<revision>.+)", xet.read_token),
    ("chunks", "GET", r"/_xet/v1/chunks/default/(?P<chunk>\w+)", xet.known_chunks),
    ("grant", "POST", r"/_xet/v1/xorb-grants/default/(?P<xorb>\w+)", xet.grant),
    ("xorb", "PUT", r"/_xorbs/(?P<grant>\w+)", xet.put_xorb),
    (
        "kept",
        "POST",
        r"/_xet/v1/xorb-commits/default/(?P<xorb>\w+)/grant/(?P<grant>\w+)",
        xet.keep_xorb,
    ),
    ("direct", "POST", r"/_xet/v1/xorbs/default/(?P<xorb>\w+)", xet.put_xorb_directly),
    ("shard_events", "POST", r"/_xet/v2/shards", xet.no_shard_events),
    ("shard", "POST", r"/_xet/v1/shards", xet.keep_shard),
    ("terms", "GET", r"/_xet/v2/reconstructions/(?P<file>\w+)", xet.list_terms),
    ("range", "GET", r"/_xorbs/(?P<xorb>\w+)", xet.xorb_range),
)
TOKENS = {"hf_test": "user", "hf_other": "somebody"}


class TestHub(ThreadingHTTPServer):
    """All that the routes share; one lock, since what they do is quick."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store, self.faults, self.lock = Store(), Faults(), threading.RLock()
        self.part_size = 0
        """Of multipart uploads; 0 sends every file in one piece."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback; anything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Request:
    """What a route is given: who asks, for what, and with which body."""

    def __init__(self, handler: "Handler", body: bytes, parts: dict[str, str | None]) -> None:
        self.hub, self.body, self.headers = handler.server, body, handler.headers
        query = parse_qs(urlsplit(handler.path).query)
        self.query = {name: values[-1] for name, values in query.items()}
        self.parts = {name: unquote(value) for name, value in parts.items() if value is not None}
        self.method = handler.command
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = TOKENS.get(token)

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())


class Handler(BaseHTTPRequestHandler):
    server: TestHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets: the second would wait 40 ms

    def do_GET(self) -> None:
        """Answer whatever was asked, by its route."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if path.startswith("/_control/"):
            return self._send(*routes.control(self.server, path.removeprefix("/_control/"), body))
        method = "GET" if self.command == "HEAD" else self.command
        for name, verb, pattern, route in ROUTES:
            if verb == method and (found := re.fullmatch(pattern, path)):
                name = "head" if self.command == "HEAD" else name
                return self._answer(name, route, Request(self, body, found.groupdict()))
        self.server.faults.meet(f"{self.command} {path}", len(body))
        self._send(404, b'{"error": "there is no such route"}', {})

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def _answer(self, name: str, route: Callable[..., Any], request: Request) -> None:
        fault = self.server.faults.meet(name, len(request.body))
        time.sleep(fault.get("delay", 0))
        if fault.get("dropped"):
            return self._close()
        try:
            if "status" in fault:
                message = fault.get("message", "an injected fault")
                raise Refused(fault["status"], fault.get("code", ""), message)
            with self.server.lock:
                if fault.get("foreign"):
                    routes.commit_of_somebody_else(request)
                answer = route(request)
        except Refused as refused:
            message = str(refused).replace("\n", " ")
            headers = {"X-Error-Message": message, "X-Request-Id": "test"}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            headers |= fault.get("headers", {})
            answer = refused.status, json.dumps({"error": message}).encode(), headers
        if fault.get("lost"):
            return self._close()
        status, content, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json"} | headers
        self._send(status, content, headers, fault)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        fault: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        content = b"" if self.command == "HEAD" else content
        cut = len(content) // 2 if fault.get("torn") else fault.get("cut", len(content))
        if fault.get("torn") and not content:  # then the head is what can be torn
            self._headers_buffer = [b"".join(self._headers_buffer)[:20]]
            self.flush_headers()
            return self._close()
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut < len(content):
            self._close()

    def _close(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve until the process that started this one is gone."""
    server = TestHub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
