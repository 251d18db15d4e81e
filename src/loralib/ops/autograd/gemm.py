"""Products with a big or a small matrix, in the order and by the kernel that measured fastest (docs/performance.md)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..onednn import product

LOW = (torch.bfloat16, torch.float16)

_LARGE = 1 << 21  # elements of a low-precision x from which the transposed order pays
_NARROW = 16  # rank up to which MKL's float32 product wants A with its rows contiguous
_FEW = 128  # rows of x below which copying A takes longer than it saves


def big(x: Tensor, W: Tensor, b: Tensor | None, onednn: bool) -> Tensor:
    """x·Wᵀ + b (..., k) for x (..., d) and a big W (k, d), by oneDNN's kernel where that is asked for."""
    return product(x, W, b) if onednn else F.linear(x, W, b)


def shrink(x: Tensor, A: Tensor, onednn: bool = False) -> Tensor:
    """x·Aᵀ (n, r) for x (n, d) and a small A (r, d)."""
    if onednn:
        return product(x, A.contiguous(), None)
    if x.device.type != "cpu" or len(x) < _FEW:
        return F.linear(x, A)
    if x.dtype in LOW:
        return (A @ x.t()).t() if x.numel() >= _LARGE else F.linear(x, A)
    return F.linear(x, A.contiguous()) if len(A) < _NARROW else x @ A.t().contiguous()
