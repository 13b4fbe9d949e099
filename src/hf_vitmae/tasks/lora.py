"""Low-rank adapters (LoRA, arXiv:2106.09685): fine-tune a small part of a model, through `peft`.

Each linear map W of the blocks becomes W + alpha / rank * B A, with A (rank, in) and B (out, rank)
trained and W frozen. The adapters lie in the model itself, which keeps its class and its outputs;
the head, new for every data set, is trained whole.
"""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel
from hf_vitmae.tasks.checkpoints import ENCODER, Model
from hf_vitmae.whole_or_absent import whole_or_absent

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
"""The linear maps of a block; adapters on all of them come closest to training every weight
(arXiv:2305.14314, section 4).
"""

_NAME = "default"  # what peft calls the one adapter of a model, in parameter names too


def require_peft() -> None:
    """Raise `ImportError` where `peft` is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ImportError("LoRA takes peft; run: pip install 'hf-vitmae[peft]'.")


def add_adapters(
    model: VitMaePreTrainedModel, rank: int, alpha: int = 16, dropout: float = 0.0
) -> None:
    """Add adapters in place and freeze the rest of the encoder; what the model computes stays.

    A is drawn by torch's generator and B starts at zero.

    Args:
        alpha: the adapters are scaled by `alpha` / `rank`.
        dropout: share of each adapter's inputs that is dropped in training.

    Raises:
        ImportError: where `peft` is not installed.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(TARGETS)
    )
    inject_adapter_in_model(config, model.get_submodule(ENCODER), adapter_name=_NAME)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


@torch.no_grad()
def merged(model: Model) -> Model:
    """A plain model that computes the same: each adapter is added to the weight beside it.

    Its parameters have the names of an ordinary checkpoint, and train as those of one; `model`
    stays as it is.
    """
    from peft.tuners.lora import Linear as AdaptedLinear

    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in model.named_modules():
        if isinstance(layer, AdaptedLinear):
            weight = weights[f"{name}.weight"]  # (out, in)
            weights[f"{name}.weight"] = weight + layer.get_delta_weight(_NAME)
    with model.device:
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(weights)
    return plain.train(model.training)


def save_adapter(
    folder: Path, model: VitMaePreTrainedModel, processor: VitMaeImageProcessor, base: str
) -> None:
    """Write adapters and head as `peft` does, a small part of the model, and beside them what a
    base is opened with; the folder is whole or as it was.

    The fine-tuned model is `PeftModel.from_pretrained(opened, folder)`, where `opened` is the base
    as the model's class with `config=VitMaeConfig.from_pretrained(folder)`.

    Args:
        base: folder or Hub id of the checkpoint that the adapters are for.
    """
    with whole_or_absent(folder, replace=True) as unfinished:
        unfinished.mkdir()
        save_file(
            _adapter_weights(model), unfinished / "adapter_model.safetensors", {"format": "pt"}
        )
        settings = json.dumps(_adapter_settings(model, base), default=sorted, indent=2)
        (unfinished / "adapter_config.json").write_text(settings + "\n", encoding="utf-8")
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        # As files alone: `save_pretrained` would lay the package's code beside them.
        config.to_json_file(unfinished / "config.json")
        processor.to_json_file(unfinished / "preprocessor_config.json")


def _adapter_weights(model: VitMaePreTrainedModel) -> dict[str, Tensor]:
    """Adapters and head, buffers included, by the names of peft's files."""
    return {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor.cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if ".lora_" in name or not name.startswith(f"{ENCODER}.")
    }


def _adapter_settings(model: VitMaePreTrainedModel, base: str) -> dict[str, Any]:
    """peft's configuration of the adapter, with the base to look for and the head to replace."""
    encoder: Any = model.get_submodule(ENCODER)
    local = Path(base).expanduser()
    return encoder.peft_config[_NAME].to_dict() | {
        "base_model_name_or_path": str(local.resolve()) if local.is_dir() else base,
        "modules_to_save": [name for name, _ in model.named_children() if name != ENCODER],
        "inference_mode": True,
    }
