"""A checkpoint's card, the README.md of its repository: facts in, Markdown with metadata out.

Facts come from what a run recorded. What is not known is left out, here and in the template.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_vitmae.hub.card_kinds import KINDS, Kind
from hf_vitmae.hub.privacy import find_private

TEMPLATE = Path(__file__).with_name("card_template.md")
DIGITS = 4  # significant ones of every number in a card that is not whole
LONGEST_TEXT = 200  # characters of what a record says in words
PEFT = "peft"  # what loads an adapter
LIBRARY = "transformers"  # so that the Hub shows how to load it with `trust_remote_code=True`
TAGS = ("hf_vitmae", "vision", "vit")

Value = str | int | float | bool | Sequence[float]
Table = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure that was measured.

    Args:
        task: the Hub's name of what was done, such as `image-classification`.
        how: how it was measured, in words.
        data: the images, in words.
        metric: such as `accuracy`.
        value: the figure; the mean if there are several draws.
        subject: what it is the figure of, where that is not this model: a baseline.
        data_id: the images as metadata name them.
        spread: sample standard deviation over the draws.
        draws: how many times it was measured, with other labels or seeds.
        images: evaluation images.
    """

    task: str
    how: str
    data: str
    metric: str
    value: float
    subject: str | None = None
    data_id: str | None = None
    spread: float | None = None
    draws: int | None = None
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the repository: its path there, and what it shows."""

    path: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says.

    Args:
        repo_id: where the checkpoint goes, `user/name`.
        class_name: of the model.
        num_channels: of its images, if that is known.
        architecture, data, recipe, machine: tables of what is known.
        adapter: settings of a low-rank adapter, if the repository holds one rather than a model.
        health: how the training went, in a line.
        conversion: where converted weights come from, and how far their outputs differ.
        limits: what the record shows that this model cannot do, or that nobody tried.
        datasets: Hub ids of the training images.
        base_model: Hub id of the model that this one was fine-tuned from, or the adapter is for.
        license: of the weights, as the Hub names it.
        tags: beside those of every such model.
    """

    repo_id: str
    class_name: str
    num_channels: int | None = None
    architecture: Table = field(default_factory=dict)
    data: Table = field(default_factory=dict)
    recipe: Table = field(default_factory=dict)
    machine: Table = field(default_factory=dict)
    adapter: Table = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    pictures: tuple[Picture, ...] = ()
    health: str | None = None
    conversion: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What models of this class are for, and how they are used."""
        return KINDS[self.class_name]

    @property
    def public_names(self) -> tuple[str, ...]:
        """Hub ids, which have names of users in them and may."""
        base = () if self.base_model is None else (self.base_model,)
        return (self.repo_id, *self.datasets, *base)


def render(facts: CardFacts) -> str:
    """The card's text.

    Raises:
        ValueError: for facts that would give away a token, a path, a person or a machine.
        ImportError: without Jinja2.
    """
    _refuse_private(facts)
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("Cards need Jinja2: pip install jinja2") from error
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"shown": shown, "plain": plain}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    name = facts.repo_id.split("/")[-1]
    return template.render(
        facts=facts, kind=facts.kind, name=name, metadata=metadata(facts).to_yaml()
    )


def metadata(facts: CardFacts) -> ModelCardData:
    """What the Hub reads: library, task, tags, data, licence, base model, results."""
    results = [found for result in facts.results for found in _eval_results(result)]
    metrics = dict.fromkeys(result.metric_type for result in results)
    adapter = ["lora"] if facts.adapter else []
    relation = "adapter" if facts.adapter else "finetune"
    more: dict[str, Any] = {"base_model_relation": relation} if facts.base_model else {}
    return ModelCardData(
        library_name=PEFT if facts.adapter else LIBRARY,
        pipeline_tag=facts.kind.pipeline_tag,
        tags=list(dict.fromkeys([*TAGS, *facts.kind.tags, *adapter, *facts.tags])),
        datasets=list(facts.datasets) or None,
        license=facts.license,
        base_model=facts.base_model,
        metrics=list(metrics) or None,
        model_name=facts.repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
        **more,
    )


def shown(value: Value) -> str:
    """A value as a card writes it: whole numbers in full, others to four significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, str):
        return plain(value)
    return ", ".join(map(shown, value))


def plain(text: str) -> str:
    """Text in one line of Markdown that nothing in it can break out of."""
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", text)


def _eval_results(result: Result) -> Iterator[EvalResult]:
    """The entry of the metadata; none for baselines and for what is no number."""
    if result.subject is not None or not math.isfinite(result.value):
        return
    draws = {} if result.draws is None else {"draws": result.draws}
    spread = {} if result.spread is None else {"standard_deviation": _rounded(result.spread)}
    yield EvalResult(
        task_type=result.task,
        dataset_type=result.data_id or re.sub(r"[^\w.-]+", "-", result.data).strip("-"),
        dataset_name=result.data,
        metric_type=result.metric,
        metric_name=f"{result.metric.replace('_', ' ')} ({result.how})",
        metric_value=_rounded(result.value),
        metric_args={**spread, **draws} or None,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _refuse_private(facts: CardFacts) -> None:
    texts = "\n".join(_texts(asdict(facts)))
    if found := find_private(texts, allowed=facts.public_names):
        raise ValueError(
            f"The card of {facts.repo_id} would give away {found[0]}; rename what has it in the "
            "run's record, or write the card by hand."
        )


def _texts(value: Any) -> Iterator[str]:
    """Every piece of text in nested facts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)
