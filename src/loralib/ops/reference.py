"""The specification: LoRA's arithmetic on tensors in the plainest torch.

    y' = y + s·(x·Aᵀ)·Bᵀ          W' = W + ΔW,   ΔW = s·B·A

n tokens (any leading dimensions), d in, k out, r rank: x (..., d), y (..., k), A (r, d), B (k, r), W (k, d). What the other
kinds of layers change about this is said at their functions.
Low-precision inputs stay as they are: only the small factors are cast, never x. No modules, no state, no choice of
implementation here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Geometry(NamedTuple):
    """How a convolution slides, in the order in which torch's own `convolution` takes it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


# --- forward --------------------------------------------------------------------------------------------------------


def lora_linear(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, p: float = 0.0) -> Tensor:
    """W·x + b + scaling·B·A·dropout(x) (paper, equation 3). Shapes: x (..., d), W (k, d), A (r, d), B (k, r), result (..., k).

    >>> x, W, A, B = torch.ones(3, 4), torch.ones(2, 4), torch.ones(1, 4), torch.ones(2, 1)
    >>> lora_linear(x, W, None, A, B, 0.5)[0]
    tensor([6., 6.])
    """
    return add_linear_update(F.linear(x, W, b), x, A, B, scaling, p)


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
    """`lora_linear` for an output in slices of `widths`, each enabled one with an update of its own."""
    return add_merged_linear_update(F.linear(x, W, b), x, A, B, scaling, widths, enabled, p)


def add_linear_update(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float = 0.0) -> Tensor:
    """y + scaling·B·A·dropout(x) in the dtype of `y`. Shapes: y (..., k), x (..., d), A (r, d), B (k, r).

    >>> x, A, B = torch.ones(3, 4), torch.ones(1, 4), torch.ones(2, 1)
    >>> add_linear_update(torch.zeros(3, 2), x, A, B, 0.5)[0]
    tensor([2., 2.])
    """
    return add_expanded(y, F.linear(F.dropout(x, p), A.to(x.dtype)), B, scaling)


def add_expanded(y: Tensor, t: Tensor, B: Tensor, scaling: float) -> Tensor:
    """y + scaling·t·Bᵀ in the dtype of `y`, for t (..., r) that `A` has made of the input."""
    t = t * scaling
    return y + F.linear(t, B.to(t.dtype)).to(y.dtype)


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
    """`y` in slices of `widths`, each enabled one with an update of its own; ΔW is never formed.

    Shapes for n enabled slices: y (..., Σ widths), x (..., d), A (n·r, d), B (Σ enabled widths, r).

    >>> x, A, B = torch.ones(1, 4), torch.ones(1, 4), torch.ones(2, 1)
    >>> add_merged_linear_update(torch.zeros(1, 5), x, A, B, 1.0, widths=(3, 2), enabled=(False, True))
    tensor([[0., 0., 0., 4., 4.]])
    """
    if not any(enabled):
        return y
    chosen = [width for width, on in zip(widths, enabled, strict=True) if on]
    t = F.linear(F.dropout(x, p), A.to(x.dtype))  # (..., n·r)
    parts = iter(zip(t.split(B.shape[1], dim=-1), B.split(chosen), strict=True))
    slices = zip(y.split(list(widths), dim=-1), enabled, strict=True)
    return torch.cat([add_expanded(part, *next(parts), scaling) if on else part for part, on in slices], dim=-1)


def add_embedding_update(
    y: Tensor, ids: Tensor, A: Tensor, B: Tensor, scaling: float, keep: Tensor | None = None, by_frequency: bool = False
) -> Tensor:
    """y + scaling·Aᵀ[ids]·Bᵀ. Shapes: ids (...), y (..., k), A (r, V), B (k, r).

    keep (...): what each token's update is multiplied by. by_frequency: divide the gradient of a column of A by how often its
    token occurs.

    >>> A, B = torch.tensor([[1.0, 2.0]]), torch.ones(3, 1)
    >>> add_embedding_update(torch.zeros(2, 3), torch.tensor([1, 0]), A, B, 1.0)
    tensor([[2., 2., 2.],
            [1., 1., 1.]])
    """
    t = F.embedding(ids, A.t(), scale_grad_by_freq=by_frequency)  # (..., r)
    if keep is not None:
        t = t * keep.unsqueeze(-1).to(t.dtype)
    return add_expanded(y, t, B, scaling)


