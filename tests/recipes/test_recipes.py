"""Every recipe is complete, has the numbers of its paper, and names its command."""

import inspect

import pytest

from hf_vitmae.recipes import FINETUNE, PRETRAIN, SEGMENT

# arXiv:2010.11929, Table 1, and arXiv:2111.06377: width, layers, heads, MLP, patch.
ENCODERS = {
    "mae-tiny": (192, 12, 3, 768, 16),
    "mae-small": (384, 12, 6, 1536, 16),
    "mae-base": (768, 12, 12, 3072, 16),
    "mae-large": (1024, 24, 16, 4096, 16),
    "mae-huge": (1280, 32, 16, 5120, 14),
}
# arXiv:2111.06377, Table 9, and its code: base lr, layer decay, drop path, epochs.
FINE_TUNING = {
    "finetune-base": (5e-4, 0.65, 0.1, 100),
    "finetune-large": (1e-3, 0.75, 0.2, 50),
    "finetune-huge": (1e-3, 0.75, 0.3, 50),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_pretraining_has_the_papers_numbers(name: str) -> None:
    recipe = PRETRAIN[name]()
    model, optim = recipe.model, recipe.optim
    sizes = (model.hidden_size, model.num_hidden_layers, model.num_attention_heads)
    assert (*sizes, model.intermediate_size, model.patch_size) == ENCODERS[name]
    decoder = (model.decoder_hidden_size, model.decoder_num_hidden_layers)
    assert (*decoder, model.decoder_num_attention_heads) == (512, 8, 16)
    assert (model.mask_ratio, model.norm_pix_loss, model.image_size) == (0.75, True, 224)
    assert (optim.base_lr, optim.weight_decay, optim.betas) == (1.5e-4, 0.05, (0.9, 0.95))
    assert recipe.epochs == 800 and optim.num_warmup_steps(800) == 40
    assert recipe.augment.crop_scale == (0.2, 1.0)


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning_has_the_papers_numbers(name: str) -> None:
    recipe = FINETUNE[name]()
    optim = recipe.optim
    numbers = (optim.base_lr, optim.layer_decay, recipe.drop_path_rate, recipe.epochs)
    assert numbers == FINE_TUNING[name]
    assert (optim.weight_decay, optim.betas) == (0.05, (0.9, 0.999))
    assert (recipe.pooling, recipe.label_smoothing) == ("mean", 0.1)
    augment = recipe.augment
    assert (augment.rand_augment, augment.rand_augment_std, augment.erasing) == (9, 0.5, 0.25)
    assert (augment.mixup, augment.cutmix, augment.crop_scale) == (0.8, 1.0, (0.08, 1.0))
    assert optim.num_warmup_steps(100) == 5


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pretraining_recipe_makes_a_model_and_names_its_command(name: str) -> None:
    assert PRETRAIN[name]().model.to_config().num_patches > 0
    assert f" {name}" in (inspect.getdoc(PRETRAIN[name]) or "").split("Run:")[1]


@pytest.mark.parametrize("name", [*FINETUNE, *SEGMENT])
def test_a_fine_tuning_recipe_names_its_command(name: str) -> None:
    make = {**FINETUNE, **SEGMENT}[name]
    assert f" {name}" in (inspect.getdoc(make) or "").split("Run:")[1]


def test_masked_patch_prediction_has_the_papers_numbers() -> None:
    recipe = PRETRAIN["masked-patch-base"]()
    config, optim = recipe.model.to_config(), recipe.optim
    assert (config.corruption_ratio, config.patch_target) == (0.5, "mean_color")
    assert (optim.num_warmup_steps(1_000_000), optim.weight_decay) == (10_000, 0.0)
    assert optim.base_lr * 4096 / 256 == pytest.approx(2e-4)  # the paper's rate, at its batch
