"""The update of an embedding, added in the place of what was looked up."""

from typing import Any

import torch
from torch import Tensor

from ..matrices import rows
from .gemm import shrink


class _Embedding(torch.autograd.Function):
    """y + s·Aᵀ[ids]·Bᵀ, in the place of y. `keep` (n) multiplies each token's update, `weight` (n) its part of dA."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, ids: Tensor, A: Tensor, B: Tensor, scaling: float, keep: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        t = _columns(A, ids, keep).to(y.dtype)  # (n, r)
        ctx.save_for_backward(ids, A, B, t if ctx.needs_input_grad[3] else None, keep, weight)
        ctx.scaling = scaling
        ctx.mark_dirty(y)
        y.view(len(t), len(B)).addmm_(t, B.to(y.dtype).t(), alpha=scaling)
        return y

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        ids, A, B, t, keep, weight = ctx.saved_tensors
        s, (for_y, _, for_A, for_B, *_) = ctx.scaling, ctx.needs_input_grad
        dY_2, dA, dB = rows(dY).contiguous(), None, None
        if for_A:
            u = (shrink(dY_2, B.to(dY.dtype).t()) * s).to(A.dtype)  # (n, r)
            for factor in (keep, weight):
                u = u if factor is None else u * factor.unsqueeze(-1)
            dA = u.new_zeros(A.shape).index_add_(1, ids, u.t())
        if for_B:
            if torch.is_grad_enabled():  # this is differentiated again
                t = _columns(A, ids, keep).to(dY.dtype)
            dB = ((t.t() @ dY_2).t() * s).to(B.dtype)
        return (dY if for_y else None, None, dA, dB, None, None, None)


def _columns(A: Tensor, ids: Tensor, keep: Tensor | None) -> Tensor:
    """Aᵀ[ids] (n, r), a row of it multiplied with its `keep`."""
    t = A.gather(1, ids.expand(len(A), -1)).t()
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
