"""The notebooks run from the first cell to the last, offline, and are stored without outputs."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
PICTURES = {
    "first_look": 6,
    "pretrain_your_folder": 3,
    "finetune_with_trainer": 3,
    "segmentation": 3,
    "from_mae_to_vit": 4,
}  # how many each notebook shows, in the order in which they are read
MOST_CELLS = 30
LONGEST_CELL = 45  # lines, so that a cell fits a screen
SECONDS = 300  # for one cell

# What may be on stderr: progress, and what transformers says of a new head. All else is a warning.
EXPECTED = re.compile(
    r"""\s*$
    | step\ \d+/\d+\ \ .*                                # a run of ours
    | \d+\ of\ \d+\ images$
    | (Loading\ weights|Writing\ model\ shards):.*\|.*   # bars of transformers
    | \[transformers\].*LOAD\ REPORT.*\ from:\ .*
    | Key\ +\|\ Status.*
    | [-+]+$
    | (classifier|segmentation_head)\.\S+\ +\|\ MISSING\ \|\s*$
    | Notes:$
    | -\ MISSING:.*newly\ initialized.*
    | .*TqdmWarning:\ IProgress\ not\ found.*            # where ipywidgets is not installed
    | \ +from\ \.autonotebook\ import\ tqdm\ as\ notebook_tqdm$
    """,
    re.VERBOSE,
)


def notebook(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def unexpected(text: str) -> list[str]:
    """The lines of stderr that are no progress; of a bar, what it last was."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.rstrip("\r").splitlines()]
    return [line for line in lines if not EXPECTED.match(line)]


def pictures(cells: list[Any]) -> list[Image.Image]:
    """All PNG pictures that the cells show."""
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    encoded = [data["image/png"] for data in shown if "image/png" in data]
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in encoded]


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_holds_words_and_code_and_nothing_that_a_run_leaves(name: str) -> None:
    stored = notebook(name)
    nbformat.validate(stored)
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    assert len(stored["cells"]) <= MOST_CELLS
    assert source(stored["cells"][0]).startswith("# ")
    for before, cell in zip(stored["cells"], stored["cells"][1:], strict=False):
        assert {cell["cell_type"], before["cell_type"]} == {"markdown", "code"}  # words before code
    for cell in stored["cells"]:
        assert cell["metadata"] == {}
        assert len(source(cell).splitlines()) <= LONGEST_CELL
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("name", PICTURES)
def test_the_notebooks_that_the_words_name_are_there(name: str) -> None:
    words = " ".join(source(c) for c in notebook(name)["cells"] if c["cell_type"] == "markdown")
    for found in re.findall(r"\w+\.ipynb", words):
        assert (FOLDER / found).is_file(), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step 100/300  epoch 0.99  loss 0.357\n\n", []),
        ("Loading weights:   0%|  | 0/94\rLoading weights: 100%|##| 94/94\n", []),
        ("classifier.bias   | MISSING | \n", []),
        ("vit.layernorm.bias   | MISSING | \n", ["vit.layernorm.bias   | MISSING | "]),
        ("The sdpa attention keeps no weights\n", ["The sdpa attention keeps no weights"]),
        ("a.py:1: UserWarning: b\n  c()\n", ["a.py:1: UserWarning: b", "  c()"]),
    ],
)
def test_warnings_are_told_from_progress(text: str, expected: list[str]) -> None:
    assert unexpected(text) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs_without_a_warning_and_shows_its_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows figures inline
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    folder = tmp_path / "work"
    folder.mkdir()
    copy = shutil.copy(FOLDER / f"{name}.ipynb", folder)
    run = nbformat.read(copy, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(run, timeout=SECONDS, kernel_name="python3", resources=resources).execute()

    code = [cell for cell in run.cells if cell.cell_type == "code"]
    said = [output for cell in code for output in cell.outputs if output.output_type == "stream"]
    assert unexpected("".join(output.text for output in said if output.name == "stderr")) == []
    shown = pictures(code)
    assert len(shown) == PICTURES[name]
    for picture in shown:
        assert picture.width >= 64 and len(set(picture.get_flattened_data())) > 20
