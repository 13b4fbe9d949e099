"""What all training tasks do alike: recipe, model and data to a trained model in a run folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NoReturn, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hf_vitmae.data.augmentation.augmented import train_transform
from hf_vitmae.data.augmentation.transforms import Transform
from hf_vitmae.data.loader import train_batches
from hf_vitmae.data.mixture import AnySource
from hf_vitmae.data.order import num_steps
from hf_vitmae.data.streams.stream import StreamSource
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.tasks.batch_size import find_batch_plan, memory_advice
from hf_vitmae.tasks.checkpoints import Model, save_model
from hf_vitmae.tasks.environment import note_environment
from hf_vitmae.tasks.images import Batch
from hf_vitmae.tasks.plan import DryRun, plan_run
from hf_vitmae.tasks.push_while_training import Outbox, pushed_meanwhile
from hf_vitmae.tasks.recipe import BatchPlan, TaskRecipe
from hf_vitmae.tasks.resume import bring_back
from hf_vitmae.training.bad_images import BadImages
from hf_vitmae.training.guard import check_positions
from hf_vitmae.training.loop import Evaluator, train
from hf_vitmae.training.loop_config import Best, LoopConfig
from hf_vitmae.training.memory import OPTIMIZER_COPIES, explaining_out_of_memory
from hf_vitmae.training.optim import build_optimizer
from hf_vitmae.training.run_folder import FREE_FIELDS, RunFolder
from hf_vitmae.training.run_lock import run_lock
from hf_vitmae.training.sharding import shard_model, wants_sharding, whole_state, without_weights
from hf_vitmae.training.trackers import Pictures, Trackers, find_trackers


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """What a run leaves.

    Args:
        run: its folder, with the model and its image processor in `model/`.
        metrics: the newest logged values.
        model: on the main process, the one that was saved.
    """

    run: RunFolder
    metrics: dict[str, Any]
    model: Model


def fit(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: Model,
    processor: VitMaeImageProcessor,
    source: AnySource,
    prepare: Callable[[Batch], Batch],
    evaluators: Sequence[Evaluator],
    bad_images: BadImages,
    best: Best,
    *,
    num_noise: int | None = None,
    finish: Callable[[Model], Model] = lambda trained: trained,
    pictures: Pictures | None = None,
) -> Trained[Model]:
    """Train the model as the recipe says, or go on where the same command stopped before.

    Args:
        prepare: a batch of the loader -> keyword arguments of the model, on its device.
        bad_images: as `watch_images` makes it.
        best: which evaluation is the best one.
        num_noise: draw so much mask noise for every image.
        finish: the trained model -> the one to save; called on the main process.
        pictures: draws for trackers what the model sees, at each evaluation.

    Raises:
        ValueError: if the model cannot tell positions apart, or the folder is not this run's.
        OutOfMemory, saying what to lower; DryRun, with the plan alone; and what `train` raises.
    """
    _check_start(recipe, accelerator, model, evaluators)
    if recipe.dry_run:
        _stop_at_plan(recipe, accelerator, model, processor, source, prepare, num_noise)
    with run_lock(recipe.output_dir) if accelerator.is_main_process else nullcontext():
        seen = (_train_transform(recipe, model, processor), source, bad_images, num_noise)
        batches = partial(_micro_batches, recipe, accelerator, *seen)
        loop = _plan_loop(recipe, accelerator, model, source, prepare, batches, best)
        batch, schedule = _plan_steps(recipe, accelerator, loop)
        run = _open_run(recipe, accelerator, source)
        outbox = _outbox(recipe, accelerator, run, model, processor)
        plain = _shard(recipe, accelerator, model)
        advice = partial(_what_to_lower, recipe, accelerator, model, loop)
        with explaining_out_of_memory(advice), pushed_meanwhile(outbox) as saved:
            metrics = train(
                model,
                build_optimizer(model, recipe.optim, batch),
                schedule,
                accelerator=accelerator,
                batches=partial(batches, loop.batch_size),
                prepare=prepare,
                config=loop,
                run=run,
                evaluators=evaluators,
                num_samples=source.epoch_size,
                clip_grad_norm=recipe.optim.clip_grad_norm,
                bad_images=bad_images,
                trackers=_trackers(recipe, accelerator, pictures),
                saved=saved,
            )
        trained = _save(model, plain, accelerator, finish, run, processor)
    return Trained(run, metrics, trained)


def _check_start(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: VitMaePreTrainedModel,
    evaluators: Sequence[Evaluator],
) -> None:
    """Refuse what cannot be trained, and fetch what is to be gone on with."""
    check_positions(model, model.config.image_pair, model.config.num_channels)
    if recipe.best_model and not evaluators:
        raise ValueError("`best_model` needs held-out images; there are none to evaluate on.")
    with accelerator.main_process_first():
        if accelerator.is_main_process and bring_back(recipe, _free_fields(recipe)):
            accelerator.print(f"{recipe.resume_from} is brought to {recipe.output_dir}.")


def _free_fields(recipe: TaskRecipe) -> frozenset[str]:
    return FREE_FIELDS | set(recipe.allow_change)


def _stop_at_plan(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: VitMaePreTrainedModel,
    processor: VitMaeImageProcessor,
    source: AnySource,
    prepare: Callable[[Batch], Batch],
    num_noise: int | None,
) -> NoReturn:
    """Raise `DryRun`; a batch size that is to be found is taken as 1 here."""
    plain = (
        replace(recipe, batch_size=recipe.data.repeats) if recipe.batch_size == "auto" else recipe
    )

    def example() -> Batch:
        transform = _train_transform(recipe, model, processor)
        with closing(
            train_batches(source, transform, seed=recipe.seed, batch_size=1, num_noise=num_noise)
        ) as batches:
            return next(batches)

    loop = plain.loop_config(source.epoch_size, accelerator.num_processes)
    raise DryRun(plan_run(recipe, accelerator, model, source.epoch_size, prepare, example, loop))


def _trackers(recipe: TaskRecipe, accelerator: Accelerator, pictures: Pictures | None) -> Trackers:
    """Those of the main process, wherever its machine differs from others; all must call this."""
    (names,) = broadcast_object_list([find_trackers(recipe.tracker)])
    return Trackers(names, pictures)


def _open_run(recipe: TaskRecipe, accelerator: Accelerator, source: AnySource) -> RunFolder:
    """The run's folder, with what the shards of a stream hold."""
    with accelerator.main_process_first():
        if not accelerator.is_main_process:
            return RunFolder(recipe.output_dir)
        run = RunFolder.open(recipe.output_dir, recipe, _free_fields(recipe))
        note_environment(run.path, accelerator.device)
        if isinstance(source, StreamSource) and source.memory:
            source.memory.write()
        return run


