"""The card of a checkpoint, from what its run recorded and from runs beside it that used it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_vitmae.hub.card import CardFacts, Picture, Result, render
from hf_vitmae.hub.card_names import EMBEDDED, hub_id, public_name
from hf_vitmae.hub.card_results import (
    compared_results,
    evaluated_results,
    finetuned_results,
    loss_baselines,
    own_results,
)
from hf_vitmae.hub.card_run import (
    Record,
    data_table,
    limits,
    machine_table,
    recipe_table,
)
from hf_vitmae.hub.card_saved import read_json, saved_facts, shared_facts
from hf_vitmae.tasks import environment
from hf_vitmae.training.advice import advise
from hf_vitmae.training.run_folder import RunFolder, whole_lines
from hf_vitmae.visualize import loss_curve

EVALUATION = "evaluation.json"  # of `hf-vitmae evaluate`
LOSS_CURVE = "loss_curve"
FEWEST_POINTS = 2  # that make a curve
CAPTIONS = {  # of what runs leave in `samples/`
    "reconstruction": "What the model makes of images with hidden patches",
    "prediction": "The colours that the model predicts of corrupted patches",
    "continuation": "How the model continues images",
    "segmentation": "Images with their label maps and the model's",
    LOSS_CURVE: "Loss and learning rate over the steps",
}


def write_card(run: Path | None, model: Path, repo_id: str, *, license: str | None = None) -> str:
    """The README.md of a checkpoint; draws the run's loss curve into its `samples/` first.

    Its pictures are named `samples/*.png`, as they lie in the run's folder.

    Args:
        run: the folder of the run that made the model; None if there is none.
        model: the folder of the model.
        repo_id: where it goes, `user/name`.
        license: of the weights, as the Hub names it, such as `apache-2.0`.

    Raises:
        FileNotFoundError, ValueError: if one of the folders is not what it should be, or the card
        would give away a path, a token or a name.
    """
    if run is None:
        return render(saved_facts(model, repo_id, license))
    shared = shared_facts(model, repo_id, license)
    return render(_run_facts(RunFolder(run), model, shared))


def read_record(run: RunFolder, model: Path) -> Record:
    """What a run's folder holds of it.

    Raises:
        ValueError: if it is no run's folder.
    """
    bad_images = []
    if run.bad_images.is_file():
        bad_images = list(whole_lines(run.bad_images.read_text(encoding="utf-8")))
    return Record(
        recipe=run.read_recipe(),
        lines=[line for line in run.read_metrics() if "step" in line],
        bad_images=bad_images,
        config=read_json(model / "config.json"),
        processor=read_json(model / "preprocessor_config.json"),
        results=read_json(run.path / "results.json"),
        environment=read_json(run.path / environment.FILE),
    )


def _run_facts(run: RunFolder, model: Path, shared: dict[str, Any]) -> CardFacts:
    record = read_record(run, model)
    results = (*own_results(record), *_results_beside(run))
    return CardFacts(
        **shared,
        data=data_table(record),
        recipe=recipe_table(record),
        machine=machine_table(record),
        results=results,
        pictures=tuple(_pictures(run, record)),
        health=_health(record),
        limits=limits(record, bool(results), shared["license"] is not None),
        datasets=record.datasets,
        base_model=record.base_model,
    )


def _health(record: Record) -> str | None:
    """What the log says of a masked autoencoder's pretraining."""
    if record.recipe.get("objective") != "mae" or record.steps is None:
        return None
    advice = advise(record.lines)
    return f"{advice.verdict}. {advice.sentence}"


def _pictures(run: RunFolder, record: Record) -> Iterator[Picture]:
    """Those of the run, its loss curve drawn anew where that is possible."""
    if sum("loss" in line for line in record.lines) >= FEWEST_POINTS:
        with suppress(ImportError, OSError):  # no matplotlib, or nothing can be written there
            curve = loss_curve(record.lines, baselines=loss_baselines(record))
            run.save_samples({LOSS_CURVE: curve})
    for name, caption in CAPTIONS.items():
        if (run.samples / f"{name}.png").is_file():
            yield Picture(path=f"{run.samples.name}/{name}.png", caption=caption)


def _results_beside(run: RunFolder) -> Iterator[Result]:
    """What runs in folders beside this one found that started from its model."""
    finetuned = []
    for folder in sorted(path for path in run.path.resolve().parent.iterdir() if path.is_dir()):
        with suppress(ValueError, OSError, KeyError, TypeError):  # whatever else lies there
            yield from _evaluated(folder, run)
            beside = RunFolder(folder)
            checkpoint = _used_by(beside.read_recipe(), run, folder)
            if checkpoint is None:
                continue
            record = read_record(beside, beside.model)
            if comparison := read_json(folder / "comparison.json"):
                yield from _compared(comparison, checkpoint, record)
            else:
                finetuned.append(record)
    yield from finetuned_results(finetuned)


def _used_by(recipe: dict[str, Any], run: RunFolder, folder: Path) -> str | None:
    """The run's model as the recipe of the run in `folder` names it; None if it did not use it.

    Both folders may have moved together since, so what counts is how they lay to each other.
    """
    named = recipe.get("models") or [recipe.get("model")]
    place = Path(str(recipe.get("output_dir", "")))
    if folder.resolve() == run.path.resolve():
        return None
    expected = place.parent / run.path.resolve().name / "model"
    return next((name for name in named if isinstance(name, str) and Path(name) == expected), None)


def _compared(comparison: dict[str, Any], checkpoint: str, beside: Record) -> tuple[Result, ...]:
    source = str(comparison["settings"]["source"])
    data_id = beside.hub_id(source)
    settings = comparison["settings"] | {"source": public_name(source, data_id)}
    known = data_id or (source if source in EMBEDDED else None)
    return compared_results(comparison | {"settings": settings}, checkpoint, known)


def _evaluated(folder: Path, run: RunFolder) -> tuple[Result, ...]:
    """What is in the evaluation.json of a folder beside the run, if it is of the run's model."""
    found = read_json(folder / EVALUATION)
    named = Path(str(found.get("model", "")))
    is_it = named.resolve() == run.model.resolve() if named.exists() else _ends_alike(named, run)
    if not is_it:
        return ()
    source, split = str(found["source"]), str(found["split"])
    source = source.removesuffix(f"/{split}")
    data_id = hub_id(source, beside=str(named))
    name = f"{public_name(source, data_id)}, {split}"
    return evaluated_results(found, name, data_id or (source if source in EMBEDDED else None))


def _ends_alike(named: Path, run: RunFolder) -> bool:
    """Whether a path that is not there now may have been the model of the run."""
    return named.parts[-2:] == (run.path.resolve().name, run.model.name)
