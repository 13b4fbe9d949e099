"""Every recipe is complete, has the numbers of its paper, and names its command.

The numbers stand here as the papers print them: arXiv:2010.11929 (ViT), table 1 and appendix B.1.2;
arXiv:2111.06377 (MAE), tables 8 to 10 with the drop path of its code. A learning rate is for 256
images; a batch is all images of a step.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from hf_vitmae import VitMaeForImageClassification
from hf_vitmae.recipes import FINETUNE, LINEAR_PROBE, PRETRAIN, SEGMENT
from hf_vitmae.recipes.mae import mae_model
from hf_vitmae.tasks.pretrain import PretrainRecipe
from hf_vitmae.training.optim import OptimConfig, build_optimizer

RECIPES: dict[str, dict[str, Callable[[], Any]]] = {
    "pretrain": {**PRETRAIN},
    "finetune": {**FINETUNE, **SEGMENT},
    "linear-probe": {**LINEAR_PROBE},
}
NAMES = [(verb, name) for verb, recipes in RECIPES.items() for name in recipes]


class Encoder(NamedTuple):
    width: int
    layers: int
    heads: int
    mlp: int
    patch: int


ENCODERS = {
    "tiny": Encoder(192, 12, 3, 768, 16),
    "small": Encoder(384, 12, 6, 1536, 16),
    "base": Encoder(768, 12, 12, 3072, 16),
    "large": Encoder(1024, 24, 16, 4096, 16),
    "huge": Encoder(1280, 32, 16, 5120, 14),
}
DECODER = (512, 8, 16, 2048)

PRETRAINING = {  # MAE, table 8
    "base_lr": 1.5e-4,
    "weight_decay": 0.05,
    "betas": (0.9, 0.95),
    "clip_grad_norm": None,
    "schedule": "cosine",
    "min_lr": 0.0,
    "layer_decay": 1.0,
}
FINE_TUNING = {  # MAE, table 9; ViT-B's learning rate as in its code, where the table has 1e-3
    "base": {"base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1, "epochs": 100},
    "large": {"base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2, "epochs": 50},
    "huge": {"base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3, "epochs": 50},
}
FINE_TUNING_AUGMENTATION = {
    "crop_scale": (0.08, 1.0),
    "horizontal_flip": 0.5,
    "rand_augment": 9,
    "rand_augment_ops": 2,
    "rand_augment_std": 0.5,
    "rand_augment_probability": 0.5,
    "erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixing_probability": 1.0,
    "cutmix_share": 0.5,
    "color_jitter": (0.0, 0.0, 0.0, 0.0),
}
LINEAR_PROBING = {  # MAE, table 10; its base learning rate is 0.1
    "solver": "lars",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "batch_size": 16384,
    "epochs": 90,
    "warmup_epochs": 10,
}
BATCHES = {"pretrain": 4096, "finetune": 1024}
WITH_THE_PAPERS_BATCH = [
    *(("pretrain", f"mae-{size}") for size in ENCODERS),
    ("pretrain", "masked-patch-base"),
    ("pretrain", "next-patch-base"),
    *(("finetune", f"finetune-{size}") for size in FINE_TUNING),
]


def values(part: object, names: Any) -> dict[str, Any]:
    """Those fields of a part of a recipe."""
    return {name: getattr(part, name) for name in names}


def text_of(verb: str, name: str) -> str:
    return " ".join((inspect.getdoc(RECIPES[verb][name]) or "").split())


def same_but(recipe: PretrainRecipe, other: PretrainRecipe, *fields: str) -> bool:
    """Whether two recipes differ in no other field than these and their folder."""
    named = (*fields, "output_dir")
    return recipe == replace(other, **{name: getattr(recipe, name) for name in named})


@pytest.mark.parametrize("size", ENCODERS)
def test_a_model_has_the_papers_size(size: str) -> None:
    model = PRETRAIN[f"mae-{size}"]().model
    encoder = Encoder(
        model.hidden_size,
        model.num_hidden_layers,
        model.num_attention_heads,
        model.intermediate_size,
        int(model.patch_size),  # type: ignore[arg-type]
    )
    assert encoder == ENCODERS[size]
    decoder = (model.decoder_hidden_size, model.decoder_num_hidden_layers)
    decoder += (model.decoder_num_attention_heads, model.decoder_intermediate_size)
    assert decoder == DECODER
    assert (model.image_size, model.num_channels, model.stem_depths) == (224, 3, None)


@pytest.mark.parametrize("size", ENCODERS)
def test_pretraining_has_the_papers_numbers(size: str) -> None:
    recipe = PRETRAIN[f"mae-{size}"]()
    model, optim, augment = recipe.model, recipe.optim, recipe.augment
    assert recipe.objective == "mae" and recipe.mask_pattern == "random"
    assert (model.mask_ratio, model.norm_pix_loss) == (0.75, True)
    assert (model.position_embedding, model.drop_path_rate) == ("sincos", 0.0)
    assert values(optim, PRETRAINING) == PRETRAINING
    assert (recipe.epochs, recipe.steps) == (800, None)
    assert optim.num_warmup_steps(800) == 40  # a step an epoch
    assert (augment.crop_scale, augment.horizontal_flip) == ((0.2, 1.0), 0.5)
    assert augment == replace(augment, rand_augment=None, erasing=0.0, mixup=0.0, cutmix=0.0)
    assert recipe.ema_decay == 0.0


@pytest.mark.parametrize("size", FINE_TUNING)
def test_fine_tuning_has_the_papers_numbers(size: str) -> None:
    recipe = FINETUNE[f"finetune-{size}"]()
    optim, numbers = recipe.optim, FINE_TUNING[size]
    assert numbers == {
        "base_lr": optim.base_lr,
        "layer_decay": optim.layer_decay,
        "drop_path": recipe.drop_path_rate,
        "epochs": recipe.epochs,
    }
    assert (optim.weight_decay, optim.betas) == (0.05, (0.9, 0.999))
    assert (optim.schedule, optim.min_lr, optim.clip_grad_norm) == ("cosine", 1e-6, None)
    assert optim.num_warmup_steps(numbers["epochs"]) == 5  # a step an epoch
    assert (recipe.pooling, recipe.label_smoothing, recipe.lora_rank) == ("mean", 0.1, 0)
    assert values(recipe.augment, FINE_TUNING_AUGMENTATION) == FINE_TUNING_AUGMENTATION
    assert recipe.ema_decay == 0.0 and recipe.steps is None


def test_the_text_of_fine_tuning_says_where_paper_and_code_differ() -> None:
    text = text_of("finetune", "finetune-base")
    assert "5e-4" in text and "1e-3" in text


def test_linear_probing_has_the_papers_numbers() -> None:
    recipe = LINEAR_PROBE["linear-probe"]()
    assert values(recipe, LINEAR_PROBING) == LINEAR_PROBING
    assert 0.1 in recipe.base_lrs


def test_masked_patch_prediction_has_the_papers_numbers() -> None:
    recipe = PRETRAIN["masked-patch-base"]()
    config, optim = recipe.model.to_config(), recipe.optim
    assert recipe.objective == "masked-patch"
    assert (config.corruption_ratio, config.patch_target) == (0.5, "mean_color")
    assert config.position_embedding == "learned"
    assert (optim.betas, optim.weight_decay) == ((0.9, 0.999), 0.0)  # which makes AdamW Adam
    assert optim.num_warmup_steps(1_000_000) == 10_000 and optim.schedule == "cosine"
    assert optim.base_lr * 4096 / 256 == pytest.approx(2e-4)  # the paper's rate, at its batch
    assert same_but(recipe, PRETRAIN["mae-base"](), "objective", "model", "optim")


def test_next_patch_prediction_is_trained_as_the_masked_autoencoder() -> None:
    recipe = PRETRAIN["next-patch-base"]()
    assert (recipe.objective, recipe.prefix_share) == ("next-patch", 0.5)
    assert same_but(recipe, PRETRAIN["mae-base"](), "objective", "prefix_share")


@pytest.mark.parametrize("verb, name", WITH_THE_PAPERS_BATCH)
def test_the_command_of_a_recipe_takes_the_papers_batch(verb: str, name: str) -> None:
    recipe = RECIPES[verb][name]()
    (written,) = re.findall(r"--effective-batch (\d+)", text_of(verb, name))
    assert int(written) == BATCHES[verb]
    for processes in (1, 2, 8):
        plan = replace(recipe, effective_batch=int(written)).plan_batches(processes)
        assert plan.batch_size == recipe.batch_size
        assert plan.num_images * processes == BATCHES[verb]
    assert recipe.plan_batches(8).accumulation == 1  # without the flag


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pretraining_recipe_makes_a_model(name: str) -> None:
    assert PRETRAIN[name]().model.to_config().num_patches > 0


@pytest.mark.parametrize("verb, name", NAMES)
def test_a_recipe_names_its_command(verb: str, name: str) -> None:
    command = text_of(verb, name).split("Run: ")[1] + " "
    assert command.startswith(
        (f"accelerate launch scripts/{verb}.py {name} ", f"hf-vitmae {verb} {name} ")
    )


def test_no_two_recipes_share_a_folder() -> None:
    folders = [RECIPES[verb][name]().output_dir for verb, name in NAMES]
    assert len(set(folders)) == len(folders)


def layer_number(name: str, num_layers: int) -> int:
    """Where a classifier's parameter stands: embeddings 0, blocks 1 to L, all above L + 1."""
    if name.startswith("vit.embeddings."):
        return 0
    if match := re.match(r"vit\.layers\.(\d+)\.", name):
        return int(match[1]) + 1
    assert name.startswith(("vit.layernorm.", "pooler.", "classifier.")), name
    return num_layers + 1


