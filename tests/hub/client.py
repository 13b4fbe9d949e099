"""Start the test Hub as a process, and talk to its control routes."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from huggingface_hub import HfApi, constants

TOKEN = "hf_test"
SENDING = "ignore:Use 'content=:DeprecationWarning"  # of the client, at every upload by LFS
XET_SETTINGS = {
    "HF_HUB_DISABLE_XET": "0",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms",  # else three seconds, growing
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_TELEMETRY_ENABLED": "false",
}
ROOT = Path(__file__).parents[2]
_open = build_opener(ProxyHandler({})).open


class Hub:
    """A test Hub while it is a context."""

    def __enter__(self) -> "Hub":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.api = HfApi(endpoint=self.endpoint, token=TOKEN)
        self._numbers = itertools.count()
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.communicate()  # ends its input, and so the process

    def new_name(self) -> str:
        """An id that no repository has yet."""
        return f"user/model-{next(self._numbers)}"

    def fault(self, route: str, *faults: dict[str, Any], every: int = 0) -> None:
        """The next requests of a route meet these faults, as faults.py describes them."""
        self._control("fault", route=route, faults=faults, every=every)

    def clear(self) -> None:
        """No faults, no counts, no multipart uploads."""
        self._control("clear")

    def set_part_size(self, size: int) -> None:
        self._control("part_size", size=size)

    def requests(self, route: str) -> int:
        return self._control("counts")["requests"].get(route, 0)

    def routes(self) -> set[str]:
        """The routes that anything was asked of."""
        return set(self._control("counts")["requests"])

    def received(self, route: str) -> int:
        """Bytes of the bodies that a route was sent."""
        return self._control("counts")["received"].get(route, 0)

    def repo(self, name: str, kind: str = "models") -> dict[str, Any]:
        """All of a repository: `commits`, `branches`, `log` and more."""
        return self._control("repo", name=name, kind=kind)

    def pushes(self, name: str) -> list[dict[str, Any]]:
        """The log of a repository after its first commit, which is the Hub's own."""
        return self.repo(name)["log"][1:]

    def reach_from_here(self, monkeypatch: pytest.MonkeyPatch, *, xet: bool = False) -> None:
        """Let the client in this process, off line in all tests, talk to this Hub by LFS or xet."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        if xet:  # it reads its settings when a session begins
            from huggingface_hub.utils import _xet

            for setting, value in XET_SETTINGS.items():
                monkeypatch.setenv(setting, value)
            monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
        self.clear()

    def environment(self, home: Path, *, xet: bool = False) -> dict[str, str]:
        """Of a process that talks to this Hub and keeps what it fetches in `home`."""
        unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
        by_xet = XET_SETTINGS if xet else {"HF_HUB_DISABLE_XET": "1"}
        return kept | own | quiet | by_xet

    def _control(self, what: str, **asked: Any) -> Any:
        request = Request(f"{self.endpoint}/_control/{what}", json.dumps(asked).encode())
        with _open(request) as answer:
            return json.load(answer)
