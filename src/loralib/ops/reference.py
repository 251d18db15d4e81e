"""The specification: LoRA's arithmetic on tensors in the plainest torch.

    y' = y + s·(x·Aᵀ)·Bᵀ          W' = W + s·B·A

n tokens (any leading dimensions), d in, k out, r rank: x (..., d), y (..., k), A (r, d), B (k, r), W (k, d).
Low-precision inputs stay as they are: only the small factors are cast, never x. No modules, no state, no choice of
implementation here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_linear_update(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """y + scaling·(x·Aᵀ)·Bᵀ in the dtype of `y` (paper, equation 3). Shapes: y (..., k), x (..., d), A (r, d), B (k, r).

    >>> x, A, B = torch.ones(3, 4), torch.ones(1, 4), torch.ones(2, 1)
    >>> add_linear_update(torch.zeros(3, 2), x, A, B, 0.5)[0]
    tensor([2., 2.])
    """
    t = F.linear(x, A.to(x.dtype)) * scaling  # (..., r)
    return y + F.linear(t, B.to(t.dtype)).to(y.dtype)


def linear_delta(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """ΔW = scaling·B·A, shape (k, d), in at least float32."""
    wide = torch.promote_types(A.dtype, torch.float32)
    return (B.to(wide) @ A.to(wide)) * scaling


def merge_delta(W: Tensor, delta: Tensor) -> Tensor:
    """W + ΔW, added in at least float32 and rounded once to the dtype of `W`.

    >>> merge_delta(torch.ones(2, 2, dtype=torch.bfloat16), torch.full((2, 2), 0.5)).dtype
    torch.bfloat16
    """
    return (W.to(torch.promote_types(W.dtype, delta.dtype)) + delta).to(W.dtype)
