"""The tensors of a checkpoint, between a run and its files.

A run may be sharded by FSDP2 (`fully_shard`): each process then has a part of every tensor, a
`DTensor`. The files always hold whole ones, so they load on any number of processes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_vitmae.training.sharding import placed_like, whole

Files = dict[str, dict[str, Tensor]]
"""Name of a file -> what it holds, by name."""


def gather(files: Mapping[str, Mapping[str, Tensor]], keep: bool) -> Files:
    """Make the tensors of each file whole, on the CPU and apart in memory, as safetensors needs.

    Every process of a sharded run has to call this, with the same names in the same order.

    Args:
        keep: return them; else the process only gives its parts, and gets empty files.

    Raises:
        FloatingPointError: naming the first tensor that holds nan or inf; after all is gathered,
            so that no process is left waiting for another.
    """
    gathered: Files = {name: {} for name in files}
    spoilt: list[str] = []
    seen: set[int] = set()
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            value = whole(tensor.detach())
            if not _is_finite(value):
                spoilt.append(f"{name} in {file}")
            if keep:
                gathered[file][name] = _apart(value.to("cpu").contiguous(), seen)
    if spoilt:
        raise FloatingPointError(
            f"{spoilt[0]} holds nan or inf ({len(spoilt)} tensors in all do), so it is not saved; "
            "the checkpoints before are as they were."
        )
    return gathered


def check_tensors(path: Path, wanted: Mapping[str, Tensor]) -> None:
    """Check that a file holds just the tensors that are wanted.

    Raises:
        ValueError: naming the first that are missing, left over or of another shape.
    """
    with safe_open(path, framework="pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    for problem, names in (
        ("lacks", wanted.keys() - saved.keys()),
        ("has, but the model does not,", saved.keys() - wanted.keys()),
        (
            "has another shape of",
            {n for n in wanted.keys() & saved.keys() if wanted[n].shape != saved[n]},
        ),
    ):
        if names:
            raise ValueError(
                f"{path} {problem} {', '.join(sorted(names)[:3])} ({len(names)} in all); "
                "it belongs to another model: use another --output-dir."
            )


@torch.no_grad()
def fill(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Read tensors in place, one at a time; a process keeps its own part of a sharded one."""
    with safe_open(path, framework="pt") as file:
        for name, target in targets.items():
            target.copy_(placed_like(file.get_tensor(name), target))


def optimizer_state(
    model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """The state of each parameter as "<what>/<parameter name>": tensors, and what is no tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors, scalars = {}, {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            kind = tensors if isinstance(value, Tensor) else scalars
            kind[f"{key}/{names[id(parameter)]}"] = value
    return tensors, scalars


def read_optimizer_state(
    tensors: Path, scalars: Path, model: nn.Module, optimizer: Optimizer
) -> dict[int, dict]:
    """Saved state by the parameter's place in the optimiser, for `Optimizer.load_state_dict`.

    Raises:
        ValueError: if there is state of a parameter that the optimiser does not train.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    places = {names[id(parameter)]: place for place, parameter in enumerate(parameters)}
    per_parameter: dict[int, dict] = {}
    for full_name, value in _saved_values(tensors, scalars):
        key, name = full_name.split("/", maxsplit=1)
        if name not in places:
            raise ValueError(
                f"{tensors} has optimiser state for {name}, which this run does not train; "
                "start it again in another --output-dir."
            )
        parameter = parameters[places[name]]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = placed_like(value, parameter)
        per_parameter.setdefault(places[name], {})[key] = value
    return per_parameter


def _saved_values(tensors: Path, scalars: Path) -> Iterator[tuple[str, Any]]:
    with safe_open(tensors, framework="pt") as file:
        for name in file.keys():
            yield name, file.get_tensor(name)
    yield from json.loads(scalars.read_text()).items()


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # Both ends carry nan on; one pass that stores nothing, 20 times as fast as isfinite().all().
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _apart(tensor: Tensor, seen: set[int]) -> Tensor:
    """The tensor, or a copy if its memory was seen before: safetensors refuses shared memory."""
    storage = tensor.untyped_storage().data_ptr()
    if storage in seen:
        return tensor.clone()
    seen.add(storage)
    return tensor
