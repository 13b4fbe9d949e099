"""One number of a comparison at a time: by features that stay as they are, or by fine-tuning."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.order import num_steps
from hf_vitmae.models.modeling_vitmae import VitMaeForImageClassification
from hf_vitmae.tasks import finetune
from hf_vitmae.tasks.checkpoints import load_config, load_processor
from hf_vitmae.tasks.compare_plan import Arm, Job, SharedImages
from hf_vitmae.tasks.compute import step_flops
from hf_vitmae.tasks.features import (
    Encoder,
    cached_features,
    pixel_encoder,
    random_encoder,
    trained_encoder,
)
from hf_vitmae.tasks.finetune import FinetuneRecipe
from hf_vitmae.tasks.start import start_config
from hf_vitmae.training.features import Features
from hf_vitmae.training.neighbors import nearest_classes
from hf_vitmae.training.probe import choose_strength, fit_exact_probe
from hf_vitmae.training.run_folder import RunFolder, whole_lines
from hf_vitmae.whole_or_absent import write_whole

if TYPE_CHECKING:
    from hf_vitmae.tasks.compare import CompareRequest

Record = dict[str, Any]
FEATURES, RUNS = "features", "runs"  # in the comparison's folder


class Results:
    """results.jsonl: a line for each number, in the order in which they were found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.records: list[Record] = list(whole_lines(text))

    def find(self, key: Mapping[str, Any]) -> Record | None:
        """The line that has these fields."""
        return next((r for r in self.records if key.items() <= r.items()), None)

    def add(self, record: Record) -> None:
        """Write one more line; the file is whole at any time."""
        self.records.append(record)
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in self.records]
        write_whole(self.path, "".join(lines))

    def tuning(self, arm: Arm) -> list[Record]:
        """What each base learning rate gave for a model."""
        asked = ("tuning", arm.name)
        return [r for r in self.records if (r["method"], r["model"]) == asked]

    def best_lr(self, arm: Arm, base_lrs: Sequence[float]) -> float:
        """The one of the grid that was best for a model, the lower one of equals."""
        if len(base_lrs) == 1:
            return base_lrs[0]
        best = max(self.tuning(arm), key=lambda record: (record["accuracy"], -record["base_lr"]))
        return best["base_lr"]


