"""What was measured of a model, for its card: by its own run, and by runs that started from it.

Pure functions of what these runs wrote. Of every figure it is kept how it was measured.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_vitmae.hub.card import Result
from hf_vitmae.hub.card_kinds import CLASSIFY, FEATURES, SEGMENT
from hf_vitmae.hub.card_names import public_name
from hf_vitmae.hub.card_run import Json, Record

TASKS = {
    "PretrainRecipe": FEATURES,
    "FinetuneRecipe": CLASSIFY,
    "LinearProbeRecipe": CLASSIFY,
    "SegmentRecipe": SEGMENT,
}
BASELINES = {  # what a figure of the log is of, where that is not the model
    "loss_mean_visible": ("loss", "the mean visible colour"),
    "loss_color_frequencies": ("loss", "the colours' own frequencies"),
    "loss_previous_patch": ("loss", "the patch before"),
    "accuracy_most_frequent_color": ("accuracy", "the most frequent colour"),
}
BEST = {  # what a task judges by, and which way
    "PretrainRecipe": ("eval_loss", min),
    "FinetuneRecipe": ("eval_accuracy", max),
    "SegmentRecipe": ("eval_mean_iou", max),
}
MAIN_METRICS = ("accuracy", "mean_iou")
METHODS = {"knn": "kNN", "linear-probe": "linear probe", "finetune": "fine-tuning"}
EVALUATED = (  # what is told of `hf-vitmae evaluate`
    "accuracy",
    "top_5_accuracy",
    "balanced_accuracy",
    "macro_f1",
    "mean_iou",
    "pixel_accuracy",
)
FRESH = "the same architecture from fresh weights"
OF_THE_RUN = "held-out images"


def own_results(record: Record) -> tuple[Result, ...]:
    """What the run's own evaluation found; of several, that of the weights which were saved."""
    found = _evaluation(record)
    images = found.get("eval_images") or record.newest("eval_images")
    base = Result(
        task=TASKS.get(record.task, FEATURES),
        how="linear probe" if record.task == "LinearProbeRecipe" else OF_THE_RUN,
        data=record.source_name,
        data_id=record.data_id,
        metric="",
        value=math.nan,
        images=images,
    )
    return tuple(_named(base, found))


def loss_baselines(record: Record) -> dict[str, float]:
    """The losses that a trained model must be below, by what has them."""
    return {
        subject: value
        for name, (metric, subject) in BASELINES.items()
        if metric == "loss" and math.isfinite(value := record.newest(f"eval_{name}") or math.nan)
    }


def finetuned_results(records: Iterable[Record]) -> tuple[Result, ...]:
    """What runs that started from the model reached: mean and spread of those that differ in
    nothing but the seed. Those from fresh weights stand beside them.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kept = {k: v for k, v in record.recipe.items() if k not in ("seed", "output_dir")}
        groups[json.dumps(kept, sort_keys=True, default=str)].append(record)
    return tuple(result for group in groups.values() for result in _of_group(group))


def compared_results(comparison: Json, checkpoint: str, data_id: str | None) -> tuple[Result, ...]:
    """The rows of a comparison.json that has the model among its checkpoints, with all others.

    Args:
        checkpoint: the model, as the comparison names it.
    """
    settings = comparison["settings"]
    arms = {arm["name"]: arm for arm in settings["models"]}
    own = [
        name
        for name, arm in arms.items()
        if arm["checkpoint"] == checkpoint and not (arm["is_random"] or arm["is_pixels"])
    ]
    results = []
    for row in comparison["rows"]:
        how = f"{METHODS.get(row['method'], row['method'])}, {_labels(settings)}"
        if row["method"] == "finetune" and (steps := arms[row["model"]].get("steps")):
            how += f", {steps:,} steps"
        result = Result(
            task=CLASSIFY,
            how=how,
            data=str(settings["source"]),
            data_id=data_id,
            metric="accuracy",
            value=row["mean"],
            spread=row["spread"],
            draws=len(row["accuracies"]),
            images=settings["eval_images"],
            subject=None if row["model"] in own else _arm_name(arms[row["model"]]),
        )
        results.append(result)
    return tuple(results)


def evaluated_results(found: Json, data: str, data_id: str | None) -> tuple[Result, ...]:
    """What an evaluation.json of the model says.

    Args:
        data: the images, in words.
    """
    return tuple(
        Result(
            task=found["task"],
            how="hf-vitmae evaluate",
            data=data,
            data_id=data_id,
            metric=metric,
            value=found[metric],
            images=found["num_images"],
        )
        for metric in EVALUATED
        if isinstance(found.get(metric), int | float)
    )


def _arm_name(arm: Json) -> str:
    """What else was compared, in words."""
    name = str(arm["name"])
    if arm["is_random"]:
        return name.replace("random", "random weights", 1)
    return "plain pixels" if arm["is_pixels"] else public_name(name)


def _evaluation(record: Record) -> dict[str, Any]:
    """The `eval_` values of the evaluation that the saved weights are of."""
    if record.results:
        return {k: v for k, v in record.results.items() if k.startswith("eval_")}
    lines = [line for line in record.lines if any(key.startswith("eval_") for key in line)]
    metric, choose = BEST.get(record.task, ("", max))
    if record.recipe.get("best_model") and (
        judged := [line for line in lines if math.isfinite(line.get(metric, math.nan))]
    ):
        return dict(choose(judged, key=lambda line: line[metric]))
    # Some evaluations come at their own times; of the last weights are only those of the last step.
    last = [line for line in lines if line.get("step") == record.newest("step")]
    return {key: value for line in last for key, value in line.items() if key.startswith("eval_")}


def _named(base: Result, found: Mapping[str, Any]) -> Iterator[Result]:
    for key, value in found.items():
        name = key.removeprefix("eval_")
        if name in ("images", key) or not isinstance(value, int | float):
            continue
        metric, subject = BASELINES.get(name, (name, None))
        if name == "knn_accuracy":
            yield replace(base, task=CLASSIFY, how="kNN", metric="accuracy", value=value)
        else:
            yield replace(base, metric=metric, subject=subject, value=value)


def _of_group(records: Sequence[Record]) -> Iterator[Result]:
    """One result for each main metric, of runs that are alike but for the seed."""
    first = records[0]
    lists = [{r.metric: r for r in own_results(record)} for record in records]
    for metric in MAIN_METRICS:
        values = [own[metric].value for own in lists if metric in own]
        if not values:
            continue
        yield replace(
            lists[0][metric],
            how=_how(first),
            value=statistics.fmean(values),
            spread=statistics.stdev(values) if len(values) > 1 else None,
            draws=len(values),
            subject=FRESH if first.recipe.get("from_scratch") else None,
        )


def _how(record: Record) -> str:
    """How a run that started from the model used it."""
    if record.task == "LinearProbeRecipe":
        words = "linear probe"
    elif record.recipe.get("lora_rank"):
        words = "LoRA"
    else:
        words = "fine-tuning"
    labels = record.part("data").get("samples_per_class")
    words += f", {labels:,} labelled images a class" if labels else ""
    return words + (f", {record.steps:,} steps" if record.steps else "")


def _labels(settings: Json) -> str:
    return f"{settings['labels_per_class']:,} labelled images a class"
