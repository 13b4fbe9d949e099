"""Sharded training: each process holds a part of the weights, gradients and optimiser state.

Torch's `fully_shard` does the work, on GPUs and on CPUs alike; Accelerate only makes processes,
device and precision. Where nothing is sharded, the functions do what DDP or one process needs.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_vitmae.models.layers import MLP, Attention


def wants_sharding(accelerator: Accelerator) -> bool:
    """Whether this launch asked for FSDP and has processes to share a model between."""
    # Without a GPU, Accelerate forgets what its configuration file asked for.
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    asked = asked or accelerator.distributed_type == DistributedType.FSDP
    return asked and accelerator.num_processes > 1


def shard_model(model: nn.Module, accelerator: Accelerator) -> None:
    """Leave each process its part of every parameter, in place and on the accelerator's device.

    All start from the first process's weights. Buffers stay whole. Build the optimiser afterwards:
    the parameters are new ones. The model is not for `accelerator.prepare`; it runs on all
    processes at once, through its own forward, under `accelerator.autocast()`, evaluations too.
    One process alone keeps the model as it is.

    Raises:
        ValueError: under fp16, or if the model has no transformer blocks.
    """
    if accelerator.num_processes == 1:
        return
    if accelerator.mixed_precision == "fp16":
        raise ValueError("A sharded model does not train in fp16; use --precision bf16 or fp32.")
    parts = [module for module in model.modules() if isinstance(module, Attention | MLP)]
    if not parts:
        raise ValueError(
            f"{type(model).__name__} has no transformer blocks to shard; train it without --shard."
        )
    _share_first_weights(model, accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Nothing in a block is added in place, which is what torch warns of at every linear layer.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=_linear_layers_policy(accelerator))
    # Else an evaluation would leave the root's weights whole, and training would go on with those.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of it."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def gradient_sync(model: nn.Module, accelerator: Accelerator, on: bool) -> Iterator[None]:
    """Forward and backward of one micro-step; only with `on` do the processes add up gradients.

    Args:
        model: the sharded model, or what `accelerator.prepare` made of it.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(on)
        yield
        return
    with contextlib.nullcontext() if on else accelerator.no_sync(model):
        yield


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients down to the norm `max_norm`, and return the norm that they had: -> ().

    The norm is over all processes' parts of every gradient. A scaler's scale must be off them.
    """
    return whole(nn.utils.clip_grad_norm_(model.parameters(), max_norm))


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors on the CPU, on process 0; nothing on the others.

    All processes of a sharded model call it together. What lies whole on the CPU is not copied.
    """
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    state = {}
    for name, value in model.state_dict().items():
        value = whole(value.detach())  # one at a time: the device need not hold them all
        if is_first:
            state[name] = value.cpu()
    return state


def without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory, to be made before sharding and filled afterwards.

    `load_state_dict(whole_state(model), assign=True)` on the copy gives an ordinary model again,
    to be saved or looked at by one process.
    """
    hollow = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, hollow)


def _linear_layers_policy(accelerator: Accelerator) -> MixedPrecisionPolicy:
    """What autocast would round to bf16 travels in bf16, so that the loss is the same to the bit.

    That is attention and MLP. Norms, layer scales, tokens and heads, which autocast need not round,
    belong to the root and are gathered in fp32; so are all gradients.
    """
    if accelerator.mixed_precision != "bf16":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast rounds each layer's own, and adds gradients in fp32
    )


def _share_first_weights(model: nn.Module, device: torch.device) -> None:
    """Give all processes the parameters and buffers of the first, one at a time."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            value = tensor.detach().to(device).contiguous()
            broadcast(value, src=0)
            tensor.copy_(value)


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which this is one process's part, or itself; all processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, target: Tensor) -> Tensor:
    """This process's part of a tensor that it has whole; no process talks to another."""
    if not isinstance(target, DTensor):
        return tensor
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
