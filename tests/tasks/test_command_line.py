"""Every mistake is one line that names the value and the mend, and leaves nothing behind."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hf_vitmae.cli import VERBS, main

from ..small import FAST, write_images

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPTS_OF_VERBS = [verb for verb in VERBS if (SCRIPTS / f"{verb.replace('-', '_')}.py").exists()]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where a run would go."""
    return tmp_path / "run"


def fails(capsys: pytest.CaptureFixture, code: int, command: list, *words: str) -> None:
    """Assert that a command ends with this code and one line on stderr that has all the words."""
    capsys.readouterr()
    assert main([str(part) for part in command]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith("step ")]  # progress
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["pretrian"], ["pretrian", "pretrain"]),
        (["pretrain", "mae-bas"], ["mae-bas", "mae-base"]),
        (["pretrain"], ["mae-base"]),
        (["pretrain", "smoke", "--stepz", "3"], ["--stepz", "--steps"]),
        (["pretrain", "smoke", "--steps", "many"], ["--steps", "many"]),
        (["pretrain", "smoke", "--precision", "fp8"], ["fp8", "bf16"]),
        (["pretrain", "smoke", "--steps", "3", "--epochs", "1"], ["--steps", "--epochs"]),
        (["pretrain", "smoke", "--steps", "0"], ["steps", "0"]),
        (["pretrain", "smoke", "--batch-size", "0"], ["batch_size", "0"]),
        (["pretrain", "smoke", "--optim.base-lr", "-1"], ["base_lr", "-1"]),
        (["pretrain", "smoke", "--data.eval-share", "2"], ["eval_share", "2"]),
        (["finetune", "smoke", "--label-smoothing", "1.5"], ["label_smoothing", "1.5"]),
        (["reconstruct"], ["MODEL"]),
    ],
)
def test_a_wrong_command_line_is_code_2(
    command: list, words: list, run: Path, capsys: pytest.CaptureFixture
) -> None:
    out = ["--output-dir", run] if len(command) > 2 else []
    fails(capsys, 2, [*command, *out], *words)
    assert not run.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.image-size", "30"], ["image_size", "30", "8x8", "24"]),
        (["--model.image-size", "4"], ["image_size", "4x4", "8x8"]),
        (["--model.num-attention-heads", "5"], ["hidden_size", "32", "num_attention_heads"]),
        (["--model.mask-ratio", "1.0"], ["mask_ratio", "1.0", "below 1"]),
        (["--model.position-embedding", "cosine"], ["position_embedding", "cosine", "learned"]),
        (["--data.source", "no/such/folder/here"], ["no/such/folder/here"]),
        (["--data.split", "training-set"], ["training-set", "test, train"]),
        (["--data.image-column", "photo"], ["photo", "image"]),
        (["--optim.warmup-steps", "99"], ["99", "warm-up"]),
    ],
)
def test_what_cannot_be_done_is_code_1(
    flags: list, words: list, run: Path, capsys: pytest.CaptureFixture
) -> None:
    fails(capsys, 1, ["pretrain", "smoke", *FAST, *flags, "--output-dir", run], *words)
    assert not run.exists()


def test_a_folder_without_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "note.txt").write_text("no image")
    run = tmp_path / "run"
    command = ["pretrain", "smoke", "--data.source", tmp_path / "texts", "--output-dir", run]
    fails(capsys, 1, command, str(tmp_path / "texts"), "no images")
    assert not run.exists()


def test_an_unreadable_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_images(tmp_path / "photos", 6)
    (folder / "broken.jpg").write_bytes((folder / "000.jpg").read_bytes()[:200])
    for workers in (0, 1):
        run = tmp_path / f"run{workers}"
        command = ["pretrain", "smoke", *FAST, "--data.source", folder, "--output-dir", run]
        fails(capsys, 1, [*command, "--data.num-workers", workers], "broken.jpg", "remove it")
        assert not (run / "model").exists()