@pytest.mark.parametrize("size", FINE_TUNING)
def test_the_learning_rate_of_every_parameter_follows_the_formula(size: str) -> None:
    """lr = base_lr * batch / 256 * decay ** (L + 1 - layer), for each tensor of a classifier."""
    recipe, encoder = FINETUNE[f"finetune-{size}"](), ENCODERS[size]
    config = mae_model(size).to_config()
    config.pooling = recipe.pooling
    with torch.device("meta"):
        model = VitMaeForImageClassification(config)
    optimizer = build_optimizer(model, recipe.optim, effective_batch=1024)
    rates = rate_of_each(model, optimizer)
    assert rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    top = FINE_TUNING[size]["base_lr"] * 4
    for name, rate in rates.items():
        layer = layer_number(name, encoder.layers)
        wanted = top * FINE_TUNING[size]["layer_decay"] ** (encoder.layers + 1 - layer)
        assert rate == pytest.approx(wanted, rel=1e-12), name
    distinct = {layer_number(name, encoder.layers) for name in rates}
    assert distinct == set(range(encoder.layers + 2))


def rate_of_each(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Name -> learning rate after warm-up; a parameter is in one group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    pairs = [(names[p], g["initial_lr"]) for g in optimizer.param_groups for p in g["params"]]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def test_the_lowest_and_the_highest_rate_of_vit_base_by_hand() -> None:
    with torch.device("meta"):
        model = VitMaeForImageClassification(mae_model("base").to_config())
    rates = rate_of_each(model, build_optimizer(model, FINETUNE["finetune-base"]().optim, 1024))
    assert rates["classifier.weight"] == pytest.approx(2e-3)
    assert rates["vit.layers.11.mlp.fc1.weight"] == pytest.approx(1.3e-3)
    assert rates["vit.layers.0.mlp.fc1.weight"] == pytest.approx(1.1376018e-5, rel=1e-6)
    assert rates["vit.embeddings.cls_token"] == pytest.approx(7.3944118e-6, rel=1e-6)


def test_the_rate_of_a_long_run_by_hand() -> None:
    """MAE at its batch, an epoch of ImageNet-1k being 313 steps: warm-up, middle and end."""
    steps = 800 * 313
    optim = OptimConfig(base_lr=1.5e-4, warmup_share=40 / 800)
    schedule = optim.make_schedule(steps, effective_batch=4096)
    peak = 2.4e-3
    rate = {epoch: peak * schedule(epoch * 313) for epoch in (0, 20, 40, 420, 610, 800)}
    assert rate[0] == pytest.approx(peak / 12521)
    assert rate[20] == pytest.approx(peak / 2, rel=1e-3)
    assert rate[40] == pytest.approx(peak)
    assert rate[420] == pytest.approx(peak / 2)  # half of the cosine
    assert rate[610] == pytest.approx(peak * 0.1464466, rel=1e-6)  # (1 - sqrt(1/2)) / 2
    assert rate[800] == pytest.approx(0.0, abs=1e-12)
