"""The xet routes of the test Hub: tokens, and the storage that files are kept in as chunks.

A client asks for a token, then talks to the storage alone. Up: may a xorb come (`grant`), the xorb
itself to an address that needs no token (`xorb`), that it came (`kept`), and what files are made of
(`shard`). Down: what a file is made of (`terms`), and ranges of xorbs (`range`).
"""

import hashlib
import time
from itertools import count
from typing import Any

from .routes import content_range, repo_to_read, repo_to_write
from .store import Refused
from .xet_format import Term, chunk_bounds, parse_shard, unpack

LIFE = 3600  # seconds of a token
_numbers = count()


def write_token(request: Any) -> Any:
    repo_to_write(request)
    return _token(request, "write")


def read_token(request: Any) -> Any:
    repo_to_read(request)
    return _token(request, "read")


def known_chunks(request: Any) -> Any:
    """What else holds a chunk: this Hub never says."""
    _check_token(request, "write")
    raise Refused(404, "", "no shard holds this chunk")


def grant(request: Any) -> Any:
    _check_token(request, "write")
    store, xorb = request.hub.store, request.parts["xorb"]
    if xorb in store.xorbs:
        return {}
    number = f"{next(_numbers)}"
    store.grants[number] = None
    url = f"{request.hub.cdn}/_xorbs/{number}"
    return 201, {"id": number, "method": "PUT", "url": url, "headers": {}}, {}


def put_xorb(request: Any) -> Any:
    """The content of a xorb; a token that came along is a mistake of the client."""
    if request.headers.get("Authorization"):
        raise Refused(400, "", "the token was sent to another host")
    request.hub.store.grants[request.parts["grant"]] = request.body
    return {}


def put_xorb_directly(request: Any) -> Any:
    """The way before there were grants, which clients take when an upload to one fails."""
    _check_token(request, "write")
    request.hub.store.xorbs[request.parts["xorb"]] = request.body
    return {"was_inserted": True}


def keep_xorb(request: Any) -> Any:
    _check_token(request, "write")
    content = request.hub.store.grants.get(request.parts["grant"])
    if content is None:
        raise Refused(404, "", "nothing was uploaded")
    request.hub.store.xorbs[request.parts["xorb"]] = content
    return {"was_inserted": True}


def no_shard_events(request: Any) -> Any:
    """A shard whose sender would hear how it goes: without this, clients send it again plainly."""
    _check_token(request, "write")
    raise Refused(404, "", "this storage tells nothing while it works")


def keep_shard(request: Any) -> Any:
    """Files, once all that they are made of is there."""
    _check_token(request, "write")
    store = request.hub.store
    for name, terms in parse_shard(request.body).items():
        if missing := [term.xorb for term in terms if term.xorb not in store.xorbs]:
            raise Refused(400, "", f"the xorb {missing[0]} was never uploaded")
        content = b"".join(unpack(store.xorbs[term.xorb], term) for term in terms)
        store.chunked[name] = terms
        sha256 = hashlib.sha256(content).hexdigest()
        store.xet_hashes[sha256], store.blobs[sha256] = name, content
    return {"result": 1}


def list_terms(request: Any) -> Any:
    """What a file is made of, and where to fetch that."""
    _check_token(request, "read")
    store = request.hub.store
    terms = store.chunked.get(request.parts["file"])
    if terms is None:
        raise Refused(404, "", "there is no such file")
    listed = [
        {"hash": term.xorb, "unpacked_length": term.size, "range": _range(term.first, term.stop)}
        for term in terms
    ]
    places = {xorb: [_place(request, xorb, terms)] for xorb in {term.xorb for term in terms}}
    return {"offset_into_first_range": 0, "terms": listed, "xorbs": places}


def xorb_range(request: Any) -> Any:
    """Bytes of a xorb."""
    if request.headers.get("Authorization"):
        raise Refused(400, "", "the token was sent to another host")
    return content_range(request, request.hub.store.xorbs[request.parts["xorb"]], {})


def _place(request: Any, xorb: str, terms: list[Term]) -> dict[str, Any]:
    """One range of a xorb that holds all that a file takes of it."""
    used = [term for term in terms if term.xorb == xorb]
    first, stop = min(term.first for term in used), max(term.stop for term in used)
    bounds = chunk_bounds(request.hub.store.xorbs[xorb], stop)
    found = {"chunks": _range(first, stop), "bytes": _range(bounds[first], bounds[stop] - 1)}
    return {"url": f"{request.hub.cdn}/_xorbs/{xorb}", "ranges": [found]}


def _range(start: int, end: int) -> dict[str, int]:
    return {"start": start, "end": end}


def _token(request: Any, right: str) -> Any:
    cas, expires = f"{request.hub.cdn}/_xet", int(time.time()) + LIFE
    headers = {
        "X-Xet-Cas-Url": cas,
        "X-Xet-Access-Token": f"xet-{right}",
        "X-Xet-Token-Expiration": str(expires),
    }
    return 200, {"casUrl": cas, "accessToken": f"xet-{right}", "exp": expires}, headers


def _check_token(request: Any, right: str) -> None:
    if request.headers.get("Authorization") not in (f"Bearer xet-{right}", "Bearer xet-write"):
        raise Refused(401, "", f"no token to {right} with")