def test_labels_are_needed_to_fine_tune(
    pretrained: Path, flat_folder: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--model", pretrained, "--data.source", flat_folder, "--output-dir", run]
    fails(capsys, 1, ["finetune", "smoke", *flags], "no labels", "folder per class")
    assert not run.exists()


def test_a_model_that_is_not_there(
    pretrained: Path, class_folder: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["finetune", "smoke", "--data.source", class_folder, "--output-dir", run, "--model"]
    fails(capsys, 1, [*flags, "no/such/model"], "no/such/model")
    fails(capsys, 1, [*flags, pretrained.parent], str(pretrained.parent), str(pretrained))
    assert not run.exists()


def test_more_classes_in_the_data_than_in_the_model(
    pretrained: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    three, run = tmp_path / "three", tmp_path / "run"
    flags = ["--data.source", class_folder, "--output-dir", three, "--model", pretrained]
    assert main(["finetune", "smoke", *FAST, *map(str, flags)]) == 0
    again = ["finetune", "smoke", *FAST, "--model", three / "model", "--output-dir", run]
    fails(capsys, 1, again, "3 classes", "new-head")  # emoji has more
    assert not run.exists()
    assert main([*map(str, again), "--new-head"]) == 0


def test_the_folder_of_another_run(
    flat_folder: Path, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["pretrain", "smoke", *FAST, "--data.source", flat_folder, "--output-dir", run]
    assert main([str(part) for part in command]) == 0
    before = (run / "recipe.yaml").read_text()
    fails(capsys, 1, [*command, "--optim.base-lr", "0.5"], "optim.base_lr", "0.5", "output-dir")
    fails(capsys, 1, ["finetune", "smoke", "--model", run / "model", "--output-dir", run], str(run))
    assert (run / "recipe.yaml").read_text() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    fails(capsys, 1, [*command[:-1], tmp_path / "mine"], str(tmp_path / "mine"), "output-dir")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_reconstruct_says_what_is_wrong(
    pretrained: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture, output = next(class_folder.rglob("*.PNG")), tmp_path / "out" / "panel.png"
    base = ["reconstruct", pretrained]
    fails(capsys, 1, base, "image files")
    fails(capsys, 1, [*base, "none.png"], "none.png")
    fails(capsys, 1, [*base, __file__, "-o", output], __file__)
    fails(capsys, 1, [*base, picture, "--mask-ratio", "1.5", "-o", output], "mask_ratio", "1.5")
    assert not output.parent.exists()


def test_reconstruct_draws_a_row_for_each_image(
    pretrained: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from PIL import Image

    pictures = [str(path) for path in sorted(class_folder.rglob("*.PNG"))[:3]]
    sizes = []
    for count in (1, 3):
        output = tmp_path / f"{count}.png"
        assert main(["reconstruct", str(pretrained), *pictures[:count], "-o", str(output)]) == 0
        assert str(output) in capsys.readouterr().out
        with Image.open(output) as panel:
            sizes.append(panel.size)
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > 2.5 * (sizes[0][1] - 80)


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_names_every_verb_and_recipe(verb: str | None, capsys: pytest.CaptureFixture) -> None:
    if verb is None:
        assert main(["--help"]) == 0
        text = capsys.readouterr().out
        assert all(name in text for name in VERBS)
        return
    assert main([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out


def test_an_interrupt_is_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from hf_vitmae.tasks import pretrain

    def interrupted(recipe: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "run", interrupted)
    fails(capsys, 130, ["pretrain", "smoke"], "last checkpoint")


@pytest.mark.parametrize("verb", [verb for verb in SCRIPTS_OF_VERBS if verb != "benchmark"])
def test_a_script_does_what_its_verb_does(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script = str(SCRIPTS / f"{verb.replace('-', '_')}.py")
    monkeypatch.setattr(sys, "argv", [script, "--no-such-flag"])
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])  # as Python starts a script
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(script, run_name="__main__")
    assert exit_info.value.code == 2
    assert f"hf-vitmae {verb}:" in capsys.readouterr().err
    assert str(SCRIPTS) not in sys.path  # where evaluate.py would hide the package `evaluate`


def test_a_script_runs_by_itself() -> None:
    finished = subprocess.run(
        [sys.executable, str(SCRIPTS / "finetune.py"), "--no-such-flag"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2, finished.stderr
    assert "hf-vitmae finetune:" in finished.stderr
