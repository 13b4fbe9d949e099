"""README and docs: every command is one, every block of Python runs, the site builds strictly."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_vitmae import (
    VitMaeConfig,
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeImageProcessor,
    VitMaeModel,
)
from hf_vitmae.cli import PARSERS, main
from hf_vitmae.command_line.output import take_switches

from .small import write_images

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SCRIPT = re.compile(r"scripts/\w+\.py")
FLAGS = {  # what makes a run of a page take seconds
    "pretrain": ["--steps", "2", "--batch-size", "4", "--data.num-workers", "0"],
    "finetune": ["--steps", "2", "--batch-size", "4", "--data.num-workers", "0"],
    "linear-probe": ["--data.num-workers", "0"],
    "knn": ["--data.num-workers", "0"],
    "embed": ["--data.num-workers", "0"],
    "stats": ["--num-workers", "0"],
    "look": ["--num-images", "2"],
}
ELSEWHERE = {  # commands that are not run here, and what runs them
    "demo": "make demo",
    "app": "tests/tasks/test_app.py",
    "push": "tests/hub, tests/tasks/test_push.py",
    "compare": "tests/tasks/test_compare.py",
    "export": "tests/tasks/test_export.py",
    "doctor": "tests/tasks/test_doctor.py",
    "completion": "tests/command_line",
    "facebook/vit-mae-base": "tests/convert; it is on the Hub",
    "mae_pretrain_vit_base.pth": "tests/convert; it is no file of ours",
    "user/dataset": "tests/hub/test_streaming.py",
    "mae-base": "smoke has every part of it; it is too large here",
    "segment-base": "smoke-segment has every part of it; its pictures have 512 pixels",
    "segment-cpu": "tests/tasks/test_segment.py; its model sees 32 pixels",
    "shapes": "tests/tasks/test_evaluate.py",
    "./with-maps": "tests/tasks/test_segment.py",
    "timm": "tests/convert",
}
README_NAMES = """
import torch
from PIL import Image
from hf_vitmae import VitMaeForPreTraining
image = Image.open("photo.jpg").convert("RGB")
images = [image.convert("L")] * 2
data = held_out = [{"pixel_values": torch.randn(3, 96, 64)} for _ in range(2)]
pixel_values = torch.randn(2, 3, 32, 32)
hidden_pixels = torch.zeros(2, 32, 32, dtype=torch.bool)
hidden_pixels[:, :8] = True
"""
PICTURE_NAMES = """
from hf_vitmae import VitMaeImageProcessor
"""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each block of code; one without a language is shell here."""
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield language or "bash", text


def commands(page: Path) -> list[list[str]]:
    """The words of each command line of ours, from its verb on."""
    found = []
    for language, text in blocks(page):
        if language != "bash":
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            script = next((i for i, word in enumerate(words) if SCRIPT.fullmatch(word)), None)
            if words[:1] == ["hf-vitmae"]:
                found.append(words[1:])
            elif script is not None:
                verb = Path(words[script]).stem.replace("_", "-")
                found.append([verb, *words[script + 1 :]])
    return found


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


def names(words: list[str]) -> str:
    return " ".join(words[:3])


def test_pages_have_commands_and_python() -> None:
    assert len(ALL) > 50
    languages = [language for page in PAGES for language, _ in blocks(page)]
    assert languages.count("python") >= 15 and set(languages) <= {"bash", "python", "yaml", "text"}


@pytest.mark.parametrize(
    ("page", "words"), ALL, ids=[f"{page}-{names(words)}" for page, words in ALL]
)
def test_every_command_is_one(page: str, words: list[str]) -> None:
    verb, *rest = words
    if verb == "completion":
        return
    assert verb in PARSERS
    if rest != ["--help"]:
        _, rest = take_switches(rest)
        PARSERS[verb](f"hf-vitmae {verb}", rest)  # leaves the test with an error if it is wrong


@pytest.mark.parametrize("words", [["pretrain", "mae-bse"], ["look", "m", "--kind", "nose"]])
def test_a_wrong_command_is_noticed(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises((SystemExit, Exception), match="mae-bse|2"):
        PARSERS[words[0]]("hf-vitmae", words[1:])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: images, labelled ones, checkpoints."""
    place = tmp_path_factory.mktemp("docs")
    write_images(place / "photos", 12)
    for number, name in enumerate(("leaf", "stem", "root")):
        write_images(place / "labelled" / "train" / name, 12, seed=number)
        write_images(place / "labelled" / "test" / name, 3, seed=10 + number)
    shutil.copy(place / "photos" / "000.jpg", place / "photo.jpg")
    drawn = np.zeros((32, 32), np.uint8)
    drawn[8:24] = 255
    Image.fromarray(drawn).save(place / "drawn.png")
    small: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = VitMaeConfig(
        image_size=32,
        patch_size=4,
        hidden_size=32,
        intermediate_size=64,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        **small,
    )
    processor = VitMaeImageProcessor.for_model(config)
    run = ["pretrain", "smoke", *FLAGS["pretrain"], "--output-dir", str(place / "runs" / "a")]
    assert main(run) == 0
    made = {
        "runs/demo/pretrain/model": VitMaeForPreTraining(config),
        "runs/first/model": VitMaeModel(config),
        "runs/b/model": VitMaeForImageClassification(config.with_fields(num_labels=3)),
        "runs/s/model": VitMaeForSemanticSegmentation(config.with_fields(num_labels=3)),
    }
    for name, model in made.items():
        model.save_pretrained(place / name)
        processor.save_pretrained(place / name)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_python_run(page: Path, workplace: Path, tmp_path: Path) -> None:
    """In their order, in one process and one folder."""
    sources = [text for language, text in blocks(page) if language == "python"]
    if not sources:
        pytest.skip("no Python on this page")
    place = tmp_path / "place"
    shutil.copytree(workplace, place)
    start = README_NAMES if page.name == "README.md" else ""
    (place / "blocks.py").write_text("\n".join([start, *sources]), encoding="utf-8")
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    run = subprocess.run(
        [sys.executable, "blocks.py"], cwd=place, capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-2000:]


def is_run_elsewhere(words: list[str]) -> bool:
    return bool(set(words) & set(ELSEWHERE)) or "--help" in words


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.stem)
def test_commands_of_a_page_run(
    page: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, on small images and for a few steps; what is left out is run elsewhere."""
    place = tmp_path / "place"
    shutil.copytree(workplace, place)
    monkeypatch.chdir(place)
    for verb, *rest in commands(page):
        words = [verb, *rest]
        if is_run_elsewhere(words):
            continue
        if "--output-dir" in rest:  # a run starts in a folder of its own
            output = place / rest[rest.index("--output-dir") + 1]
            shutil.rmtree(output, ignore_errors=True)
        assert main([*words, *FLAGS.get(verb, [])]) == 0, words


def test_what_is_run_elsewhere_is_on_a_page() -> None:
    said = {word for _, words in ALL for word in words}
    assert set(ELSEWHERE) - said <= {"completion", "demo"}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """No broken link or anchor, no page that nothing leads to, nothing fetched from elsewhere."""
    pytest.importorskip("mkdocs", reason="the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    for page in tmp_path.glob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?:[^\"\s>]+)", page.read_text()
        )
        assert [url for url in fetched if "canonical" not in url] == [], page.name
