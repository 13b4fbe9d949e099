"""`hf-vitmae doctor` says what is there, what is missing, what a run goes on from; only reads."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_vitmae.cli import main
from hf_vitmae.tasks import doctor_machine
from hf_vitmae.tasks.doctor_machine import EXTRAS, amount
from hf_vitmae.training.checkpoint import find_damage, latest_good_checkpoint
from hf_vitmae.training.run_lock import HOLDER, run_lock

from .test_command_line import fails

Table = dict[str, list[str]]  # name of a line -> its states and words


@pytest.fixture
def run(pretrained: Path, tmp_path: Path) -> Path:
    """A finished run of four steps, with checkpoints of steps 2 and 4."""
    return shutil.copytree(pretrained.parent, tmp_path / "run")


def doctor(capsys: pytest.CaptureFixture, *arguments: object, code: int = 0) -> Table:
    """The lines that the command prints, after it left everything as it was."""
    before = [_contents(Path(str(path))) for path in arguments]
    capsys.readouterr()
    assert main(["doctor", *map(str, arguments)]) == code
    assert [_contents(Path(str(path))) for path in arguments] == before
    table: Table = {}
    for line in capsys.readouterr().out.splitlines():
        if match := re.match(r"  (\S.*?)  +(ok|missing|warning|damaged|in use|-)  +(.+)", line):
            table.setdefault(match[1], []).append(f"{match[2]}: {match[3]}")
        elif mend := re.match(r"  +-> (.+)", line):
            name = list(table)[-1]
            table[name][-1] += f" -> {mend[1]}"
    return table


def _contents(folder: Path) -> dict[str, tuple]:
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_machine(capsys: pytest.CaptureFixture):
    table = doctor(capsys)
    assert table["torch"] == [f"ok: {torch.__version__}"]
    assert {"python", "transformers", "CPU", "memory", "precision", "workers", "disk"} <= set(table)
    assert "resumes" not in table
    assert re.search(r"\d+ cores?.*, \d+ threads? in torch", table["CPU"][0])


def test_every_extra_is_one_of_the_package():
    project = Path(__file__).parents[2] / "pyproject.toml"
    for extra, (packages, _) in EXTRAS.items():
        line = re.search(rf"^{extra} = \[(.*)\]$", project.read_text(), flags=re.MULTILINE)
        assert line is not None, extra
        named = re.findall(r'"([\w-]+)', line[1])
        assert named == list(packages)


def test_what_is_missing_comes_with_the_mend(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    version = doctor_machine._version
    monkeypatch.setattr(
        doctor_machine, "_version", lambda name: None if name == "simplejpeg" else version(name)
    )
    monkeypatch.setattr(doctor_machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor_machine, "LEAST_SHARED_MEMORY", 1 << 60)
    monkeypatch.setattr(doctor_machine, "LEAST_DISK", 1 << 60)
    monkeypatch.setattr(doctor_machine, "usable_cores", lambda: 1)
    table = doctor(capsys)
    assert "missing: simplejpeg: decodes" in table["fast"][0]
    assert table["fast"][0].endswith("-> pip install 'hf-vitmae[fast]'")
    assert table["--compile"][0].startswith("missing: ")
    assert "warning: no core is left" in table["workers"][0]
    assert "--shm-size" in table["shared memory"][0]
    assert table["disk"][0].startswith("warning: ") and "-> make room" in table["disk"][0]


def test_a_good_run(run: Path, capsys: pytest.CaptureFixture):
    table = doctor(capsys, run)
    assert table["recipe"] == [f"ok: PretrainRecipe, in {run / 'recipe.yaml'}"]
    assert table["lock"] == ["ok: free"]
    assert table["steps"][0].startswith("ok: 4 of 4 done")
    for step in (2, 4):
        assert re.match(r"ok: [\d.]+ KiB, every file", table[f"step-{step:08d}"][0])
    assert table["resumes"] == ["-: nothing: the checkpoint of step 4 is the end"]
    assert re.match("ok: 2 logged losses, 0 of them not finite", table["log"][0])
    assert table["bad images"] == ["ok: none"] and "unfinished" not in table
    assert table["room"][0].startswith("ok: ") and table["model"] == [f"ok: in {run / 'model'}"]


def test_the_newest_is_damaged(run: Path, capsys: pytest.CaptureFixture):
    newest = run / "checkpoints" / "step-00000004"
    flip(newest / "optimizer.safetensors")
    table = doctor(capsys, run)
    assert table[newest.name][0].startswith("damaged: ")
    assert (damage := find_damage(newest)) and damage in table[newest.name][0]
    good = latest_good_checkpoint(run / "checkpoints")
    assert good is not None and table["step-00000002"][0].startswith("ok: ")
    words = "ok: at step 2, the newest that is whole; damaged later ones: 4"
    assert good.name == "step-00000002" and table["resumes"] == [words]


def test_all_are_damaged(run: Path, capsys: pytest.CaptureFixture):
    for path in (run / "checkpoints").iterdir():
        (path / "model.safetensors").unlink()
    table = doctor(capsys, run, code=1)
    assert table["resumes"][0].startswith("damaged: not at all: all 2 checkpoints are damaged")
    with pytest.raises(ValueError):
        latest_good_checkpoint(run / "checkpoints")
    fails(capsys, 1, ["doctor", run], str(run), "no checkpoint", "restore one", "--output-dir")


def test_no_checkpoint_yet(run: Path, capsys: pytest.CaptureFixture):
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "model")
    table = doctor(capsys, run)
    assert table["resumes"] == ["-: from the beginning: there is no checkpoint"]
    assert table["room"][0].startswith("-: ") and table["model"][0].startswith("-: ")


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    fails(capsys, 1, ["doctor", tmp_path / "nothing"], "no folder", str(tmp_path / "nothing"))
    fails(capsys, 1, ["doctor", tmp_path], "not the folder of a run", "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text("{")
    fails(capsys, 1, ["doctor", tmp_path], "not the folder of a run", "recipe.yaml")


def test_a_running_run(run: Path, capsys: pytest.CaptureFixture):
    leftover = run / "checkpoints" / ".unfinished-step-00000006"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    with run_lock(run):
        holder = json.loads((run / HOLDER).read_text())
        table = doctor(capsys, run)
        words = f"in use: by process {holder['pid']} on {holder['host']} since {holder['since']}"
        assert table["lock"][0].startswith(words)
        assert table["unfinished"][0].endswith("4 bytes: it is being written")
        assert table["unfinished"][0].startswith(f"in use: checkpoints/{leftover.name}")
    assert doctor(capsys, run)["unfinished"][0].endswith("the next save removes it")


def test_steps_of_a_run_by_epochs(run: Path, capsys: pytest.CaptureFixture):
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(
        text.replace("steps: 4\n", "steps: null\n").replace("epochs: null", "epochs: 2.0")
    )
    state = json.loads((run / "checkpoints" / "step-00000004" / "state.json").read_text())["run"]
    total = -(-2 * state["num_samples"] // 8)
    table = doctor(capsys, run)
    assert table["steps"][0].startswith(f"ok: 4 of {total} done")
    assert table["resumes"] == ["ok: at step 4, the newest checkpoint"]


def test_the_log_and_the_bad_images(run: Path, capsys: pytest.CaptureFixture):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": "nan", "skipped_steps": 3}\n{"step": 8, "loss": "inf"}\n')
        file.write('{"step": 10, "lo')
    lines = [{"name": str(i), "split": "train" if i else "eval"} for i in range(4)]
    (run / "bad_images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = doctor(capsys, run)
    words = "warning: 4 logged losses, 2 of them not finite (the first at step 6); 3 steps were"
    assert table["log"][0].startswith(words) and "-> look for broken images" in table["log"][0]
    assert table["bad images"][0].startswith("warning: 1 of eval, 3 of train -> see")
    assert table["steps"][0].startswith("ok: 8 of 4 done")
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    assert doctor(capsys, run)["log"][0].startswith("damaged: ")


def test_a_full_disk(run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    usage: Callable = shutil.disk_usage
    full = type(usage(run))(total=100, used=99, free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    table = doctor(capsys, run)
    assert "warning: 1 bytes free" in table["room"][0] and "next save fails" in table["room"][0]


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")],
)
def test_amounts(num_bytes: int, words: str):
    assert amount(num_bytes) == words
