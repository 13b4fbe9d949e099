"""Recipes by their names on the command line: functions that return a complete dataclass."""

from collections.abc import Callable

from hf_vitmae.recipes import finetune, linear_probe, mae, objectives, segment, small
from hf_vitmae.tasks.finetune import FinetuneRecipe
from hf_vitmae.tasks.linear_probe import LinearProbeRecipe
from hf_vitmae.tasks.pretrain import PretrainRecipe
from hf_vitmae.tasks.segment import SegmentRecipe

PRETRAIN: dict[str, Callable[[], PretrainRecipe]] = {
    "mae-tiny": mae.mae_tiny,
    "mae-small": mae.mae_small,
    "mae-base": mae.mae_base,
    "mae-large": mae.mae_large,
    "mae-huge": mae.mae_huge,
    "mae-cpu": mae.mae_cpu,
    "mae-small-data": small.mae_small_data,
    "masked-patch-base": objectives.masked_patch_base,
    "masked-patch-cpu": objectives.masked_patch_cpu,
    "next-patch-base": objectives.next_patch_base,
    "next-patch-cpu": objectives.next_patch_cpu,
    "smoke": mae.smoke,
    "smoke-masked-patch": objectives.smoke_masked_patch,
    "smoke-next-patch": objectives.smoke_next_patch,
}

FINETUNE: dict[str, Callable[[], FinetuneRecipe]] = {
    "finetune-base": finetune.finetune_base,
    "finetune-large": finetune.finetune_large,
    "finetune-huge": finetune.finetune_huge,
    "finetune-cpu": finetune.finetune_cpu,
    "finetune-small-data": small.finetune_small_data,
    "smoke": finetune.smoke,
}

SEGMENT: dict[str, Callable[[], SegmentRecipe]] = {  # of `finetune` too
    "segment-base": segment.segment_base,
    "segment-cpu": segment.segment_cpu,
    "smoke-segment": segment.smoke,
}

LINEAR_PROBE: dict[str, Callable[[], LinearProbeRecipe]] = {
    "linear-probe": linear_probe.linear_probe,
    "linear-probe-few": linear_probe.linear_probe_few,
    "smoke": linear_probe.smoke,
}
