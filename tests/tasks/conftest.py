"""Image folders and a pretrained model that tests of the command line and of the tasks share."""

from pathlib import Path

import pytest

from hf_vitmae.cli import main

from ..small import FAST, write_images


@pytest.fixture(scope="session")
def flat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty JPEGs without labels."""
    return write_images(tmp_path_factory.mktemp("flat"), 50)


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve PNGs, a folder each."""
    root = tmp_path_factory.mktemp("classes")
    for seed, name in enumerate(("cats", "dogs", "owls")):
        write_images(root / name, 12, ".PNG", seed)
    return root


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a short pretraining run on the embedded set."""
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    assert main(["pretrain", "smoke", *FAST, "--output-dir", str(run)]) == 0
    return run / "model"
