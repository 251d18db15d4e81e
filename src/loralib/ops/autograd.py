"""The same numbers as `reference`, with fewer passes over the big tensors and less kept for the backward pass.

For the frozen weight W (k, d) of a linear layer, x (n, d), t = x·Aᵀ (n, r) and u = s·dY·B (n, r):

    y  = x·Wᵀ + b        y  += s·t·Bᵀ     in place
    dX = dY·W            dX += u·A        in place
    dBᵀ = s·tᵀ·dY  (r, k)                 dA = uᵀ·x  (r, d)

Kept are x (for dA) and t (for dB): nothing of size (n, k), no second (n, d). Two more forms of the same:

    low precision    s·t·Bᵀ first, and the big product accumulates onto it in float32 and rounds once; added the other way
                     round, an update below half a unit in the last place of y would be lost, always in the same places
    effective        W' = W + s·B·A for the moment, then y = x·W'ᵀ + b and dX = dY·W'; with many tokens that is the cheaper way

Dropout drops positions of x, which are drawn one from the next by geometric gaps: p·n·d draws and as many small integers kept,
not n·d. x with zeros in these positions is made again in the backward pass, not kept.

Not here: convolutions, where nothing measured better than the plain form; graphs that a compiler or `torch.func` traces, and
weights that are no plain tensors; `reference` serves those.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LayerError
from . import reference

Slices = tuple[tuple[int, ...], tuple[bool, ...]]  # the widths of a fused projection's slices, and which are enabled

_BLOCK = 1 << 20  # elements of W that are merged at a time: a block stays in the cache
_SPARSE = 0.25  # dropped positions up to this rate are kept as integers, else as a mask of a byte each


# --- dropout --------------------------------------------------------------------------------------------------------


def draw_dropped(x: Tensor, p: float) -> Tensor | None:
    """Which elements of `x` to drop, each with probability `p` and independently: their positions in the flattened tensor
    (int32, or int64 for more than 2³¹ elements), or a mask of bytes, a row for each token."""
    if not p:
        return None
    if p > _SPARSE or x.device.type != "cpu":
        shape = math.prod(x.shape[:-1]), x.shape[-1]
        return torch.empty(shape, dtype=torch.bool, device=x.device).bernoulli_(p)
    found, last, n = [], -1, x.numel()
    while last < n - 1:
        expected = (n - last) * p
        gaps = (1 - torch.rand(int(expected + 6 * math.sqrt(expected)) + 16, dtype=torch.float64)).log_().div_(math.log1p(-p))
        found.append(gaps.floor_().add_(1).cumsum(0).add_(last))
        last = int(found[-1][-1])
    positions = torch.cat(found) if len(found) > 1 else found[0]
    kept = positions[: int(torch.searchsorted(positions, n))]
    return kept.to(torch.int32 if n < 2**31 else torch.int64)


def without(x: Tensor, dropped: Tensor | None) -> Tensor:
    """`x` (n, d) with zeros in the dropped places."""
    if dropped is None:
        return x
    if dropped.dtype == torch.bool:
        return x.masked_fill(dropped, 0)
    return x.clone(memory_format=torch.contiguous_format).view(-1).index_fill_(0, dropped.long(), 0).view(x.shape)


# --- linear ---------------------------------------------------------------------------------------------------------


def _is_low(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def rows(x: Tensor) -> Tensor:
    """`x` (..., d) as a matrix (n, d)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _product(x: Tensor, W: Tensor, b: Tensor | None, onednn: bool) -> Tensor:
    """x·Wᵀ + b (..., k) for a big W, by oneDNN's product where that is asked for."""
    if onednn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
        return result
    return F.linear(x, W, b)


