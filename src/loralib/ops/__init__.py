"""LoRA's arithmetic as pure functions on tensors, and the choice of who computes them.

`reference` is the specification. `autograd` gives the same numbers with fewer passes and less kept for the backward pass; it
is what runs, except where a compiler or `torch.func` traces the computation (they fuse and transform the plain form), for
tensors that are not plain ones, such as sharded weights, and for linear layers of a few tokens, where Python would take longer
than the passes. `onednn` is `autograd` with the float32 products on the CPU by oneDNN's kernel, those of the model's other
frozen linear layers included; on some processors it takes half the time of torch's default, on others not: measure before
you choose it. `triton` is `autograd` with kernels of its own for the small products of linear layers on CUDA; it is never
chosen by itself, since it has not been measured on a GPU yet.

    with loralib.ops.use("reference"):
        ...
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

from ..errors import ConfigError, LayerError
from . import autograd, onednn, reference, triton_linear
from .eligibility import obstacle
from .reference import (
    Geometry,
    add_expanded,
    add_pointwise,
    block_diagonal,
    convolve,
    linear_delta,
    merge_delta,
    merged_linear_delta,
)

__all__ = [
    "IMPLEMENTATIONS",
    "Geometry",
    "add_embedding_update",
    "add_expanded",
    "add_linear_update",
    "add_merged_linear_update",
    "add_pointwise",
    "block_diagonal",
    "convolve",
    "linear_delta",
    "lora_convolution",
    "lora_linear",
    "merge_delta",
    "merge_linear",
    "merge_merged_linear",
    "merged_linear_delta",
    "merged_lora_linear",
    "use",
]

IMPLEMENTATIONS = ("reference", "autograd", "onednn", "triton")

_SMALL = 1 << 15  # elements of input and output of a linear layer, below which the plain form is faster (`benchmarks tiny`)

_forced: ContextVar[str | None] = ContextVar("loralib_implementation", default=None)


@contextmanager
def use(implementation: str) -> Iterator[None]:
    """Inside the block (and the thread) every operation is computed by one of `IMPLEMENTATIONS`, or raises `LayerError`.

    With "onednn" the model's frozen linear layers without an update compute by that kernel, too. The backward pass is that of
    the forward pass, wherever it runs; compilers trace "reference" in any case. Raises
    `ConfigError` for an unknown implementation, or one that this build of torch has not.

    >>> x, W, A, B = torch.ones(1, 4), torch.zeros(3, 4), torch.ones(2, 4), torch.ones(3, 2)
    >>> with use("reference"):
    ...     lora_linear(x, W, None, A, B, 0.5)
    tensor([[4., 4., 4.]])
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(f"{implementation!r} is no implementation; choose one of {', '.join(IMPLEMENTATIONS)}.")
    if implementation == "onednn" and not onednn.available():
        raise ConfigError("This build of torch has no oneDNN linear operation; use 'autograd'.")
    if implementation == "triton" and (problem := triton_linear.problem()):
        raise ConfigError(problem)
    token = _forced.set(implementation)
    try:
        with onednn.Frozen(lambda: _forced.get() == "onednn") if implementation == "onednn" else nullcontext():
            yield
    finally:
        _forced.reset(token)


def _fused(*tensors: Tensor | None) -> bool:
    """Whether `autograd` computes; `LayerError` when it is told to and cannot."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # which cannot read the context either
        return False
    forced = _forced.get()
    if forced == "reference":
        return False
    problem = obstacle(*tensors)
    if problem and forced:
        raise LayerError(f"The implementation {forced!r} cannot be used here: {problem}. Leave the choice to the library.")
    if forced == "onednn" and any(tensor.device.type != "cpu" for tensor in tensors if tensor is not None):
        raise LayerError("The implementation 'onednn' is for tensors on the CPU.")
    return problem is None


def _is_small(x: Tensor, W: Tensor) -> bool:
    """Whether the plain form is faster, and is allowed to compute: what autograd itself costs in Python then exceeds what is
    saved. In low precision, autocast included, the plain form would lose small updates; on a GPU nobody has measured."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.device.type != "cpu":
        return False
    if x.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cpu"):
        return False
    return _forced.get() in (None, "onednn") and x.numel() * sum(W.shape) < _SMALL * W.shape[1]


