"""What keeps an update from making a weight W' = W + ΔW that is of any use: asked before anything is merged.

Factors must be finite, always. W' itself is looked at in float16 only, whose largest number is 65,504; in other dtypes finite
factors of any size that training finds give finite sums.
"""

import torch
from torch import Tensor

from .layout import Layout
from .updates import LoRAUpdate

_BEYOND = "numbers in it would be beyond 65504, where float16 ends; convert the model to bfloat16 or float32 first"


def not_finite(update: LoRAUpdate) -> str | None:
    """Which tensor of `update` holds NaN or infinity, or None.

    >>> not_finite(LoRAUpdate(torch.ones(1, 2), torch.tensor([[1.0], [torch.nan]]), lora_alpha=1))
    'its lora_B holds 1 number that is not finite, of 2'
    """
    found = (not_finite_tensor(f"its {name}", tensor) for name, tensor in update.tensors().items())
    return next(filter(None, found), None)


def not_finite_tensor(name: str, tensor: Tensor) -> str | None:
    """How many numbers of `tensor`, which a message calls `name`, are NaN or infinite; None when there are none."""
    if tensor.is_meta or (finite := tensor.isfinite()).all():
        return None
    count = tensor.numel() - int(finite.sum())
    numbers = "1 number that is" if count == 1 else f"{count} numbers that are"
    return f"{name} holds {numbers} not finite, of {tensor.numel()}"


def overflowed(before: Tensor, after: Tensor) -> str | None:
    """What happened to numbers of `before` that are too large for the dtype of `after`, float16; None where nothing did."""
    if after.dtype != torch.float16 or after.isfinite().all() or not before.isfinite().all():
        return None
    return _BEYOND


def merge_problem(update: LoRAUpdate, W: Tensor, layout: Layout) -> str | None:
    """Why `update` cannot be merged into the stored weight `W`, or None."""
    devices = {"the weight": W.device, **{name: tensor.device for name, tensor in update.tensors().items()}}
    if len(set(devices.values())) > 1:
        return "its tensors are on different devices: " + ", ".join(f"{name} on {device}" for name, device in devices.items())
    fitting = layout.stored_shape(update.canonical_shape)
    if fitting != tuple(W.shape):
        return f"its weight has shape {tuple(W.shape)}, and its update is for {fitting}"
    return not_finite(update) or _overflow(update, W, layout)


def _overflow(update: LoRAUpdate, W: Tensor, layout: Layout) -> str | None:
    """Why a finite float16 weight would not be finite afterwards, or None: W' is computed where a bound of it is too large."""
    W, update = W.detach(), update.with_tensors({name: tensor.detach() for name, tensor in update.tensors().items()})
    if W.dtype != torch.float16 or W.is_meta or not W.numel():
        return None
    rows, columns = (torch.linalg.vector_norm(t.float().flatten(1), dim=d).max() for t, d in ((update.B, 1), (update.A, 0)))
    largest = float(W.abs().max()) + abs(update.scaling) * float(rows * columns)
    if largest < torch.finfo(torch.float16).max:
        return None
    return overflowed(W, update.effective_weight(W, layout))
