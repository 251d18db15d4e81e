"""Steps of an operation, forward and backward: their results, how exact these are, and what is kept in between."""

import torch
from torch import Tensor, nn

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LOW = [torch.bfloat16, torch.float16]


def step(operation, tensors: dict[str, Tensor | None], *args, **options) -> list[Tensor]:
    """The output and the gradients of its weighted sum."""
    tensors = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()}
    y = operation(*tensors.values(), *args, **options)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    (y * weights).sum().backward()
    return [y.detach(), *(t.grad for t in tensors.values() if t is not None)]


def as_good(computed: list[Tensor], plain: list[Tensor], exact: list[Tensor]) -> bool:
    """Whether each result is at most twice as far from the exact one as the plain formula's is, up to one rounding of a
    low precision, or some of a high one (in which both are nearly exact)."""
    for mine, theirs, true in zip(computed, plain, exact, strict=True):
        roundings = 1 if theirs.dtype in LOW else 64
        slack = roundings * torch.finfo(theirs.dtype).eps * (1 + true.abs().max())
        mine_off, theirs_off = ((t.double() - true).abs().max() for t in (mine, theirs))
        if mine.dtype != theirs.dtype or mine_off > 2 * theirs_off + slack:
            return False
    return True


def doubled(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if t is None else t.detach().double() for name, t in tensors.items()}


def kept(compute) -> dict[torch.dtype, int]:
    """How many elements of each dtype the graph of `compute()` keeps, parameters not counted, each storage once."""
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    total: dict[torch.dtype, int] = {}
    for tensor in seen.values():
        total[tensor.dtype] = total.get(tensor.dtype, 0) + tensor.numel()
    return total
