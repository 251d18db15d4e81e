"""The choice of who computes an operation.

`reference` is the specification. `autograd` gives the same numbers with fewer passes and less kept for the backward pass; it
is what runs, except where a compiler or `torch.func` traces the computation (they fuse and transform the plain form), for
tensors that are not plain ones, such as sharded weights, and for linear layers of a few tokens, where Python would take longer
than the passes. `onednn` is `autograd` with the float32 products on the CPU by oneDNN's kernel, those of the model's other
frozen linear layers included; on some processors it takes half the time of torch's default, on others not, so `auto` times
both and takes it where it is faster. `triton` is `autograd` with kernels of its own for the small products of linear layers on
CUDA.

    on CUDA             chosen      measured
    linear layers       autograd    not yet; `triton` if benchmarks/results/gpu_linear.csv shows it (`make gpu`)
    everything else     autograd    not yet

Under autocast everything but the plain form computes in autocast's dtype, to which x is cast here, once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError, LayerError
from . import autograd, compiled, measured, onednn, reference, triton_linear
from .eligibility import check_values, ineligibility
from .reference import Geometry, Slices, Strip, block_diagonal

IMPLEMENTATIONS = ("reference", "autograd", "onednn", "triton", "auto")

SMALL = 1 << 15  # elements of input and output of a linear layer, below which the plain form is faster (`benchmarks tiny`)
_LOW = (torch.bfloat16, torch.float16)

_forced: ContextVar[str | None] = ContextVar("loralib_implementation", default=None)


@contextmanager
def use(implementation: str, model: nn.Module | None = None) -> Iterator[None]:
    """Context manager: compute every operation of this thread by one implementation.

    With "onednn" the model's frozen linear layers without an update compute by that kernel, too. "auto" is "onednn" where half
    a second of timing, once in a process, finds its products at least 1.25 times as fast as torch's default, and else what
    computes without this block. The backward pass is that of the forward pass, wherever it runs; compilers trace "reference"
    in any case.

    Args:
        implementation: "reference", "autograd", "onednn", "triton" or "auto".
        model: The model whose largest frozen products "auto" times (default: products of typical size).

    Raises:
        ConfigError: When the implementation is unknown, or this build of torch does not have it.
        LayerError: Inside the block, where the implementation cannot compute an operation.

    Example:
        >>> layer = lora.Linear(4, 3, r=2)
        >>> with lora.ops.use("reference"):
        ...     layer(torch.ones(1, 4)).shape
        torch.Size([1, 3])
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(f"{implementation!r} is not an implementation; choose one of {', '.join(IMPLEMENTATIONS)}.")
    if implementation == "auto":
        if (measured.gain(model) or 0) < measured.FASTER:
            yield
            return
        implementation = "onednn"
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
    """Whether `autograd` computes; `LayerError` where it is forced to and cannot."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # which cannot read the context either
        return False
    forced = _forced.get()
    if forced == "reference":
        return False
    problem = ineligibility(*tensors)
    if problem and forced:
        raise LayerError(f"The implementation {forced!r} cannot be used here: {problem}. Leave the choice to the library.")
    if forced == "onednn" and any(tensor.device.type != "cpu" for tensor in tensors if tensor is not None):
        raise LayerError("The implementation 'onednn' is for tensors on the CPU.")
    return problem is None


def _fused_input(x: Tensor, like: Tensor, *others: Tensor | None) -> Tensor | None:
    """The input with which `autograd` computes; None where the plain form does. Without autocast x and `like` must have one
    dtype: the plain form then fails as a plain layer does."""
    if not _fused(x, like, *others):
        return None
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x if x.dtype == like.dtype else None


def _is_small(x: Tensor, W: Tensor) -> bool:
    """Whether the plain form is faster, and is allowed to compute: what autograd itself costs in Python then exceeds what is
    saved. In low precision, autocast included, the plain form would lose small updates; on a GPU nobody has measured."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or not x.is_cpu or x.dtype in _LOW:
        return False
    k, d = W.shape
    few = x.numel() * (k + d) < SMALL * d
    return few and not torch.is_autocast_enabled("cpu") and _forced.get() in (None, "onednn")


