"""`hf-vitmae compare`: did pretraining help on these images? Models side by side, with few labels.

Every draw of labelled images is the same for all models, and so are the images to evaluate on, the
grids that are searched and the number of steps. Nothing is chosen on the images to evaluate on.
Each result is a line of results.jsonl as soon as it is there; the same command again goes on.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hf_vitmae.data.augmentation.config import AugmentConfig
from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.sources import Sources
from hf_vitmae.tasks.checkpoints import load_config
from hf_vitmae.tasks.compare_measure import Measurer, Results, refuse_other_inputs
from hf_vitmae.tasks.compare_plan import (
    RANDOM,
    Arm,
    SharedImages,
    make_arms,
    make_jobs,
    with_same_compute,
)
from hf_vitmae.tasks.compare_report import Comparison, write_report
from hf_vitmae.tasks.compare_settings import describe
from hf_vitmae.tasks.compute import pretraining_flops
from hf_vitmae.tasks.finetune import FinetuneRecipe
from hf_vitmae.training.optim import OptimConfig
from hf_vitmae.training.run_folder import RunFolder
from hf_vitmae.training.run_lock import run_lock

Method = Literal["knn", "linear-probe", "finetune"]
FREE_FIELDS = frozenset(  # they change neither a number nor which numbers there are
    {
        "output_dir",
        "num_workers",
        "log_every",
        "checkpoint_every",
        "tracker",
        "keep_models",
        "allow_change",
    }
)
DECIDED = {  # fields of `finetune` that are the comparison's own, and how to say them
    "seed": "--seeds",
    "from_scratch": "--models random",
    "new_head": "--models",
    "eval_images": "--eval-images",
    "pooling": "--pooling",
    "best_model": "--finetune.steps: the best of several evaluations would be chosen on them",
}


def small_finetuning() -> FinetuneRecipe:
    """The numbers of the recipe `finetune-cpu`."""
    return FinetuneRecipe(
        model="runs/mae-cpu/model",
        data=DataConfig(source="emoji", num_workers=1),
        augment=AugmentConfig(crop_scale=(0.6, 1.0)),
        optim=OptimConfig(base_lr=1.6e-2, betas=(0.9, 0.999), layer_decay=0.75, warmup_share=0.1),
        drop_path_rate=0.1,
        label_smoothing=0.1,
        steps=300,
        batch_size=32,
        output_dir=Path("runs/finetune-cpu"),
        tracker=("none",),  # the curves of many short runs tell little
    )


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """Compare checkpoints with each other, with random weights and with plain pixels.

    Raises:
        ValueError: if a number is out of range, there are fewer than two models or no checkpoint
        among them, or a field is given that the comparison decides.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Labelled images: what `--data.source` of a training run takes."""
    models: tuple[str, ...]
    """Checkpoints, and besides `random` (the first one's architecture with fresh weights) and
    `pixels` (no network: the pixels themselves)."""
    output_dir: Path = Path("runs/compare")
    """Folder for everything; the same command again goes on with what is in it."""
    methods: tuple[Method, ...] = ("knn", "linear-probe", "finetune")
    """How to use what the models know."""
    labels_per_class: int = 5
    """Labelled images of each class in a draw."""
    seeds: int = 5
    """Draws of labelled images; each model sees the same ones."""
    data: DataConfig = field(default_factory=lambda: DataConfig(num_workers=1))
    """How SOURCE is read and which images of it to evaluate on."""
    eval_images: int | None = None
    """Evaluate on at most so many images, spread evenly over the split."""
    pooling: Literal["cls", "mean"] = "mean"
    """What is taken for an image's features: the CLS token or the mean of the patch tokens."""
    batch_size: int = 64
    """Images of one forward pass where features are computed."""
    neighbors: int = 5
    """Of kNN, which votes by cosine similarity."""
    temperature: float | None = 0.07
    """Of kNN: closer neighbours count for more; none gives all the same vote."""
    strengths: tuple[float, ...] = (1e-2, 1e-1, 1.0, 10.0, 100.0)
    """L2 penalties of the linear probe, of which cross-validation on a draw chooses one for it."""
    folds: int = 5
    """Of that cross-validation."""
    base_lrs: tuple[float, ...] = (4e-3, 1.6e-2, 6.4e-2)
    """Base learning rates of fine-tuning, of which each model gets its own best one."""
    validation_share: float = 0.2
    """Share of the training images that learning rates are chosen on."""
    same_compute: bool = True
    """Of a checkpoint RUN/model: also fine-tune random weights with what RUN cost as more steps."""
    scratch_layer_decay: float = 1.0
    """Layer-wise learning-rate decay from random weights, in place of `finetune.optim`'s: it spares
    low layers that have learned something, and here they have not."""
    finetune: FinetuneRecipe = field(default_factory=small_finetuning)
    """How to fine-tune; its model, data, base learning rate and folder are the comparison's own."""
    keep_models: bool = False
    """Keep checkpoints, models and features when their results are there."""
    allow_change: tuple[str, ...] = ()
    """Fields that may differ from those that the folder began with, such as a moved source."""

    def __post_init__(self) -> None:
        least = {"labels_per_class": 1, "seeds": 1, "batch_size": 1, "neighbors": 1, "folds": 2}
        for name, lowest in least.items():
            if (value := getattr(self, name)) < lowest:
                raise ValueError(f"`{name}` must be at least {lowest}, got {value}.")
        for name in ("models", "methods", "strengths", "base_lrs"):
            self._check_list(name)
        if len(self.models) < 2:
            raise ValueError(
                f"`models` names {len(self.models)} model ({' '.join(self.models)}) and a "
                "comparison needs two; add another checkpoint, random or pixels."
            )
        make_arms(self.models)
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"`validation_share` must lie between 0 and 1, got {self.validation_share}."
            )
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"`temperature` must be above 0, or none, got {self.temperature}.")
        self._check_labels()
        self._check_data()
        self._check_finetuning()

    def _check_list(self, name: str) -> None:
        values = getattr(self, name)
        if not values or len(set(values)) < len(values):
            listed = " ".join(map(str, values)) or "nothing"
            raise ValueError(f"`{name}` must name one or more, each once, got {listed}.")
        for value in values:
            if isinstance(value, float) and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be above 0, got {value}.")

    def _check_labels(self) -> None:
        searches = "linear-probe" in self.methods and len(self.strengths) > 1
        if self.labels_per_class == 1 and searches:
            raise ValueError(
                "`labels_per_class` 1 leaves the linear probe nothing to cross-validate on; take 2 "
                "or more, give one of --strengths, or leave linear-probe out of --methods."
            )

    def _check_data(self) -> None:
        decided = {
            "source": (self.source, "SOURCE"),
            "samples_per_class": (None, "--labels-per-class"),
            "weights": ((), "--labels-per-class: it draws each image once"),
            "streaming": (False, "SOURCE: few labels are drawn from anywhere"),
            "stats": ("none", "--models: a checkpoint has its own statistics"),
        }
        for name, (allowed, flag) in decided.items():
            value = getattr(self.data, name)
            if value not in (allowed, getattr(DataConfig(), name)):
                raise ValueError(f"`data.{name}` {value} is decided by {flag}; leave it out.")

    def _check_finetuning(self) -> None:
        if "finetune" not in self.methods:
            return
        for name, flag in DECIDED.items():
            value = getattr(self.finetune, name)
            if value != FinetuneRecipe.__dataclass_fields__[name].default:
                raise ValueError(f"`finetune.{name}` {value} is decided by {flag}; leave it out.")
        if self.finetune.lora_rank and RANDOM in self.models:
            raise ValueError(
                f"`finetune.lora_rank` {self.finetune.lora_rank} adapts trained weights and random "
                "has none; leave one of them out."
            )


