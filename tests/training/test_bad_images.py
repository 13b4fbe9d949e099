"""The list of bad images: once each, cut back like the log, and an end where they are too many."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from hf_vitmae.training import bad_images
from hf_vitmae.training.bad_images import BadImages, Split

from .test_loop import CONFIG, log, run_toy, tensor_bytes, toy_batches

SPLITS = {"train": Split("photos/train", 100), "eval": Split("photos/val", 10)}


class Bad(NamedTuple):
    name: str
    reason: str = "is junk."
    epoch: int = 0


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """Accelerate keeps precision and accumulation for a process's life; each test starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(path: Path, max_share: float = 1.0) -> BadImages:
    return BadImages(path / "bad_images.jsonl", max_share, SPLITS)


def test_each_image_of_a_split_is_one_line_as_soon_as_it_is_shared(tmp_path: Path):
    bad = make(tmp_path)
    bad.begin(step=3, epoch=1)
    bad.note("train", Bad("ä.jpg", epoch=2))
    bad.note("train", Bad("ä.jpg", epoch=2))
    assert not bad.path.exists() and bad.record() == {}
    bad.share()
    expected = {"name": "ä.jpg", "reason": "is junk.", "split": "train", "epoch": 2, "step": 3}
    assert lines(bad.path) == [expected] and "ä" in bad.path.read_text(encoding="utf-8")
    bad.begin(step=4, epoch=1)
    bad.note("train", Bad("ä.jpg", epoch=3))
    assert not bad.noted
    bad.note("eval", Bad("ä.jpg", epoch=0))
    bad.share()
    assert lines(bad.path) == [expected, expected | {"split": "eval", "epoch": 1, "step": 4}]
    assert bad.record() == {"bad_images": 2}


def test_resuming_drops_what_comes_again(tmp_path: Path):
    bad = make(tmp_path)
    for step in (1, 5, 6):
        bad.begin(step=step, epoch=0)
        bad.note("train", Bad(f"{step}.jpg"))
        bad.share()
    whole = bad.path.read_text()
    with bad.path.open("a") as file:
        file.write('{"name": "half')  # as a kill leaves it
    again = make(tmp_path)
    again.resume(5)
    assert [line["name"] for line in lines(bad.path)] == ["1.jpg", "5.jpg"]
    again.begin(step=6, epoch=0)
    for name in ("5.jpg", "6.jpg"):
        again.note("train", Bad(name))
    again.share()
    assert bad.path.read_text() == whole and again.record() == {"bad_images": 3}
    make(tmp_path).resume(-1)
    assert not bad.path.exists()


def test_what_several_processes_noted_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bad_images, "gather_object", lambda noted: noted + noted)
    bad = make(tmp_path)
    bad.begin(step=1, epoch=0)
    bad.note("train", Bad("a.jpg"))
    bad.share()
    assert len(lines(bad.path)) == 1 and bad.record() == {"bad_images": 1}


def note_many(bad: BadImages, count: int, split: str = "train") -> None:
    bad.begin(step=1, epoch=0)
    for number in range(count):
        bad.note(split, Bad(f"{number}.jpg"))
    bad.share()


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.01, 1), (0.05, 5), (0.3, 33)])
def test_more_than_the_share_of_all_images_is_an_error(tmp_path: Path, share: float, most: int):
    note_many(make(tmp_path, share), most)
    bad = make(tmp_path / "..", share)
    with pytest.raises(ValueError) as caught:
        note_many(bad, most + 1)
    line = str(caught.value)
    assert f"{most + 1} of the 110 images of photos/train and photos/val cannot be used" in line
    assert "The first is 0.jpg: it is junk." in line and "\n" not in line
    assert f"{bad.path}" in line and f"than {share} with --data.max-bad" in line
    assert len(lines(bad.path)) == most + 1
    bad.path.unlink()


def test_a_split_of_bad_images_alone_is_an_error_whatever_the_share(tmp_path: Path):
    note_many(make(tmp_path), 9, "eval")
    with pytest.raises(ValueError, match="10 of the 10 images of photos/val cannot be used"):
        note_many(make(tmp_path), 10, "eval")


# The loop


