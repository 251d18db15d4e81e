"""One step of a linear layer with its update, and the update alone for a layer whose own computation is not known.

For the frozen weight W (k, d) of a linear layer, x (n, d), t = x·Aᵀ (n, r) and u = s·dY·B (n, r):

    y  = x·Wᵀ + b        y  += s·t·Bᵀ     in place
    dX = dY·W            dX += u·A        in place
    dBᵀ = s·tᵀ·dY  (r, k)                 dA = uᵀ·x  (r, d)

Saved for backward: x (for dA) and t (for dB): nothing of size (n, k), no second (n, d). Two more forms of the same:

    low precision    s·t·Bᵀ first, and the big product accumulates onto it in float32 and rounds once; added the other way
                     round, an update below half a unit in the last place of y would be lost, always in the same places
    effective        W' = W + s·B·A for the moment, then y = x·W'ᵀ + b and dX = dY·W'; with many tokens that is the cheaper way

With dropout, x with zeros in the dropped places takes the place of x in t and dA; it is made again in the backward pass.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LayerError
from ..eligibility import INPUT_NOT_KEPT
from ..matrices import like, rows
from ..reference import Slices, block_diagonal
from . import dropout
from .gemm import LOW, big, shrink


class Step(NamedTuple):
    """How a step is computed: s, the scaling divided by 1 - p; whether by the effective weight; whether by oneDNN's kernel."""

    s: float
    effective: bool = False
    onednn: bool = False


