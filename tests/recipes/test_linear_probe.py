"""The recipes of linear probing: the paper's numbers, and the commands that they name."""

import inspect

import pytest

from hf_vitmae.recipes import LINEAR_PROBE


def test_linear_probing_has_the_papers_numbers() -> None:
    """arXiv:2111.06377, Table 10."""
    recipe = LINEAR_PROBE["linear-probe"]()
    assert (recipe.solver, recipe.momentum, recipe.weight_decay) == ("lars", 0.9, 0.0)
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs) == (16384, 90, 10)
    assert 0.1 in recipe.base_lrs
    assert recipe.views > 1 and recipe.pooling == "cls"


def test_few_labels_are_solved_exactly() -> None:
    recipe = LINEAR_PROBE["linear-probe-few"]()
    assert recipe.solver == "exact" and len(recipe.strengths) > 1


@pytest.mark.parametrize("name", LINEAR_PROBE)
def test_a_recipe_names_its_command(name: str) -> None:
    said = (inspect.getdoc(LINEAR_PROBE[name]) or "").split("Run:")[1]
    assert f"hf-vitmae linear-probe {name}" in said
