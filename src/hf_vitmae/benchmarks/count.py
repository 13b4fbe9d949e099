"""What a step costs, counted and not timed: arithmetic, and what autograd keeps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_vitmae.benchmarks.sides import Precision, Side, running

# What lies between a weight and what a product keeps of it: autocast's cast, and views.
_CASTS = ("TBackward0", "TransposeBackward0", "ToCopyBackward0", "ViewBackward0")


def count_flops(side: Side, inputs: Mapping[str, Tensor], precision: Precision) -> float:
    """Floating-point operations of a step's matrix products, convolutions and attention.

    A compiled side's are those of the model as it is: its graph would hide them.
    """
    side = side.eager or side
    with FlopCounterMode(display=False, custom_mapping=uncounted()) as counter:
        with running(side, precision):
            result = side.compute(inputs)
        if side.optimizer is not None:
            result.backward()
            side.optimizer.zero_grad()
    return float(counter.get_total_flops())


def uncounted() -> dict[Any, Any]:
    """Formulas for operators that torch's counter does not know; it passes shapes for tensors."""
    formulas: dict[str, Any] = {
        "aten._scaled_dot_product_flash_attention_for_cpu": _of_attention,
        "aten._scaled_dot_product_flash_attention_for_cpu_backward": _of_attention_backward,
        "mkldnn._linear_pointwise": _of_linear,
    }
    found = {}
    for name, formula in formulas.items():
        library, _, operator = name.partition(".")
        if hasattr(getattr(torch.ops, library, None), operator):
            found[getattr(getattr(torch.ops, library), operator)] = formula
    return found


def _of_attention(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    """Two products, (B, heads, Q, d) with (B, heads, L, d)."""
    return 4 * query.numel() * key[2]


def _of_attention_backward(
    _: torch.Size, query: torch.Size, key: torch.Size, *__: Any, **___: Any
) -> int:
    """Five: the weights again, and the gradients of them, of queries, of keys and of values."""
    return 10 * query.numel() * key[2]


def _of_linear(rows: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * weight[0]


def saved_bytes(side: Side, inputs: Mapping[str, Tensor], precision: Precision) -> int | None:
    """Bytes that autograd keeps, each storage once; weights, and what autocast made of them, are
    left out. None for compiled sides, which decide it themselves.
    """
    if side.eager is not None:
        return None
    weights = {parameter.data_ptr() for parameter in side.model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not _is_weight(tensor, weights):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage  # alive, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with running(side, precision):
            result = side.compute(inputs)
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def _is_weight(tensor: Tensor, weights: set[int]) -> bool:
    """Whether it is one of the weights, a view of one or a cast of one."""
    if tensor.data_ptr() in weights:
        return True
    origin: Any = tensor.grad_fn
    while origin is not None and origin.name() in _CASTS:
        ((origin, _),) = origin.next_functions
    leaf = getattr(origin, "variable", None)
    return leaf is not None and leaf.data_ptr() in weights


def layer_products(side: Side, inputs: Mapping[str, Tensor]) -> dict[tuple[int, int, int], int]:
    """(M, K, N) of the product of every linear layer's forward pass, and how often."""
    counts: dict[tuple[int, int, int], int] = {}

    def note(layer: Any, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        outputs, inner = layer.weight.shape
        product = (arguments[0].numel() // inner, inner, outputs)
        counts[product] = counts.get(product, 0) + 1

    layers = [layer for layer in side.model.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            side.compute(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def own_bytes(side: Side) -> int:
    """Of a model and its optimiser's state, each storage once."""
    tensors = [*side.model.parameters(), *side.model.buffers()]
    if side.optimizer is not None:
        for state in side.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    storages = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
