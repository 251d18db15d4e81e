"""The linear step of `autograd` for CUDA: each skinny product is one kernel that reads the big tensor once.

n tokens, d in, k out, r rank: x (n, d), W (k, d), A (r, d), B (k, r). Three kernels make all of LoRA's part:

    shrink     t = s·x̃·Aᵀ    (n, r)      u = s·dY·B         (n, r)
    expand     y += t·Bᵀ     (n, k)      dX += mask∘(u·A)   (n, d)
    gradient   dA = uᵀ·x̃     (r, d)      dBᵀ = tᵀ·dY        (r, k)

x̃ = dropout(x) is never written. Its mask is a function of (seed, row, column), four elements a step of the Philox generator,
and is computed again by each kernel that needs it; kept for the backward pass are x, t (n, r) and a seed of 8 bytes. Factors
are read in their own dtype and cast to that of x where they are multiplied, so those of a higher precision cost no pass either.
Sums are taken in float32, in an order that depends on the shapes alone: no atomics, the same bits in every run.

The products with W are torch's. In low precision they accumulate onto LoRA's part and round once, for the reason that
`autograd` gives. Without dropout `addmm_` would do for `expand` too, moving the same bytes: the kernel serves there as well
because it wants no cast of the factors and no scaling of t, and with few tokens launches are what a step costs.

CUDA graphs: the seed is a tensor that torch's generator fills on the device, nothing waits for the host, and a replay draws new
masks. Kernels are compiled at their first use, so run a step before capturing one; there is no autotuning.

Not here: float64, double backward, graphs that a compiler or `torch.func` traces, and choosing when this is faster: the kernels
have been compiled for GPUs and checked in Triton's interpreter, but have not run on a GPU, let alone been timed there.
`TRITON_INTERPRET=1` in the environment, before Python starts, runs them on the CPU, slowly.
"""

from __future__ import annotations  # kernels name types of triton.language, which is not loaded before it is used

import functools
import math
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, LayerError
from .matrices import like, rows

if TYPE_CHECKING:
    import triton.language as tl

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK_N, _BLOCK_D = 32, 64  # a program's share: rows, and columns (a multiple of 4)
PROGRAMS = 256  # about what fills a GPU; with fewer, a sum is split


# --- on the device --------------------------------------------------------------------------------------------------


def _load(
    base: tl.tensor, i: tl.tensor, m: tl.tensor, i_step: tl.tensor, j: tl.tensor, n: tl.tensor, j_step: tl.tensor
) -> tl.tensor:
    """The block [i, j] of a matrix (m, n) with these strides, zero outside."""
    places = base + i.to(tl.int64)[:, None] * i_step + j.to(tl.int64)[None, :] * j_step
    return tl.load(places, (i < m)[:, None] & (j < n)[None, :], 0.0)


def _store(
    base: tl.tensor,
    block: tl.tensor,
    i: tl.tensor,
    m: tl.tensor,
    i_step: tl.tensor,
    j: tl.tensor,
    n: tl.tensor,
    j_step: tl.tensor,
) -> None:
    """`block` to [i, j] of a matrix (m, n) with these strides."""
    places = base + i.to(tl.int64)[:, None] * i_step + j.to(tl.int64)[None, :] * j_step
    tl.store(places, block.to(base.dtype.element_ty), (i < m)[:, None] & (j < n)[None, :])


def _dot(a: tl.tensor, b: tl.tensor, total: tl.tensor, WIDE: tl.constexpr) -> tl.tensor:
    """total + a·b in float32. WIDE: the interpreter, which multiplies bfloat16 as if it were integers."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


def _dropout(
    block: tl.tensor, seed: tl.tensor, p: tl.tensor, i: tl.tensor, start: tl.tensor, d: tl.tensor, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """The block at rows `i` and columns from `start` of a matrix with d columns, each element zero with probability p."""
    quads = start // 4 + tl.arange(0, BLOCK_D // 4)
    u0, u1, u2, u3 = tl.rand4x(tl.load(seed), i.to(tl.int64)[:, None] * tl.cdiv(d, 4) + quads[None, :])
    kept = tl.interleave(tl.interleave(u0 >= p, u2 >= p), tl.interleave(u1 >= p, u3 >= p))
    return tl.where(kept, block, 0.0)


def _shrink(
    x: tl.tensor,  # (n, d)
    A: tl.tensor,  # (r, d)
    out: tl.tensor,  # (splits, n, r)
    seed: tl.tensor,
    n: tl.tensor,
    d: tl.tensor,
    r: tl.tensor,
    span: tl.tensor,  # columns a split
    x_n: tl.tensor,
    A_r: tl.tensor,
    A_d: tl.tensor,
    p: tl.tensor,
    scale: tl.tensor,
    DROPOUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """out = scale·x̃·Aᵀ, a split of the columns at a time; program (block of rows, block of ranks, split)."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    t = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, d), BLOCK_D):
        j = start + tl.arange(0, BLOCK_D)
        x_ij = _load(x, i, n, x_n, j, d, 1)
        if DROPOUT:
            x_ij = _dropout(x_ij, seed, p, i, start, d, BLOCK_D)
        t = _dot(x_ij, _load(A, j, d, A_d, ranks, r, A_r).to(x_ij.dtype), t, WIDE)
    _store(out + split.to(tl.int64) * n * r, t * scale, i, n, r, ranks, r, 1)


