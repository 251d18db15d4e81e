"""Inputs with any leading dimensions as matrices, and back: torch's functions of two dimensions do the work.

An autograd function takes and gives matrices and is reshaped outside: its output could not be modified in place, as a residual
`y += x` and `ReLU(inplace=True)` do, if it were a view that was made inside.
"""

import math

from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """`x` (..., d) as a matrix (n, d)."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def like(x: Tensor, y: Tensor) -> Tensor:
    """The matrix `y` (n, k) in the shape of `x` (..., d), as (..., k)."""
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])
