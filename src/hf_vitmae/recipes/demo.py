"""What `hf-vitmae demo` runs: the small CPU recipes, sized for minutes on two cores."""

from dataclasses import replace

from hf_vitmae.recipes.finetune import finetune_cpu
from hf_vitmae.recipes.mae import mae_cpu
from hf_vitmae.tasks.demo import DemoRecipe


def demo() -> DemoRecipe:
    """Pretrain `mae-cpu` on all training emoji, fine-tune `finetune-cpu` on five labelled ones a
    category.

    Run: hf-vitmae demo
    """
    finetune = finetune_cpu()
    few = replace(finetune.data, samples_per_class=5)
    return DemoRecipe(pretrain=mae_cpu(), finetune=replace(finetune, data=few, steps=100))
