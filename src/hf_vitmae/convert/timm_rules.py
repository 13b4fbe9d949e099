"""The names of timm's Vision Transformers and hybrids beside ours, read in both directions."""

from hf_vitmae.convert.rules import Rule, fused, rename, rename_pair

BACKBONE = "patch_embed.backbone."  # theirs for a hybrid's stem
LAYER_NORM_EPS = 1e-6  # of every layer norm there
STEM_WIDTH, STEM_NUM_GROUPS = 64, 32  # of every hybrid there

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}  # theirs: ours
INTERPOLATIONS = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # theirs: Pillow's
CROP_MODES = {"center": True, "squash": False}  # theirs: `do_center_crop`


def timm_rules(prefix: str, norm: str) -> list[Rule]:
    """Every tensor that both can have, whatever a model's options.

    Args:
        prefix: of our encoder's names.
        norm: theirs for the norm after the blocks, which has another name where the mean of the
            patch tokens comes before it.
    """
    patches = prefix + "embeddings.patch_embeddings."
    return [
        rename("cls_token", prefix + "embeddings.cls_token"),
        rename("pos_embed", prefix + "embeddings.position_embeddings"),
        *rename_pair("patch_embed.proj", patches + "projection"),
        *_stem_rules(patches + "stem."),
        *_block_rules(prefix + "layers.{}."),
        *rename_pair(norm, prefix + "layernorm"),
        *rename_pair("head", "classifier"),
    ]


def _block_rules(layer: str) -> list[Rule]:
    block, attention = "blocks.{}.", layer + "attention."
    return [
        *rename_pair(block + "norm1", layer + "layernorm_before"),
        *(
            fused(f"{block}attn.qkv.{kind}", [f"{attention}{part}_proj.{kind}" for part in "qkv"])
            for kind in ("weight", "bias")
        ),
        *rename_pair(block + "attn.proj", attention + "o_proj"),
        rename(block + "ls1.gamma", layer + "layer_scale1.gamma"),
        *rename_pair(block + "norm2", layer + "layernorm_after"),
        *rename_pair(block + "mlp.fc1", layer + "mlp.fc1"),
        *rename_pair(block + "mlp.fc2", layer + "mlp.fc2"),
        rename(block + "ls2.gamma", layer + "layer_scale2.gamma"),
    ]


def _stem_rules(stem: str) -> list[Rule]:
    theirs, ours = BACKBONE + "stages.{}.blocks.{}.", stem + "stages.{}.{}."
    rules = [
        rename(BACKBONE + "stem.conv.weight", stem + "convolution.weight"),
        *rename_pair(BACKBONE + "stem.norm", stem + "norm"),
        rename(theirs + "downsample.conv.weight", ours + "shortcut.convolution.weight"),
        *rename_pair(theirs + "downsample.norm", ours + "shortcut.norm"),
    ]
    for number in (1, 2, 3):
        rules.append(rename(f"{theirs}conv{number}.weight", f"{ours}conv{number}.weight"))
        rules += rename_pair(f"{theirs}norm{number}", f"{ours}norm{number}")
    return rules
