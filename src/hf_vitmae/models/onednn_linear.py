"""Linear layers in float32 on a CPU by oneDNN, where it beats torch's own library at them.

Torch multiplies float32 matrices with MKL, which on AMD processors is up to twice as slow as
oneDNN, the library that torch has for bfloat16. Torch's operator for oneDNN is private, so it is
tried on a small product before it is trusted. Which library is faster depends on processor and
threads; that is timed once and remembered in Hugging Face's cache folder, since results of the two
differ in the last bits and should not change from one start to the next. `HF_VITMAE_ONEDNN=0` or
`=1` decides without asking.
"""

import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SWITCH = "HF_VITMAE_ONEDNN"
FASTER_BY = 1.1  # what the other results' bits have to be worth
FEWEST_PRODUCTS = 2**26  # of a layer's numbers; with fewer the way there costs more than it saves
ROUNDS = 7


def linear(layer: nn.Module, tokens: Tensor) -> Tensor:
    """What `layer(tokens)` is: (..., D) -> (..., D'), by the faster library."""
    if type(layer) is not nn.Linear or type(tokens) is not Tensor or torch.compiler.is_compiling():
        return layer(tokens)  # a graph's sizes are no numbers
    is_large = tokens.numel() * layer.out_features >= FEWEST_PRODUCTS
    if is_large and _can(layer, tokens) and is_faster(torch.get_num_threads()):
        product = _OneDnnLinear.apply if torch.is_grad_enabled() else _product
        return product(tokens, layer.weight, layer.bias)
    return layer(tokens)


def _can(layer: nn.Linear, tokens: Tensor) -> bool:
    """Whether nothing but a plain product of float32 matrices is asked for."""
    weight = layer.weight
    return (
        tokens.dtype == weight.dtype == torch.float32
        and tokens.device.type == weight.device.type == "cpu"
        and type(weight) is nn.Parameter
        and not torch.is_autocast_enabled("cpu")
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
    )


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(tokens, weight, bias)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
    ) -> None:
        tokens, weight, _ = inputs
        ctx.save_for_backward(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens, weight = ctx.saved_tensors
        for_tokens, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])  # (M, D')
        of_tokens, of_weight, of_bias = None, None, None
        if for_tokens:
            of_tokens = multiply(rows, weight.t(), None).view(tokens.shape)
        if for_weight:  # as fast with MKL, whose operand need not be put in order first
            of_weight = rows.t() @ tokens.reshape(-1, tokens.shape[-1])
        if for_bias:
            of_bias = rows.sum(dim=0)
        return of_tokens, of_weight, of_bias


def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = multiply(tokens.reshape(-1, tokens.shape[-1]), weight, bias)
    return rows.view(*tokens.shape[:-1], -1)


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`rows @ weight.T + bias` by oneDNN: (M, D), (D', D), (D',) -> (M, D')."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


@functools.cache
def is_faster(num_threads: int) -> bool:
    """Whether oneDNN shall be used with so many threads: as the environment says, as is remembered
    of this machine, or else by a trial of a fraction of a second.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        raise ValueError(f"`{SWITCH}` must be 0 or 1, got {switch!r}.")
    if switch == "0" or not _works():
        return False
    return switch == "1" or _remembered(num_threads)


def _works() -> bool:
    """Whether the operator is there and right."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((33, 40), (24, 40), (24,))
    )
    try:
        got = multiply(rows, weight, bias)
        transposed = multiply(got, weight.t(), None)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    expected = nn.functional.linear(rows, weight, bias)
    return bool(torch.allclose(got, expected, rtol=1e-4, atol=1e-4)) and bool(
        torch.allclose(transposed, expected @ weight, rtol=1e-4, atol=1e-3)
    )


def _remembered(num_threads: int) -> bool:
    """The outcome of the trial on this processor, which the first process to ask makes."""
    path = _memory()
    key = f"{_processor()}, {num_threads} threads, torch {torch.__version__}"
    if key in (known := _known(path)):
        return known[key]
    wins = speed_up() >= FASTER_BY
    if key in (known := _known(path)):  # another process was faster, and both shall do the same
        return known[key]
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps({**known, key: wins}))
        own.replace(path)
    except OSError:
        return False  # else each start might find another answer
    return wins


def _known(path: Path) -> dict[str, bool]:
    """What trials have said so far; nothing, if the file is not there or damaged."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    entries = stored.items() if isinstance(stored, dict) else ()
    return {key: wins for key, wins in entries if isinstance(wins, bool)}


def speed_up() -> float:
    """How many times faster a step's products are, by the median of interleaved rounds."""
    rows, weight = torch.randn(394, 768), torch.randn(3072, 768)

    def by_torch() -> None:
        torch.mm(torch.mm(rows, weight.t()), weight)

    def by_onednn() -> None:
        multiply(multiply(rows, weight, None), weight.t(), None)

    ratios = []
    for number in range(ROUNDS + 1):
        theirs, ours = _seconds(by_torch), _seconds(by_onednn)
        if number:  # the first prepares both
            ratios.append(theirs / ours)
    return sorted(ratios)[len(ratios) // 2]


def _seconds(compute: Callable[[], None]) -> float:
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


def _memory() -> Path:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(home) / "hf_vitmae" / "onednn.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "cpu family", "model\t")
    return " ".join(line.split(":", 1)[1].strip() for line in lines[:12] if line.startswith(wanted))