def _expand(
    t: tl.tensor,  # (n, r)
    A: tl.tensor,  # (r, d)
    out: tl.tensor,  # (n, d)
    seed: tl.tensor,
    n: tl.tensor,
    d: tl.tensor,
    r: tl.tensor,
    out_n: tl.tensor,
    out_d: tl.tensor,
    A_r: tl.tensor,
    A_d: tl.tensor,
    p: tl.tensor,
    scale: tl.tensor,
    ONTO: tl.constexpr,
    DROPOUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """out = scale·mask∘(t·A), or out += that; program (block of rows, block of columns)."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(1) * BLOCK_D
    j = start + tl.arange(0, BLOCK_D)
    update = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, r, BLOCK_R):
        ranks = first + tl.arange(0, BLOCK_R)
        t_ir = _load(t, i, n, r, ranks, r, 1)
        update = _dot(t_ir, _load(A, ranks, r, A_r, j, d, A_d).to(t_ir.dtype), update, WIDE)
    update *= scale
    if DROPOUT:
        update = _dropout(update, seed, p, i, start, d, BLOCK_D)
    if ONTO:
        update += _load(out, i, n, out_n, j, d, out_d).to(tl.float32)
    _store(out, update, i, n, out_n, j, d, out_d)


def _gradient(
    u: tl.tensor,  # (n, r)
    x: tl.tensor,  # (n, d)
    out: tl.tensor,  # (splits, r, d)
    seed: tl.tensor,
    n: tl.tensor,
    d: tl.tensor,
    r: tl.tensor,
    span: tl.tensor,  # rows a split
    x_n: tl.tensor,
    out_r: tl.tensor,
    out_d: tl.tensor,
    p: tl.tensor,
    scale: tl.tensor,
    DROPOUT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """out = scale·uᵀ·x̃, a split of the rows at a time; program (block of columns, block of ranks, split)."""
    start = tl.program_id(0) * BLOCK_D
    j = start + tl.arange(0, BLOCK_D)
    ranks = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    g = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for first in range(split * span, tl.minimum(split * span + span, n), BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        x_ij = _load(x, i, n, x_n, j, d, 1)
        if DROPOUT:
            x_ij = _dropout(x_ij, seed, p, i, start, d, BLOCK_D)
        g = _dot(_load(u, ranks, r, 1, i, n, r).to(x_ij.dtype), x_ij, g, WIDE)
    _store(out + split.to(tl.int64) * r * d, g * scale, ranks, r, out_r, j, d, out_d)


_KERNELS = (_load, _store, _dot, _dropout, _shrink, _expand, _gradient)


# --- from the host --------------------------------------------------------------------------------------------------


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def problem(*tensors: Tensor | None) -> str | None:
    """Why the kernels cannot compute here, and with these tensors, in a sentence that says what to do; or None."""
    if find_spec("triton") is None:
        return "The implementation 'triton' needs the package triton: pip install triton, or use 'autograd'."
    given = [tensor for tensor in tensors if tensor is not None]
    other = {tensor.dtype for tensor in given} - {*_DTYPES}
    if other:
        return f"The Triton kernels compute in float32, bfloat16 and float16, not in {other.pop()}; use 'autograd'."
    devices = {tensor.device for tensor in given}
    if len(devices) > 1:
        return f"The Triton kernels need all tensors on one device, not on {', '.join(sorted(map(str, devices)))}."
    if any(device.type != "cuda" for device in devices) and not _interpreted():
        return f"The Triton kernels need tensors on a CUDA device, not on {devices.pop()}; move the model, or use 'autograd'."
    return None


@functools.cache
def _jitted() -> dict[str, Any]:
    """The kernels, for triton to compile. What a kernel names, it finds among this module's names: so `tl` and the kernels that
    others call go there, now and not on import, which is to load nothing heavy."""
    import triton
    import triton.language

    names = {kernel.__name__: triton.jit(kernel, do_not_specialize=["n"]) for kernel in _KERNELS}
    globals().update(names, tl=triton.language)
    return names


def _launch(kernel: str, grid: tuple[int, ...], tensors: tuple[Tensor | None, ...], *numbers: float, **constants: int) -> None:
    with torch.cuda.device_of(tensors[0]):  # which is not always the current one
        _jitted()[kernel][grid](
            *tensors, *numbers, **constants, WIDE=_interpreted(), BLOCK_N=_BLOCK_N, BLOCK_D=_BLOCK_D, enable_fp_fusion=True
        )


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _rank_block(r: int, dtype: torch.dtype) -> int:
    """A program's share of the ranks: a power of two, what a matrix unit multiplies or more, and fits into registers."""
    return min(32 if dtype == torch.float32 else 64, max(16, 1 << (r - 1).bit_length()))


def _split(size: int, block: int, programs: int) -> tuple[int, int]:
    """(splits, span): into how many parts of how much a sum over `size` is split, for as many `programs` in each."""
    blocks = _blocks(size, block)
    span = _blocks(blocks, max(1, min(blocks, PROGRAMS // programs)))
    return _blocks(blocks, span), span * block


def _parts(like: Tensor, splits: int, *shape: int, dtype: torch.dtype) -> Tensor:
    """Where a kernel writes its splits: in the final `dtype` if there is but one."""
    return like.new_empty(splits, *shape, dtype=dtype if splits == 1 else torch.float32)


def _total(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)


def draw_seed(x: Tensor, p: float) -> Tensor | None:
    """The seed of a dropout of `x`, drawn on its device by torch's generator; None for p = 0."""
    return torch.empty((), dtype=torch.int64, device=x.device).random_() if p else None


def shrink(x: Tensor, A: Tensor, p: float = 0.0, seed: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """scale·dropout(x)·Aᵀ in the dtype of `x`, summed in float32. Shapes: x (n, d), A (r, d), result (n, r)."""
    (n, d), r = x.shape, len(A)
    if not x.numel():
        return x.new_zeros(n, r)
    x = x if x.stride(1) == 1 else x.contiguous()
    block = _rank_block(r, x.dtype)
    grid = (_blocks(n, _BLOCK_N), _blocks(r, block))
    splits, span = _split(d, _BLOCK_D, math.prod(grid))
    out = _parts(x, splits, n, r, dtype=x.dtype)
    numbers = (n, d, r, span, x.stride(0), *A.stride(), float(p), scale / (1 - p))
    _launch("_shrink", (*grid, splits), (x, A, out, seed), *numbers, DROPOUT=p > 0, BLOCK_R=block)
    return _total(out, x.dtype)


def expand_onto(Y: Tensor, t: Tensor, A: Tensor, p: float = 0.0, seed: Tensor | None = None, *, fresh: bool = False) -> Tensor:
    """Y += mask∘(t·A) / (1 − p) in place, the mask as in `shrink(Y, …)`; fresh: Y = that, whatever is in Y.

    Shapes: Y (n, d), t (n, r), A (r, d). The product is taken in the dtype of `t`, the addition in float32.
    """
    (n, d), r = Y.shape, len(A)
    if Y.numel():
        grid, block = (_blocks(n, _BLOCK_N), _blocks(d, _BLOCK_D)), _rank_block(r, Y.dtype)
        numbers = (n, d, r, *Y.stride(), *A.stride(), float(p), 1 / (1 - p))
        _launch("_expand", grid, (t.contiguous(), A, Y, seed), *numbers, ONTO=not fresh, DROPOUT=p > 0, BLOCK_R=block)
    return Y


def gradient(
    u: Tensor, x: Tensor, dtype: torch.dtype, p: float = 0.0, seed: Tensor | None = None, *, transposed: bool = False
) -> Tensor:
    """uᵀ·dropout(x) in `dtype`, the mask as in `shrink(x, …)`.

    Shapes: u (n, r), x (n, d), result (r, d); transposed: (d, r).
    """
    (n, d), r = x.shape, u.shape[1]
    shape = (d, r) if transposed else (r, d)
    if not x.numel():
        return x.new_zeros(shape, dtype=dtype)
    x = x if x.stride(1) == 1 else x.contiguous()
    block = _rank_block(r, x.dtype)
    grid = (_blocks(d, _BLOCK_D), _blocks(r, block))
    splits, span = _split(n, _BLOCK_N, math.prod(grid))
    out = _parts(x, splits, *shape, dtype=dtype)
    steps = (1, r) if transposed else (d, 1)
    numbers = (n, d, r, span, x.stride(0), *steps, float(p), 1 / (1 - p))
    _launch("_gradient", (*grid, splits), (u.contiguous(), x, out, seed), *numbers, DROPOUT=p > 0, BLOCK_R=block)
    return _total(out, dtype)


# --- a linear layer -------------------------------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    """y (n, k) = W·x + b + s·B·A·dropout(x) for x (n, d)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        p: float,
        seed: Tensor | None,
    ) -> Tensor:
        W_, b_ = W.to(x.dtype), None if b is None else b.to(x.dtype)
        t = shrink(x, A, p, seed, scaling)  # (n, r)
        if x.dtype == torch.float32:
            y = expand_onto(F.linear(x, W_, b_), t, B.t())
        else:
            y = expand_onto(x.new_empty(len(x), len(W)), t, B.t(), fresh=True).addmm_(x, W_.t())
            if b_ is not None:
                y.add_(b_)
        _, for_W, _, for_A, for_B, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_W or for_A else None, W, A, B, t if for_B else None, seed)
        ctx.scaling, ctx.p = scaling, p
        return y

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a derivative of this one would be wrong, not missing
            raise LayerError(
                "The backward pass of the Triton kernels cannot be differentiated again (create_graph=True); compute inside "
                '`with loralib.ops.use("reference")`.'
            )
        x, W, A, B, t, seed = ctx.saved_tensors
        for_x, for_W, for_b, for_A, for_B, *_ = ctx.needs_input_grad
        dY = dY.contiguous()
        u = shrink(dY, B.t(), scale=ctx.scaling) if for_x or for_A else None  # (n, r)
        dX = dW = db = dA = dB = None
        if for_x and u is not None:
            dX = _input_gradient(dY, u, W, A, ctx.p, seed)
        if for_W and x is not None:
            dW = (dY.t() @ x).to(W.dtype)
        if for_b:
            db = dY.sum(0)
        if for_A and u is not None and x is not None:
            dA = gradient(u, x, A.dtype, ctx.p, seed)
        if for_B:
            dB = gradient(t, dY, B.dtype, transposed=True)
        return (dX, dW, db, dA, dB, None, None, None)


def _input_gradient(dY: Tensor, u: Tensor, W: Tensor, A: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """dX = dY·W + mask∘(u·A) / (1 − p) (n, d), the rounding of the larger part last."""
    W = W.to(dY.dtype)
    if dY.dtype == torch.float32:
        return expand_onto(dY @ W, u, A, p, seed)
    return expand_onto(dY.new_empty(len(dY), W.shape[1]), u, A, p, seed, fresh=True).addmm_(dY, W)


def _check(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> None:
    """Kernels trust the shapes that they are given, and read beyond a tensor that is smaller."""
    reason = problem(x, W, b, A, B)
    if reason:
        raise ConfigError(reason)
    if (*B.shape, A.shape[-1]) != (len(W), len(A), x.shape[-1]) or A.shape[1:] != W.shape[1:]:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in (("x", x), ("W", W), ("A", A), ("B", B)))
        raise LayerError(f"These shapes do not go together: {shapes}; expected x (..., d), W (k, d), A (r, d), B (k, r).")


def lora_linear(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, p: float = 0.0) -> Tensor:
    """W·x + b + scaling·B·A·dropout(x), as `reference.lora_linear`, for tensors on a CUDA device, computed in
    the dtype of x.

    Raises `ConfigError` where the kernels cannot run (see `problem`), and `LayerError` for shapes that do not go together.
    """
    _check(x, W, b, A, B)
    y: Tensor = _Linear.apply(rows(x), W, b, A, B, scaling, p, draw_seed(x, p))  # type: ignore[no-untyped-call]
    return like(x, y)
