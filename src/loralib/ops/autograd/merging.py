"""Merging an update into a weight."""

import torch
from torch import Tensor

_BLOCK = 1 << 20  # elements of W that are merged at a time: a block stays in the cache


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