class _Linear(torch.autograd.Function):
    """y = W·x + b + s·B·A·dropout(x); `scaling` contains the 1 / (1 − p) of dropout. With `slices`, B is block-diagonal."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        dropped: Tensor | None,
        slices: Slices | None,
        effective: bool,
        onednn: bool,
    ) -> Tensor:
        W_, A_, B_ = (tensor.to(x.dtype) for tensor in (W, A, reference.block_diagonal(B, *slices) if slices else B))
        b_ = None if b is None else b.to(x.dtype)
        t = None
        if effective:
            y = _product(x, torch.addmm(W_, B_, A_, alpha=scaling), b_, onednn)
        else:
            t = F.linear(without(rows(x), dropped), A_)  # (n, r)
            if _is_low(x):
                y = F.linear((t * scaling).view(*x.shape[:-1], len(A)), B_)
                y.view(t.shape[0], len(W)).addmm_(rows(x), W_.t())
                if b_ is not None:
                    y.add_(b_)
            else:
                y = _product(x, W_, b_, onednn)
                y.view(t.shape[0], len(W)).addmm_(t, B_.t(), alpha=scaling)
        _, for_W, _, for_A, for_B, *_ = ctx.needs_input_grad
        keeps_x = for_W or for_A or (for_B and t is None)
        ctx.save_for_backward(x if keeps_x else None, W, A, B, t if for_B else None, dropped)
        ctx.scaling, ctx.slices, ctx.effective, ctx.onednn = scaling, slices, effective, onednn
        return y

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, t, dropped = ctx.saved_tensors
        s, (for_x, for_W, for_b, for_A, for_B, *_) = ctx.scaling, ctx.needs_input_grad
        B_all = reference.block_diagonal(B, *ctx.slices) if ctx.slices else B
        W_, A_, B_ = (tensor.to(dY.dtype) for tensor in (W, A, B_all))
        dY = dY.contiguous()
        dY_2, x_2 = rows(dY), None if x is None else rows(x)
        u = (dY_2 @ B_) * s  # (n, r)
        dX = dW = db = None
        if for_x:
            onednn = ctx.onednn and not torch.is_grad_enabled()
            if ctx.effective:
                dX = _product(dY, torch.addmm(W_, B_, A_, alpha=s).t(), None, onednn)
            elif _is_low(dY) or dropped is not None:
                dX = without(u @ A_, dropped).addmm_(dY_2, W_).view(*dY.shape[:-1], A.shape[1])
            else:
                dX = _product(dY, W_.t(), None, onednn)
                dX.view(len(u), A.shape[1]).addmm_(u, A_)
        if for_W and x_2 is not None:
            dW = (dY_2.t() @ x_2).to(W.dtype)
        if for_b:
            db = dY_2.sum(0)
        dA, dB = _factor_gradients(dY_2, x_2, t, u, A, B, s, dropped, for_A, for_B)
        if dB is not None and ctx.slices:
            dB = of_blocks(dB, B.shape[1], *ctx.slices)
        return (dX, dW, db, dA, dB, None, None, None, None, None)


def _factor_gradients(
    dY: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    u: Tensor,
    A: Tensor,
    B: Tensor,
    s: float,
    dropped: Tensor | None,
    for_A: bool,
    for_B: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dA = uᵀ·x_d and dB = s·dYᵀ·t, in the factors' dtypes; t anew where it was not kept, or where this is differentiated."""
    anew = for_B and (t is None or torch.is_grad_enabled())
    if anew and x is None:
        raise LayerError(
            "With a frozen lora_A the input is not kept, so the backward pass cannot be differentiated again; compute inside "
            '`with loralib.ops.use("reference")`.'
        )
    x_d = without(x, dropped) if x is not None and (for_A or anew) else None
    if anew and x_d is not None:
        t = F.linear(x_d, A.to(x_d.dtype))
    dA = (u.t() @ x_d).to(A.dtype) if for_A and x_d is not None else None
    dB = ((t.t() @ dY).t() * s).to(B.dtype) if for_B and t is not None else None
    return dA, dB


def lora_linear(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    p: float = 0.0,
    slices: Slices | None = None,
    onednn: bool = False,
) -> Tensor:
    """W·x + b + scaling·B·A·dropout(x), as `reference.lora_linear` or, for an output in slices, `merged_lora_linear`."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    elif x.dtype != W.dtype:
        return reference.lora_linear(x, W, b, A, B, scaling, p)  # which refuses it as a plain layer does
    (k, d), n = W.shape, math.prod(x.shape[:-1])
    effective = slices is None and not p and not _is_low(x) and n * (d + k) > 2 * d * k
    onednn = onednn and x.dtype == W.dtype == torch.float32
    dropped = draw_dropped(x, p)
    s = scaling / (1 - p)
    y: Tensor = _Linear.apply(x, W, b, A, B, s, dropped, slices, effective, onednn)  # type: ignore[no-untyped-call]
    return y


# --- the update of a layer whose own computation is not known -------------------------------------------------------


class _Update(torch.autograd.Function):
    """y + s·B·A·dropout(x), for y and x of one dtype."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropped: Tensor | None) -> Tensor:
        t = F.linear(without(rows(x), dropped), A.to(x.dtype))  # (n, r)
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, A, B, t if ctx.needs_input_grad[3] else None, dropped)
        ctx.scaling = scaling
        return torch.addmm(rows(y), t, B.to(x.dtype).t(), alpha=scaling).view(y.shape)

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, t, dropped = ctx.saved_tensors
        s, (for_y, for_x, for_A, for_B, *_) = ctx.scaling, ctx.needs_input_grad
        dY_2, x_2 = rows(dY).contiguous(), None if x is None else rows(x)
        u = (dY_2 @ B.to(dY.dtype)) * s  # (n, r)
        dX = without(u @ A.to(dY.dtype), dropped).view(*dY.shape[:-1], A.shape[1]) if for_x else None
        dA, dB = _factor_gradients(dY_2, x_2, t, u, A, B, s, dropped, for_A, for_B)
        return (dY if for_y else None, dX, dA, dB, None, None)


