"""big_vision's arrays in our models and ours in its layout.

What the arrays mean is written here once more, plainly and in float64, from their shapes alone:
heads one by one, patches one by one.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_vitmae.convert.converted import build
from hf_vitmae.convert.from_big_vision import read, write
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeModel,
)

from ..models.tiny import random_images, stir, tiny_config

Arrays = dict[str, np.ndarray]
HEADS, HEAD_WIDTH, INNER, CHANNELS, DEPTH, LABELS = 3, 4, 20, 2, 2, 5
WIDTH = HEADS * HEAD_WIDTH
PATCH, GRID = (4, 2), (3, 3)  # images of 12 x 6 pixels, height x width
BLOCK = "Transformer/encoderblock_"
CURRENT = ("pos_embedding", "LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
OLDER = (
    "Transformer/posembed_input/pos_embedding",
    "LayerNorm_2",
    "MultiHeadDotProductAttention_1",
    "MlpBlock_3",
)


def shapes(older: bool, grid: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Every array of a small ViT: the older repository has a position for the class token."""
    positions, second_norm, attention, mlp = OLDER if older else CURRENT
    result: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, WIDTH),
        positions: (1, grid[0] * grid[1] + older, WIDTH),
        "embedding/kernel": (*PATCH, CHANNELS, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
        "head/kernel": (WIDTH, LABELS),
        "head/bias": (LABELS,),
    }
    for block in (f"{BLOCK}{number}/" for number in range(DEPTH)):
        for norm in ("LayerNorm_0", second_norm):
            result |= {f"{block}{norm}/scale": (WIDTH,), f"{block}{norm}/bias": (WIDTH,)}
        for part in ("query", "key", "value"):
            result[f"{block}{attention}/{part}/kernel"] = (WIDTH, HEADS, HEAD_WIDTH)
            result[f"{block}{attention}/{part}/bias"] = (HEADS, HEAD_WIDTH)
        result[f"{block}{attention}/out/kernel"] = (HEADS, HEAD_WIDTH, WIDTH)
        result[f"{block}{attention}/out/bias"] = (WIDTH,)
        for dense, sizes in (("Dense_0", (WIDTH, INNER)), ("Dense_1", (INNER, WIDTH))):
            result |= {
                f"{block}{mlp}/{dense}/kernel": sizes,
                f"{block}{mlp}/{dense}/bias": sizes[1:],
            }
    return result


def random_arrays(older: bool = False, grid: tuple[int, int] = GRID, seed: int = 0) -> Arrays:
    """Random float32 arrays under the names of a file."""
    generator = np.random.default_rng(seed)
    before = "" if older else "params/"
    return {
        before + name: generator.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes(older, grid).items()
    }


def save(folder: Path, arrays: Arrays) -> Path:
    np.savez(folder / "weights.npz", **arrays)  # type: ignore[arg-type]
    return folder / "weights.npz"


