"""Facts about torch tensors: what kind of tensor a weight is, and its bits; and arithmetic that autocast leaves alone."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

Kind = Literal["plain", "missing", "uninitialized", "quantized", "sharded", "partitioned", "wrapped", "offloaded"]

P = ParamSpec("P")
T = TypeVar("T")

_AUTOCAST = ("cpu", "cuda", "xpu", "mps", "hpu")  # the kinds of device that have it
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def kind(W: object) -> Kind:
    """What `W`, which ought to be a weight, is to someone who wants to compute with it.

    Returns:
        "plain", or why its values cannot simply be read and replaced: "missing" (not a tensor), "uninitialized" (a lazy
        module's), "sharded" (a DTensor), "partitioned" (by DeepSpeed's ZeRO-3, gathered at present or not), "quantized" (not
        made of floating-point numbers that torch computes with), "wrapped" (another subclass of tensors), "offloaded" (on the
        meta device).

    Example:
        >>> kind(torch.zeros(2)), kind(torch.zeros(2, dtype=torch.uint8)), kind(torch.zeros(2, device="meta")), kind(None)
        ('plain', 'quantized', 'offloaded', 'missing')
    """
    if not isinstance(W, Tensor):
        return "missing"
    if type(W) not in _PLAIN:
        return _kind_of_subclass(W)
    if not W.is_floating_point() or W.itemsize == 1:  # float8: torch stores it, and computes nothing with it
        return "quantized"
    if "ds_id" in vars(W):
        return "partitioned"
    return "offloaded" if W.is_meta else "plain"


def _kind_of_subclass(W: Tensor) -> Kind:
    if isinstance(W, UninitializedParameter):
        return "uninitialized"
    if type(W).__name__ == "DTensor":  # by name: torch.distributed.tensor takes long to import
        return "sharded"
    return "wrapped" if W.is_floating_point() else "quantized"


def quantizes_input(W: object) -> bool:
    """Whether `W` is a weight of torchao that quantizes what it is multiplied with as well; no gradient passes through that."""
    if not isinstance(W, Tensor) or not type(W).__module__.startswith("torchao."):
        return False
    fields = vars(W)
    dynamic = type(W).__name__ == "LinearActivationQuantizedTensor"  # of older versions
    return dynamic or any(fields.get(name) is not None for name in ("act_quant_kwargs", "activation_quantization"))


def factor_dtype(W: Tensor) -> torch.dtype:
    """The dtype of factors that are made for the weight `W`: at least float32."""
    return torch.promote_types(W.dtype, torch.float32) if kind(W) != "quantized" else torch.float32


def version(tensor: Tensor) -> int:
    """How often `tensor` was changed in place; -1 where torch does not count (tensors made in inference mode)."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


def same_memory(a: Tensor | None, b: Tensor) -> bool:
    """Whether `a` is `b`, or all of it by another object: what `detach` gives."""
    if a is b or a is None:
        return a is b
    try:
        return a.shape == b.shape and a.dtype == b.dtype and a.data_ptr() == b.data_ptr() != 0
    except RuntimeError:  # a tensor without memory of its own, such as those of torch.func.vmap
        return False


def same_bits(a: object, b: object) -> bool:
    """Whether two fields are equal; tensors are when dtype, shape and every bit are. Subclasses of tensors, whose bits cannot
    simply be read, are only equal to themselves."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if not (type(a) in _PLAIN and type(b) in _PLAIN):
            return a is b
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_bytes(a), as_bytes(b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def as_bytes(tensor: Tensor) -> Tensor:
    """The content of `tensor` as a row of bytes, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator: `function` computes in the dtypes of its tensors, whatever autocast is on around it.

    >>> @without_autocast
    ... def product(a, b):
    ...     return a @ b
    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     product(torch.ones(2, 2), torch.ones(2, 2)).dtype
    torch.float32
    """

    @functools.wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> T:
        kinds = [kind for kind in _AUTOCAST if torch.is_autocast_enabled(kind)]
        if not kinds:
            return function(*args, **kwargs)
        with ExitStack() as off:
            for kind in kinds:
                off.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return computed
