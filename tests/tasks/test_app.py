"""`hf-vitmae app` in a browser: drop an image, draw on it, see what the model makes of it."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_vitmae import VitMaeForImageClassification, VitMaeForSemanticSegmentation
from hf_vitmae.cli import main
from hf_vitmae.tasks.app import AppRequest

from .small_models import save_small_model

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 60


class Server:
    """The verb as a process of its own, on a free port."""

    def __init__(self, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "hf_vitmae.cli", "app", *arguments]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        self.address = f"http://127.0.0.1:{self.port}"
        assert self.address in self.said, self.said + self.process.stdout.read()

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, rest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not BROWSER:
        pytest.skip("there is no Chromium on this machine")
    pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    model = save_small_model(tmp_path_factory.mktemp("app") / "tiny-mae")
    server = Server(str(model), "--gallery", "emoji", "--gallery-images", "20")
    yield server
    code, rest = server.stop()
    assert code == 0 and "The page is closed." in rest and "Traceback" not in rest


class Visitor:
    """A page in a browser, and what went wrong in it."""

    def __init__(self, browser: Any, server: Server, size: tuple[int, int] = (1280, 800)) -> None:
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._follow(request.url, server.address))
        self.page.goto(server.address)
        self.page.locator("#where-it-looks img").wait_for(timeout=SECONDS * 1000)

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _follow(self, url: str, address: str) -> None:
        if not url.startswith((address, address.replace("http", "ws"), "data:", "blob:")):
            self.elsewhere.append(url)

    def said(self) -> str:
        """The line below the pictures, without the time that is shown while one waits."""
        return self.page.inner_text("#said").splitlines()[-1]

    def wait_for_other(self, before: str) -> str:
        """Until the line says something else, and nothing is waited for."""
        self.page.wait_for_function(
            "said => { const now = document.querySelector('#said')?.innerText || '';"
            " return now.includes('hidden') && !now.includes('\\n') && now != said; }",
            arg=before,
            timeout=SECONDS * 1000,
        )
        return self.said()

    def picture(self, name: str) -> np.ndarray:
        """What an image of the page shows."""
        image = self.page.locator(f"#{name} img")
        image.wait_for(timeout=SECONDS * 1000)
        data = self.page.request.get(image.get_attribute("src")).body()
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def upload(self, path: Path) -> None:
        self.page.set_input_files("#upload input[type=file]", str(path))


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield browser
        browser.close()


def hidden_share(pixels: np.ndarray) -> float:
    return float((pixels == 128).all(axis=2).mean())


@pytest.mark.slow
def test_a_visitor_uploads_draws_and_sees(browser: Any, server: Server, tmp_path: Path) -> None:
    visitor = Visitor(browser, server)
    page = visitor.page
    assert "tiny-mae" in page.inner_text("#title")
    visitor.wait_for_other("")
    before = visitor.picture("what-it-paints")
    first = visitor.said()
    assert (
        first.startswith("75% hidden")
        and hidden_share(visitor.picture("what-the-model-sees")) == 0.75
    )
    assert page.locator("#nearest img").count() == 6

    values = np.random.default_rng(0).integers(0, 100, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "mine.png")
    visitor.upload(tmp_path / "mine.png")
    second = visitor.wait_for_other(first)
    assert (visitor.picture("what-it-paints") != before).any()

    page.get_by_label("a grid").check()
    third = visitor.wait_for_other(second)
    seen = visitor.picture("what-the-model-sees")
    assert hidden_share(seen) == 0.75

    canvas = page.locator("#editor canvas").first.bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=5)
    page.mouse.up()
    visitor.wait_for_other(third)
    assert page.get_by_label("what I draw").is_checked()
    drawn = (visitor.picture("what-the-model-sees") == 128).all(axis=2)
    height, width = drawn.shape
    assert drawn[height // 2 - 1, width // 2] and not drawn[0].any() and not drawn[-1].any()
    page.screenshot(path=tmp_path / "desktop.png", full_page=True)
    assert visitor.errors == [] and visitor.elsewhere == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_a_bad_upload_gives_a_message(
    kind: str, browser: Any, server: Server, tmp_path: Path
) -> None:
    bad = tmp_path / "holiday.png"
    Image.effect_noise((90, 90), 90).save(bad)
    bad.write_bytes(b"just words" if kind == "text" else bad.read_bytes()[:600])
    visitor = Visitor(browser, server)
    before = visitor.wait_for_other("")
    visitor.upload(bad)
    visitor.page.get_by_text("holiday.png cannot be decoded").wait_for(timeout=SECONDS * 1000)
    assert visitor.said() == before
    visitor.page.get_by_label("blocks").check()  # the page goes on with the image it had
    assert visitor.wait_for_other(before).startswith("75% hidden")


@pytest.mark.slow
def test_a_phone_does_not_scroll_sideways(browser: Any, server: Server, tmp_path: Path) -> None:
    visitor = Visitor(browser, server, size=(390, 844))
    visitor.picture("what-it-paints")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert visitor.errors == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (VitMaeForImageClassification, "#classes dt"),
        (VitMaeForSemanticSegmentation, "#regions img, #regions button"),
    ],
)
def test_fine_tuned_models_say_what_they_see(
    kind: Any, part: str, browser: Any, tmp_path: Path
) -> None:
    server = Server(str(save_small_model(tmp_path / "fine-tuned", kind=kind)))
    try:
        visitor = Visitor(browser, server)
        visitor.page.locator(part).first.wait_for(timeout=SECONDS * 1000)
        before = visitor.page.locator("#where-it-looks img").get_attribute("src")
        Image.effect_noise((90, 90), 90).save(tmp_path / "mine.png")
        visitor.upload(tmp_path / "mine.png")
        visitor.page.wait_for_function(
            "src => document.querySelector('#where-it-looks img').src != src", arg=before
        )
        visitor.page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert not visitor.page.locator("#hide").is_visible()
        assert visitor.errors == [] and visitor.elsewhere == []
    finally:
        server.stop()


@pytest.mark.slow
def test_files_of_the_server_stay_there(browser: Any, server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    page = browser.new_page()
    for path in (secret, "/etc/passwd"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
            answer = page.request.get(f"{server.address}/{route}{path}")
            assert answer.status >= 400 and "mine" not in answer.text()


@pytest.mark.slow
def test_only_this_machine_is_listened_to(server: Server) -> None:
    addresses = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in addresses - {"127.0.0.1", "::1"}:
        with pytest.raises(OSError):
            socket.create_connection((address, server.port), timeout=2).close()


def test_without_gradio_the_mend_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    model = save_small_model(tmp_path / "small")
    assert main(["app", str(model)]) == 1
    assert 'pip install "hf-vitmae[app]"' in capsys.readouterr().err


def test_it_listens_on_loopback_unless_told_otherwise(capsys: pytest.CaptureFixture) -> None:
    assert AppRequest(model="any").host == "127.0.0.1"
    assert main(["app", "any", "--port", "70000"]) == 2
    assert "from 1 to 65535, got 70000" in capsys.readouterr().err
