"""A linear step with dropout for compilers, on the CPU: `autograd`'s, as operations that a graph calls whole.

The reference's dropout in a graph draws a number for every element of x. Here the graph draws one number, a seed, and both
passes draw the dropped places from it, by gaps: the shapes that a compiler sees do not depend on what is drawn. Not here: steps
without dropout, which compilers fuse well; other devices, whose compilers draw as they compute; and exported graphs, which are
read where these operations are unknown.
"""

from typing import Any

import torch
from torch import Tensor

from .autograd import dropout, linear
from .autograd.linear import Step
from .eligibility import ineligibility
from .matrices import like, rows

_PACKAGE = __name__.partition(".")[0]  # two versions in one process have operations of their own


def suits(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, p: float) -> bool:
    """Whether these operations compute a step that a compiler traces."""
    if not p or not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    fits = x.dtype == W.dtype or torch.is_autocast_enabled("cpu")
    return x.is_cpu and not W.requires_grad and fits and ineligibility(x, W, b, A, B) is None


def lora_linear(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, p: float) -> Tensor:
    """W·x + b + scaling·B·A·dropout(x), as `reference.lora_linear`, for a frozen W. A bias that is trained is added outside."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else W.dtype
    x = x.to(dtype)
    b = None if b is None else b.to(dtype)
    seed = torch.randint(1 << 62, (1,), device="cpu")
    trained = b is not None and b.requires_grad
    y, _ = _step(rows(x), W.to(dtype), None if trained else b, A.to(dtype), B.to(dtype), seed, scaling / (1 - p), p)
    y = like(x, y)
    return y + b if b is not None and trained else y


def _places(x: Tensor, seed: Tensor, p: float) -> Tensor | None:
    return dropout.draw(x, p, torch.Generator().manual_seed(int(seed)))[1]


@torch.library.custom_op(f"{_PACKAGE}::dropped_linear", mutates_args=())
def _step(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, seed: Tensor, s: float, p: float
) -> tuple[Tensor, Tensor]:
    """y (n, k) and t (n, r) for x (n, d)."""
    y, t = linear.forward(x, W, b, A, B, Step(s), _places(x, seed, p))
    assert t is not None
    return y, t.contiguous()


@_step.register_fake
def _(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, seed: Tensor, s: float, p: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(W)), x.new_empty(len(x), len(A))


@torch.library.custom_op(f"{_PACKAGE}::dropped_linear_backward", mutates_args=())
def _gradients(
    dY: Tensor,
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    t: Tensor,
    seed: Tensor,
    s: float,
    p: float,
    for_x: bool,
    for_A: bool,
    for_B: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dX, dA and dB, empty where they are not needed."""
    places, dY = _places(x, seed, p), dY.contiguous()
    u = linear.expanded_back(dY, B, s)
    dX = linear.input_gradient(dY, u, W, A, B, Step(s), places, False) if for_x else x.new_empty(0)
    dA, dB = linear.factor_gradients(dY, x, t, u, A, B, s, places, for_A, for_B)
    return dX, x.new_empty(0) if dA is None else dA.contiguous(), x.new_empty(0) if dB is None else dB.contiguous()


@_gradients.register_fake
def _(dY: Tensor, x: Tensor, W: Tensor, A: Tensor, B: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    wanted = zip(others[-3:], (x, A, B), strict=True)
    dX, dA, dB = (x.new_empty(tensor.shape if needed else (0,)) for needed, tensor in wanted)
    return dX, dA, dB


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, W, _, A, B, seed, s, p = inputs
    ctx.save_for_backward(x, W, A, B, output[1], seed)
    ctx.s, ctx.p = s, p


def _backward(ctx: Any, dY: Tensor, dt: Tensor | None) -> tuple[Tensor | None, ...]:
    x, W, A, B, t, seed = ctx.saved_tensors
    for_x, _, _, for_A, for_B, *_ = needed = ctx.needs_input_grad
    found = _gradients(dY, x, W, A, B, t, seed, ctx.s, ctx.p, for_x, for_A, for_B)
    dX, dA, dB = (gradient if on else None for gradient, on in zip(found, (needed[0], needed[3], needed[4]), strict=True))
    return dX, None, None, dA, dB, None, None, None


_step.register_autograd(_backward, setup_context=_keep)
