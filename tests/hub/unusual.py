"""Repositories that no client would make: their commits are sent by hand."""

import base64
import json
from urllib.request import ProxyHandler, Request, build_opener

from .client import TOKEN, Hub

_open = build_opener(ProxyHandler({})).open


def push_raw(hub: Hub, files: dict[str, bytes]) -> str:
    """A new repository with files of any names, which the client would refuse: -> its name."""
    name = hub.new_name()
    hub.api.create_repo(name)
    lines = [{"key": "header", "value": {"summary": "unusual"}}]
    for path, content in files.items():
        encoded = base64.b64encode(content).decode()
        value = {"path": path, "content": encoded, "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    body = "\n".join(json.dumps(line) for line in lines).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/x-ndjson"}
    _open(Request(f"{hub.endpoint}/api/models/{name}/commit/main", body, headers)).close()
    return name
