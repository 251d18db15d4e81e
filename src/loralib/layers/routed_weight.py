"""The weight of a mixture's experts during one forward pass: a tensor that multiplies with its update.

A mixture's own forward knows how its rows are routed: it takes one expert's matrix after the other, gathers one for each row,
or multiplies rows that are sorted by expert. `RoutedWeight` stands in the place of its 3-D weight meanwhile, and follows what
is done with it:

    W[e], W[ids], W.unbind(0), W.transpose(1, 2)      the same of W and of the factors
    x @ W, W @ x, F.linear, bmm, grouped products     the base's product, and s·L·R applied to the same rows

So the rows are multiplied with the factors and with nothing more, and any implementation of a mixture works. Anything else
that is done with the weight is done with the effective one, W + s·L·R of all experts; with dropout, which acts on rows only,
it is an error.

L (E, a, r) and R (E, r, b) are the factors of the weight as it is stored, (E, a, b); (1, …) where all experts share one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from .. import ops
from ..errors import LayerError
from .dropout import Dropout, probability


class RoutedWeight(Tensor):
    """A weight W, and the factors of its update."""

    W: Tensor
    L: Tensor
    R: Tensor
    scaling: float
    dropout: Dropout
    parts: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None

    @staticmethod
    def of(W: Tensor, L: Tensor, R: Tensor, scaling: float, dropout: Dropout) -> "RoutedWeight":
        """`W` with its update."""
        made = W.as_subclass(RoutedWeight)
        made.W, made.L, made.R, made.scaling, made.dropout, made.parts = W, L, R, scaling, dropout, None
        return made

    def like(self, W: Tensor, L: Tensor, R: Tensor) -> "RoutedWeight":
        """Other tensors with the same scaling and dropout."""
        return RoutedWeight.of(W, L, R, self.scaling, self.dropout)

    def apart(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The factors of each expert. They are taken apart once, so that their gradients are put together once."""
        if self.parts is None:
            self.parts = self.L.unbind(0), self.R.unbind(0)
        return self.parts

    def effective(self) -> Tensor:
        """W + s·L·R, computed in at least float32 and rounded once."""
        wide = torch.promote_types(torch.promote_types(self.W.dtype, self.L.dtype), torch.float32)
        changed: Tensor = self.W.to(wide) + self.scaling * torch.matmul(self.L.to(wide), self.R.to(wide))
        return changed.to(self.W.dtype)

    def drops(self) -> bool:
        """Whether dropout acts on the input of the update."""
        return probability(self.dropout) != 0.0

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What `func` is with the update."""
        kwargs = kwargs or {}
        if func in _FACTS:
            return func(_base(args[0]), *args[1:], **kwargs)
        found = _FOLLOWED.get(func)
        follows = found is not None and all(name in _KEYWORDS.get(found, ()) for name in kwargs)
        result = found(func, *args, **kwargs) if found is not None and follows else NotImplemented
        return _by_effective_weight(func, args, kwargs) if result is NotImplemented else result

    def __deepcopy__(self, memo: Any) -> Self:
        raise LayerError("The weight of experts cannot be copied while they compute.")


def _base(x: Any) -> Any:
    return x.W if isinstance(x, RoutedWeight) else x


def _by_effective_weight(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `func` gives for the effective weight in the places of routed ones."""

    def effective(x: Any) -> Any:
        if not isinstance(x, RoutedWeight):
            return x
        if x.drops():
            raise LayerError(
                f"The experts compute with {getattr(func, '__name__', func)}, by which lora_dropout cannot act on their rows; "
                "set lora_dropout=0 for them."
            )
        return x.effective()

    return func(*tree_map(effective, tuple(args)), **tree_map(effective, dict(kwargs)))


# --- parts of the weight --------------------------------------------------------------------------------------------


