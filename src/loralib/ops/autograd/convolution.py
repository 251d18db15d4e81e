"""One step of a convolution with its update: y = W ∗ x + b + s·B ∗ (A ∗ dropout(x)), B of kernel 1.

With t = A ∗ x and u = s·Bᵀ ∗ dY, both of only r channels: y += s·B ∗ t in place, dX = the convolution's own plus that of A from
u, dA from u and x, dB from dY and t. B, whose kernel is 1, is multiplied as a matrix. Saved for backward: x (for dA) and
t (for dB); nothing of y's size but y is made, so that the peak of memory is that of the convolution alone.
"""

from typing import Any

import torch
from torch import Tensor

from ...errors import LayerError
from ..eligibility import INPUT_NOT_KEPT
from ..reference import Geometry, convolve
from . import dropout


class _Convolution(torch.autograd.Function):
    """x (n, d, *), y (n, k, *), B (k, r, 1…). A: for all g groups, the weight of a convolution like the base's onto g·r
    channels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        p: float,
        geometry: Geometry,
    ) -> Tensor:
        W_, A_, B_ = (tensor.to(x.dtype) for tensor in (W, A, B.flatten(1)))
        y = convolve(x, W_, None if b is None else b.to(x.dtype), geometry)
        kept, places = dropout.draw(x, p)
        t = convolve(dropout.zeroed(x, places), A_, None, geometry)
        s = scaling / (1 - p)
        y = add_pointwise(y, t, B_, s, geometry.groups)
        _, for_W, _, for_A, for_B, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_W or for_A else None, W, A, B, t if for_B else None, kept)
        ctx.s, ctx.geometry, ctx.shape = s, geometry, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, t, kept = ctx.saved_tensors
        s, geometry, (for_x, for_W, for_b, for_A, for_B, *_) = ctx.s, ctx.geometry, ctx.needs_input_grad
        W_, A_, B_ = (tensor.to(dY.dtype) for tensor in (W, A, B.flatten(1)))
        places, again = dropout.places(kept), torch.is_grad_enabled()
        if again and for_B and x is None:
            raise LayerError(INPUT_NOT_KEPT)
        shaped = dY.new_empty(()).expand(ctx.shape) if x is None else x
        dX, dW, db = _gradients(dY, shaped, W_, geometry, for_x, for_W, for_b)
        x_d = dropout.zeroed(shaped, places) if for_A or (again and for_B) else shaped
        if again and for_B:
            t = convolve(x_d, A_, None, geometry)
        u = transposed_pointwise(dY, B_, s, geometry.groups)
        dX_A, dA, _ = _gradients(u, x_d, A_, geometry, for_x, for_A, False)
        if dX is not None and dX_A is not None:
            dX_A = dropout.zero_(dX_A.contiguous(), places) if places is not None else dX_A
            dX = dX + dX_A if again else dX.add_(dX_A)
        dB = None if t is None or not for_B else pointwise_gradient(dY, t, s, geometry.groups).to(B.dtype).view(B.shape)
        dW, dA = (None if grad is None else grad.to(of.dtype) for grad, of in ((dW, W), (dA, A)))
        return (dX, dW, db, dA, dB, None, None, None)


def _gradients(
    dY: Tensor, x: Tensor, W: Tensor, geometry: Geometry, for_x: bool, for_W: bool, for_b: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of a convolution's input, weight and bias, as far as they are wanted."""
    if not (for_x or for_W or for_b):
        return None, None, None
    biases = [dY.shape[1]] if for_b else None
    dX, dW, db = torch.ops.aten.convolution_backward(dY, x, W, biases, *geometry, [for_x, for_W, for_b])
    return dX, dW, db


# --- a convolution with kernel 1 is a product of matrices ------------------------------------------------------------


def _is_channels_last(y: Tensor, groups: int) -> bool:
    return groups == 1 and not y.is_contiguous() and y.movedim(1, -1).is_contiguous()


def _maps(y: Tensor, groups: int) -> Tensor:
    """y (n, g·c, *) as n·g matrices (c, positions)."""
    y = y.contiguous()
    return y.view(len(y) * groups, y.shape[1] // groups, y.shape[2:].numel())


def _pixels(y: Tensor) -> Tensor:
    """y (n, c, *) as one matrix (n·positions, c)."""
    return y.movedim(1, -1).reshape(len(y) * y.shape[2:].numel(), y.shape[1])


def _for_maps(B: Tensor, n: int, groups: int) -> Tensor:
    """B (k, r) for `_maps` of n inputs: (n·g, k / g, r)."""
    return B.view(1, groups, len(B) // groups, B.shape[1]).expand(n, -1, -1, -1).flatten(0, 1)


def add_pointwise(y: Tensor, t: Tensor, B: Tensor, s: float, groups: int) -> Tensor:
    """y + s·B ∗ t for y (n, k, *), t (n, g·r, *), in the place of y."""
    if _is_channels_last(y, groups):
        _pixels(y).addmm_(_pixels(t), B.t(), alpha=s)
        return y
    y = y.contiguous()
    _maps(y, groups).baddbmm_(_for_maps(B, len(y), groups), _maps(t, groups), alpha=s)
    return y


def transposed_pointwise(dY: Tensor, B: Tensor, s: float, groups: int) -> Tensor:
    """u = s·Bᵀ ∗ dY (n, g·r, *)."""
    n, _, *sizes = dY.shape
    if _is_channels_last(dY, groups):
        return ((_pixels(dY) @ B) * s).view(n, *sizes, B.shape[1]).movedim(-1, 1)
    u = torch.bmm(_for_maps(B, n, groups).transpose(1, 2), _maps(dY, groups))
    return (u * s).view(n, groups * B.shape[1], *sizes)


def pointwise_gradient(dY: Tensor, t: Tensor, s: float, groups: int) -> Tensor:
    """dB (k, r): the sum of s·dY·tᵀ over inputs and positions."""
    if _is_channels_last(dY, groups):
        return (_pixels(t).t() @ _pixels(dY)).t() * s
    of_each = torch.bmm(_maps(t, groups), _maps(dY, groups).transpose(1, 2))  # (n·g, r, k / g)
    total = of_each.view(len(dY), groups, *of_each.shape[1:]).sum(0) * s
    return total.transpose(1, 2).flatten(0, 1)


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
    """W ∗ x + b + scaling·B ∗ (A ∗ dropout(x)), as `reference.lora_convolution`; x (n, d, *) or (d, *)."""
    batch = x if x.dim() == W.dim() else x.unsqueeze(0)
    y: Tensor = _Convolution.apply(batch, W, b, A, B, scaling, p, geometry)  # type: ignore[no-untyped-call]
    return y if batch is x else y.squeeze(0)