def lora_linear(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, p: float = 0.0) -> Tensor:
    """W·x + b + scaling·B·A·dropout(x), for a dropout of probability `p`: see `reference.lora_linear`."""
    if not _is_small(x, W) and _fused(x, W, b, A, B):
        return _linear(x, W, b, A, B, scaling, p)
    return reference.lora_linear(x, W, b, A, B, scaling, p)


def _linear(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    p: float,
    slices: autograd.Slices | None = None,
) -> Tensor:
    """The linear step of `autograd`, or of what is forced."""
    forced = _forced.get()
    if forced == "triton":
        return triton_linear.lora_linear(x, W, b, A, block_diagonal(B, *slices) if slices else B, scaling, p)
    return autograd.lora_linear(x, W, b, A, B, scaling, p, slices, onednn=forced == "onednn")


def merged_lora_linear(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    widths: Sequence[int],
    enabled: Sequence[bool],
    p: float = 0.0,
) -> Tensor:
    """`lora_linear` for an output in slices, each enabled one with factors of its own: see `reference`."""
    if not _is_small(x, W) and _fused(x, W, b, A, B):
        return _linear(x, W, b, A, B, scaling, p, (tuple(widths), tuple(enabled)))
    return reference.merged_lora_linear(x, W, b, A, B, scaling, widths, enabled, p)


def add_linear_update(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float = 0.0) -> Tensor:
    """y + scaling·B·A·dropout(x), where the base's own computation is not known: see `reference.add_linear_update`."""
    compute = autograd.add_linear_update if _fused(y, x, A, B) else reference.add_linear_update
    return compute(y, x, A, B, scaling, p)


def add_merged_linear_update(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    widths: Sequence[int],
    enabled: Sequence[bool],
    p: float = 0.0,
) -> Tensor:
    """`add_linear_update` for an output in slices: see `reference.add_merged_linear_update`."""
    if _fused(y, x, A, B):
        return autograd.add_linear_update(y, x, A, block_diagonal(B, widths, enabled), scaling, p)
    return reference.add_merged_linear_update(y, x, A, B, scaling, widths, enabled, p)


def add_embedding_update(
    y: Tensor, ids: Tensor, A: Tensor, B: Tensor, scaling: float, keep: Tensor | None = None, by_frequency: bool = False
) -> Tensor:
    """y + scaling·Aᵀ[ids]·Bᵀ: see `reference.add_embedding_update`. `y` may be overwritten."""
    compute = autograd.add_embedding_update if _fused(y, ids, A, B) else reference.add_embedding_update
    return compute(y, ids, A, B, scaling, keep, by_frequency)


def lora_convolution(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    geometry: Geometry,
    p: float = 0.0,
) -> Tensor:
    """W ∗ x + b + scaling·B ∗ (A ∗ dropout(x)): see `reference.lora_convolution`."""
    compute = autograd.lora_convolution if _fused(x, W, b, A, B) else reference.lora_convolution
    return compute(x, W, b, A, B, scaling, geometry, p)


def merge_linear(W: Tensor, A: Tensor, B: Tensor, scaling: float, transposed: bool = False) -> Tensor:
    """W + scaling·B·A, or W + scaling·(B·A)ᵀ, added in at least float32 and rounded once to the dtype of `W`."""
    by_blocks = not torch.is_grad_enabled() and _fused(W, A, B)
    compute = autograd.merge_linear if by_blocks else reference.merge_linear
    return compute(W, A, B, scaling, transposed)


def merge_merged_linear(
    W: Tensor, A: Tensor, B: Tensor, scaling: float, widths: Sequence[int], enabled: Sequence[bool], transposed: bool = False
) -> Tensor:
    """`merge_linear` for an output in slices, each enabled one with factors of its own."""
    chosen = [width for width, on in zip(widths, enabled, strict=True) if on]
    factors = zip(A.split(B.shape[1]), B.split(chosen), strict=True)
    slices = zip(W.split(list(widths), dim=1 if transposed else 0), enabled, strict=True)
    parts = [merge_linear(part, *next(factors), scaling, transposed) if on else part for part, on in slices]
    return torch.cat(parts, dim=1 if transposed else 0)