def add_linear_update(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float = 0.0) -> Tensor:
    """y + scaling·B·A·dropout(x), as `reference.add_linear_update`."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if y.dtype != x.dtype:
        return reference.add_linear_update(y, x, A, B, scaling, p)
    added: Tensor = _Update.apply(y, x, A, B, scaling / (1 - p), draw_dropped(x, p))  # type: ignore[no-untyped-call]
    return added


# --- embeddings -----------------------------------------------------------------------------------------------------


class _Embedding(torch.autograd.Function):
    """y + s·Aᵀ[ids]·Bᵀ, in the place of y. `keep` (n) multiplies each token's update, `weight` (n) its part of dA."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, ids: Tensor, A: Tensor, B: Tensor, scaling: float, keep: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        t = _columns(A, ids, keep).to(y.dtype)  # (n, r)
        ctx.save_for_backward(ids, A, B, keep, weight)
        ctx.scaling = scaling
        ctx.mark_dirty(y)
        y.view(len(t), len(B)).addmm_(t, B.to(y.dtype).t(), alpha=scaling)
        return y

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        ids, A, B, keep, weight = ctx.saved_tensors
        s, (for_y, _, for_A, for_B, *_) = ctx.scaling, ctx.needs_input_grad
        dY_2, dA, dB = rows(dY).contiguous(), None, None
        if for_A:
            u = ((dY_2 @ B.to(dY.dtype)) * s).to(A.dtype)  # (n, r)
            for factor in (keep, weight):
                u = u if factor is None else u * factor.unsqueeze(-1)
            dA = u.new_zeros(A.shape[1], A.shape[0]).index_add(0, ids, u).t()
        if for_B:
            dB = ((_columns(A, ids, keep).to(dY.dtype).t() @ dY_2).t() * s).to(B.dtype)
        return (dY if for_y else None, None, dA, dB, None, None, None)


def _columns(A: Tensor, ids: Tensor, keep: Tensor | None) -> Tensor:
    """Aᵀ[ids] (n, r), a row of it multiplied with its `keep`."""
    t = A.index_select(1, ids).t()
    return t if keep is None else t * keep.unsqueeze(-1)


def add_embedding_update(
    y: Tensor, ids: Tensor, A: Tensor, B: Tensor, scaling: float, keep: Tensor | None = None, by_frequency: bool = False
) -> Tensor:
    """y + scaling·Aᵀ[ids]·Bᵀ, as `reference.add_embedding_update`; `y` is overwritten."""
    flat, weight = ids.reshape(-1), None
    if by_frequency:
        _, inverse, occurrences = flat.unique(return_inverse=True, return_counts=True)
        weight = occurrences.to(A.dtype).reciprocal()[inverse]
    keep = None if keep is None else keep.reshape(-1).to(A.dtype)
    added: Tensor = _Embedding.apply(y, flat, A, B, scaling, keep, weight)  # type: ignore[no-untyped-call]
    return added


# --- merging --------------------------------------------------------------------------------------------------------


def merge_linear(W: Tensor, A: Tensor, B: Tensor, scaling: float, transposed: bool = False) -> Tensor:
    """W + scaling·B·A, as `reference.merge_linear`: in one pass, and for a low-precision W by blocks of rows in float32."""
    left, right = (A.t(), B.t()) if transposed else (B, A)
    wide = torch.promote_types(W.dtype, torch.promote_types(A.dtype, torch.float32))
    left, right = left.to(wide), right.to(wide)
    if W.dtype == wide:
        return torch.addmm(W, left, right, alpha=scaling)
    merged = torch.empty_like(W)
    rows = max(1, _BLOCK // W.shape[1])
    for i in range(0, len(W), rows):
        merged[i : i + rows] = W[i : i + rows].to(wide).addmm_(left[i : i + rows], right, alpha=scaling)
    return merged


def of_blocks(full: Tensor, r: int, widths: Sequence[int], enabled: Sequence[bool]) -> Tensor:
    """The blocks of a matrix laid out as by `reference.block_diagonal`, one below the other (Σ enabled widths, r)."""
    i, blocks = 0, []
    for part, on in zip(full.split(list(widths)), enabled, strict=True):
        if on:
            blocks.append(part[:, i * r : (i + 1) * r])
            i += 1
    return torch.cat(blocks)
