"""Rows that are sorted by the expert they are sent to, and each expert's matrix with its update.

    y[i] = x[i]·W[e] + s·x[i]·L[e]·R[e]        for the rows i of expert e, ends[e - 1] ≤ i < ends[e]

    x (S, d)    rows            W (E, d, k)    the base's matrices, frozen        ends (E)    where each expert's rows end
    y (S, k)                    L (E, d, r)    R (E, r, k)                        rows behind the last end give zeros

L or R may be (1, …): shared by all experts. `reference` says what is computed; `lora_experts` computes it in one loop, without
what autograd would keep of each expert. Only the rows are multiplied with L and R: ΔW is never formed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import without_autocast
from .autograd import dropout
from .autograd.gemm import LOW

Ends = Sequence[int]


def reference(x: Tensor, W: Tensor, L: Tensor, R: Tensor, ends: Ends, scaling: float, p: float = 0.0) -> Tensor:
    """The formula, expert by expert, with dropout on the input of the update.

    >>> x, W, L, R = torch.ones(3, 2), torch.zeros(2, 2, 1), torch.ones(2, 2, 1), torch.tensor([[[1.0]], [[5.0]]])
    >>> reference(x, W, L, R, [1, 3], scaling=0.5).flatten()
    tensor([1., 5., 5.])
    """
    return _plain(x, F.dropout(x, p), W, L, R, ends, scaling)


def _plain(x: Tensor, dropped: Tensor, W: Tensor, L: Tensor, R: Tensor, ends: Ends, scaling: float) -> Tensor:
    parts, E = [], len(ends)
    matrices = zip(W.unbind(0), L.expand(E, -1, -1).unbind(0), R.expand(E, -1, -1).unbind(0), strict=True)
    for (start, stop), (W_e, L_e, R_e) in zip(_groups(ends), matrices, strict=True):
        t = dropped[start:stop] @ L_e.to(x.dtype)  # (n, r)
        parts.append(x[start:stop] @ W_e + (t * scaling) @ R_e.to(x.dtype))
    behind = x.shape[0] - ends[-1]
    return torch.cat([*parts, x.new_zeros(behind, W.shape[2])])


def _groups(ends: Ends) -> list[tuple[int, int]]:
    """The first row of each expert, and the one behind its last."""
    return list(zip([0, *ends[:-1]], ends, strict=True))


def lora_experts(x: Tensor, W: Tensor, L: Tensor, R: Tensor, ends: Ends, scaling: float, p: float = 0.0) -> Tensor:
    """`reference`, in one autograd node. The gradient of W is not computed."""
    y: Tensor = _Experts.apply(x, W, L, R, tuple(ends), scaling, p)  # type: ignore[no-untyped-call]
    return y


class _Experts(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, W: Tensor, L: Tensor, R: Tensor, ends: Ends, scaling: float, p: float) -> Tensor:
        kept, places = dropout.draw(x, p)
        dropped, s = dropout.zeroed(x, places), scaling / (1 - p)
        y, t = x.new_empty(len(x), W.shape[2]), x.new_empty(len(x), L.shape[2])
        for e, (start, stop) in _with_rows(ends):
            X, T, Y, R_e = x[start:stop], t[start:stop], y[start:stop], _of(R, e, x)
            torch.mm(dropped[start:stop], _of(L, e, x), out=T)
            if x.dtype in LOW:  # the update first: the big product accumulates onto it in float32, and rounds once
                torch.addmm(torch.mm(T * s, R_e), X, W[e], out=Y)
            else:
                torch.mm(X, W[e], out=Y).addmm_(T, R_e, alpha=s)
        y[ends[-1] :].zero_()
        ctx.save_for_backward(x, W, L, R, t, kept)
        ctx.of = ends, scaling, p
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        x, W, L, R, t, kept = ctx.saved_tensors
        ends, scaling, p = ctx.of
        places = dropout.places(kept)
        if torch.is_grad_enabled():  # to be differentiated again
            return *_again(x, W, L, R, ends, scaling / (1 - p), places, dY, ctx.needs_input_grad), None, None, None
        s, (for_x, _, for_L, for_R, *_) = scaling / (1 - p), ctx.needs_input_grad
        dropped = dropout.zeroed(x, places)
        dX = torch.empty_like(x) if for_x else None
        of_update = torch.empty_like(x) if for_x and places is not None else dX
        dL, dR = (torch.zeros_like(m, dtype=x.dtype) if on else None for m, on in ((L, for_L), (R, for_R)))
        for e, (start, stop) in _with_rows(ends):
            G, X, T = dY[start:stop], dropped[start:stop], t[start:stop]
            U = torch.mm(G, _of(R, e, x).t()).mul_(s)  # (n, r)
            if dX is not None and of_update is not None:
                torch.mm(G, W[e].t(), out=dX[start:stop])
                if of_update is dX:
                    dX[start:stop].addmm_(U, _of(L, e, x).t())
                else:
                    torch.mm(U, _of(L, e, x).t(), out=of_update[start:stop])
            if dL is not None:
                dL[e % len(L)].addmm_(X.t(), U)
            if dR is not None:
                dR[e % len(R)].addmm_(T.t(), G, alpha=s)
        if dX is not None and of_update is not None:
            dX[ends[-1] :].zero_()
            if of_update is not dX:
                of_update[ends[-1] :].zero_()
                dX += dropout.zero_(of_update, places)
        return dX, None, _like(dL, L), _like(dR, R), None, None, None


def _with_rows(ends: Ends) -> list[tuple[int, tuple[int, int]]]:
    """The experts that have rows, and which."""
    return [(e, rows) for e, rows in enumerate(_groups(ends)) if rows[0] < rows[1]]


def _of(factors: Tensor, e: int, x: Tensor) -> Tensor:
    """The factor of expert `e`, in the dtype of x."""
    return factors[e % len(factors)].to(x.dtype)


def _like(gradient: Tensor | None, factors: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(factors.dtype)


def _again(
    x: Tensor, W: Tensor, L: Tensor, R: Tensor, ends: Ends, s: float, places: Tensor | None, dY: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of x, W (none), L and R, as functions of all of them."""
    inputs = [tensor for tensor, on in ((x, needed[0]), (L, needed[2]), (R, needed[3])) if on]
    with torch.enable_grad():
        y = _plain(x, dropout.zeroed(x, places), W, L, R, ends, s)
        found = iter(torch.autograd.grad(y, inputs, dY, create_graph=True))
    return [next(found) if on else None for on in (needed[0], False, needed[2], needed[3])]
