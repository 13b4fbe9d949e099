"""Small models of transformers with random weights, and folders of them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_vitmae.models.embeddings import sincos_positions

from .tiny import stir

ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "layer_norm_eps": 1e-5,
}
DECODER: dict[str, Any] = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
}
# Parts of the names on disk of transformers 4, and of those in memory since.
OLD_NAMES = {
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def their_model(kind: type[PreTrainedModel], **fields: Any) -> Any:
    """A model whose every weight is random."""
    with_decoder = DECODER if kind.config_class.model_type == "vit_mae" else {}  # type: ignore[union-attr]
    model: Any = kind(kind.config_class(**(ENCODER | with_decoder | fields)))  # type: ignore[misc]
    stir(model)
    return model.eval()


@torch.no_grad()
def fix_positions(model: Any) -> None:
    """The MAE's fixed tables, which transformers leaves out in a model without a checkpoint."""
    grid = (model.config.image_size // model.config.patch_size,) * 2
    for name, table in model.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed")):
            table.copy_(sincos_positions(grid, table.shape[-1]))


def save_with_old_names(model: Any, folder: Path) -> None:
    """As transformers 4 saved it."""
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    model.config.save_pretrained(folder)
    weights = {old_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def old_name(name: str) -> str:
    is_decoder = name.startswith("decoder.decoder_layers.")
    for part, old in OLD_NAMES.items():
        if part != "layers." or not is_decoder:
            name = name.replace(part, old)
    return name


def write_processor(folder: Path, **options: Any) -> None:
    """A preprocessor_config.json of ViT."""
    options = {"image_processor_type": "ViTImageProcessor"} | options
    (folder / "preprocessor_config.json").write_text(json.dumps(options))
