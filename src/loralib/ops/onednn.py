"""Frozen float32 products on the CPU by oneDNN's kernel instead of torch's default, MKL's, which is half as fast on some
processors (AMD's Zen 5, say) and as fast or faster on others: `measured` finds out.

`Frozen` is for all other layers what `autograd` does for those with an update: while it is entered, a linear layer whose weight
is not trained computes its output and the gradient of its input by `product`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .eligibility import ineligibility
from .matrices import like, rows


def available() -> bool:
    """Whether this build of torch has the kernel."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """x·Wᵀ + b (..., k) for float32 x (..., d), W (k, d)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), W, b, "none", [], "")
    return y


class _Product(torch.autograd.Function):
    """x·Wᵀ + b (n, k) for x (n, d) and a W without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(W.t())  # as torch's product keeps it, which recomputes checkpoints: there the mode is off
        return product(x, W, b)

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        (Wt,) = ctx.saved_tensors
        for_x, _, for_b = ctx.needs_input_grad
        dX = db = None
        if for_x:
            dX = dY @ Wt.t() if torch.is_grad_enabled() else product(dY, Wt, None)
        if for_b:
            db = dY.sum(0)
        return dX, None, db


class Frozen(TorchFunctionMode):
    """Inside the block, in this thread and while `wanted()`, `F.linear` and `torch.addmm` with a frozen float32 weight on the
    CPU take `product`."""

    def __init__(self, wanted: Callable[[], bool]):
        super().__init__()
        self.wanted = wanted

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute `func`, differently where it is one of those."""
        kwargs = kwargs or {}
        if func is F.linear and 2 <= len(args) + len(kwargs) <= 3 and self.wanted():
            x, W, b = _arguments(("input", "weight", "bias"), args, kwargs)
            if _suits(x, W, b):
                return like(x, _Product.apply(rows(x), W, b))  # type: ignore[no-untyped-call]
        elif func is torch.addmm and len(args) == 3 and not kwargs and self.wanted():  # as transformers' Conv1D calls it
            b, x, W = args
            if isinstance(W, Tensor) and W.dim() == 2 and _suits(x, W.t(), b):
                return _Product.apply(x, W.t(), b)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def _arguments(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Positional and named arguments in the order of `names`; None for a missing one."""
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given.get(name) for name in names]


def _suits(x: Any, W: Any, b: Any) -> bool:
    """Whether these are a product that `_Product` computes as torch would."""
    tensors = [x, W] if b is None else [x, W, b]
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch.is_autocast_enabled("cpu"):
        return False
    if not all(isinstance(tensor, Tensor) for tensor in tensors) or ineligibility(*tensors) is not None:
        return False
    frozen = not (W.requires_grad and torch.is_grad_enabled())
    plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel() for tensor in tensors)
    fits = x.dim() >= 2 and W.dim() == 2 and x.shape[-1] == W.shape[1] and (b is None or b.shape == W.shape[:1])
    return frozen and plain and fits