def layer_norm(tokens: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / deviation * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def attend(tokens: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    """(L, D) -> (L, D), head by head and query by query."""
    result = np.zeros_like(tokens) + arrays[f"{name}/out/bias"]
    for head in range(HEADS):
        query, key, value = (
            tokens @ arrays[f"{name}/{part}/kernel"][:, head] + arrays[f"{name}/{part}/bias"][head]
            for part in ("query", "key", "value")
        )
        for place in range(len(tokens)):
            weights = np.exp(key @ query[place] / math.sqrt(HEAD_WIDTH))
            context = (weights / weights.sum()) @ value  # (d,)
            result[place] += context @ arrays[f"{name}/out/kernel"][head]
    return result


def mlp(tokens: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    inner = tokens @ arrays[f"{name}/Dense_0/kernel"] + arrays[f"{name}/Dense_0/bias"]
    inner = inner / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return inner @ arrays[f"{name}/Dense_1/kernel"] + arrays[f"{name}/Dense_1/bias"]


def embed(image: np.ndarray, arrays: Arrays, positions: str) -> np.ndarray:
    """(H, W, C) -> (1 + N, D); positions come before the class token, unless they have its row."""
    height, width = PATCH
    tokens = []
    for top in range(0, image.shape[0], height):
        for left in range(0, image.shape[1], width):
            patch = image[top : top + height, left : left + width]  # (p_h, p_w, C)
            token = (patch[..., None] * arrays["embedding/kernel"]).sum(axis=(0, 1, 2))
            tokens.append(token + arrays["embedding/bias"])
    table = arrays[positions][0]
    if len(table) == len(tokens):
        return np.concatenate([arrays["cls"][0], np.stack(tokens) + table])
    return np.concatenate([arrays["cls"][0], np.stack(tokens)]) + table


def reference_logits(image: np.ndarray, arrays: Arrays, older: bool) -> np.ndarray:
    """One image (H, W, C) through the whole model: -> (labels,)."""
    arrays = {
        name.removeprefix("params/"): value.astype(np.float64) for name, value in arrays.items()
    }
    positions, second_norm, attention, mlp_name = OLDER if older else CURRENT
    tokens = embed(image, arrays, positions)
    for block in (f"{BLOCK}{number}/" for number in range(DEPTH)):
        normed = layer_norm(tokens, arrays, f"{block}LayerNorm_0")
        tokens = tokens + attend(normed, arrays, block + attention)
        normed = layer_norm(tokens, arrays, block + second_norm)
        tokens = tokens + mlp(normed, arrays, block + mlp_name)
    cls = layer_norm(tokens, arrays, "Transformer/encoder_norm")[0]
    return cls @ arrays["head/kernel"] + arrays["head/bias"]


def assert_same_bytes(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("grid", [GRID, (2, 4)])
def test_logits_equal_the_plain_implementation(
    older: bool, grid: tuple[int, int], tmp_path: Path
) -> None:
    arrays = random_arrays(older, grid)
    size = (grid[0] * PATCH[0], grid[1] * PATCH[1])
    model = build(read(save(tmp_path, arrays), image_size=None if grid == GRID else size))
    assert model.config.image_pair == size
    pixel_values = random_images(model.config, batch=2)
    with torch.no_grad():
        got = model(pixel_values).logits.numpy()
    images = pixel_values.permute(0, 2, 3, 1).double().numpy()
    expected = np.stack([reference_logits(image, arrays, older) for image in images])
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("older", [False, True])
def test_our_models_equal_the_plain_implementation(older: bool, tmp_path: Path) -> None:
    """Also the position of the class token, which the newer layout has no room for."""
    model = build(read(save(tmp_path, random_arrays())))
    stir(model)
    pixel_values = random_images(model.config, batch=1)
    with torch.no_grad():
        expected = model(pixel_values).logits[0].numpy()
    image = pixel_values[0].permute(1, 2, 0).double().numpy()
    arrays = write(model, older=older)
    np.testing.assert_allclose(reference_logits(image, arrays, older), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("has_head", [True, False])
def test_there_and_back_is_the_same(older: bool, has_head: bool, tmp_path: Path) -> None:
    arrays = random_arrays(older)
    arrays = {name: value for name, value in arrays.items() if has_head or "head/" not in name}
    converted = read(save(tmp_path, arrays))
    assert converted.kind is (VitMaeForImageClassification if has_head else VitMaeModel)
    assert_same_bytes(write(build(converted), older=older), arrays)


def with_pre_logits(older: bool) -> Arrays:
    """An encoder and the layer that came before the head, of 7 values."""
    arrays = {name: value for name, value in random_arrays(older).items() if "head/" not in name}
    generator, before = np.random.default_rng(1), "" if older else "params/"
    arrays[f"{before}pre_logits/kernel"] = generator.normal(0, 0.3, (WIDTH, 7)).astype(np.float32)
    arrays[f"{before}pre_logits/bias"] = generator.normal(0, 0.3, 7).astype(np.float32)
    return arrays


@pytest.mark.parametrize("older", [False, True])
def test_pre_logits_without_a_head_are_the_pooler(older: bool, tmp_path: Path) -> None:
    arrays = with_pre_logits(older)
    converted = read(save(tmp_path, arrays))
    model = build(converted)
    assert converted.kind is VitMaeModel and converted.config.pooler_output_size == 7
    assert_same_bytes(write(model, older=older), arrays)
    before = "" if older else "params/"
    as_head = {name.replace("pre_logits", "head"): value for name, value in arrays.items()}
    assert as_head.keys() >= {f"{before}head/kernel", f"{before}head/bias"}
    pixel_values = random_images(model.config, batch=1)
    image = pixel_values[0].permute(1, 2, 0).double().numpy()
    expected = np.tanh(reference_logits(image, as_head, older))
    with torch.no_grad():
        got = model(pixel_values).pooler_output[0].numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_geometry_is_read_from_the_arrays(tmp_path: Path) -> None:
    converted = read(save(tmp_path, random_arrays()))
    config = converted.config
    assert (config.hidden_size, config.num_hidden_layers) == (WIDTH, DEPTH)
    assert (config.num_attention_heads, config.intermediate_size) == (HEADS, INNER)
    assert (config.patch_pair, config.image_pair) == (PATCH, (12, 6))
    assert (config.num_channels, config.num_labels) == (CHANNELS, LABELS)
    assert config.position_embedding == "learned"
    assert config.hidden_act == "gelu_pytorch_tanh"
    assert converted.processor.image_mean == [0.5] * CHANNELS
    assert any("no position" in line for line in converted.said)


def test_state_of_training_is_left_out_and_said(tmp_path: Path) -> None:
    arrays = random_arrays()
    extra = {"opt/mu/cls": np.zeros(3, np.float32), "extra/step": np.array(7)}
    converted = read(save(tmp_path, arrays | extra))
    assert any("2 arrays outside `params/`" in line for line in converted.said)
    assert_same_bytes(write(build(converted)), arrays)
    bare = {name.removeprefix("params/"): value for name, value in arrays.items()}
    assert_same_bytes(write(build(read(save(tmp_path, bare)))), arrays)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("params/MAPHead_0/probe", "attention pooling"),
        ("params/pre_logits/kernel", "a tanh layer before its head"),
        ("params/conv_root/kernel", "a hybrid's stem"),
        ("params/Transformer/encoderblock/LayerNorm_0/scale", "all blocks stacked in one"),
        ("params/other/scale", "`other/scale`.*the first"),
    ],
)
def test_other_models_are_refused_by_name(extra: str, told: str, tmp_path: Path) -> None:
    arrays = random_arrays() | {extra: np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match=told) as error:
        read(save(tmp_path, arrays))
    assert "\n" not in str(error.value)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    arrays = random_arrays()
    for name in arrays:
        if name == "params/head/kernel":
            continue  # without it the file is an encoder's, tried below
        path = save(tmp_path, {key: value for key, value in arrays.items() if key != name})
        with pytest.raises(ValueError, match="missing|lacks|no class token") as error:
            build(read(path))
        assert "\n" not in str(error.value)
    path = save(
        tmp_path, {key: value for key, value in arrays.items() if key != "params/head/kernel"}
    )
    with pytest.raises(ValueError, match="no place for.*`classifier.bias`"):
        build(read(path))


def test_arrays_of_wrong_kind_are_named(tmp_path: Path) -> None:
    arrays = random_arrays()
    name = f"params/{BLOCK}1/MultiHeadDotProductAttention_0/out/kernel"
    with pytest.raises(ValueError, match="out/kernel` has 1 axes, not 3"):
        read(save(tmp_path, arrays | {name: np.zeros(4, np.float32)}))
    with pytest.raises(ValueError, match="`cls` is of type int64"):
        read(save(tmp_path, arrays | {"params/cls": np.zeros((1, 1, WIDTH), np.int64)}))
    with pytest.raises(ValueError, match="5 positions.*; pass image_size|of no square grid"):
        read(save(tmp_path, arrays | {"params/pos_embedding": np.zeros((1, 7, WIDTH), np.float32)}))
    with pytest.raises(ValueError, match="9 positions are not those of images of 12x12"):
        read(save(tmp_path, arrays), image_size=12)


class Canary:
    """An object whose pickle would make a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read(tmp_path / "absent.npz")
    path = save(tmp_path, random_arrays())
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", b"text", whole[: len(whole) // 2], whole[:-40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="truncated, or no .npz file") as error:
            read(path)
        assert "\n" not in str(error.value)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="truncated, or no .npz file"):
        read(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="no .npz file of plain arrays"):
        read(path)


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    objects = np.array([Canary(canary)], dtype=object)
    path = save(tmp_path, random_arrays() | {"params/cls": objects})
    with pytest.raises(ValueError, match="no .npz file of plain arrays"):
        read(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu', not 'gelu_pytorch_tanh'"),
        ({"layer_norm_eps": 1e-12}, "`layer_norm_eps` is 1e-12"),
        ({"pooling": "mean"}, "`pooling` is 'mean', not 'cls'"),
        ({"qkv_bias": False}, "`qkv_bias` is False"),
        (
            {"pooler_output_size": 8, "pooler_act": "gelu"},
            "`pooler_act` is 'gelu', not 'tanh'",
        ),
        ({"layer_scale_init_value": 0.1}, "`layer_scale_init_value` is 0.1"),
        ({"stem_depths": (1, 1), "patch_size": 8}, "`stem_depths`"),
    ],
)
def test_what_big_vision_cannot_express_is_refused(fields: dict[str, Any], told: str) -> None:
    fields = {"hidden_act": "gelu_pytorch_tanh"} | fields
    with pytest.raises(ValueError, match=told):
        write(VitMaeModel(tiny_config(**fields)))


def test_only_encoder_and_classifier_are_written() -> None:
    with pytest.raises(ValueError, match="convert its encoder"):
        write(VitMaeForPreTraining(tiny_config(hidden_act="gelu_pytorch_tanh")))
    half = VitMaeModel(tiny_config(hidden_act="gelu_pytorch_tanh")).bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        write(half)


def test_what_is_written_is_a_copy(tmp_path: Path) -> None:
    model = build(read(save(tmp_path, random_arrays())))
    arrays = write(model)
    before = {name: value.copy() for name, value in arrays.items()}
    stir(model)
    assert_same_bytes(arrays, before)