def _item(func: Any, weight: RoutedWeight, index: Any) -> Any:
    """One expert's matrix, or one for each of a row of indices."""
    if weight.W.dim() != 3:
        return NotImplemented
    if isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool):
        e = int(index)
        L, R = weight.apart()
        return weight.like(weight.W[e], L[e % len(L)], R[e % len(R)])
    if isinstance(index, Tensor) and index.dim() == 1 and index.dtype in (torch.int64, torch.int32):
        return weight.like(weight.W[index], _gathered(weight.L, index), _gathered(weight.R, index))
    return NotImplemented


def _index_select(func: Any, weight: RoutedWeight, dim: int, index: Tensor) -> Any:
    return _item(func, weight, index) if dim == 0 else NotImplemented


def _gathered(factors: Tensor, index: Tensor) -> Tensor:
    return factors if len(factors) == 1 else factors[index]


def _unbind(func: Any, weight: RoutedWeight, dim: int = 0) -> Any:
    return tuple(_item(func, weight, e) for e in range(len(weight.W))) if dim == 0 and weight.W.dim() == 3 else NotImplemented


def _swapped(func: Any, weight: RoutedWeight, *dims: Any) -> Any:
    """The matrices transposed, if that is what `func` does."""
    n = weight.W.dim()
    if dims and {dim % n for dim in dims} != {n - 2, n - 1}:
        return NotImplemented
    return weight.like(weight.W.transpose(-2, -1), weight.R.transpose(-2, -1), weight.L.transpose(-2, -1))


def _reversed(func: Any, weight: RoutedWeight) -> Any:
    return _swapped(func, weight) if weight.W.dim() == 2 else NotImplemented


def _permuted(func: Any, weight: RoutedWeight, *dims: Any) -> Any:
    order = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return _swapped(func, weight) if order == ((1, 0) if weight.W.dim() == 2 else (0, 2, 1)) else NotImplemented


def _converted(func: Any, weight: RoutedWeight, *args: Any, **kwargs: Any) -> Any:
    return weight.like(func(weight.W, *args, **kwargs), weight.L, weight.R)


# --- products -------------------------------------------------------------------------------------------------------