def convolve(x: Tensor, W: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """W ∗ x + b. Shapes: x (n, d, *), W (k, d / groups, *) or, transposed, (d, k / groups, *), result (n, k, *)."""
    stride, padding, dilation, transposed, output_padding, groups = geometry
    if transposed:
        return _TRANSPOSED[W.dim() - 2](x, W, b, stride, padding, output_padding, groups, dilation)
    return _CONVOLUTIONS[W.dim() - 2](x, W, b, stride, padding, dilation, groups)


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
    """W ∗ x + b + scaling·B ∗ (A ∗ dropout(x)). A: for all groups, a weight like W that makes groups·r channels of x;
    B (k, r, 1…) makes k channels of those."""
    t = convolve(F.dropout(x, p), A.to(x.dtype), None, geometry)
    return add_pointwise(convolve(x, W, b, geometry), t, B, scaling, geometry.groups)


def add_pointwise(y: Tensor, t: Tensor, B: Tensor, scaling: float, groups: int = 1) -> Tensor:
    """y + scaling·(B ∗ t), B a convolution of kernel 1. Shapes: y (n, k, *), t (n, groups·r, *), B (k, r, 1…)."""
    update = _CONVOLUTIONS[B.dim() - 2](t * scaling, B.to(t.dtype), groups=groups)
    return y + update.to(y.dtype)


# --- the effective weight -------------------------------------------------------------------------------------------


def linear_delta(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """ΔW = scaling·B·A in at least float32, for A (r, *) and B (k, r, 1…): shape (k, *).

    >>> linear_delta(torch.ones(2, 4, 3, 3), torch.ones(5, 2, 1, 1), 0.5).shape
    torch.Size([5, 4, 3, 3])
    """
    wide = torch.promote_types(A.dtype, torch.float32)
    delta: Tensor = (B.flatten(1).to(wide) @ A.flatten(1).to(wide)).unflatten(1, A.shape[1:]) * scaling
    return delta


def merged_linear_delta(A: Tensor, B: Tensor, scaling: float, widths: Sequence[int], enabled: Sequence[bool]) -> Tensor:
    """ΔW (Σ widths, d) in at least float32: the product of each enabled slice in its place, zero elsewhere."""
    chosen = [width for width, on in zip(widths, enabled, strict=True) if on]
    if not chosen:
        return A.new_zeros(sum(widths), A.shape[1], dtype=torch.promote_types(A.dtype, torch.float32))
    products = iter([linear_delta(a, b, scaling) for a, b in zip(A.split(B.shape[1]), B.split(chosen), strict=True)])
    zero = A.new_zeros(0, A.shape[1], dtype=torch.promote_types(A.dtype, torch.float32))
    rows = [next(products) if on else zero.new_zeros(width, A.shape[1]) for width, on in zip(widths, enabled, strict=True)]
    return torch.cat([zero, *rows])


def block_diagonal(B: Tensor, widths: Sequence[int], enabled: Sequence[bool]) -> Tensor:
    """The second factor (Σ widths, n·r) of all slices at once, for the stacked first one (n·r, d): zero where a slice does not
    see a first factor.

    >>> block_diagonal(torch.ones(2, 1), widths=(1, 2, 1), enabled=(True, False, True))
    tensor([[1., 0.],
            [0., 0.],
            [0., 0.],
            [0., 1.]])
    """
    r = B.shape[1]
    parts = iter(B.split([width for width, on in zip(widths, enabled, strict=True) if on]))
    n, i, rows = sum(enabled), 0, []
    for width, on in zip(widths, enabled, strict=True):
        rows.append(F.pad(next(parts), (i * r, (n - 1 - i) * r)) if on else B.new_zeros(width, n * r))
        i += on
    return torch.cat(rows)


def merge_linear(W: Tensor, A: Tensor, B: Tensor, scaling: float, transposed: bool = False) -> Tensor:
    """W + scaling·B·A in the dtype of W (k, d), or W + scaling·(B·A)ᵀ for a W that is stored as (d, k)."""
    left, right = (A.t(), B.t()) if transposed else (B, A)
    wide = torch.promote_types(W.dtype, torch.promote_types(A.dtype, torch.float32))
    return torch.addmm(W.to(wide), left.to(wide), right.to(wide), alpha=scaling).to(W.dtype)


def merge_delta(W: Tensor, delta: Tensor) -> Tensor:
    """W + ΔW, added in at least float32 and rounded once to the dtype of `W`.

    >>> merge_delta(torch.ones(2, 2, dtype=torch.bfloat16), torch.full((2, 2), 0.5)).dtype
    torch.bfloat16
    """
    return (W.to(torch.promote_types(W.dtype, delta.dtype)) + delta).to(W.dtype)
