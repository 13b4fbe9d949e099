"""The demo on recipes of seconds: the comparison is fair, and everything it names is there."""

from dataclasses import replace
from pathlib import Path

import pytest

from hf_vitmae.recipes import FINETUNE, PRETRAIN
from hf_vitmae.recipes.demo import demo
from hf_vitmae.tasks.demo import DemoRecipe, run, step_flops


@pytest.fixture(scope="module")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRecipe:
    fast = {"log_every": 2, "checkpoint_every": 0, "eval_images": 16}
    pretraining = replace(PRETRAIN["smoke"](), steps=6, **fast)
    tuning = replace(FINETUNE["smoke"](), steps=4, **fast)
    few = replace(tuning.data, samples_per_class=2)
    output = tmp_path_factory.mktemp("demo") / "demo"
    return DemoRecipe(pretrain=pretraining, finetune=replace(tuning, data=few), output_dir=output)


def test_the_comparison_is_fair_and_nothing_is_missing(
    tiny_demo: DemoRecipe, capfd: pytest.CaptureFixture
) -> None:
    pretrained, scratch, longer = run(tiny_demo)
    said = capfd.readouterr().out
    one_step = scratch.flops / scratch.steps
    assert pretrained.steps == scratch.steps < longer.steps
    assert abs(longer.flops - pretrained.flops) <= one_step / 2
    for line in said.splitlines():
        if line.startswith(("Picture: ", "Pretrained model: ", "Classifier: ")):
            assert Path(line.split(": ")[1]).exists()
    assert said.count("Picture: ") == 2
    assert "AutoModel: features (1, 17, 32)" in said and "image-" not in said
    for outcome in (pretrained, scratch, longer):
        assert f"{outcome.accuracy:.3f}" in said


def test_the_same_labels_reach_every_start(tiny_demo: DemoRecipe) -> None:
    from hf_vitmae.data.image_source import ImageSource
    from hf_vitmae.data.sources import open_train_and_eval

    data = tiny_demo.finetune.data
    first, _ = open_train_and_eval(data, seed=0)
    second, _ = open_train_and_eval(data, seed=0)
    assert isinstance(first, ImageSource) and isinstance(second, ImageSource)
    assert [first[i].name for i in range(len(first))] == [
        second[i].name for i in range(len(second))
    ]
    assert first.class_names is not None and len(first) == 2 * len(first.class_names)


def test_flops_are_those_of_the_matrix_products() -> None:
    from hf_vitmae import VitMaeConfig, VitMaeForImageClassification

    config = VitMaeConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        pooling="mean",  # by CLS the last block would compute one token alone
    )
    tokens, width, mlp = 17, 32, 64
    products = 4 * width * width + 2 * width * mlp + 2 * tokens * width  # per token and layer
    forward = 2 * (config.num_hidden_layers * tokens * products + 16 * 192 * width + 2 * width)
    measured = step_flops(VitMaeForImageClassification(config), batch_size=3)
    # Backward costs twice forward, but for the pixels, which need no gradient.
    assert measured == pytest.approx(3 * (3 * forward - 2 * 16 * 192 * width))


def test_flops_do_not_depend_on_the_library_that_multiplies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hf_vitmae import VitMaeConfig, VitMaeForImageClassification
    from hf_vitmae.models import onednn_linear

    config = VitMaeConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    expected = step_flops(VitMaeForImageClassification(config), batch_size=3)
    monkeypatch.setattr(onednn_linear, "FEWEST_PRODUCTS", 0)
    monkeypatch.setenv(onednn_linear.SWITCH, "1")
    onednn_linear.is_faster.cache_clear()
    try:
        assert step_flops(VitMaeForImageClassification(config), batch_size=3) == expected
    finally:
        onednn_linear.is_faster.cache_clear()


def test_the_demo_fits_its_minutes() -> None:
    """The real sizes: someone who raises them should know that `make demo` promises minutes."""
    recipe = demo()
    assert (recipe.pretrain.steps or 0) * recipe.pretrain.plan_batches(1).num_images <= 32_000
    assert (recipe.finetune.steps or 0) <= 100
