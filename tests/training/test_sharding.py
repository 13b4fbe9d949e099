"""Sharded training: two processes that share a model train it as one process does.

Run as a program, this file is one of two ranks: it trains every case and rank 0 writes what came
out. The tests train the same in their own process and compare.
"""

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForPreTraining,
)
from hf_vitmae.models.modes import evaluating
from hf_vitmae.training.sharding import (
    clip_gradients,
    gradient_sync,
    is_sharded,
    shard_model,
    wants_sharding,
    whole_state,
    without_weights,
)

from ..distributed.launch import run_ranks
from ..models.family import TRAINABLE, family_config, family_inputs
from ..models.tiny import enable_checkpointing, random_noise, stir

STEPS, ACCUMULATION, MAX_NORM = 2, 2, 0.1
IMAGES = 2 * STEPS * ACCUMULATION  # one for each process in each micro-step
SIZES: dict[str, Any] = {"layer_scale_init_value": 0.1, "position_embedding": "learned"}
# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "fc1"]}


def family_model(kind: type, stem: str = "linear") -> Any:
    """Every parameter off its start, the same everywhere."""
    torch.manual_seed(0)
    model = kind(family_config(stem, **SIZES))
    stir(model)
    return model


def with_adapters() -> nn.Module:
    model: Any = get_peft_model(
        family_model(VitMaeForImageClassification),
        LoraConfig(**LORA, modules_to_save=["classifier"]),
    )
    stir(model)
    return model


def with_frozen_encoder() -> nn.Module:
    model = family_model(VitMaeForImageClassification)
    model.vit.requires_grad_(False)
    return model


def with_checkpointing() -> nn.Module:
    model = family_model(VitMaeForPreTraining)
    enable_checkpointing(model)
    return model


CASES: dict[str, Callable[[], Any]] = {
    **{kind.__name__: lambda kind=kind: family_model(kind) for kind in TRAINABLE},
    "hybrid": lambda: family_model(VitMaeForPreTraining, "hybrid"),
    "adapters": with_adapters,
    "frozen": with_frozen_encoder,
    "checkpointing": with_checkpointing,
}


def model_of(name: str) -> Any:
    """A case's model, which has a buffer in any case."""
    model = CASES[name]()
    model.register_buffer("table", torch.arange(6.0))
    return model


def inputs_of(model: Any) -> dict[str, Tensor]:
    """What all steps of a run see: IMAGES images, with labels or noise where they are wanted."""
    config = model.config
    kind = next(k for k in TRAINABLE if any(isinstance(m, k) for m in model.modules()))
    inputs = {
        name: torch.cat([values, values.flip(0), values])[:IMAGES]
        for name, values in family_inputs(kind, config).items()
    }
    contrasts = torch.linspace(0.5, 2, IMAGES).view(-1, 1, 1, 1)  # so that no image is twice there
    inputs["pixel_values"] = inputs["pixel_values"] * contrasts
    if kind in (VitMaeForPreTraining, VitMaeForMaskedPatchPrediction):
        inputs["noise"] = random_noise(config, IMAGES)
    if kind is VitMaeForMaskedPatchPrediction:
        inputs["corruption_noise"] = random_noise(config, IMAGES, seed=3)
    return inputs


