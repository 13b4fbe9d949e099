"""What the log of a masked autoencoder's pretraining says of how it goes, and what to do.

A pure function of the records of metrics.jsonl, where the `health_*` figures are those of
`hf_vitmae.training.health`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Verdict = Literal[
    "unclear",
    "learning rate too high",
    "collapsed",
    "not better than interpolation yet",
    "flat",
    "still learning",
]
Record = Mapping[str, Any]

# Shares of a mean square. What does not depend on something at all has 1e-13 in fp32 and up to 6e-5
# in bf16, which rounds to 3 digits; healthy runs of the small emoji recipe never had below 6e-4.
NOTHING = 1e-4
# Both spreads of features, or both of predictions: below 2e-3 after some steps at 12 times the
# recipe's learning rate, 0.013 and more in healthy runs and in those that were blind to positions.
ALIKE = 3e-3
LEAST_RANK = 1.5  # of the features: below, they all lie on one line; healthy runs have 15 and more
# Above the error of the mean visible colour by so much is worse than no model. Collapsed runs end
# within 3 % of it; one with 100 times the learning rate stayed 23 % above.
WORSE_THAN_MEAN = 1.1
JUMP = 1.5  # times the lowest loss before; means of three lines of a log differ by some 10 %
GRADIENT_JUMP = 10.0  # times the usual norm; a healthy run has its largest at the start
MOST_SKIPPED = 0.01  # share of the steps so far; a rate that fits skips none
RECENT = 1 / 3  # of the steps so far are what a trend is taken from: some four of ten reports
FEWEST_POINTS = 3  # that make a trend
SLOWEST = 0.01  # of the loss in the recent part: a run half as long again would gain no more
SURE = 2.0  # standard errors on both sides of a trend that it has to be clear by
ENDED = 0.1  # of the highest learning rate: below it is the schedule that slows a run


# What is below so much in a collapsed model, and what to look at.
_FAULTS = {
    "health_prediction_spread_patches": (
        NOTHING,
        "All hidden patches of an image get one prediction: look at the decoder's position "
        "embeddings",
    ),
    "health_position_use": (
        NOTHING,
        "It makes no difference where visible patches are: look at the encoder's position "
        "embeddings",
    ),
    "health_prediction_spread_images": (
        NOTHING,
        "Predictions do not depend on the image: look at the input images, and lower the learning "
        "rate",
    ),
    "health_feature_spread_patches": (
        NOTHING,
        "All patches of an image have one feature: look at the attention distances, and lower the "
        "learning rate or the depth",
    ),
    "health_feature_spread_images": (
        NOTHING,
        "All images have one feature: look at the input images, and lower the learning rate",
    ),
    "health_feature_rank": (
        LEAST_RANK,
        "All features lie on one line: look at the input images, and lower the learning rate",
    ),
}


class Advice(NamedTuple):
    """How a run goes."""

    verdict: Verdict
    sentence: str
    """What that is seen from, and what to do."""


class _Trend(NamedTuple):
    """A straight line through the recent losses."""

    per_1000_steps: float
    """What the loss falls by."""
    share: float
    """What it fell by in all, over its mean."""
    error: float
    """Of the share: its standard error."""

    @property
    def is_falling(self) -> bool:
        return self.share > max(SLOWEST, SURE * self.error)

    @property
    def is_flat(self) -> bool:
        return not self.is_falling and self.share + SURE * self.error < 3 * SLOWEST


def advise(records: Sequence[Record]) -> Advice:
    """One line of advice on a run.

    Args:
        records: the lines of its metrics.jsonl, in order; the last may be a report alone.
    """
    losses = _losses(records)
    trend = _trend(losses)
    newest = _newest_report(records)
    found = _too_high(records, losses, trend, newest) or _collapsed(newest)
    if found is not None:
        return found
    if trend is None or not (trend.is_falling or trend.is_flat):
        return Advice("unclear", "The losses so far are too few, or differ too much; go on.")
    return _progress(records, trend, newest)


def _too_high(
    records: Sequence[Record],
    losses: Sequence[tuple[int, float]],
    trend: _Trend | None,
    newest: Record,
) -> Advice | None:
    why = _unstable(records, losses) or _constant(newest)
    mean, loss = newest.get("health_loss_mean_visible"), newest.get("health_loss")
    if why is None and trend is not None and trend.is_flat and mean and loss is not None:
        if not loss < WORSE_THAN_MEAN * mean:
            why = f"The loss {loss:.4g} stays above {mean:.4g}, that of the mean visible colour"
    if why is None:
        return None
    rate = next((record["base_lr"] for record in records if "base_lr" in record), None)
    third = "a third of --optim.base-lr" if rate is None else f"--optim.base-lr {rate / 3:.2g}"
    return Advice("learning rate too high", f"{why}; start anew with {third}.")


def _unstable(records: Sequence[Record], losses: Sequence[tuple[int, float]]) -> str | None:
    """What shows that steps were too large, from loss and gradient alone."""
    step = max((record["step"] for record in records), default=0)
    skipped = max((record.get("skipped_steps", 0) for record in records), default=0)
    if skipped > MOST_SKIPPED * step:
        return f"{skipped} of {step} steps were not finite"
    if losses and not math.isfinite(losses[-1][1]):
        return "The loss is not finite"
    *before, now = _means([loss for _, loss in losses]) or [math.inf]
    if before and now > JUMP * min(before):
        return f"The loss was {min(before):.4g} already and is {now:.4g}"
    norms = [record["grad_norm"] for record in records if record.get("grad_norm") is not None]
    *before, now = _means(norms) or [math.inf]
    if before and now > GRADIENT_JUMP * float(np.median(before)):
        return f"The gradient's norm was {np.median(before):.3g} and is {now:.3g}"
    return None


def _means(values: Sequence[float]) -> list[float]:
    """Of each three that are next to each other, the finite ones: a single line may be noise."""
    finite = [value for value in values if math.isfinite(value)]
    return [sum(finite[i - 3 : i]) / 3 for i in range(3, len(finite) + 1)]


def _newest_report(records: Sequence[Record]) -> dict[str, float]:
    """The newest health figures; those that tell of a collapse as the better of the newest two."""
    reports = [record for record in records if "health_loss" in record][-2:]
    newest = dict(reports[-1]) if reports else {}
    for name in _FAULTS.keys() & newest.keys():
        newest[name] = max(report.get(name, 0.0) for report in reports)
    return newest


def _constant(newest: Record) -> str | None:
    """Whether features or predictions are the same everywhere, as too large steps leave them."""
    for what, words in (("prediction", "Predictions are"), ("feature", "Features are")):
        spreads = [newest.get(f"health_{what}_spread_{of}", 1.0) for of in ("images", "patches")]
        if max(spreads) < ALIKE:
            return f"{words} the same for all images and places"
    return None


def _collapsed(newest: Record) -> Advice | None:
    for name, (least, fault) in _FAULTS.items():
        if newest.get(name, math.inf) < least:
            return Advice("collapsed", f"{fault}.")
    return None


def _progress(records: Sequence[Record], trend: _Trend, newest: Record) -> Advice:
    """Of a run with nothing wrong."""
    has_ended = _has_ended(records)
    if trend.is_flat:
        mend = "stop here, or try a lower learning rate or a larger model"
        if has_ended:
            mend = "the schedule has ended: stop here, or try a longer run or a larger model"
        return Advice("flat", f"The loss fell by {trend.share:.1%} in the last part; {mend}.")
    fall = f"The loss falls by {trend.per_1000_steps:.2g} per 1,000 steps"
    go_on = "a longer run would get further" if has_ended else "go on"
    rule, loss = newest.get("health_loss_interpolation"), newest.get("health_loss")
    if rule is not None and loss is not None and loss >= rule:
        fall += f" and is {loss:.4g}, not below {rule:.4g}, that of interpolated colours"
        return Advice("not better than interpolation yet", f"{fall}; {go_on}.")
    return Advice("still learning", f"{fall}, {trend.share:.1%} in the last part; {go_on}.")


def _losses(records: Sequence[Record]) -> list[tuple[int, float]]:
    """(step, loss) of the health reports if they are enough for a trend, else of training."""
    points = []
    for name in ("health_loss", "loss"):
        points = [(r["step"], float(r[name])) for r in records if r.get(name) is not None]
        if len(points) >= FEWEST_POINTS:
            break
    return points


def _trend(losses: Sequence[tuple[int, float]]) -> _Trend | None:
    """The line of least squares through the recent losses; None of too few."""
    finite = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(finite) < FEWEST_POINTS:
        return None
    first = min((1 - RECENT) * finite[-1][0], finite[-FEWEST_POINTS][0])
    recent = [(step, loss) for step, loss in finite if step >= first]
    steps, values = np.array(recent, dtype=np.float64).T
    mean, steps = values.mean(), steps - steps.mean()
    squares = (steps**2).sum()
    if not squares or not mean:
        return None
    slope = (steps @ values) / squares
    residuals = values - mean - slope * steps
    error = math.sqrt((residuals**2).sum() / (len(recent) - 2) / squares)
    span = np.ptp(steps) / mean
    return _Trend(float(-1000 * slope), float(-slope * span), float(error * span))


def _has_ended(records: Sequence[Record]) -> bool:
    """Whether the schedule has taken the learning rate down."""
    rates = [record["lr"] for record in records if record.get("lr") is not None]
    return bool(rates) and rates[-1] < ENDED * max(rates)