def _outbox(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    run: RunFolder,
    model: VitMaePreTrainedModel,
    processor: VitMaeImageProcessor,
) -> Outbox | None:
    """Where checkpoints go to be pushed, on the main process of a run that wants that."""
    if not (recipe.push_checkpoints and recipe.push_to_hub and accelerator.is_main_process):
        return None
    return Outbox(run, recipe.push_to_hub, model, processor)


def _plan_loop(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    model: VitMaePreTrainedModel,
    source: AnySource,
    prepare: Callable[[Batch], Batch],
    batches: Callable[..., Iterator[Batch]],
    best: Best,
) -> LoopConfig:
    """The loop, its batch size tried out if the recipe says so."""
    plan = find_batch_plan(
        recipe,
        accelerator,
        model,
        prepare,
        lambda: next(batches(recipe.data.repeats, 0)),
        OPTIMIZER_COPIES + (recipe.ema_decay > 0),
    )
    loop = recipe.loop_config(source.epoch_size, accelerator.num_processes, plan)
    if recipe.steps is not None and recipe.epochs is not None:
        batch = loop.effective_batch(accelerator.num_processes)
        in_epochs = num_steps(recipe.epochs, source.epoch_size, batch)
        accelerator.print(
            f"`steps` {recipe.steps} takes the place of `epochs` {recipe.epochs:g}, which are "
            f"{in_epochs} steps."
        )
    return replace(loop, best=best)


def _plan_steps(
    recipe: TaskRecipe, accelerator: Accelerator, loop: LoopConfig
) -> tuple[int, Callable[[int], float]]:
    """Images of a step, and the factor on the learning rate after so many steps."""
    batch = loop.effective_batch(accelerator.num_processes)
    return batch, recipe.optim.make_schedule(loop.steps, batch)


def _shard(recipe: TaskRecipe, accelerator: Accelerator, model: Model) -> Model:
    """Shard the model if the recipe or the launch says so.

    Returns:
        What takes its weights at the end: itself, or a copy that has none yet.
    """
    if not (recipe.shard or wants_sharding(accelerator)):
        return model
    plain = cast(Model, without_weights(model))
    shard_model(model, accelerator)
    return plain


def _gather(model: Model, plain: Model, accelerator: Accelerator) -> Model:
    """The trained model in one piece, on the main process; all must call this."""
    if plain is not model:
        weights = whole_state(model)
        if accelerator.is_main_process:
            plain.load_state_dict(weights, assign=True)
    return plain


def _save(
    model: Model,
    plain: Model,
    accelerator: Accelerator,
    finish: Callable[[Model], Model],
    run: RunFolder,
    processor: VitMaeImageProcessor,
) -> Model:
    """Finish and save the model on the main process, while the others wait."""
    trained = _gather(model, plain, accelerator)
    if accelerator.is_main_process:
        trained = finish(trained)
        save_model(run.model, trained, processor)
    accelerator.wait_for_everyone()
    return trained


def _what_to_lower(
    recipe: TaskRecipe, accelerator: Accelerator, model: VitMaePreTrainedModel, loop: LoopConfig
) -> str:
    plan = BatchPlan(loop.batch_size, loop.accumulation)
    return memory_advice(recipe, plan, model.config.image_pair, accelerator)


def _train_transform(
    recipe: TaskRecipe, model: VitMaePreTrainedModel, processor: VitMaeImageProcessor
) -> Transform:
    return train_transform(
        recipe.augment,
        model.config.image_pair,
        processor.num_channels,
        processor.image_mean,
        processor.image_std,
        processor.value_range,
    )


def _micro_batches(
    recipe: TaskRecipe,
    accelerator: Accelerator,
    transform: Transform,
    source: AnySource,
    bad_images: BadImages,
    num_noise: int | None,
    batch_size: int,
    start: int,
) -> Iterator[Batch]:
    return train_batches(
        source,
        transform,
        seed=recipe.seed,
        batch_size=batch_size,
        start_step=start,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.data.num_workers,
        num_noise=num_noise,
        repeats=recipe.data.repeats,
        pin_memory=accelerator.device.type == "cuda",
        skip=partial(bad_images.note, "train"),
    )
