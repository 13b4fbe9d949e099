"""What `hf-vitmae demo` runs: the small CPU recipes, sized for about four minutes on two cores."""

from dataclasses import replace

from hf_vitmae.recipes.finetune import finetune_cpu
from hf_vitmae.recipes.mae import mae_cpu
from hf_vitmae.tasks.demo import DemoRecipe


def demo() -> DemoRecipe:
    """Pretrain `mae-cpu` on all training emoji, fine-tune on five labelled ones of each category.

    Run: hf-vitmae demo
    """
    finetune = finetune_cpu()
    few = replace(finetune.data, samples_per_class=5)
    return DemoRecipe(
        pretrain=replace(mae_cpu(), steps=1000, log_every=50),
        finetune=replace(finetune, data=few, steps=60),
    )