def run_steps(model: Any, accelerator: Any, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Losses, norms, gradients and weights of a short run of this process, as whole tensors."""
    inputs, results = inputs_of(model), {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A large epsilon: gradients that are zero but for rounding would make steps of any sign.
    optimizer = torch.optim.AdamW(trained, lr=0.01, eps=1e-2, fused=True)
    per_micro_step = IMAGES // STEPS // ACCUMULATION
    for step in range(STEPS):
        for micro_step in range(ACCUMULATION):
            first = (step * ACCUMULATION + micro_step) * per_micro_step
            mine = slice(first + rank * per_micro_step // world, first + per_micro_step)
            mine = slice(mine.start, mine.start + per_micro_step // world)
            batch = {name: values[mine] for name, values in inputs.items()}
            with gradient_sync(model, accelerator, micro_step == ACCUMULATION - 1):
                loss = model(**batch).loss / ACCUMULATION
                loss.backward()
            results[f"loss/{step}/{micro_step}"] = mean_over_ranks(loss.detach().clone())
            has_gradients = any(parameter.grad is not None for parameter in trained)
            assert has_gradients == (micro_step == ACCUMULATION - 1 or world == 1)
        results[f"norm/{step}"] = clip_gradients(model, MAX_NORM)
        results |= gradients(model, f"gradient/{step}")
        optimizer.step()
        optimizer.zero_grad()
        with evaluating(model):  # between steps, as the loop does
            results[f"eval/{step}"] = model(**inputs).loss
    return results


def gradients(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}/{name}": whole(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def mean_over_ranks(value: Tensor) -> Tensor:
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value


def make_accelerator(precision: str = "no") -> Accelerator:
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(mixed_precision=precision, cpu=True)


def train_case(name: str, accelerator: Accelerator) -> dict[str, Tensor]:
    """One of two ranks of a sharded run; the second begins with other weights."""
    rank = accelerator.process_index
    model = model_of(name)
    hollow = without_weights(model)
    if rank == 1:
        stir(model, seed=7)
        model.table += 1
    shard_model(model, accelerator)
    assert is_sharded(model) and all(isinstance(p, DTensor) for p in model.parameters())
    assert model.table.equal(torch.arange(6.0))
    weights = [p for name, p in model.named_parameters() if name.endswith("fc1.weight")]
    assert all(2 * p.to_local().numel() == p.numel() for p in cast(Any, weights))
    start = whole_state(model)
    results = run_steps(model, accelerator, rank, world=2)
    end = whole_state(model)
    assert bool(start) == bool(end) == (rank == 0)
    results |= {f"start/{key}": value.clone() for key, value in start.items()}
    results |= {f"end/{key}": value for key, value in end.items()}
    if rank == 0:
        hollow.load_state_dict(end, assign=True)
        with evaluating(hollow):
            results["rebuilt"] = hollow(**inputs_of(hollow)).loss
    return results


def compare_in_bf16(accelerator: Accelerator) -> None:
    """A sharded forward and backward under bf16 are those of the whole model, and travel in it."""
    model = family_model(VitMaeForPreTraining)
    unsharded = copy.deepcopy(model)
    shard_model(model, accelerator)
    gathered_in: dict[str, torch.dtype] = {}

    def note(name: str, module: Any, inputs: Any) -> None:
        gathered_in[name] = module.weight.dtype

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_pre_hook(partial(note, name))
    rank = accelerator.process_index
    inputs = {name: value[rank * 2 :][:2] for name, value in inputs_of(unsharded).items()}
    losses = []
    for each in (model, unsharded):
        with accelerator.autocast():
            losses.append(each(**inputs).loss)
        losses[-1].backward()
    assert losses[0].equal(losses[1]) and losses[0].dtype == torch.float32
    expected = gradients(unsharded, "gradient")
    for name, value in gradients(model, "gradient").items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, mean_over_ranks(expected[name]), atol=1e-7, rtol=1e-6)
    for name, dtype in gathered_in.items():
        is_rounded = "attention" in name or "mlp" in name
        assert dtype == (torch.bfloat16 if is_rounded else torch.float32), name


def compare_ddp(accelerator: Accelerator) -> dict[str, Tensor]:
    """The same functions on what Accelerate wraps: gradients differ until the last micro-step."""
    model = family_model(VitMaeForPreTraining)
    wrapped = accelerator.prepare(model)
    rank, inputs = accelerator.process_index, inputs_of(model)
    for micro_step in range(ACCUMULATION):
        batch = {name: value[2 * micro_step + rank :][:1] for name, value in inputs.items()}
        with gradient_sync(wrapped, accelerator, micro_step == ACCUMULATION - 1):
            (wrapped(**batch).loss / ACCUMULATION).backward()
        mine = gradients(model, "gradient/0")
        is_shared = all(value.equal(mean_over_ranks(value.clone())) for value in mine.values())
        assert is_shared == (micro_step == ACCUMULATION - 1)
    norm = clip_gradients(model, MAX_NORM)
    assert not is_sharded(wrapped) and bool(whole_state(model)) == (rank == 0)
    return {"norm/0": norm, **gradients(model, "gradient/0")}


def main() -> None:
    accelerator, folder = make_accelerator(), Path(sys.argv[1])
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    said: dict[str, Any] = {"wants": wants_sharding(accelerator)}
    runs = {name: train_case(name, accelerator) for name in CASES}
    runs["ddp"] = compare_ddp(accelerator)
    compare_in_bf16(make_accelerator("bf16"))
    if accelerator.is_main_process:
        for name, results in runs.items():
            save_file({k: v.contiguous() for k, v in results.items()}, folder / name)
        (folder / "said.json").write_text(json.dumps(said))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two ranks made of all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(["-m", "tests.training.test_sharding", str(folder)])
    return folder


@pytest.fixture
def alone() -> Iterator[Accelerator]:
    yield make_accelerator()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_sharded_processes_train_as_one(name: str, ranks: Path, alone: Accelerator) -> None:
    """Losses, true norms, clipped gradients, and the weights after two optimiser steps."""
    model, got = model_of(name), load_file(ranks / name)
    expected = {f"start/{key}": value for key, value in whole_state(copy.deepcopy(model)).items()}
    expected |= run_steps(model, alone)
    expected |= {f"end/{key}": value for key, value in whole_state(model).items()}
    expected["rebuilt"] = expected[f"eval/{STEPS - 1}"]
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        exact = key.startswith("start/")
        torch.testing.assert_close(
            got[key],
            value.detach(),
            atol=0 if exact else 1e-6,
            rtol=0 if exact else 1e-6,
            msg=lambda m, key=key: f"{key}: {m}",
        )
    assert got["norm/0"] > MAX_NORM  # so that clipping did something


@pytest.mark.slow
def test_what_accelerate_wraps_sums_gradients_once_a_step(ranks: Path, alone: Accelerator) -> None:
    expected, got = run_steps(family_model(VitMaeForPreTraining), alone), load_file(ranks / "ddp")
    assert len(got) > 10
    for key, value in got.items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_a_launch_for_fsdp_shards_where_there_is_no_gpu(ranks: Path) -> None:
    assert json.loads((ranks / "said.json").read_text()) == {"wants": True}


@pytest.mark.parametrize(
    ("kind", "variable", "processes", "wanted"),
    [
        (DistributedType.FSDP, None, 2, True),
        (DistributedType.MULTI_CPU, "true", 2, True),
        (DistributedType.MULTI_CPU, "false", 2, False),
        (DistributedType.MULTI_GPU, None, 2, False),
        (DistributedType.FSDP, "true", 1, False),
    ],
)
def test_what_asks_for_sharding(
    kind: DistributedType,
    variable: str | None,
    processes: int,
    wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if variable is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", variable)
    accelerator: Any = SimpleNamespace(distributed_type=kind, num_processes=processes)
    assert wants_sharding(accelerator) is wanted


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("fp16", "does not train in fp16; use --precision bf16 or fp32"),
        ("no", "Linear has no transformer blocks to shard; train it without --shard"),
    ],
    ids=["fp16", "no blocks"],
)
def test_what_cannot_be_sharded_is_refused(precision: str, said: str) -> None:
    model = nn.Linear(2, 2)
    accelerator: Any = SimpleNamespace(mixed_precision=precision, num_processes=2)
    with pytest.raises(ValueError, match=said):
        shard_model(model, accelerator)
    assert not is_sharded(model)


def test_one_process_keeps_the_model(alone: Accelerator) -> None:
    model = family_model(VitMaeForPreTraining)
    parameters = list(model.parameters())
    shard_model(model, alone)
    assert not is_sharded(model) and all(
        kept is before for kept, before in zip(model.parameters(), parameters, strict=True)
    )


def test_one_process_clips_to_the_norm_and_gives_the_true_one() -> None:
    model = nn.Linear(2, 1, bias=False)
    for max_norm, left in ((10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        model.weight.grad = torch.tensor([[3.0, 4.0]])
        assert clip_gradients(model, max_norm).item() == 5.0
        torch.testing.assert_close(model.weight.grad, torch.tensor([left]))


def test_a_copy_without_weights_is_filled_to_the_same_model() -> None:
    model = family_model(VitMaeForPreTraining)
    model.decoder.requires_grad_(False)
    hollow: Any = without_weights(model)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    hollow.load_state_dict(whole_state(model), assign=True)
    assert [p.requires_grad for p in hollow.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    with evaluating(model), evaluating(hollow):
        inputs = inputs_of(model)
        assert hollow(**inputs).loss.equal(model(**inputs).loss)


if __name__ == "__main__":
    main()
