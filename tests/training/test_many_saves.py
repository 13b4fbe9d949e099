"""Hundreds of saves leave a few folders, and nothing open."""

import os
from pathlib import Path

import pytest

from hf_vitmae.training.checkpoint import checkpoints, save_checkpoint

from .small_run import average_of, names, trained

OPEN_FILES = Path("/proc/self/fd")


@pytest.mark.parametrize("protect", [(), (10,)])
def test_a_hundred_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protect: tuple[int, ...]):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a slow disk proves nothing here
    model, optimizer = trained()
    ema = average_of(model)
    num_open = []
    for step in range(1, 101):
        state = {"step": step}
        save_checkpoint(tmp_path, step, model, optimizer, state, 3, ema=ema, protect=protect)
        kept = {*range(max(step - 2, 1), step + 1), *(best for best in protect if best <= step)}
        assert names(tmp_path) == [f"step-{kept_step:08d}" for kept_step in sorted(kept)]
        if OPEN_FILES.exists():
            num_open.append(len(os.listdir(OPEN_FILES)))
    assert list(checkpoints(tmp_path)) == [*protect, 98, 99, 100]
    assert len(set(num_open[1:])) <= 1
