"""The specification: LoRA's arithmetic on tensors in the plainest torch.

    y' = y + s·(x·Aᵀ)·Bᵀ          W' = W + ΔW,   ΔW = s·B·A

n tokens (any leading dimensions), d in, k out, r rank: x (..., d), y (..., k), A (r, d), B (k, r), W (k, d). What the other
kinds of layers change about this is documented at their functions.
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


class Slices(NamedTuple):
    """The slices of a fused projection's output: their widths, and which of them have factors of their own.

    For n enabled slices A (n·r, d) stacks their first factors, B (Σ enabled widths, r) their second ones.
    """

    widths: tuple[int, ...]
    enabled: tuple[bool, ...]

    @property
    def chosen(self) -> list[int]:
        """The widths of the enabled slices."""
        return [width for width, on in zip(self.widths, self.enabled, strict=True) if on]


class Strip(NamedTuple):
    """A product L·R, L (m, R) and R (R, n), that is added to the block of a matrix which begins at (row, column)."""

    row: int
    column: int
    L: Tensor
    R: Tensor


# --- forward --------------------------------------------------------------------------------------------------------


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
    """W·x + b + scaling·B·A·dropout(x) (paper, equation 3). Shapes: x (..., d), W (k, d), A (r, d), B (k, r), result (..., k).

    >>> x, W, A, B = torch.ones(3, 4), torch.ones(2, 4), torch.ones(1, 4), torch.ones(2, 1)
    >>> lora_linear(x, W, None, A, B, 0.5)[0]
    tensor([6., 6.])
    """
    return add_linear_update(F.linear(x, W, b), x, A, B, scaling, p, slices)


def add_linear_update(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, p: float = 0.0, slices: Slices | None = None
) -> Tensor:
    """y + scaling·B·A·dropout(x) in the dtype of `y`. Shapes: y (..., k), x (..., d), A (r, d), B (k, r).

    With `slices`, each enabled slice of y has factors of its own; ΔW is never formed.

    >>> x, A, B = torch.ones(1, 4), torch.ones(1, 4), torch.ones(2, 1)
    >>> add_linear_update(torch.zeros(1, 2), x, A, B, 0.5)
    tensor([[2., 2.]])
    >>> add_linear_update(torch.zeros(1, 5), x, A, B, 1.0, slices=Slices((3, 2), (False, True)))
    tensor([[0., 0., 0., 4., 4.]])
    """
    if slices is not None and not any(slices.enabled):
        return y
    t = F.linear(F.dropout(x, p) if p else x, cast(A, x.dtype))  # (..., r), or (..., n·r)
    if slices is None:
        return add_expanded(y, t, B, scaling)
    factors = iter(zip(t.split(B.shape[1], dim=-1), B.split(slices.chosen), strict=True))
    parts = zip(y.split(slices.widths, dim=-1), slices.enabled, strict=True)
    return torch.cat([add_expanded(part, *next(factors), scaling) if on else part for part, on in parts], dim=-1)


def add_expanded(y: Tensor, t: Tensor, B: Tensor, scaling: float) -> Tensor:
    """y + scaling·t·Bᵀ in the dtype of `y`, for t (..., r) that `A` has made of the input."""
    if torch.compiler.is_compiling():  # compilers forget an alpha: see `add_product`
        return y + cast(F.linear(t * scaling, cast(B, t.dtype)), y.dtype)
    return torch.add(y, cast(F.linear(t, cast(B, t.dtype)), y.dtype), alpha=scaling)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`. (Tensor.to takes a microsecond to find that there is nothing to do.)"""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


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


def add_product(C: Tensor, L: Tensor, R: Tensor, scaling: float) -> Tensor:
    """C + scaling·L·R. In a graph the scaling is multiplied first: inductor turns `addmm` into a sum with a product and back,
    and leaves alpha out, of `addmm` in some versions (pytorch#167313) and of sums in torch 2.13."""
    if torch.compiler.is_compiling():
        return torch.addmm(C, L * scaling, R)
    return torch.addmm(C, L, R, alpha=scaling)


def reshaped_sum(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """W + scaling·B·A reshaped to the shape of W, in at least float32 and rounded once: the weight of 0.1's convolutions."""
    wide = torch.promote_types(W.dtype, torch.promote_types(A.dtype, torch.float32))
    matrix = W.reshape(B.shape[0], A.shape[1]).to(wide)
    return add_product(matrix, B.to(wide), A.to(wide), scaling).to(W.dtype).view(W.shape)


# --- the effective weight -------------------------------------------------------------------------------------------


def linear_delta(A: Tensor, B: Tensor, scaling: float, slices: Slices | None = None) -> Tensor:
    """ΔW = scaling·B·A in at least float32, for A (r, *) and B (k, r, 1…): shape (k, *).

    With `slices` the product of each enabled slice is in its place, and the rest is zero.

    >>> linear_delta(torch.ones(2, 4, 3, 3), torch.ones(5, 2, 1, 1), 0.5).shape
    torch.Size([5, 4, 3, 3])
    """
    wide = torch.promote_types(A.dtype, torch.float32)
    if slices is None:
        delta: Tensor = (B.flatten(1).to(wide) @ A.flatten(1).to(wide)).unflatten(1, A.shape[1:]) * scaling
        return delta
    factors = iter(zip(A.split(B.shape[1]), B.split(slices.chosen), strict=True)) if any(slices.enabled) else iter(())
    rows = [
        linear_delta(*next(factors), scaling) if on else A.new_zeros(width, A.shape[1], dtype=wide)
        for width, on in zip(slices.widths, slices.enabled, strict=True)
    ]
    return torch.cat(rows)


def block_diagonal(B: Tensor, slices: Slices) -> Tensor:
    """The second factor (Σ widths, n·r) of all slices at once, for the stacked first one (n·r, d): zero where a slice does not
    see a first factor.

    >>> block_diagonal(torch.ones(2, 1), Slices((1, 2, 1), (True, False, True)))
    tensor([[1., 0.],
            [0., 0.],
            [0., 0.],
            [0., 1.]])
    """
    r = B.shape[1]
    parts = iter(B.split(slices.chosen))
    n, i, rows = sum(slices.enabled), 0, []
    for width, on in zip(slices.widths, slices.enabled, strict=True):
        rows.append(F.pad(next(parts), (i * r, (n - 1 - i) * r)) if on else B.new_zeros(width, n * r))
        i += on
    return torch.cat(rows)


def add_strips(W: Tensor, strips: Sequence[Strip], scaling: float) -> Tensor:
    """W + scaling·ΣL·R for strips that do not overlap: added in at least float32, and rounded once to the dtype of W (m, n).

    >>> add_strips(torch.zeros(3, 2), [Strip(1, 0, torch.ones(2, 1), torch.ones(1, 2))], 0.5)
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    wide = wide_dtype(W, strips)
    merged = W.to(wide)
    for row, column, L, R in strips:
        end, right = row + len(L), column + R.shape[1]
        rows = merged[row:end]
        block = add_product(rows[:, column:right], L.to(wide), R.to(wide), scaling)
        rows = block if block.shape == rows.shape else rows.slice_scatter(block, 1, column, right)
        merged = rows if rows.shape == merged.shape else merged.slice_scatter(rows, 0, row, end)
    return merged.to(W.dtype)


def wide_dtype(W: Tensor, strips: Sequence[Strip]) -> torch.dtype:
    """The dtype in which strips are added to `W`: at least float32."""
    dtype = torch.promote_types(W.dtype, torch.float32)
    for strip in strips:
        dtype = torch.promote_types(dtype, strip.L.dtype)
    return dtype
