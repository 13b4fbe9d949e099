"""A report holds what the run recorded, fetches nothing, and copes with half a run."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from hf_vitmae.cli import main
from hf_vitmae.tasks.report import _by_layer

from ..small import FAST

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """What a page fetches, its texts, and whether every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        assert tag not in ("script", "link", "iframe", "object")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return "\n".join(filter(None, self.texts))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Two short runs that differ in their learning rate."""
    folder = tmp_path_factory.mktemp("reported")
    paths = [folder / "first", folder / "second"]
    for path, rate in zip(paths, ("0.01", "0.02"), strict=True):
        flags = ["--optim.base-lr", rate, "--eval-every", "2", "--output-dir", str(path)]
        assert main(["pretrain", "smoke", *FAST, *flags]) == 0
    yield paths


def report(*arguments: object) -> Page:
    command = [str(argument) for argument in arguments]
    assert main(["report", *command]) == 0
    return Page(Path(command[command.index("-o") + 1]))


def test_a_page_fetches_nothing_and_holds_the_figures_of_the_log(
    runs: list[Path], tmp_path: Path
) -> None:
    page = report(runs[0], "-o", tmp_path / "page.html")
    assert page.fetched and all(one.startswith("data:image/webp;base64,") for one in page.fetched)
    assert not re.findall(r"url\(|@import|https?:", page.source)
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    (newest, *_) = [line["eval_loss"] for line in reversed(lines) if "eval_loss" in line]
    assert f"{newest:.4g}" in page.texts
    assert "Pretraining. Finished after 4 steps" in page.text
    for said in ("first", "Health.", "emoji", "0.01", "torch", "What it sees", "Curves"):
        assert said in page.text
    recipe = yaml.safe_load(html.unescape(re.findall(r"<pre>(.*?)</pre>", page.source, re.S)[0]))
    assert recipe == yaml.safe_load((runs[0] / "recipe.yaml").read_text())


def test_pictures_of_evaluations_stand_in_their_order(runs: list[Path], tmp_path: Path) -> None:
    page = report(runs[0], "-o", tmp_path / "page.html")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)
    assert captions[:3] == ["reconstruction", "step 2", "step 4"]
    assert len(page.fetched) == len(captions) == 5  # and two of curves


def test_of_many_evaluations_some_are_shown(runs: list[Path], tmp_path: Path) -> None:
    run = copy(runs[0], tmp_path / "long")
    steps = run / "samples" / "steps"
    picture = next(steps.iterdir()).read_bytes()
    for step in range(1, 101):
        (steps / f"reconstruction-{step:08d}.png").write_bytes(picture)
    page = report(run, "-o", tmp_path / "page.html")
    shown = [int(step) for step in re.findall(r"<figcaption>step (\d+)<", page.source)]
    assert len(shown) == 8 and shown == sorted(shown) and (shown[0], shown[-1]) == (1, 100)


def copy(run: Path, to: Path) -> Path:
    """Of a run, what a report may read."""
    (to / "samples" / "steps").mkdir(parents=True)
    for path in run.rglob("*"):
        if path.suffix in (".yaml", ".jsonl", ".png", ".json") and "checkpoints" not in path.parts:
            new = to / path.relative_to(run)
            new.parent.mkdir(exist_ok=True, parents=True)
            new.write_bytes(path.read_bytes())
    return to


def test_of_several_runs_the_differences_are_told(runs: list[Path], tmp_path: Path) -> None:
    page = report(*runs, "-o", tmp_path / "page.html")
    table = page.source.split("What differs in their recipes")[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', table)
    assert rows == [("optim.base_lr", "0.01", "0.02")]
    assert page.texts.index("first") < page.texts.index("second")
    same = report(runs[0], runs[0], "-o", tmp_path / "same.html")
    assert "Nothing." in same.text and "first (2)" in same.text


def test_a_run_that_goes_on_is_told_so_far(runs: list[Path], tmp_path: Path) -> None:
    run = copy(runs[0], tmp_path / "on")
    for path in (run / "model").iterdir():
        path.unlink()
    (run / "model").rmdir()
    (run / "environment.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    next((run / "samples" / "steps").iterdir()).write_bytes(b"half a pict")
    page = report(run, "-o", tmp_path / "page.html")
    assert "Not finished after 2 steps" in page.text
    (run / "metrics.jsonl").unlink()
    assert "Nothing is logged yet" in report(run, "-o", tmp_path / "page.html").text


def test_names_are_text_and_tokens_stay_secret(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "unusual-9182")  # what this machine logs in with
    run = copy(runs[0], tmp_path / "<b>run")
    bad = {"name": "<script>alert(1)</script>.png", "reason": "cannot be decoded: 'x' & y"}
    token = "hf_" + "a" * 34
    lines = [bad] * 60 + [{"name": f"{token}unusual-9182.png", "reason": "cannot be decoded: too"}]
    (run / "bad_images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    page = report(run, "-o", tmp_path / "page.html")
    assert bad["name"] in page.texts and bad["reason"] in page.texts and "<b>run" in page.texts
    assert "Images that could not be used: 61" in page.text and "The first 50" in page.text
    assert "61: cannot be decoded" in page.text
    assert token not in page.source and "unusual" not in page.source
    assert "[token][token].png" in page.texts
    assert page.source.count("alert(1)") == 49


def test_the_file_lies_in_the_run(runs: list[Path], capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(runs[1])]) == 0
    assert str(runs[1] / "report.html") in capsys.readouterr().out
    assert Page(runs[1] / "report.html").texts
    (runs[1] / "report.html").unlink()


def test_what_the_task_is_about_stands_first(runs: list[Path], tmp_path: Path) -> None:
    run = copy(runs[0], tmp_path / "run")
    for path in [*run.glob("samples/reconstruction.png"), *run.glob("samples/steps/*.png")]:
        shutil.copy(path, path.with_name(path.name.replace("reconstruction", "attention")))
    texts = report(run, "-o", tmp_path / "page.html").texts
    assert texts.index("reconstruction") < texts.index("attention")
    over_time = [text for text in texts if text.endswith(", evaluation by evaluation")]
    assert [text.split(",")[0] for text in over_time] == ["Reconstruction", "Attention"]


def test_what_is_no_run_is_named(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "page.html"
    for folder, said in ((tmp_path, "no readable recipe.yaml"), (tmp_path / "no", "no folder")):
        assert main(["report", str(runs[0]), str(folder), "-o", str(output)]) == 1
        error = capsys.readouterr().err
        assert str(folder) in error and said in error and error.count("\n") == 1
    assert not output.exists()


def test_a_folder_is_no_file(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["report", str(runs[0]), "-o", str(tmp_path)]) == 2
    assert f"is a folder; name the file: {tmp_path / 'report.html'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_layer_has_a_curve_in_its_order() -> None:
    name = "health_attention_distance_"
    lines = [{"step": 1, "loss": 1.0, **{f"{name}{layer}": 1.0 for layer in range(1, 41)}}]
    (found,) = _by_layer({"run": lines, "other": lines[:0]}).values()
    assert found == [f"{name}{layer}" for layer in range(1, 41)]