def lora_linear(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    p: float = 0.0,
    slices: Slices | None = None,
) -> Tensor:
    """W·x + b + scaling·B·A·dropout(x), for a dropout of probability `p`: see `reference.lora_linear`."""
    if W.is_meta is True or A.is_meta is True or B.is_meta is True:  # torch.fx has no truth value for what it traces
        check_values(x, W, A, B)
    if compiled.suits(x, W, b, A, B, p):
        return compiled.lora_linear(x, W, b, A, block_diagonal(B, slices) if slices else B, scaling, p)
    fused = None if _is_small(x, W) else _fused_input(x, W, b, A, B)
    if fused is None:
        return reference.lora_linear(x, W, b, A, B, scaling, p, slices)
    forced = _forced.get()
    if forced == "triton":
        return triton_linear.lora_linear(fused, W, b, A, block_diagonal(B, slices) if slices else B, scaling, p)
    return autograd.lora_linear(fused, W, b, A, B, scaling, p, slices, onednn=forced == "onednn")


def add_linear_update(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float = 0.0, slices: Slices | None = None
) -> Tensor:
    """y + scaling·B·A·dropout(x), where the base's own computation is not known: see `reference.add_linear_update`."""
    if A.is_meta is True or B.is_meta is True:
        check_values(x, y, A, B)
    fused = _fused_input(x, y, A, B)
    if fused is None or fused.dtype != y.dtype:
        return reference.add_linear_update(y, x if fused is None else fused, A, B, scaling, p, slices)
    return autograd.add_linear_update(y, fused, A, B, scaling, p, slices)


def add_embedding_update(
    y: Tensor, ids: Tensor, A: Tensor, B: Tensor, scaling: float, keep: Tensor | None = None, by_frequency: bool = False
) -> Tensor:
    """y + scaling·Aᵀ[ids]·Bᵀ: see `reference.add_embedding_update`. `y` may be overwritten."""
    check_values(y, A, B)
    compute = autograd.add_embedding_update if _fused(y, ids, A, B) else reference.add_embedding_update
    return compute(y, ids, A, B, scaling, keep, by_frequency)


def add_expanded(y: Tensor, t: Tensor, B: Tensor, scaling: float) -> Tensor:
    """y + scaling·t·Bᵀ: see `reference.add_expanded`."""
    check_values(y, t, B)
    return reference.add_expanded(y, t, B, scaling)


def lora_convolution(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, geometry: Geometry, p: float = 0.0
) -> Tensor:
    """W ∗ x + b + scaling·B ∗ (A ∗ dropout(x)): see `reference.lora_convolution`."""
    check_values(x, W, A, B)
    fused = _fused_input(x, W, b, A, B)
    if fused is None:
        return reference.lora_convolution(x, W, b, A, B, scaling, geometry, p)
    return autograd.lora_convolution(fused, W, b, A, B, scaling, geometry, p)


def loops_over_experts(x: Tensor, W: Tensor, L: Tensor, R: Tensor) -> bool:
    """Whether `experts.lora_experts` computes with these: on the CPU, where a grouped product is a loop as well."""
    return x.is_cpu and x.dtype == W.dtype and not W.requires_grad and _fused(x, W, L, R)


def add_strips(W: Tensor, strips: Sequence[Strip], scaling: float) -> Tensor:
    """W + scaling·ΣL·R, added in at least float32 and rounded once to the dtype of `W`: see `reference.add_strips`."""
    tensors = [W, *(factor for strip in strips for factor in (strip.L, strip.R))]
    check_values(*tensors)
    by_blocks = not torch.is_grad_enabled() and _fused(*tensors)
    return (autograd.add_strips if by_blocks else reference.add_strips)(W, strips, scaling)