def forward(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, how: Step, places: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """y (n, k), and t (n, r) unless the effective weight computes, all in the dtype of x. places: of x that are dropped."""
    W, A, B = (tensor.to(x.dtype) for tensor in (W, A, B))
    b = None if b is None else b.to(x.dtype)
    if how.effective:
        return big(x, torch.addmm(W, B, A, alpha=how.s), b, how.onednn), None
    t = shrink(dropout.zeroed(x, places), A, how.onednn)
    if x.dtype not in LOW:
        return big(x, W, b, how.onednn).addmm_(t, B.t(), alpha=how.s), t
    y = torch.mm(t * how.s, B.t()).addmm_(x, W.t())
    return (y if b is None else y.add_(b)), t


def input_gradient(
    dY: Tensor, u: Tensor, W: Tensor, A: Tensor, B: Tensor, how: Step, places: Tensor | None, onednn: bool
) -> Tensor:
    """dX (n, d) for u = s·dY·B (n, r)."""
    W, A, B = (tensor.to(dY.dtype) for tensor in (W, A, B))
    if how.effective:
        return big(dY, torch.addmm(W, B, A, alpha=how.s).t(), None, onednn)
    if dY.dtype in LOW or (places is not None and not onednn):
        return dropout.zero_(u @ A, places).addmm_(dY, W)
    dX = big(dY, W.t(), None, onednn)
    return dX.addmm_(u, A) if places is None else dX.add_(dropout.zero_(u @ A, places))


class _Linear(torch.autograd.Function):
    """y (n, k) = W·x + b + scaling·B·A·dropout(x) for x (n, d). With `slices`, B is block-diagonal."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        p: float,
        slices: Slices | None,
        how: Step,
    ) -> Tensor:
        kept, places = dropout.draw(x, p)
        y, t = forward(x, W, b, A, block_diagonal(B, slices) if slices else B, how, places)
        _, for_W, _, for_A, for_B, *_ = ctx.needs_input_grad
        keeps_x = for_W or for_A or (for_B and t is None)
        ctx.save_for_backward(x if keeps_x else None, W, A, B, t if for_B else None, kept)
        ctx.how, ctx.slices = how, slices
        return y

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, t, kept = ctx.saved_tensors
        how, (for_x, for_W, for_b, for_A, for_B, *_) = ctx.how, ctx.needs_input_grad
        B_all = block_diagonal(B, ctx.slices) if ctx.slices else B
        onednn, places = how.onednn and not torch.is_grad_enabled(), dropout.places(kept)
        dY = dY.contiguous()
        u = expanded_back(dY, B_all, how.s, onednn)
        dX = input_gradient(dY, u, W, A, B_all, how, places, onednn) if for_x else None
        dW = (dY.t() @ x).to(W.dtype) if for_W and x is not None else None
        db = dY.sum(0) if for_b else None
        dA, dB = factor_gradients(dY, x, t, u, A, B, how.s, places, for_A, for_B)
        if dB is not None and ctx.slices:
            dB = of_blocks(dB, B.shape[1], ctx.slices)
        return (dX, dW, db, dA, dB, None, None, None)


def expanded_back(dY: Tensor, B: Tensor, s: float, onednn: bool = False) -> Tensor:
    """u = s·dY·B (n, r) for a contiguous dY (n, k)."""
    return shrink(dY, B.to(dY.dtype).t(), onednn) * s


def factor_gradients(
    dY: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    u: Tensor,
    A: Tensor,
    B: Tensor,
    s: float,
    places: Tensor | None,
    for_A: bool,
    for_B: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dA = uᵀ·x_d and dB = s·dYᵀ·t, in the factors' dtypes; t again where it was not kept, or where this is differentiated."""
    again = for_B and (t is None or torch.is_grad_enabled())
    if again and x is None:
        raise LayerError(INPUT_NOT_KEPT)
    x_d = dropout.zeroed(x, places) if x is not None and (for_A or again) else None
    if again and x_d is not None:
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
    """W·x + b + scaling·B·A·dropout(x), as `reference.lora_linear`, computed in the dtype of x."""
    (k, d), x_2 = W.shape, rows(x)
    effective = slices is None and not p and x.dtype not in LOW and len(x_2) * (d + k) > 2 * d * k
    how = Step(scaling / (1 - p), effective, onednn and x.dtype == W.dtype == torch.float32)
    if not torch.is_grad_enabled():
        y, _ = forward(x_2, W, b, A, block_diagonal(B, slices) if slices else B, how, dropout.draw(x_2, p)[1])
        return like(x, y)
    y = _Linear.apply(x_2, W, b, A, B, p, slices, how)  # type: ignore[no-untyped-call]
    return like(x, y)


class _Update(torch.autograd.Function):
    """y (n, k) + scaling·B·A·dropout(x) for x (n, d), both of one dtype."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float) -> Tensor:
        kept, places = dropout.draw(x, p)
        t = shrink(dropout.zeroed(x, places), A.to(x.dtype))  # (n, r)
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, A, B, t if ctx.needs_input_grad[3] else None, kept)
        ctx.s = scaling / (1 - p)
        return torch.addmm(y, t, B.to(x.dtype).t(), alpha=ctx.s)

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, t, kept = ctx.saved_tensors
        s, places, (for_y, for_x, for_A, for_B, *_) = ctx.s, dropout.places(kept), ctx.needs_input_grad
        dY = dY.contiguous()
        u = expanded_back(dY, B, s)
        dX = dropout.zero_(u @ A.to(dY.dtype), places) if for_x else None
        dA, dB = factor_gradients(dY, x, t, u, A, B, s, places, for_A, for_B)
        return (dY if for_y else None, dX, dA, dB, None, None)


def add_linear_update(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float = 0.0, slices: Slices | None = None
) -> Tensor:
    """y + scaling·B·A·dropout(x), as `reference.add_linear_update`, for y and x of one dtype."""
    B = B if slices is None else block_diagonal(B, slices)
    added: Tensor = _Update.apply(rows(y), rows(x), A, B, scaling, p)  # type: ignore[no-untyped-call]
    return like(y, added)


def of_blocks(full: Tensor, r: int, slices: Slices) -> Tensor:
    """The blocks of a matrix laid out as by `reference.block_diagonal`, one below the other (Σ enabled widths, r)."""
    i, blocks = 0, []
    for part, on in zip(full.split(slices.widths), slices.enabled, strict=True):
        if on:
            blocks.append(part[:, i * r : (i + 1) * r])
            i += 1
    return torch.cat(blocks)