def _linear(func: Any, x: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    """x·Wᵀ + b for one expert's matrix (k, d)."""
    if not isinstance(weight, RoutedWeight) or weight.W.dim() != 2 or isinstance(x, RoutedWeight):
        return NotImplemented
    return _one(x, weight.W, bias, weight.R, weight.L, weight)


def _one(x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, weight: RoutedWeight) -> Tensor:
    """x·Wᵀ + b + s·x·Aᵀ·Bᵀ."""
    p = probability(weight.dropout)
    if p is None:
        return ops.add_linear_update(F.linear(x, W, bias), weight.dropout(x), A, B, weight.scaling)
    return ops.lora_linear(x, W, bias, A, B, weight.scaling, p)


def _product(func: Any, first: Any, second: Any) -> Any:
    """x·W or W·x, of one expert or of many."""
    if isinstance(first, RoutedWeight) == isinstance(second, RoutedWeight):
        return NotImplemented
    if isinstance(second, RoutedWeight):
        x, weight = first, second
        if weight.W.dim() == 2 and x.dim() > 1:
            return _one(x, weight.W.t(), None, weight.L.t(), weight.R.t(), weight)
        dropped, W, L, R = weight.dropout(x), weight.W, *_factors(weight, x)
        return _sum(func(x, W), torch.matmul(torch.matmul(dropped, L), R), weight)
    x, weight = second, first
    dropped, W, L, R = weight.dropout(x), weight.W, *_factors(weight, x)
    return _sum(func(W, x), torch.matmul(L, torch.matmul(R, dropped)), weight)


def _factors(weight: RoutedWeight, x: Tensor) -> tuple[Tensor, Tensor]:
    return weight.L.to(x.dtype), weight.R.to(x.dtype)


def _sum(y: Tensor, update: Tensor, weight: RoutedWeight) -> Tensor:
    return y + (weight.scaling * update).to(y.dtype)


def _reversed_product(func: Any, weight: Any, x: Any) -> Any:
    """`x @ W`, of which Python asks W."""
    return _product(torch.matmul, x, weight)


def _grouped(func: Any, x: Any, weight: Any, offs: Tensor | None = None, **kwargs: Any) -> Any:
    """Rows sorted by expert, times each expert's matrix."""
    extra = any(value is not None for value in kwargs.values())
    if not isinstance(weight, RoutedWeight) or isinstance(x, RoutedWeight) or offs is None or x.dim() != 2 or extra:
        return NotImplemented
    W, (L, R), p = weight.W, _factors(weight, x), probability(weight.dropout)
    if p is not None and ops.loops_over_experts(x, W, L, R):
        return ops.lora_experts(x, W, L, R, offs.tolist(), weight.scaling, p)
    E = len(W)
    t = _any_rank(func, weight.dropout(x), L.expand(E, -1, -1), offs)
    return _sum(func(x, W, offs=offs), _any_rank(func, t, R.expand(E, -1, -1), offs), weight)


def _any_rank(func: Any, x: Tensor, factors: Tensor, offs: Tensor) -> Tensor:
    """A grouped product with a factor; the operation of torch wants rows of 16 bytes, to which it is filled with zeros."""
    unit = 16 // x.element_size()
    missing_in, missing_out = -factors.shape[1] % unit, -factors.shape[2] % unit
    if missing_in or missing_out:
        x, factors = F.pad(x, (0, missing_in)), F.pad(factors, (0, missing_out, 0, missing_in))
    y: Tensor = func(x, factors, offs=offs)
    return y[:, : y.shape[1] - missing_out] if missing_out else y


# fmt: off
_FACTS = {
    *(getattr(Tensor, name).__get__ for name in (
        "shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_meta", "is_leaf", "is_sparse",
        "is_quantized", "is_nested", "itemsize", "nbytes", "grad", "grad_fn",
    )),
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.__len__, Tensor.data_ptr, Tensor.is_contiguous,
    Tensor.element_size, Tensor.is_floating_point, Tensor.ndimension, Tensor.get_device, Tensor.storage_offset,
    torch.is_floating_point, torch.numel,
}
_FOLLOWED: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _item, Tensor.index_select: _index_select, torch.index_select: _index_select,
    Tensor.unbind: _unbind, torch.unbind: _unbind,
    Tensor.transpose: _swapped, torch.transpose: _swapped, Tensor.swapaxes: _swapped, torch.swapaxes: _swapped,
    Tensor.t: _swapped, torch.t: _swapped, Tensor.T.__get__: _reversed,  # type: ignore[attr-defined]
    Tensor.mT.__get__: _swapped,  # type: ignore[attr-defined]
    Tensor.permute: _permuted, torch.permute: _permuted,
    Tensor.to: _converted, Tensor.type: _converted, Tensor.float: _converted, Tensor.bfloat16: _converted,
    Tensor.half: _converted, Tensor.double: _converted, Tensor.contiguous: _converted, Tensor.type_as: _converted,
    F.linear: _linear,
    torch.matmul: _product, Tensor.matmul: _product, Tensor.__matmul__: _product, Tensor.__rmatmul__: _reversed_product,
    torch.mm: _product, Tensor.mm: _product, torch.bmm: _product, Tensor.bmm: _product,
    torch._grouped_mm: _grouped,
}
_KEYWORDS: dict[Any, tuple[str, ...]] = {  # arguments by name with which an operation is followed
    _linear: ("weight", "bias"), _grouped: ("offs", "bias", "out_dtype"),
    _converted: ("dtype", "device", "copy", "non_blocking", "memory_format"),
}
# fmt: on


def follow_grouped(operation: Any) -> None:
    """Take `operation(x, W, offs)` for a product of rows that are sorted by expert, too."""
    _FOLLOWED[operation] = _grouped