def run(request: CompareRequest, source: Sources | None = None) -> Comparison:
    """Measure everything that is not yet in the folder, and say what came out.

    Args:
        source: `datasets` objects, opened in place of `request.source`.

    Raises:
        ValueError, FileNotFoundError: for models or images that cannot be used, a folder of
        another comparison, or weights or images that have changed since it was started.
    """
    if (num_processes := request.finetune.make_accelerator().num_processes) > 1:
        raise ValueError(f"compare runs in one process, not in {num_processes}; start it alone.")
    for arm in make_arms(request.models):
        load_config(arm.checkpoint)  # what is not there is said first
    images = SharedImages.open(
        replace(request.data, source=request.source),
        source,
        request.labels_per_class,
        request.validation_share,
        request.eval_images,
    )
    measurer = Measurer(request, images, request.output_dir)
    arms = plan_arms(measurer)
    with run_lock(request.output_dir):
        free_fields = FREE_FIELDS | set(request.allow_change)
        folder = RunFolder.open(request.output_dir, request, free_fields)
        refuse_other_inputs(folder.path, arms, images, request.pooling)
        results = Results(folder.path / "results.jsonl")
        jobs = make_jobs(arms, request.methods, request.seeds, request.base_lrs)
        measurer.run_all(jobs, results)
        comparison = describe(measurer, arms, results)
        paths = write_report(folder.path, comparison)
    print("\n".join(["", comparison.table(), "", *comparison.conclusion]))
    print(f"Written: {', '.join(map(str, paths))}.")
    return comparison


def plan_arms(measurer: Measurer) -> list[Arm]:
    """All models, with those from scratch that get the compute of pretraining too."""
    request = measurer.request
    arms = make_arms(request.models)
    if RANDOM not in request.models or "finetune" not in request.methods:
        return arms
    costs = {}
    for arm in arms:
        spent = pretraining_flops(arm.checkpoint) if arm.is_checkpoint else None
        if spent and request.same_compute:
            step = measurer.step_flops(arm)
            costs[arm.name] = (step, round(spent / step))
    return with_same_compute(arms, costs)
