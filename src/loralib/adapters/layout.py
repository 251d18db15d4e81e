"""How a layer stores its weight, next to the canonical layout (out, in / groups, *kernel) in which updates are written.

    linear layers, convolutions, bilinear layers     stored as they are
    transformers' Conv1D, `fan_in_fan_out`           (in, out)
    experts                                          (E, out, in), or (E, in, out)
    embeddings                                       (V, k): inputs are rows
    transposed convolutions with g groups            (in, out / g, *kernel)
    a projection in a packed weight                  rows of a larger tensor

A layer says its layout, and so does a checkpoint for the tensor that it holds; `LoRAUpdate.effective_weight` takes either.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The layout of a stored weight.

    Attributes:
        transposed: Whether a matrix, or each expert's, is stored as (in, out).
        deconvolution: The groups of a transposed convolution; 0 for every other layer.
        start: The first row of the stored tensor that belongs to the layer.
        rows: How many rows belong to it; None for all of them.

    Example:
        >>> import torch
        >>> Layout(transposed=True).to_canonical(torch.zeros(3, 5)).shape
        torch.Size([5, 3])
        >>> Layout(start=5, rows=5).to_canonical(torch.zeros(15, 4)).shape
        torch.Size([5, 4])
    """

    transposed: bool = False
    deconvolution: int = 0
    start: int = 0
    rows: int | None = None

    def part(self, W: Tensor) -> Tensor:
        """The rows of the stored tensor `W` that belong to the layer."""
        return W if self.rows is None else W[self.start : self.start + self.rows]

    def to_canonical(self, W: Tensor) -> Tensor:
        """The layer's weight (out, in / groups, *kernel) in the stored tensor `W`; a view where that is possible."""
        W = self.part(W)
        if self.deconvolution:
            W = W.unflatten(0, (self.deconvolution, -1)).transpose(1, 2).flatten(0, 1)
        return W.transpose(-2, -1) if self.transposed else W

    def from_canonical(self, W: Tensor) -> Tensor:
        """The inverse of `to_canonical`, for the layer's own rows."""
        if self.transposed:
            return W.transpose(-2, -1)
        if self.deconvolution:
            W = W.unflatten(0, (self.deconvolution, -1)).transpose(1, 2).flatten(0, 1)
        return W

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How the layer's own rows are shaped where its weight has the canonical `shape`.

        >>> Layout(deconvolution=2).stored_shape((6, 4, 3))
        (8, 3, 3)
        """
        return tuple(self.from_canonical(torch.empty(shape, device="meta")).shape)
