"""Recipes by their names on the command line: functions that return a complete dataclass."""

from collections.abc import Callable

from hf_vitmae.recipes import finetune, mae
from hf_vitmae.tasks.finetune import FinetuneRecipe
from hf_vitmae.tasks.pretrain import PretrainRecipe

PRETRAIN: dict[str, Callable[[], PretrainRecipe]] = {
    "mae-tiny": mae.mae_tiny,
    "mae-small": mae.mae_small,
    "mae-base": mae.mae_base,
    "mae-large": mae.mae_large,
    "mae-huge": mae.mae_huge,
    "mae-cpu": mae.mae_cpu,
    "smoke": mae.smoke,
}

FINETUNE: dict[str, Callable[[], FinetuneRecipe]] = {
    "finetune-base": finetune.finetune_base,
    "finetune-large": finetune.finetune_large,
    "finetune-huge": finetune.finetune_huge,
    "finetune-cpu": finetune.finetune_cpu,
    "smoke": finetune.smoke,
}
