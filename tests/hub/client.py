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

    def received(self, route: str) -> int:
        """Bytes of the bodies that a route was sent."""
        return self._control("counts")["received"].get(route, 0)

    def repo(self, name: str, kind: str = "models") -> dict[str, Any]:
        """All of a repository: `commits`, `branches`, `log` and more."""
        return self._control("repo", name=name, kind=kind)

    def pushes(self, name: str) -> list[dict[str, Any]]:
        """The log of a repository after its first commit, which is the Hub's own."""
        return self.repo(name)["log"][1:]

    def reach_from_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the client in this process, off line in all tests, talk to this Hub by way of LFS."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        self.clear()

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that talks to this Hub and keeps what it fetches in `home`."""
        unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        return kept | own | quiet | {"NO_PROXY": "127.0.0.1,localhost"}

    def _control(self, what: str, **asked: Any) -> Any:
        request = Request(f"{self.endpoint}/_control/{what}", json.dumps(asked).encode())
        with _open(request) as answer:
            return json.load(answer)
