"""`look` and `reconstruct` draw what is asked, of what is named, and say what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vitmae import VitMaeForImageClassification, VitMaeForSemanticSegmentation
from hf_vitmae.cli import main
from hf_vitmae.tasks.look import DRAW

from .small_models import save_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A masked autoencoder for images of 16 x 24 in patches of 4 x 8."""
    return str(save_small_model(tmp_path_factory.mktemp("models") / "small"))


FINE_TUNED = {
    "classes": VitMaeForImageClassification,
    "segmentation": VitMaeForSemanticSegmentation,
}


def fails(capsys: pytest.CaptureFixture, code: int, *command: object) -> str:
    """The one line that a wrong command prints."""
    capsys.readouterr()
    assert main([str(part) for part in command]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", DRAW)
def test_every_kind_draws_a_folder(
    kind: str, model: str, flat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "new" / "out.png"
    if kind in FINE_TUNED:
        model = str(save_small_model(tmp_path / "fine-tuned", kind=FINE_TUNED[kind]))
        capsys.readouterr()
    images = [] if kind == "positions" else [str(flat_folder), "--num-images", "2"]
    gallery = ["--gallery", "emoji", "--gallery-images", "9"] if kind == "neighbors" else []
    command = ["look", model, *images, "--kind", kind, *gallery, "-o", str(output)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert str(output) in said.out and said.err == ""
    with Image.open(output) as picture:
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 20
    before = output.read_bytes()
    assert main(command) == 0
    assert output.read_bytes() == before


def test_the_picture_is_named_for_its_kind(
    model: str, flat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = str(next(flat_folder.glob("*.jpg")))
    assert main(["look", model, picture, "--kind", "features"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["features.png"]


def test_look_says_what_is_wrong(
    model: str, flat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = ["look", model, flat_folder, "-o", tmp_path / "out.png"]
    assert "--k goes with --kind neighbors" in fails(capsys, 2, *base, "--k", "3")
    assert "--seed goes with --kind masks or anomaly" in fails(capsys, 2, *base, "--seed", "3")
    assert "--gallery FOLDER" in fails(capsys, 2, *base, "--kind", "neighbors")
    assert "x.txt is no name for a picture" in fails(capsys, 2, *base, "-o", "x.txt")
    assert "0 to 1, or -1 for the last; got 9" in fails(capsys, 1, *base, "--layer", "9")
    assert "name image files or a folder" in fails(capsys, 1, "look", model)
    for kind, head in (("classes", "classifier"), ("segmentation", "segmentation head")):
        assert f"has no trained {head}; name a model" in fails(capsys, 1, *base, "--kind", kind)
    assert "no image 'none.png'" in fails(capsys, 1, "look", model, "none.png")
    masks = [*base, "--kind", "masks", "--mask-ratios", "2.0"]
    assert "2.0" in fails(capsys, 1, *masks)
    assert list(tmp_path.iterdir()) == []


def hidden(panel: Path) -> np.ndarray:
    """Where the second column of the first row is gray: bool (4, 3) over patches."""
    with Image.open(panel) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    scale, left, gap = 7, 16, 8  # 24 pixels become 168
    top = next(y for y in range(16, 99) if (pixels[y, left : left + 24 * scale] != 255).all())
    x = left + 24 * scale + gap
    centers = np.ix_(top + 14 + 28 * np.arange(4), x + 28 + 56 * np.arange(3))
    return (pixels[centers] == 128).all(axis=2)


def test_a_drawn_mask_hides_what_is_white(model: str, flat_folder: Path, tmp_path: Path) -> None:
    drawn = np.zeros((32, 48), np.uint8)  # twice the size of the images
    drawn[:16, 16:] = 255  # the upper half but for the first column of patches
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    picture, output = next(flat_folder.glob("*.jpg")), tmp_path / "out.png"
    command = ["reconstruct", model, str(picture), "-o", str(output)]
    assert main([*command, "--mask", str(tmp_path / "mask.png")]) == 0
    expected = np.zeros((4, 3), bool)
    expected[:2, 1:] = True
    np.testing.assert_array_equal(hidden(output), expected)


def test_patterns_hide_as_they_are_named(model: str, flat_folder: Path, tmp_path: Path) -> None:
    picture, output = next(flat_folder.glob("*.jpg")), tmp_path / "out.png"
    command = ["reconstruct", model, str(picture), "-o", str(output), "--mask-ratio", "0.5"]
    assert main([*command, "--mask-pattern", "grid"]) == 0
    found = hidden(output)
    assert (found[1:] != found[:-1]).all() and (found[:, 1:] != found[:, :-1]).all()


def test_a_mask_that_cannot_be_used_is_named(
    model: str, flat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    base = ["reconstruct", model, flat_folder, "-o", tmp_path / "out.png", "--mask"]
    assert "Nothing is white" in fails(capsys, 1, *base, tmp_path / "black.png")
    assert "no mask" in fails(capsys, 1, *base, tmp_path / "absent.png")
    assert "no picture" in fails(capsys, 1, *base, __file__)
    both = [*base, tmp_path / "black.png", "--mask-ratio", "0.5"]
    assert "not both" in fails(capsys, 2, *both)
