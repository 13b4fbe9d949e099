"""A checkpoint is the same whether the run was sharded or not, and loads at any world size.

Two processes shard a model with FSDP2. What they hold is told to this process by torch's own
functions for whole states, not by those that write checkpoints.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.training.checkpoint import (
    checkpoints,
    find_damage,
    latest_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

from .small_run import average_of, build, names, train_step, trained

pytestmark = pytest.mark.slow

TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.training.test_sharded_checkpoint import as_one_of_two
as_one_of_two(Path(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes did what `as_one_of_two` says."""
    folder = tmp_path_factory.mktemp("sharded")
    model, optimizer = trained(0)
    save_checkpoint(folder / "one", 2, model, optimizer, {"by": 1}, ema=average_of(model))
    command = [sys.executable, "-c", TWO_PROCESSES, str(Path(__file__).parents[2]), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return folder


def as_one_of_two(folder: Path, rank: int) -> None:
    """Load what one process saved, train on, save it sharded, and load that again."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    model, optimizer, ema = sharded(seed=1)
    storages = [parameter.to_local().data_ptr() for parameter in parameters(model)]
    assert load_checkpoint(folder / "one/step-00000002", model, optimizer, ema=ema) == {"by": 1}
    assert storages == [parameter.to_local().data_ptr() for parameter in parameters(model)]
    tell(folder / "loaded", model, optimizer, ema)

    torch.manual_seed(5)  # the same images on both: the buffers of the norm are then the same
    train_step(model, optimizer)
    ema = average_of(model)
    with torch.no_grad():
        model.eval()(torch.randn(2, 3))  # FSDP2 leaves the parameters whole after this
        model.train()
    assert not hasattr(parameters(model)[-1], "full_tensor")
    save_sharded(folder / "two", 3, model, optimizer, ema)
    tell(folder / "saved", model, optimizer, ema)
    train_step(model, optimizer)
    tell(folder / "went_on", model, optimizer, ema)

    torch.manual_seed(5)
    again, again_optimizer, again_ema = sharded(seed=2)
    train_step(again, again_optimizer)  # so that there is optimiser state to be replaced
    torch.manual_seed(5)
    for num_images in (6, 2):  # that were drawn above
        torch.randn(num_images, 3)
    path = folder / "two" / "step-00000003"
    assert load_checkpoint(path, again, again_optimizer, ema=again_ema) == {"by": 2}
    tell(folder / "loaded_again", again, again_optimizer, again_ema)
    train_step(again, again_optimizer)
    tell(folder / "resumed", again, again_optimizer, again_ema)

    part = parameters(model)[0].to_local()
    if rank == 1:
        part.detach()[-1] = torch.nan
    for is_main in (rank == 0, False):
        with pytest.raises(FloatingPointError, match="0.weight in model.safetensors holds nan"):
            save_checkpoint(folder / "two", 4, model, optimizer, {}, is_main=is_main)
    dist.destroy_process_group()


def save_sharded(folder: Path, step: int, model, optimizer, ema) -> None:
    """Each process with a folder of its own: the second must write nothing."""
    from torch.distributed import barrier, get_rank

    own = folder if get_rank() == 0 else folder.with_name("nothing")
    save_checkpoint(own, step, model, optimizer, {"by": 2}, ema=ema, is_main=get_rank() == 0)
    barrier()


def sharded(seed: int) -> tuple[nn.Module, Optimizer, dict[str, Tensor]]:
    from torch.distributed.fsdp import fully_shard

    model, _ = build(seed)
    fully_shard(model[0])  # pyright: ignore
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    return model, optimizer, average_of(model)


def parameters(model: nn.Module) -> list:
    return list(model.parameters())


def tell(path: Path, model: nn.Module, optimizer: Optimizer, ema: dict) -> None:
    """Write down all that a sharded run holds, whole, by way of torch's own functions."""
    from torch.distributed import get_rank
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(model, optimizer, options=options)
    averaged = {name: value.full_tensor() for name, value in ema.items()}
    if get_rank() == 0:  # the others are told nothing
        per_parameter = cast(dict[str, dict[str, Tensor]], state["state"])
        flat = flatten(cast(dict[str, Tensor], weights), averaged, per_parameter)
        save_file({name: value.contiguous() for name, value in flat.items()}, path)


def held(model: nn.Module, optimizer: Optimizer, ema: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same of a run in one process."""
    state = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    return flatten(model.state_dict(), ema, state)


def flatten(
    weights: dict[str, Tensor], ema: dict[str, Tensor], state: dict[str, dict[str, Tensor]]
) -> dict[str, Tensor]:
    flat = {f"model/{name}": value for name, value in weights.items()}
    flat |= {f"ema/{name}": value for name, value in ema.items()}
    for name, values in state.items():
        flat |= {f"{key}/{name}": value for key, value in values.items()}
    return flat


def equal(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    torch.testing.assert_close(tensors, others, rtol=0, atol=0)


def test_from_one_process_to_two(run: Path):
    model, optimizer = trained(0)
    equal(load_file(run / "loaded"), held(model, optimizer, average_of(model)))


def test_from_two_processes_to_one(run: Path):
    path = run / "two" / "step-00000003"
    assert latest_good_checkpoint(run / "two") == path
    model, optimizer = build(9)
    ema = average_of(model)
    assert load_checkpoint(path, model, optimizer, ema=ema) == {"by": 2}
    equal(held(model, optimizer, ema), load_file(run / "saved"))


def test_from_two_processes_to_two(run: Path):
    equal(load_file(run / "loaded_again"), load_file(run / "saved"))
    equal(load_file(run / "resumed"), load_file(run / "went_on"))
    changed = load_file(run / "saved")["model/0.weight"]
    assert not torch.equal(changed, load_file(run / "resumed")["model/0.weight"])


def test_the_files_are_those_of_one_process(run: Path, tmp_path: Path):
    path = run / "two" / "step-00000003"
    model, optimizer = build(9)
    ema = average_of(model)
    state = load_checkpoint(path, model, optimizer, ema=ema)
    own = save_checkpoint(tmp_path, 3, model, optimizer, state, ema=ema)
    assert names(own) == names(path)
    assert [f.read_bytes() for f in sorted(own.iterdir())] == [
        f.read_bytes() for f in sorted(path.iterdir())
    ]


def test_only_the_first_process_wrote_and_nothing_that_is_not_finite(run: Path):
    assert not (run / "nothing").exists()
    assert list(checkpoints(run / "two")) == [3]
    assert find_damage(run / "two" / "step-00000003") is None
