"""Facts about torch tensors: their bits."""

import torch
from torch import Tensor


def same_bits(a: object, b: object) -> bool:
    """Whether two fields are equal; tensors are when dtype, shape and every bit are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_bytes(a), as_bytes(b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def as_bytes(tensor: Tensor) -> Tensor:
    """What `tensor` holds as a row of bytes, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