class Measurer:
    """Finds what jobs ask for; `folder` holds features and runs until their results are there."""

    def __init__(self, request: "CompareRequest", images: SharedImages, folder: Path) -> None:
        self.request, self.images, self.folder = request, images, folder
        self._encoder: tuple[Any, Encoder] | None = None
        self._draws: dict[int, ImageSource] = {}
        self._flops: dict[str, float] = {}

    def run_all(self, jobs: Sequence[Job], results: Results) -> None:
        """Do the jobs whose results are not there, and say what each gave."""
        for number, job in enumerate(jobs, start=1):
            if results.find(job.key) is None:
                results.add(job.key | self.measure(job, results))
                self._say(f"[{number}/{len(jobs)}]", results.records[-1])
            if job.is_training and not self.request.keep_models:
                run = RunFolder(self._run_path(job))
                for path in (run.checkpoints, run.model):
                    shutil.rmtree(path, ignore_errors=True)
        if not self.request.keep_models:
            shutil.rmtree(self.folder / FEATURES, ignore_errors=True)

    def measure(self, job: Job, results: Results) -> Record:
        """-> accuracy, the images it was measured on and how it came about."""
        if job.method == "tuning":
            return self._tune(job)
        if job.method == "finetune":
            return self._finetune(replace(job, base_lr=self.base_lr(job.arm, results)))
        train, evaluation = self._features(job)
        measure = self._nearest if job.method == "knn" else self._probe
        scores, chosen = measure(job, train, evaluation)  # (n, classes)
        accuracy = float((scores.argmax(axis=1) == evaluation.labels).mean())
        return {"accuracy": accuracy, "eval_images": len(evaluation), "labels": len(train)} | chosen

    def finetune_recipe(self, job: Job) -> FinetuneRecipe:
        """The whole recipe of a fine-tuning job, its base learning rate known."""
        request, arm, images = self.request, job.arm, self.images
        assert job.base_lr is not None
        optim = replace(request.finetune.optim, base_lr=job.base_lr)
        if arm.is_random:
            optim = replace(optim, layer_decay=request.scratch_layer_decay)
        return replace(
            request.finetune,
            model=arm.checkpoint,
            data=images.tuning_config() if job.method == "tuning" else images.draw_config(),
            optim=optim,
            pooling=request.pooling,
            from_scratch=arm.is_random,
            new_head=not arm.is_random,
            eval_images=request.eval_images,
            seed=job.seed,
            steps=self.steps + arm.extra_steps,
            epochs=None,
            output_dir=self._run_path(job),
        )

    @property
    def step_images(self) -> int:
        """Images of a fine-tuning step."""
        recipe = self.request.finetune
        if recipe.effective_batch is not None:
            return recipe.effective_batch
        return recipe.plan_batches(num_processes=1).num_images

    @property
    def steps(self) -> int:
        """Fine-tuning steps that every model gets."""
        recipe = self.request.finetune
        if recipe.steps is not None:
            return recipe.steps
        return num_steps(recipe.epochs or 0, len(self.draw(0)), self.step_images)

    def step_flops(self, arm: Arm) -> float:
        """What one fine-tuning step of a model costs."""
        if arm.checkpoint not in self._flops:
            recipe = replace(self.request.finetune, model=arm.checkpoint)
            stored, classes = load_config(arm.checkpoint), self.images.class_names
            config = start_config(recipe, stored, classes, pooling=self.request.pooling)
            model = VitMaeForImageClassification(config)
            self._flops[arm.checkpoint] = step_flops(model, self.step_images)
        return self._flops[arm.checkpoint]

    def base_lr(self, arm: Arm, results: Results) -> float:
        """Of a model's fine-tuning runs, once it is tuned."""
        return results.best_lr(arm, self.request.base_lrs)

    def draw(self, seed: int) -> ImageSource:
        """The labelled images of a seed."""
        if seed not in self._draws:
            self._draws[seed] = self.images.draw(seed)
        return self._draws[seed]

    def _features(self, job: Job) -> tuple[Features, Features]:
        """Those of the draw and of the images to evaluate on."""
        encoder, request = self._make_encoder(job), self.request
        train, evaluation = (
            cached_features(
                self.folder / FEATURES,
                encoder,
                source,
                batch_size=request.batch_size,
                num_workers=request.data.num_workers,
                max_bad=request.data.max_bad,
            )
            for source in (self.draw(job.seed), self.images.evaluation)
        )
        return train, evaluation

    def _make_encoder(self, job: Job) -> Encoder:
        """The model of a job; fresh weights are other ones for each seed."""
        arm = job.arm
        key = (arm.name, job.seed if arm.is_random else None)
        if self._encoder is None or self._encoder[0] != key:
            self._encoder = key, make_encoder(arm, job.seed, self.request.pooling)
        return self._encoder[1]

    def _nearest(
        self, job: Job, train: Features, evaluation: Features
    ) -> tuple[np.ndarray, Record]:
        neighbors = min(self.request.neighbors, len(train))
        votes = nearest_classes(
            train,
            evaluation.values,
            neighbors,
            metric="cosine",
            temperature=self.request.temperature,
        )
        return votes, {"neighbors": neighbors}

    def _probe(self, job: Job, train: Features, evaluation: Features) -> tuple[np.ndarray, Record]:
        """The strength comes from the labelled images of the draw alone."""
        strength, *others = self.request.strengths
        if others:
            strength = choose_strength(train, [strength, *others], self.request.folds, job.seed)
        return fit_exact_probe(train, strength).logits(evaluation.values), {"strength": strength}

    def _tune(self, job: Job) -> Record:
        """A learning rate at which training breaks down is no error, and the worst one."""
        try:
            return self._finetune(job)
        except FloatingPointError:
            return {"accuracy": 0.0, "broke_down": True}

    def _finetune(self, job: Job) -> Record:
        recipe = self.finetune_recipe(job)
        with redirect_stdout(StringIO()):  # it names a folder whose model goes afterwards
            metrics = finetune.run(recipe, self.images.source)
        record = {"accuracy": metrics["eval_accuracy"], "eval_images": metrics["eval_images"]}
        if job.method == "tuning":
            return record
        return record | {
            "labels": len(self.draw(job.seed)),
            "base_lr": job.base_lr,
            "steps": recipe.steps,
            "flops": (recipe.steps or 0) * self.step_flops(job.arm),
        }

    def _run_path(self, job: Job) -> Path:
        name = re.sub(r"[^\w.-]+", "-", job.arm.name).strip("-")
        what = f"lr-{job.base_lr:g}" if job.method == "tuning" else f"seed-{job.seed}"
        return self.folder / RUNS / f"{job.arm.number}-{name}-{what}"

    def _say(self, count: str, record: Record) -> None:
        what = f"seed {record['seed']}"
        if record["method"] == "tuning":
            what = f"base_lr {record['base_lr']:g}, on validation images"
        print(
            f"{count} {record['method']}, {record['model']}, {what}: {record['accuracy']:.3f}",
            flush=True,
        )


def make_encoder(arm: Arm, seed: int, pooling: Any) -> Encoder:
    """What turns images into features for a model; all but the weights is the checkpoint's."""
    if arm.is_checkpoint:
        return trained_encoder(arm.checkpoint, pooling)
    config = load_config(arm.checkpoint)
    processor = load_processor(arm.checkpoint, config)
    if arm.is_pixels:
        return pixel_encoder(config, processor)
    return random_encoder(config, seed, pooling, processor)


def refuse_other_inputs(
    folder: Path, arms: Sequence[Arm], images: SharedImages, pooling: Any
) -> None:
    """Note the weights and images of a comparison, or see that they are still those.

    Raises:
        ValueError: naming what has changed.
    """
    path = folder / "inputs.json"
    checkpoints = [arm for arm in arms if arm.is_checkpoint]
    inputs = {arm.name: make_encoder(arm, 0, pooling).digest for arm in checkpoints}
    inputs |= {"the images": images.digest()}
    if not path.exists():
        write_whole(path, json.dumps(inputs, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, digest in inputs.items():
        if before.get(name) != digest:
            raise ValueError(
                f"{folder} was started with other weights or images: {name} changed since; choose "
                "another --output-dir."
            )
