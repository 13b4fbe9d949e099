"""The advice on logs whose course is known."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from hf_vitmae.training.advice import ALIKE, LEAST_RANK, NOTHING, advise

HEALTHY = {
    "health_loss_mean_visible": 0.3,
    "health_loss_interpolation": 0.24,
    "health_prediction_spread_images": 0.2,
    "health_prediction_spread_patches": 0.1,
    "health_position_use": 0.2,
    "health_feature_spread_images": 0.1,
    "health_feature_spread_patches": 0.2,
    "health_feature_rank": 20.0,
}


def falling(step: int) -> float:
    return 0.1 + 0.1 * 0.5 ** (step / 500)


def log(loss: Callable[[int], float] = falling, last: int = 1000, **figures: Any) -> list[dict]:
    """A line of training and a report each 100 steps of a run whose learning rate stays."""
    records: list[dict[str, Any]] = [{"step": 0, "base_lr": 0.03, "precision": "fp32"}]
    for step in range(100, last + 1, 100):
        records.append({"step": step, "loss": loss(step), "lr": 1e-3, "grad_norm": 0.5})
        records.append({"step": step, "health_loss": loss(step), **HEALTHY, **figures})
    return records


def _one(name: str, value: float) -> dict[str, Any]:
    return {name: value}


def test_a_falling_loss_is_still_learning_and_says_how_fast() -> None:
    verdict, sentence = advise(log(lambda step: 0.2 - 0.05 * step / 1000))
    assert verdict == "still learning"
    # From step 700 on: 0.015 of 0.1575 in 300 steps.
    assert "0.05 per 1,000 steps" in sentence and "9.5%" in sentence and "go on" in sentence


def test_training_losses_are_taken_where_reports_are_few() -> None:
    records = [record for record in log() if "loss" in record or record["step"] in (0, 1000)]
    assert advise(records).verdict == "still learning"
    assert advise([record for record in records if "loss" in record]).verdict == "still learning"


def test_what_hardly_falls_is_flat() -> None:
    verdict, sentence = advise(log(lambda step: 0.2 - 1e-3 * step / 1000))
    assert verdict == "flat" and "larger model" in sentence and "schedule" not in sentence


def test_a_schedule_that_has_ended_is_named() -> None:
    for loss, verdict in ((falling, "still learning"), (lambda step: 0.2, "flat")):
        records = log(loss)
        for record in records:
            if record["step"] > 900 and "lr" in record:
                record["lr"] = 1e-5
        found = advise(records)
        assert found.verdict == verdict and "a longer run" in found.sentence


def test_noise_is_neither() -> None:
    noise = {700: 0.03, 800: -0.03, 900: 0.02, 1000: -0.01}
    assert advise(log(lambda step: 0.2 + noise.get(step, 0.0))).verdict == "unclear"


@pytest.mark.parametrize("last", [0, 100, 200])
def test_few_losses_are_unclear(last: int) -> None:
    assert advise(log(last=last)).verdict == "unclear"
    assert advise([]).verdict == "unclear"


def test_interpolation_is_to_be_beaten() -> None:
    verdict, sentence = advise(log(health_loss_interpolation=0.1))
    assert verdict == "not better than interpolation yet"
    assert "not below 0.1," in sentence and "go on" in sentence
    # A run that has come to a stop above it is flat first of all.
    assert advise(log(lambda step: 0.2, health_loss_interpolation=0.1)).verdict == "flat"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("health_prediction_spread_patches", "decoder's position"),
        ("health_position_use", "encoder's position"),
        ("health_prediction_spread_images", "do not depend on the image"),
        ("health_feature_spread_patches", "All patches of an image"),
        ("health_feature_spread_images", "All images"),
        ("health_feature_rank", "one line"),
    ],
)
def test_what_depends_on_nothing_has_collapsed(name: str, words: str) -> None:
    least = LEAST_RANK if name.endswith("rank") else NOTHING
    verdict, sentence = advise(log(**_one(name, 0.9 * least)))
    assert verdict == "collapsed" and words in sentence
    assert advise(log(**_one(name, 1.1 * least))).verdict == "still learning"


def test_one_report_that_differs_from_that_before_is_no_collapse() -> None:
    records = log()
    records[-1]["health_position_use"] = 0.0
    assert advise(records).verdict == "still learning"
    records[-3]["health_position_use"] = 0.0
    assert advise(records).verdict == "collapsed"


@pytest.mark.parametrize("what", ["prediction", "feature"])
def test_what_is_the_same_everywhere_comes_from_large_steps(what: str) -> None:
    names = [f"health_{what}_spread_{of}" for of in ("images", "patches")]
    spreads: dict[str, Any] = dict.fromkeys(names, 0.9 * ALIKE)
    verdict, sentence = advise(log(**spreads))
    assert verdict == "learning rate too high" and what in sentence.lower()
    assert "--optim.base-lr 0.01" in sentence
    assert advise(log(**_one(names[0], 0.9 * ALIKE))).verdict == "still learning"


def test_a_loss_that_stays_above_the_mean_colour_comes_from_large_steps() -> None:
    assert advise(log(lambda step: 0.34)).verdict == "learning rate too high"
    assert advise(log(lambda step: 0.31)).verdict == "flat"
    # At the start every run is above it.
    verdict = advise(log(lambda step: 0.9 - 0.5 * step / 1000)).verdict
    assert verdict == "not better than interpolation yet"


def jump(step: int) -> float:
    return 0.4 if step > 700 else 0.2


@pytest.mark.parametrize("loss", [jump, lambda step: math.nan if step == 1000 else 0.2])
def test_a_loss_that_jumps_comes_from_large_steps(loss: Callable[[int], float]) -> None:
    assert advise(log(loss, health_loss_mean_visible=9.0)).verdict == "learning rate too high"


def test_a_single_line_is_no_jump() -> None:
    loss = lambda step: 0.12 if step == 500 else falling(step)  # noqa: E731
    assert advise(log(loss)).verdict == "still learning"
    records = log()
    records[-2]["grad_norm"] = 6.0
    assert advise(records).verdict == "still learning"


def test_gradients_that_jump_and_skipped_steps_come_from_large_steps() -> None:
    records = log()
    for record in records:
        if "grad_norm" in record and record["step"] > 700:
            record["grad_norm"] = 6.0
    verdict, sentence = advise(records)
    assert verdict == "learning rate too high" and "gradient" in sentence
    for skipped, verdict in ((11, "learning rate too high"), (9, "still learning")):
        assert advise([*log(), {"step": 1000, "skipped_steps": skipped}]).verdict == verdict


def test_the_mend_is_said_where_the_learning_rate_is_not_known() -> None:
    assert "a third of --optim.base-lr" in advise(log(jump)[1:]).sentence


def test_what_a_log_may_hold_besides_does_not_matter() -> None:
    more = [{"step": 1000, "loss": None, "grad_norm": None}, {"step": 1000, "eval_loss": 0.1}]
    assert advise(log() + more) == advise(log())