def emptied(empty: set[int], bad: BadImages | None = None):
    """The toy's batches, of which some micro-batches hold nothing that counts."""

    def batches(micro_step: int) -> Iterator[dict]:
        for batch in toy_batches(CONFIG, 0, 1, micro_step):
            if micro_step in empty:
                batch = {"pixel_values": torch.zeros(1, 3, 8, 8), "labels": torch.zeros(1).long()}
                batch["valid"] = torch.tensor([False])
                if bad is not None:
                    bad.note("train", Bad(f"{micro_step}.jpg", epoch=micro_step // 4))
            micro_step += 1
            yield batch

    return batches


def without_valid(batch: dict) -> dict:
    return {name: values for name, values in batch.items() if name != "valid"}


def test_an_empty_batch_counts_for_nothing(tmp_path: Path):
    """Half a step's gradient is that of the other batch alone, at half the weight."""
    options: dict[str, Any] = dict(dropout=0.0, prepare=without_valid, clip_grad_norm=None)
    config = replace(CONFIG, steps=1)
    _, full = run_toy(tmp_path / "full", replace(config, accumulation=1), **options)
    _, half = run_toy(tmp_path / "half", config, batches=emptied({1}), **options)
    norms = [log(tmp_path / name)[1]["grad_norm"] for name in ("full", "half")]
    losses = [log(tmp_path / name)[1]["loss"] for name in ("full", "half")]
    assert norms[1] == pytest.approx(norms[0] / 2, rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_an_empty_step_has_no_gradient_and_no_loss(tmp_path: Path):
    options: dict[str, Any] = dict(dropout=0.0, prepare=without_valid)
    config = replace(CONFIG, steps=2, log_every=1)
    run_toy(tmp_path, config, batches=emptied({2, 3}), **options)
    assert [record.get("loss") for record in log(tmp_path)[2:3]] == [None]
    assert log(tmp_path)[2]["grad_norm"] == 0.0 and log(tmp_path)[1]["loss"] > 0


def test_the_mean_of_the_log_is_over_what_has_a_loss(tmp_path: Path):
    options: dict[str, Any] = dict(dropout=0.0, prepare=without_valid)
    config = replace(CONFIG, steps=3, log_every=1)
    run_toy(tmp_path / "each", config, batches=emptied({2, 3, 5}), **options)
    run_toy(tmp_path / "all", replace(config, log_every=3), batches=emptied({2, 3, 5}), **options)
    first, _, third = (record["loss"] for record in log(tmp_path / "each") if "loss" in record)
    assert log(tmp_path / "all")[1]["loss"] == pytest.approx((2 * first + third) / 3)


def test_the_log_counts_bad_images_and_resumes_exactly(tmp_path: Path, capsys):
    empty = {5, 9, 18, 23}  # of 24 micro-steps; two are a step, and checkpoints are of 4, 8, 12

    class Stop(Exception):
        pass

    def train(name: str, stop: int | None = None) -> BadImages:
        bad = make(tmp_path / name)

        def batches(micro_step: int) -> Iterator[dict]:
            for number, batch in enumerate(emptied(empty, bad)(micro_step), micro_step):
                if stop is not None and number == 2 * stop:
                    raise Stop
                yield batch

        config = replace(CONFIG, log_every=1)
        run_toy(tmp_path / name, config, batches=batches, prepare=without_valid, bad_images=bad)
        return bad

    whole = train("whole")
    assert "4 bad images were left out: " in capsys.readouterr().err
    for stop in (6, 11):
        with pytest.raises(Stop):
            train("parts", stop)
    parts = train("parts")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert tensor_bytes(tmp_path / "parts") == tensor_bytes(tmp_path / "whole")
    assert lines(parts.path) == lines(whole.path) and len(lines(whole.path)) == 4
    counts = [record.get("bad_images", 0) for record in log(tmp_path / "whole")[1:]]
    assert counts == [0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 4, 4]  # the last is an evaluation's
    assert [line["step"] for line in lines(whole.path)] == [3, 5, 10, 12]


def test_too_many_stop_before_the_weights(tmp_path: Path):
    bad = replace(make(tmp_path), max_share=0.0)
    with pytest.raises(ValueError, match="1 of the 110 images"):
        run_toy(tmp_path, batches=emptied({19}, bad), prepare=without_valid, bad_images=bad)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["step-00000004", "step-00000008"]
